"""Starting and ending a domain's helper: what is left of one that does not serve, and who may connect to one."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Literal
from uuid import uuid4

import pytest
from fakes.helper import HELPER_DOES, LAST, SERVES, put

from libvirt_rapl import commands, systemd
from libvirt_rapl.choices import Backend
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper import instances, plans
from libvirt_rapl.helper.process import OWNER
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.helper.run_directory import Suffix
from libvirt_rapl.helper.vmsr import client
from libvirt_rapl.helper.vmsr.registers import Registers
from libvirt_rapl.host.processes import start_time
from libvirt_rapl.sockets import listen

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's processes are helpers")

UUID, OTHER_UUID = str(uuid4()), str(uuid4())
"""Of no other process that runs these tests at the same time: helpers are found by them among all that there are."""
OWNER_UID, GROUP = 64055, 993
LONG = 20.0
"""A deadline that is not reached."""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A run directory with a short path, where helpers are stand-ins; those that are left are ended."""
    pids: list[int] = []
    real = commands.start

    def start(*command: str, environment: Mapping[str, str], output: BinaryIO) -> int:
        pids.append(real(*command, environment=environment, output=output))
        return pids[-1]

    monkeypatch.setattr(commands, "start", start)
    monkeypatch.setattr(systemd, "runs", lambda: False)
    monkeypatch.setattr(plans, "find", lambda _source: Registers((), (), (), (1, 1)))
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        monkeypatch.setattr(sys, "executable", put(Path(directory)))
        registry = Registry(Path(directory, "run"))
        registry.create_directory()
        monkeypatch.setattr(instances, "UNITS", registry)
        yield registry
        for pid in pids:
            with contextlib.suppress(ChildProcessError):  # it was ended and collected
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


def record(uuid: str = UUID, *, backend: Backend = "native", pid: int | None = None) -> Record:
    started = None if pid is None else start_time(pid)
    return Record(
        uuid=uuid,
        name="vm",
        backend=backend,
        owner_uid=OWNER_UID,
        owner_gid=GROUP,
        helper_pid=pid,
        helper_start=started,
    )


def started(registry: Registry, monkeypatch: pytest.MonkeyPatch, does: str = SERVES, uuid: str = UUID) -> Record:
    monkeypatch.setenv(HELPER_DOES, does)
    found = record(uuid)
    instances.start(found, registry, "auto", LONG)
    return found


def pid_of(found: Record) -> int:
    assert found.helper_pid is not None
    return found.helper_pid


def there(registry: Registry) -> set[str]:
    return {path.name.removeprefix(f"{UUID}.") for path in registry.run_directory.iterdir()}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("does", [SERVES, "serves late"])
def test_a_helper_is_started_and_ended(registry: Registry, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    before = descriptors()
    found = started(registry, monkeypatch, does)
    assert instances.alive(found)
    assert instances.trouble(found, registry) == ""
    assert there(registry) == {"alive", "log", "sock"}
    assert registry.path(UUID, "log").stat().st_mode & 0o7777 == 0o600
    assert os.getsid(pid_of(found)) == pid_of(found), "libvirt waits for nobody in the session of the hook"
    assert instances.stop(found, registry)
    assert not instances.alive(found)
    assert there(registry) == {"log"}
    with pytest.raises(ChildProcessError):  # nor does a zombie stay
        os.waitpid(pid_of(found), os.WNOHANG)
    assert not instances.stop(found, registry)
    assert descriptors() == before


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("ends", f"ended: {LAST}$"),
        ("ends in silence", "ended: it said nothing"),
        ("reads 0", "answers, but .* reads 0"),
        ("hangs", "does not answer"),
        ("accepts and says nothing", "does not answer"),
        ("hangs up", "does not answer"),
    ],
)
def test_of_a_helper_that_does_not_serve_only_the_log_is_left(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, does: str, message: str
) -> None:
    monkeypatch.setenv(HELPER_DOES, does)
    found = record()
    deadline = 0.3 if message == "does not answer" else LONG
    with pytest.raises(VirtRaplError, match=message) as caught:
        instances.start(found, registry, "auto", deadline)
    assert caught.value.hint
    assert not instances.alive(found)
    assert there(registry) == {"log"}
    assert not instances.stop(record(), registry), "nor is there one that is not recorded"


