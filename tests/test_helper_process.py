"""How a process becomes a domain's helper: what it checks before, and what it is then, on a host made of files."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
from fakes.host import Host
from walking import wait_until

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper import plans, process
from libvirt_rapl.helper.process import OWNER
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.helper.run_directory import Suffix
from libvirt_rapl.helper.vmsr.client import probe
from libvirt_rapl.helper.vmsr.protocol import ENERGY, POWER_INFO, POWER_UNIT
from libvirt_rapl.helper.vmsr.registers import Registers
from libvirt_rapl.host.requirements import check_processes_are_seen

UUID = str(uuid4())
FILES: dict[str, Suffix] = {"socket": "sock", "life": "alive", "state": "state"}
SYS_RAWIO = f"{1 << 17:016x}"
NONE = f"{0:016x}"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's privileges")


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A run directory with a short path."""
    with TemporaryDirectory() as directory:
        yield Registry(Path(directory))


def write(registry: Registry, **changes: Any) -> Record:  # noqa: ANN401
    values = {"name": "web1", "backend": "native", "owner_uid": 64055, "owner_gid": 993, "id": 7, "state": "ready"}
    record = Record(uuid=UUID, **{**values, **changes})
    registry.write(record)
    return record


@pytest.mark.parametrize(
    ("uuid", "record", "message"),
    [
        ("web1", {}, "not a UUID: 'web1'"),
        ("../../etc/passwd", {}, "not a UUID"),
        ("12345678-1234-1234-1234-123456789abc", {}, "no record of domain 1"),
        (None, {"reason": "timed out"}, "web1 was started without its helper: timed out"),
        (None, {}, "cannot read energy: no such register"),
    ],
)
def test_what_keeps_a_process_from_becoming_a_helper(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, uuid: str | None, record: dict[str, str], message: str
) -> None:
    def broken(_source: str) -> None:
        raise OSError("no such register")

    monkeypatch.setattr(plans, "find", broken)
    write(registry, **record)
    with pytest.raises(VirtRaplError, match=message) as caught:
        plans.become_helper(uuid or UUID, registry.run_directory, "auto")
    assert caught.value.hint


@pytest.mark.parametrize("backend", ["native", "qemu"])
def test_where_proc_hides_processes_there_is_no_helper(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    def hidden() -> None:
        raise VirtRaplError("hidepid")

    write(registry, backend=backend)
    monkeypatch.setattr(plans, "check_processes_are_seen", hidden)
    with pytest.raises(VirtRaplError, match="hidepid"):
        plans.become_helper(UUID, registry.run_directory, "auto")
    assert not registry.path(UUID, "sock").exists()


@pytest.mark.parametrize(
    ("options", "hidden"),
    [("rw", False), ("rw,hidepid=0", False), ("rw,hidepid=off", False), ("rw,hidepid=2", True)],
)
def test_whether_proc_hides_processes(tmp_path: Path, options: str, *, hidden: bool) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"20 1 0:18 / /sys rw - sysfs sys rw\n21 1 0:19 / /proc rw,nosuid shared:5 - proc proc {options}\n"
    )
    if hidden:
        with pytest.raises(VirtRaplError, match="hidepid"):
            check_processes_are_seen(mounts)
    else:
        check_processes_are_seen(mounts)


