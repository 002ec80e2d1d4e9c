"""A native helper's process: what it may still do, what ends it, and what does not."""

import contextlib
import errno
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance import UUID, Instance, Rapl, answer, ask

import libvirt_rapl
from libvirt_rapl import systemd
from libvirt_rapl.choices import Backend
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper import instances
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.helper.vmsr.protocol import ENERGY, POWER_UNIT, REGISTERS, REQUEST
from libvirt_rapl.helper.vmsr.server import TICK_SECONDS
from libvirt_rapl.host.processes import start_time
from libvirt_rapl.host.requirements import check_processes_are_seen

pytestmark = pytest.mark.e2e

PACKAGE = Path(libvirt_rapl.__file__).parent
SYS_RAWIO = f"{1 << 17:016x}"
NONE = f"{0:016x}"


@pytest.fixture(scope="module")
def rapl() -> Iterator[Rapl]:
    with Rapl() as rapl:
        yield rapl


@pytest.fixture
def directory() -> Iterator[Path]:
    """A run directory with a path short enough for a socket address."""
    with tempfile.TemporaryDirectory(prefix="virt-rapl-") as directory:
        yield Path(directory)


@pytest.mark.parametrize(
    ("backend", "source", "permitted"),
    [("native", "auto", SYS_RAWIO), ("native", "powercap", NONE), ("qemu", "auto", SYS_RAWIO)],
)
def test_capabilities_are_given_up_for_good(
    rapl: Rapl, directory: Path, backend: str, source: str, permitted: str
) -> None:
    with Instance(rapl, directory, backend=backend, source=source) as instance:
        held = {name: instance.status(f"Cap{name}") for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
        assert held == {"Inh": NONE, "Prm": permitted, "Eff": permitted, "Bnd": SYS_RAWIO, "Amb": NONE}
        assert instance.status("NoNewPrivs") == "1"
        assert instance.status("Seccomp") == "2"
        limits = Path(f"/proc/{instance.pid}/limits").read_text()
        assert "Max core file size        0                    0" in limits


def test_it_needs_nothing_of_the_package_once_it_serves(rapl: Rapl, directory: Path, tmp_path: Path) -> None:
    """As when the package is upgraded, or removed, under a domain that runs."""
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("shipped"))
    runner = tmp_path / "virt-rapl"
    runner.write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from libvirt_rapl.cli import main; sys.exit(main())"
    )
    with Instance(rapl, directory, program=[sys.executable, str(runner)]) as instance:
        assert str(tmp_path) in Path(f"/proc/{instance.pid}/cmdline").read_text()
        shutil.rmtree(tmp_path)
        with instance.connect() as peer:
            assert ask(peer, ENERGY)
            assert ask(peer, ENERGY, cpu=4000) == 0
            assert ask(peer, ENERGY, tid=1) == 0
            assert ask(peer, 0x10) is None
        for data in (b"", b"half", os.urandom(4096)):
            with instance.connect() as peer:
                peer.sendall(data)
        (directory / f"{instance.uuid}.state").write_text(f"ready\n{os.getpid()}\n")
        time.sleep(TICK_SECONDS * 1.5)
        with instance.connect() as peer:
            assert all(ask(peer, register) for register in REGISTERS)
            instance.process.terminate()
            assert ask(peer, ENERGY)
        assert instance.process.wait(10) == 0
        assert instance.log() == ""