def test_one_that_has_ended_without_a_log_said_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "_spawn", lambda *_: subprocess.Popen(["true"]).pid)
    with pytest.raises(VirtRaplError, match="it said nothing"):
        instances.start(record(), registry, "auto", LONG)


def test_no_question_outlasts_the_deadline(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def refused(_path: Path, timeout: float) -> None:
        asked.append(timeout)
        raise ConnectionRefusedError

    monkeypatch.setattr(client, "probe", refused)
    monkeypatch.setenv(HELPER_DOES, SERVES)
    with pytest.raises(VirtRaplError, match="does not answer"):
        instances.start(record(), registry, "auto", 0.2)
    assert asked == sorted(asked, reverse=True)
    assert 0 < asked[-1] <= asked[0] <= 0.2


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOENT])
def test_a_helper_to_which_qemu_cannot_be_admitted_is_ended(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "setxattr", fails)
    monkeypatch.setenv(HELPER_DOES, SERVES)
    found = record()
    with pytest.raises(OSError, match="no"):
        instances.start(found, registry, "auto", LONG)
    assert not instances.alive(found)
    assert there(registry) == {"log"}


@pytest.mark.parametrize("recorded", [True, False])
def test_one_that_a_crash_has_left_behind_is_ended_before_another_starts(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, *, recorded: bool
) -> None:
    left, neighbour = started(registry, monkeypatch), started(registry, monkeypatch, uuid=OTHER_UUID)
    registry.path(UUID, "log").write_text("of the one before")
    found = record(pid=pid_of(left)) if recorded else record()
    instances.start(found, registry, "auto", LONG)
    assert [instances.alive(each) for each in (left, found, neighbour)] == [False, True, True]
    assert registry.path(UUID, "log").read_text() == ""