def test_where_no_socket_can_be_made(registry: Registry, tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0", 1_000_000)
    write(registry)
    registry.path(UUID, "sock").mkdir()
    done = subprocess.run(command(registry, host), stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"virt-rapl: error: cannot listen on {registry.path(UUID, 'sock')}: ")
    assert "\nhint: " in done.stderr


@needs_root
@pytest.mark.parametrize("change", ["others can read it", "it is another's", "it is a link"])
def test_a_plan_that_another_could_have_written_is_not_followed(registry: Registry, change: str) -> None:
    registry.create_directory()
    path = registry.path(UUID, "plan")
    path.write_text("6e")
    path.chmod(0o640 if change == "others can read it" else 0o600)
    if change == "it is another's":
        os.chown(path, 4321, -1)
    if change == "it is a link":
        path = path.rename(path.with_suffix(".log"))
        registry.path(UUID, "plan").symlink_to(path)
    done = subprocess.run(
        plans.command(str(registry.path(UUID, "plan"))), stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("virt-rapl: error: ")
    assert str(registry.path(UUID, "plan")) in done.stderr.splitlines()[0]


def test_a_plan_is_there_only_as_long_as_somebody_waits(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "find", lambda _source: Registers((), (), (), (1, 1)))
    record = write(registry)
    with contextlib.suppress(ZeroDivisionError), plans.written(record, registry, "auto", registry) as path:
        assert path == str(registry.path(UUID, "plan"))
        assert Path(path).stat().st_mode & 0o7777 == 0o600
        files = {what: registry.name(UUID, suffix) for what, suffix in FILES.items()}
        served = {"owner_uid": 64055, "machine": "7", "registers": ((), (), (), (1, 1))}
        assert process._read(path) == {**files, **served, "program": ""}
        raise ZeroDivisionError
    assert not Path(path).exists()


def test_a_process_waits_a_moment_for_its_plan(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a unit, which is started while the hook still finds out what to write."""
    monkeypatch.setattr(plans, "find", lambda _source: Registers((), (), (), (1, 1)))
    path = registry.path(UUID, "plan")
    with ThreadPoolExecutor() as other:
        plan = other.submit(process._read, str(path))
        with pytest.raises(TimeoutError):
            plan.result(0.1)
        with plans.written(write(registry), registry, "auto", registry):
            assert plan.result(20)["socket"] == registry.name(UUID, "sock")
    monkeypatch.setattr(process, "PLAN_SECONDS", 0.05)
    with pytest.raises(VirtRaplError, match="no plan"):
        process._read(str(path))


def test_what_a_confined_helper_imports_is_kept_compiled(tmp_path: Path) -> None:
    """It writes no files, and would have to compile it at each start."""
    script = "from libvirt_rapl.helper import plans; plans.keep_compiled()"
    written = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-X", f"pycache_prefix={tmp_path}", "-c", script], env=written, check=True)
    assert list(tmp_path.rglob("vmsr/serving.*.pyc"))


BECOME = """
import sys
from functools import partial
from pathlib import Path
from libvirt_rapl.helper import plans
from libvirt_rapl.helper.process import OWNER
uuid, run_directory, source, program, *trees = sys.argv[1:]
plans.find = partial(plans.find, **dict(zip(("sys", "dev", "proc"), map(Path, trees))))
plans.qemu_helper = lambda: program
plans.become_helper(uuid, Path(run_directory), source)
"""


def command(registry: Registry, host: Host, source: str = "auto", program: str = sys.executable) -> list[str]:
    """Make the command; `program` stands in for qemu-vmsr-helper."""
    trees = map(str, (host.sys, host.dev, host.proc))
    return [sys.executable, "-c", BECOME, UUID, str(registry.run_directory), source, program, *trees]


@needs_root
@pytest.mark.parametrize("source", ["msr", "powercap"])
def test_the_native_helper_serves_without_a_capability(registry: Registry, tmp_path: Path, source: str) -> None:
    """Registers are open before it gives up the one that this takes."""
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0", 1_000_000)
    for cpu in (0, 1):
        host.registers(cpu, {POWER_UNIT: 0xA0E03, ENERGY: 4711, POWER_INFO: 1})
    write(registry)
    path = registry.path(UUID, "sock")
    child = subprocess.Popen(command(registry, host, source), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: path.exists() or child.poll() is not None, 20, "it listens")
        assert path.stat().st_mode & 0o777 == 0o600, "until it is the domain's user's"
        probe(path, 20)
        status = Path(f"/proc/{child.pid}/status").read_text()
        held = dict(re.findall(r"^(Cap\w+|NoNewPrivs|Seccomp):\t(.*)$", status, re.MULTILINE))
        nothing = {"CapInh": NONE, "CapAmb": NONE, "NoNewPrivs": "1", "Seccomp": "2"}
        assert held == {**nothing, "CapPrm": NONE, "CapEff": NONE, "CapBnd": SYS_RAWIO}
        interpreter, *options = Path(f"/proc/{child.pid}/cmdline").read_text().rstrip("\0").split("\0")
        assert (interpreter, *options) == plans.command(str(registry.path(UUID, "plan")))
        assert options[:2] == ["-I", "-S"], "neither the environment nor a directory says what is imported"
        alive = registry.path(UUID, "alive").stat()
        assert (alive.st_uid, alive.st_mode & 0o777) == (0, 0o600)
    finally:
        child.terminate()
        assert child.wait(20) == 0
        assert child.stderr
        assert child.stderr.read() == b""


@needs_root
def test_the_sign_of_life_is_not_made_through_a_link(registry: Registry, tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0", 1_000_000)
    write(registry)
    registry.path(UUID, "alive").symlink_to(tmp_path / "elsewhere")
    done = subprocess.run(command(registry, host), stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    assert "Too many levels of symbolic links" in done.stderr
    assert not (tmp_path / "elsewhere").exists()


SHOW = """
import json, os, re, socket, threading
status = re.findall("^(CapPrm|CapBnd|NoNewPrivs|Seccomp):\\t(.*)$", open("/proc/self/status").read(), re.MULTILINE)
threading.Thread(target=len, args=[""]).start()
print(json.dumps([dict(os.environ), os.getpid(), dict(status), socket.socket(fileno=3).getsockname()]))
"""
"""What an interpreter in place of qemu-vmsr-helper, which takes no arguments, is to do."""


@needs_root
@pytest.mark.parametrize("by_hook", [True, False])
def test_qemus_helper_gets_the_socket_and_little_else(registry: Registry, tmp_path: Path, *, by_hook: bool) -> None:
    write(registry, backend="qemu")
    owner = {OWNER: UUID} if by_hook else {}
    done = subprocess.run(
        command(registry, Host(tmp_path)),
        env={**os.environ, "SECRET": "x", **owner},
        input=SHOW,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    environment, pid, status, name = json.loads(done.stdout)
    environment.pop("LC_CTYPE", None)  # Python's own
    assert environment == {"LISTEN_PID": str(pid), "LISTEN_FDS": "1", **owner}
    assert status == {"CapPrm": SYS_RAWIO, "CapBnd": SYS_RAWIO, "NoNewPrivs": "1", "Seccomp": "2"}
    assert name.startswith("/proc/self/fd/")
    assert registry.path(UUID, "sock").is_socket()


@needs_root
def test_qemus_helper_gets_the_socket_also_where_that_has_the_right_number_already(
    registry: Registry, tmp_path: Path
) -> None:
    """As where standard input is closed."""
    write(registry, backend="qemu")
    interpreter, option, become, *arguments = command(registry, Host(tmp_path), program="/bin/ls")
    prepared = [interpreter, option, f"import os; os.close(0)\n{become}", *arguments]
    done = subprocess.run(prepared, cwd="/proc/self/fd", capture_output=True, text=True, check=True)
    assert "3" in done.stdout.split()