def test_it_stays_when_its_session_ends(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance, instance.connect() as peer:
        instance.process.send_signal(signal.SIGHUP)
        assert ask(peer, ENERGY)


def test_on_sigterm_it_serves_until_qemu_has_gone(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance:
        with instance.connect() as qemu:
            assert ask(qemu, ENERGY)
            instance.process.terminate()
            time.sleep(0.5)
            assert ask(qemu, ENERGY)
            with pytest.raises(ConnectionRefusedError):
                instance.connect()
        assert instance.process.wait(10) == 0


def test_on_sigterm_without_qemu_it_ends_at_once(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance, instance.connect():
        instance.process.terminate()
        assert instance.process.wait(10) == 0


def test_without_free_descriptors_it_serves_who_is_there_and_the_others_later(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance, instance.connect() as peer, socket.socket(socket.AF_UNIX) as late:
        units = ask(peer, POWER_UNIT)
        soft, hard = resource.prlimit(instance.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(instance.pid, resource.RLIMIT_NOFILE, (0, hard))
        late.settimeout(10)
        late.connect(str(instance.path))
        late.sendall(REQUEST.pack(POWER_UNIT, 0, os.getpid()))
        time.sleep(0.2)
        assert ask(peer, POWER_UNIT) == units
        late.setblocking(False)
        with pytest.raises(BlockingIOError):
            late.recv(1)
        late.settimeout(10)
        resource.prlimit(instance.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert answer(late) == units


def test_energy_comes_at_a_rhythm_of_a_second(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance, instance.connect() as peer:
        values: list[int | None] = []
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            values.append(ask(peer, ENERGY))
        assert len(values) > 50
        assert 0 not in values
        assert 1 <= len(set(values)) <= 5


def test_status_says_since_when_a_helper_is_dead(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance:
        registry = Registry(directory)
        record = registry.read(instance.uuid)
        assert record
        before = instances.ended_at(record, registry)
        time.sleep(TICK_SECONDS * 1.5)
        after = instances.ended_at(record, registry)
        assert before
        assert after
        assert before < after <= time.time()
        instance.process.kill()
        instance.process.wait(10)
        last = instances.ended_at(record, registry)
        time.sleep(TICK_SECONDS * 1.5)
        assert instances.ended_at(record, registry) == last


def known(instance: Instance, directory: Path) -> tuple[Registry, Record]:
    """Return the registry, and the instance's record once its process is in it."""
    registry = Registry(directory)
    record = registry.read(instance.uuid)
    assert record
    record.helper_pid, record.helper_start = instance.pid, start_time(instance.pid)
    return registry, record


def test_a_stopped_helper_is_in_trouble_until_it_goes_on(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance:
        registry, record = known(instance, directory)
        assert instances.trouble(record, registry) == ""
        os.kill(instance.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, instance.process.pid, os.WSTOPPED)
        assert instances.alive(record)
        assert (
            instances.trouble(record, registry)
            == f"its helper is stopped; `kill -CONT {instance.pid}` lets it continue"
        )
        os.kill(instance.pid, signal.SIGCONT)
        os.waitid(os.P_PID, instance.process.pid, os.WCONTINUED)
        assert instances.trouble(record, registry) == ""
        instance.process.kill()
        instance.process.wait()
        assert instances.trouble(record, registry) == instances.HELPER_ENDED


def test_a_helper_without_its_qemu_is_in_trouble_once_qemu_is_known(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance:
        registry, record = known(instance, directory)
        with instance.connect() as qemu:
            assert ask(qemu, ENERGY)
            registry.path(instance.uuid, "state").write_text(f"ready\n{os.getpid()}\n")
            time.sleep(TICK_SECONDS * 2.5)
            assert instances.trouble(record, registry) == ""
        left = time.time()
        time.sleep(TICK_SECONDS * 1.5)
        assert instances.trouble(record, registry) == instances.HELPER_ALONE
        since = instances.ended_at(record, registry)
        time.sleep(TICK_SECONDS * 1.5)
        assert since
        assert since <= left
        assert instances.ended_at(record, registry) == since
        assert instances.trouble(record, registry) == instances.HELPER_ALONE


def test_a_helper_whose_qemu_is_yet_to_come_is_in_no_trouble(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance:
        registry, record = known(instance, directory)
        time.sleep(TICK_SECONDS * 1.5)
        assert instances.trouble(record, registry) == ""


@pytest.mark.parametrize("backend", ["native", "qemu"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_helper_is_ended_be_it_recorded_or_not(
    rapl: Rapl, directory: Path, monkeypatch: pytest.MonkeyPatch, backend: str, *, recorded: bool
) -> None:
    monkeypatch.setattr(systemd, "runs", lambda: False)
    with Instance(rapl, directory, backend=backend) as instance:
        registry, record = known(instance, directory)
        record.helper_pid = record.helper_pid if recorded else None
        assert instances.stop(record, registry)
        instance.process.wait(10)
        assert not instance.path.exists()
        assert not instances.stop(record, registry)


@pytest.mark.parametrize(
    ("as_unit", "environment"),
    [(True, {}), (True, {instances.OWNER: UUID.format(1)}), (False, {}), (False, {instances.OWNER: UUID.format(2)})],
)
def test_a_record_alone_names_no_process_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *, as_unit: bool
) -> None:
    monkeypatch.setattr(systemd, "runs", lambda: as_unit)
    monkeypatch.setattr(systemd, "systemctl", lambda *_, **__: "")
    with subprocess.Popen(["sleep", "60"], env=environment) as other:
        record = Record(uuid=UUID.format(1), name="vm", backend="native", owner_uid=0, owner_gid=0)
        record.helper_pid, record.helper_start = other.pid, start_time(other.pid)
        assert not instances.stop(record, Registry(tmp_path))
        assert other.poll() is None
        other.kill()


def test_where_a_log_is_written_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "runs", lambda: False)
    registry, record = (
        Registry(tmp_path),
        Record(uuid=UUID.format(1), name="vm", backend="native", owner_uid=0, owner_gid=0),
    )
    log, other = registry.path(record.uuid, "log"), tmp_path / "other"
    other.write_text("of somebody else")
    log.symlink_to(other)
    with pytest.raises(VirtRaplError, match="the helper ended"):
        instances.start(record, registry, 20)
    assert other.read_text() == "of somebody else"
    assert "no record" in log.read_text()
    assert log.lstat().st_mode & 0o7777 == 0o600


NEIGHBOUR = """
import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[1]))
for name, attempt in (
    ("connect", lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[3])),
    ("chmod", lambda: os.chmod(sys.argv[3], 0)),
    ("unlink", lambda: os.unlink(sys.argv[3])),
    ("rename", lambda: os.rename(sys.argv[3], sys.argv[3] + "x")),
    ("give away", lambda: os.removexattr(sys.argv[3], "system.posix_acl_access")),
):
    try:
        attempt()
        print(name)
    except PermissionError:
        pass
"""


def test_the_socket_is_roots_and_for_the_domains_user(rapl: Rapl, directory: Path) -> None:
    """Neither its mode nor its existence is for that user to change, and others of its group do not even connect."""
    directory.chmod(0o711)
    with Instance(rapl, directory) as instance:
        _, record = known(instance, directory)
        record.owner_uid, record.owner_gid = 64055, 993

        def manages(uid: int, gid: int) -> str:
            command = [sys.executable, "-c", NEIGHBOUR, str(uid), str(gid), str(instance.path)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        assert manages(64055, 993) == ""
        instances._admit(record, instance.path)
        found = instance.path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, 993, 0o660)
        assert manages(64055, 993) == manages(64055, 4321) == "connect\n"
        assert manages(4321, 993) == manages(4321, 4321) == ""


@pytest.mark.parametrize(("backend", "let_in"), [("native", True), ("qemu", False)])
def test_where_there_are_no_acls_only_a_helper_that_asks_who_connects_lets_the_group_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend, *, let_in: bool
) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", unsupported)
    record = Record(uuid=UUID.format(1), name="vm", backend=backend, owner_uid=64055, owner_gid=993)
    path = tmp_path / "socket"
    path.touch(0o600)
    with contextlib.nullcontext() if let_in else pytest.raises(OSError, match="not supported"):
        instances._admit(record, path)
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == ((0, 993, 0o660) if let_in else (0, 0, 0o600))


@pytest.mark.parametrize(
    ("options", "hidden"),
    [("rw", False), ("rw,hidepid=0", False), ("rw,hidepid=off", False), ("rw,hidepid=2", True)],
)
def test_a_proc_that_hides_processes_is_refused(tmp_path: Path, options: str, *, hidden: bool) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"20 1 0:18 / /sys rw - sysfs sys rw\n21 1 0:19 / /proc rw,nosuid shared:5 - proc proc {options}\n"
    )
    if hidden:
        with pytest.raises(VirtRaplError, match="hidepid"):
            check_processes_are_seen(mounts)
    else:
        check_processes_are_seen(mounts)
