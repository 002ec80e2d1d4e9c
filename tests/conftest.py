"""What all tests share: which may be skipped and why, a private world for guests, and nothing left behind."""

import atexit
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from walking import ALONE, CONSTANT_100_WATTS, LOG, NewGuest, StartDaemon, asked, wait_until

from libvirt_rapl.domains import emulator
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host import requirements
from libvirt_rapl.host.topology import Processor, model_name, processor
from libvirt_rapl.paths import PROC
from libvirt_rapl.simulator import server
from libvirt_rapl.simulator.kvm import check_kvm
from libvirt_rapl.simulator.world import World, check_machine

OURS = (
    "/etc/virt-rapl*",
    "/etc/libvirt/hooks/qemu.d/virt-rapl*",
    "/etc/systemd/system/virt-rapl*",
    "/mnt/*",
    "/run/virt-rapl*",
    "/usr/bin/qemu-system-*-rapl",
    "/usr/libexec/qemu-*-rapl",
    "/usr/sbin/policy-rc.d",
    "/var/lib/virt-rapl*",
)
"""Where on the machine a mistake of ours would leave something."""

GRACE_SECONDS = 20.0
"""How long processes may take to end after SIGTERM or the like."""

MOST_WORKERS = 8
"""More of them would take longer to begin than the fast tests take."""

LONGEST = ("test_shaping.py", "test_lifecycle.py", "test_ansible.py", "test_campaign.py", "test_channel_live.py")
"""Files that take minutes. Were one of them the last, the other workers of tests/run would wait for it with no work.

test_shaping, which measures, and test_ansible, which computes, begin in this order so that they fall to one worker.
"""

EXEC_ATTEMPTS = 20
"""Milliseconds that a process is given to have an environment; some have none for good."""
KTHREADD = 2
"""Parent of all kernel threads."""

os.environ["PATH"] += ":/usr/sbin"  # what is there can be asked by an ordinary user, too
os.umask(0o022)  # or files that a test makes are open to a group, and not trusted

# Where tests run side by side, none may see another's files come and go: each process has a directory of its own.
tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="tests-")
Path(tempfile.tempdir).chmod(0o711)  # emulators are tried as a user without rights
atexit.register(shutil.rmtree, tempfile.tempdir)
os.environ.setdefault(
    "PYTEST_DEBUG_TEMPROOT", "/tmp"
)  # paths of sockets are short; pytest gives each of its processes a directory

SESSION = str(uuid4())
os.environ["VIRT_RAPL_TESTS"] = SESSION  # every process we start carries it, also when it has left its parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare how expected output that is kept in files is written anew, where a change of it is wanted."""
    parser.addoption("--renew", action="store_true", help="write the golden files in tests/data anew")


def pytest_report_header() -> str:
    """Say which machine this is: what passes on one vendor's processors has to pass on the other's."""
    return f"processor: {processor(PROC).vendor}, {model_name(PROC)}; end-to-end tests: {missing() or 'can run'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out."""
    if fast_only(config):
        terminalreporter.write_line(
            "only fast tests: ./tests/run runs all, and a file or test that is named runs anyway"
        )


def fast_only(config: pytest.Config) -> bool:
    """Return whether the user has chosen nothing: neither a file or a test in it, nor a mark."""
    return not config.option.markexpr and not any(Path(arg.partition("::")[0]).is_file() for arg in config.args)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run the fast tests on all CPUs, and what the user has chosen in one process, where it can be debugged.

    One process more than there are CPUs: many tests wait for a second to pass.
    """
    return min(len(os.sched_getaffinity(0)) + 1, MOST_WORKERS) if fast_only(config) else 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not fast, where the user has chosen nothing; have the longest files begin first."""
    if fast_only(config):
        fast = {item: not any(item.get_closest_marker(mark) for mark in ("e2e", "slow")) for item in items}
        config.hook.pytest_deselected(items=[item for item in items if not fast[item]])
        items[:] = [item for item in items if fast[item]]
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test where the machine lacks what it takes; fail it where CI=true."""
    reasons = [missing()] if item.get_closest_marker("e2e") else []
    for mark in item.iter_markers("needs"):
        there = {name: shutil.which(name) or Path(name).is_dir() for name in mark.args}
        reasons += [f"{name} is missing; ./tests/run installs it" for name in mark.args if not there[name]]
    if reason := next(filter(None, reasons), ""):
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@functools.cache
def missing() -> str:
    """Return what this machine lacks for end-to-end tests; empty when they can run."""
    try:
        check_machine()
        check_kvm()
        server.load_library(Path("/dev"))
    except VirtRaplError as error:
        return f"{error.message}; {error.hint}"
    return ""


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's; pytest's own may not."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def _intel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in this process takes the machine for Intel's, whatever it is; others are in a /proc of the test's."""

    def simulated(proc: Path) -> Processor:
        return Processor("GenuineIntel", 6, 0x8E) if proc == PROC else processor(proc)

    monkeypatch.setattr(requirements, "processor", simulated)