def test_a_helper_may_serve_its_qemu_to_the_end(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert instances.stop(started(registry, monkeypatch, "ends when it has served"), registry)
    assert (registry.run_directory / "served").exists()


def test_one_that_ignores_this_is_ended_nevertheless(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    found = started(registry, monkeypatch, "ignores SIGTERM")
    monkeypatch.setattr(instances, "STOP_SECONDS", 0.6)
    assert instances.stop(found, registry)
    assert not instances.alive(found)


def test_a_process_that_is_gone_is_none_of_ours(registry: Registry) -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    gone = record(pid=ended.pid)
    gone.helper_start = 1
    assert not instances.alive(gone)
    assert not instances.stop(gone, registry)


def test_a_helper_is_told_from_a_later_process_with_its_pid() -> None:
    ours = record(pid=os.getpid())
    assert instances.alive(ours)
    assert ours.helper_start
    ours.helper_start -= 1
    assert not instances.alive(ours)
    assert not instances.alive(record())


@pytest.mark.parametrize(
    ("as_unit", "environment"),
    [(True, {}), (True, {OWNER: UUID}), (False, {}), (False, {OWNER: OTHER_UUID})],
)
def test_a_record_alone_names_no_process_to_end(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *, as_unit: bool
) -> None:
    monkeypatch.setattr(systemd, "runs", lambda: as_unit)
    monkeypatch.setattr(systemd, "systemctl", lambda *_, **__: "")
    with subprocess.Popen(["sleep", "60"], env=environment) as other:
        assert not instances.stop(record(pid=other.pid), registry)
        assert other.poll() is None
        other.kill()


# What is said of one.


@pytest.mark.parametrize(
    ("sign", "trouble"),
    [(None, ""), ((1.5e9, 1.5e9), ""), ((1.5e9, 0), ""), ((0, 1.5e9), instances.HELPER_ALONE)],
)
def test_the_sign_of_life_shows_whether_qemu_is_connected_and_when_it_was_served(
    registry: Registry, sign: tuple[float, float] | None, trouble: str
) -> None:
    """Its access and its modification time; qemu-vmsr-helper gives none."""
    path = registry.path(UUID, "alive")
    if sign:
        path.touch()
        os.utime(path, sign)
    assert instances.trouble(record(pid=os.getpid()), registry) == trouble
    assert instances.ended_at(record(), registry) == (sign[1] if sign else None)


def test_one_that_is_stopped_and_one_that_has_ended_are_in_trouble(registry: Registry) -> None:
    process = subprocess.Popen(["sleep", "60"])
    found = record(pid=process.pid)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert instances.trouble(found, registry) == instances.HELPER_STOPPED.format(process.pid)
    process.kill()
    process.wait()
    assert instances.trouble(found, registry) == instances.HELPER_ENDED
    assert instances.trouble(record(), registry) == instances.HELPER_ENDED


# The files.


def test_where_a_log_is_written_nothing_else_is(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither through a link that is there, nor through one that somebody puts there meanwhile."""
    log, other, real = registry.path(UUID, "log"), registry.run_directory / "other", os.open
    other.write_text("of somebody else")
    log.symlink_to(other)
    started(registry, monkeypatch)
    assert not log.is_symlink()

    def swap(path: Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == log:
            log.symlink_to(other)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(FileExistsError):
        instances.start(record(), registry, "auto", LONG)
    assert other.read_text() == "of somebody else"


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


def test_the_socket_is_roots_and_for_the_domains_user(registry: Registry) -> None:
    """Neither its mode nor its existence is for that user to change, and others of its group do not even connect."""
    path = registry.path(UUID, "sock")
    with listen(path):

        def manages(uid: int, gid: int) -> str:
            command = ["/usr/bin/python3", "-ISc", NEIGHBOUR, str(uid), str(gid), str(path)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        assert manages(OWNER_UID, GROUP) == ""
        instances._admit(record(), path)
        found = path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, GROUP, 0o660)
        assert manages(OWNER_UID, GROUP) == manages(OWNER_UID, 4321) == "connect\n"
        assert manages(4321, GROUP) == manages(4321, 4321) == ""


@pytest.mark.parametrize(("backend", "let_in"), [("native", True), ("qemu", False)])
def test_where_there_are_no_acls_only_a_helper_that_asks_who_connects_lets_the_group_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend, *, let_in: bool
) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", unsupported)
    path = tmp_path / "socket"
    path.touch(0o600)
    with contextlib.nullcontext() if let_in else pytest.raises(OSError, match="not supported"):
        instances._admit(record(backend=backend), path)
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == ((0, GROUP, 0o660) if let_in else (0, 0, 0o600))


# Where systemd runs.


class Systemd:
    """A systemctl of the test's, whose unit makes a socket on which nobody listens."""

    def __init__(self, path: Path, *, fails: bool = False) -> None:
        self.path, self.fails = path, fails
        self.works = 1
        """With which of its starts the unit makes its socket: it may run still, without it."""
        self.asked: list[tuple[str, ...]] = []
        self.timeouts: list[float] = []

    def systemctl(self, *arguments: str, timeout: float) -> str:
        self.asked.append(arguments)
        self.timeouts.append(timeout)
        if self.fails:
            raise VirtRaplError("no such unit")
        if [each[0] for each in self.asked].count("start") == self.works and arguments[0] == "start":
            with socket.socket(socket.AF_UNIX) as unheard:
                unheard.bind(str(self.path))
        return ""


@pytest.fixture
def unit(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    unit = Systemd(registry.path(UUID, "sock"))
    monkeypatch.setattr(systemd, "runs", lambda: True)
    monkeypatch.setattr(systemd, "systemctl", unit.systemctl)
    return unit


UNIT = f"virt-rapl-helper@{UUID}.service"
START = ("start", UNIT)
KILL = ("kill", "--signal=KILL", UNIT)


@pytest.mark.parametrize("left", ["", "sock", "alive"])
def test_a_unit_is_started_and_its_process_recorded(
    registry: Registry, unit: Systemd, monkeypatch: pytest.MonkeyPatch, left: Suffix | Literal[""]
) -> None:
    if left:
        registry.path(UUID, left).touch()
    monkeypatch.setattr(client, "probe", lambda *_, **__: os.getpid())
    monkeypatch.setattr(instances, "_admit", lambda *_: None)
    found = record()
    instances.start(found, registry, "auto", LONG)
    assert (found.helper_pid, found.helper_start) == (os.getpid(), start_time(os.getpid()))
    assert unit.asked == [*([KILL] if left else []), START]
    assert 0 < unit.timeouts[-1] <= LONG


@pytest.mark.parametrize("left", ["", "sock", "alive"])
def test_a_unit_that_the_hook_has_started_is_waited_for(
    registry: Registry, unit: Systemd, monkeypatch: pytest.MonkeyPatch, left: Suffix | Literal[""]
) -> None:
    """What an earlier run has left is not taken for it."""
    monkeypatch.setenv(instances.UNIT_STARTS, "yes")
    monkeypatch.setattr(client, "probe", lambda *_, **__: os.getpid())
    monkeypatch.setattr(instances, "_admit", lambda *_: None)
    if left:
        registry.path(UUID, left).touch()
    listens = threading.Timer(0.1, registry.path(UUID, "sock").touch)
    listens.start()
    try:
        instances.start(record(), registry, "auto", LONG)
    finally:
        listens.join()
    assert unit.asked == ([KILL, START] if left else [])


def test_a_unit_that_listens_as_soon_as_it_has_a_plan_is_not_taken_for_one_of_an_earlier_run(
    registry: Registry, unit: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = plans._write

    def write(path: Path, plan: plans.Plan) -> None:
        real(path, plan)
        registry.path(UUID, "sock").touch()

    monkeypatch.setattr(plans, "_write", write)
    monkeypatch.setenv(instances.UNIT_STARTS, "yes")
    monkeypatch.setattr(client, "probe", lambda *_, **__: os.getpid())
    monkeypatch.setattr(instances, "_admit", lambda *_: None)
    instances.start(record(), registry, "auto", LONG)
    assert unit.asked == []


@pytest.mark.parametrize("deadline", [0.1, LONG])
def test_systemd_is_told_again_if_the_unit_does_not_come(
    registry: Registry, unit: Systemd, monkeypatch: pytest.MonkeyPatch, deadline: float
) -> None:
    monkeypatch.setenv(instances.UNIT_STARTS, "yes")
    monkeypatch.setattr(instances, "UNIT_SECONDS", 0.01 if deadline == LONG else LONG)
    with pytest.raises(VirtRaplError, match=f"journalctl -u {UNIT}"):
        instances.start(record(), registry, "auto", deadline)
    assert unit.asked == [START, KILL]
    assert unit.timeouts[0] > -1, "when the deadline has come, at the latest"


def test_a_unit_that_runs_without_its_files_is_started_anew(
    registry: Registry, unit: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when somebody has removed the run directory under it."""
    unit.works = 2
    monkeypatch.setattr(client, "probe", lambda *_, **__: os.getpid())
    monkeypatch.setattr(instances, "_admit", lambda *_: None)
    instances.start(record(), registry, "auto", LONG)
    assert unit.asked == [START, KILL, START]


def test_a_unit_that_has_ended_is_looked_up_in_the_journal(registry: Registry, unit: Systemd) -> None:
    with pytest.raises(VirtRaplError, match=f"journalctl -u {UNIT}"):
        instances.start(record(), registry, "auto", LONG)
    assert unit.asked == [START, KILL]
    assert there(registry) == set()


def test_the_process_of_a_unit_may_serve_to_the_end(
    registry: Registry, unit: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        monkeypatch.setattr("libvirt_rapl.host.processes.unit", lambda pid: UNIT if pid == process.pid else "")
        assert instances.stop(record(pid=process.pid), registry)
    assert not unit.asked


def test_a_unit_that_cannot_be_killed_leaves_no_socket(registry: Registry, unit: Systemd) -> None:
    unit.fails = True
    registry.path(UUID, "sock").touch()
    assert not instances.stop(record(), registry)
    assert unit.asked == [KILL]
    assert there(registry) == set()