@pytest.fixture(autouse=True)
def _on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulators that tests make in /tmp can have a wrapper, also where /tmp is in memory."""
    monkeypatch.setattr(emulator, "is_volatile", lambda *_: False)


@pytest.fixture(autouse=True)
def _no_disk_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in this process need not survive a power cut, and a sync takes more time than all else it does."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def shut_out(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Call it to be a user who may not search the test's directory."""
    user = os.geteuid()

    def shut_out() -> None:
        tmp_path.chmod(0)
        if user == 0:
            os.seteuid(4321)

    yield shut_out
    os.seteuid(user)
    tmp_path.chmod(0o700)


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """A world at a constant 100 W, with libvirtd running and virt-rapl installed."""
    with World(CONSTANT_100_WATTS) as world:
        world.run(["virt-rapl", "install", "--force"])
        world.start_libvirtd()
        yield world


@pytest.fixture
def new_guest(world: World) -> Iterator[NewGuest]:
    """A function like World.define_guest without the name, which it returns; the guests go with the test."""
    names: list[str] = []

    def new_guest(*duties: int, vcpus: int = 1) -> str:
        names.append(f"guest-{uuid4()}")
        world.define_guest(names[-1], *duties, vcpus=vcpus)
        return names[-1]

    yield new_guest
    for name in names:
        world.run(["virsh", "destroy", name], check=False)
        world.run(["virsh", "undefine", name])
        for suffix in ("rom", "log"):
            world.path(f"/mnt/{name}.{suffix}").unlink(missing_ok=True)


@pytest.fixture
def default_configuration(world: World) -> Iterator[None]:
    """Whatever the test configures in the world is forgotten after it."""
    path = world.path("/etc/virt-rapl/virt-rapl.yaml")
    original = path.read_bytes()
    yield
    path.write_bytes(original)


@pytest.fixture
def start_daemon(world: World) -> Iterator[StartDaemon]:
    """A function that starts the daemon in the world, waits until it answers, and returns its PID inside."""
    pids: list[int] = []

    def start_daemon(**environment: str) -> int:
        world.path(ALONE).write_text("run_directory: /run/nobody\n")
        command = " ".join(["env", *(f"{name}={value}" for name, value in environment.items()), "virt-rapl daemon"])
        pids.append(int(world.run(["sh", "-c", f"exec {command} >/dev/null 2>>{LOG} </dev/null & echo $!"]).stdout))
        wait_until(lambda: asked(world) is not None, 30, "the daemon answers")
        return pids[-1]

    yield start_daemon
    for pid in pids:
        if world.path(f"/proc/{pid}").exists():
            world.kill(pid, "TERM")
    for path in (LOG, ALONE):
        world.path(path).unlink(missing_ok=True)
    world.run(["sh", "-c", "rm -f /var/lib/virt-rapl/ledger.db*"])


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test after which there are processes, mounts or files of ours that were not there before."""
    files, processes = _files_and_mounts(), _all_processes()

    def left() -> set[str]:
        return (_files_and_mounts() - files) | set(_ours(_all_processes() - processes))

    yield
    deadline = time.monotonic() + GRACE_SECONDS
    while found := left():
        assert time.monotonic() < deadline, f"left behind by this test: {found}"
        time.sleep(0.05)


def _files_and_mounts() -> set[str]:
    places = (*OURS, f"{tempfile.gettempdir()}/*virt-rapl*")
    files = {f"file {path}" for place in places for path in Path("/").glob(place.lstrip("/"))}
    return files | {f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def _all_processes() -> set[str]:
    """Return every PID of the machine. Only of those that are new after a test more is read: there may be hundreds."""
    return {path.name for path in Path("/proc").glob("[0-9]*")}


def _ours(pids: set[str]) -> Iterator[str]:
    """Yield those of ours: children, and whatever else has our mark. Others may run what they like meanwhile."""
    for directory in (Path("/proc") / pid for pid in pids):
        try:
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(directory.name) == os.getpid() or state == "Z" or int(parent) in (0, KTHREADD):
                continue
            ours = int(parent) == os.getpid() or SESSION.encode() in _environment(directory)
            command = (directory / "cmdline").read_text()
        except OSError:
            continue  # it ended, or is none of our business
        if ours:
            yield f"process {directory.name} {command!r}"


def _environment(process: Path) -> bytes:
    """Return it; in the middle of exec any process shows none for a moment."""
    for _ in range(EXEC_ATTEMPTS):
        if environment := (process / "environ").read_bytes():
            break
        time.sleep(0.001)
    return environment
