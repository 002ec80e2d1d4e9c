"""virt-rapl-channel as a process: between a virt-rapld that comes and goes, and the sockets of QEMUs."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from fakes.channel import Qemu, domain, lines
from walking import wait_until

from libvirt_rapl import paths
from libvirt_rapl.daemon import channel_process, channel_report, status_socket
from libvirt_rapl.daemon.channel_process import ChannelProcess
from libvirt_rapl.daemon.stream_socket import Streams
from libvirt_rapl.lifecycle.channel_state import Delivery

PID = os.getpid()
PATIENCE = 30.0


class Daemon:
    """Stands for virt-rapld: streams lines of samples of which each is a second after the last."""

    def __init__(self, run_directory: Path) -> None:
        self.run_directory = run_directory
        self.domains: list[dict[str, Any]] = []
        self.seconds = 0
        self.made = 0
        """How many samples' lines."""
        self._streams: Streams | None = None

    def start(self) -> None:
        path = self.run_directory / paths.CHANNEL_STREAM_SOCKET
        path.parent.mkdir(exist_ok=True)
        self._streams = Streams(path, self._text, print)

    def stop(self) -> None:
        if self._streams:
            self._streams.close()
            path = self.run_directory / paths.CHANNEL_STREAM_SOCKET
            path.unlink(missing_ok=True)
            wait_until(lambda: not status_socket.listens(path), PATIENCE, "it has gone")
        self._streams = None

    def sample(self) -> None:
        self.seconds += 1
        if self._streams:
            self._streams.wake()

    def _text(self) -> bytes:
        self.made += 1
        return json.dumps(lines(self.seconds, *self.domains)).encode()


class Process:
    """The command, and what it logs."""

    def __init__(self, run_directory: Path, notify: Path) -> None:
        config = run_directory / "virt-rapl.yaml"
        config.write_text(f"run_directory: {run_directory}\n")
        self._log = run_directory / "log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "libvirt_rapl", "--config", str(config), "channel"],
                env=os.environ | {"NOTIFY_SOCKET": str(notify)},
                stderr=log,
            )

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """A directory with a path short enough for a socket address."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def systemd(run_directory: Path) -> Iterator[socket.socket]:
    """The socket on which systemd is told how a service does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(run_directory / "notify"))
        receiver.settimeout(PATIENCE)
        yield receiver


@pytest.fixture
def daemon(run_directory: Path) -> Iterator[Daemon]:
    daemon = Daemon(run_directory)
    yield daemon
    daemon.stop()


@pytest.fixture
def process(run_directory: Path, systemd: socket.socket) -> Iterator[Process]:
    process = Process(run_directory, run_directory / "notify")
    try:
        assert systemd.recv(100) == b"READY=1"
        yield process
    finally:
        process.process.kill()
        process.process.wait()


@pytest.fixture
def qemu(run_directory: Path) -> Iterator[Callable[[int], Qemu]]:
    made: list[Qemu] = []

    def new(number: int) -> Qemu:
        made.append(Qemu(run_directory / f"{number}.sock"))
        return made[-1]

    yield new
    for each in made:
        each.close()


def lines_of(guest: Qemu, daemon: Daemon) -> list[dict[str, Any]]:
    """Let seconds pass until the guest has got something, and return that."""
    got = b""

    def is_given() -> bool:
        nonlocal got
        daemon.sample()
        with contextlib.suppress(BlockingIOError):
            got += guest.read()
        return got.endswith(b"\n")

    wait_until(is_given, PATIENCE, "it gets a line")
    return [json.loads(line) for line in got.splitlines()]


def test_from_the_daemon_to_guests_and_what_is_reported(
    run_directory: Path, daemon: Daemon, process: Process, qemu: Callable[[int], Qemu]
) -> None:
    first, second = qemu(1), qemu(2)
    daemon.domains = [
        domain(1, first.path),
        domain(2, second.path),
        domain(3, None),
        domain(4, second.path, pid=PID + 1),
    ]
    daemon.start()
    for number, guest in ((1, first), (2, second)):
        line = lines_of(guest, daemon)[0]
        assert line["energy_joules"] == 1000.0 + number

    def reported() -> dict[str, Delivery]:
        daemon.sample()
        return channel_report.read(run_directory) or {}

    uuids = [each["uuid"] for each in daemon.domains]
    wait_until(lambda: len(reported()) == 3, PATIENCE, "it is reported")
    report = reported()
    assert report.keys() == {uuids[0], uuids[1], uuids[3]}
    assert report[uuids[0]] == report[uuids[1]] == Delivery(PID, "connected")
    assert "is not its QEMU's socket" in report[uuids[3]].reason
    wait_until(lambda: any("guest-4: " in said for said in process.lines()), PATIENCE, "it is logged")
    assert not any(f"guest-{number}: " in said for said in process.lines() for number in (1, 2, 3))


def test_a_virt_rapld_that_goes_and_comes_is_logged_once_each_time(
    run_directory: Path, daemon: Daemon, process: Process, qemu: Callable[[int], Qemu]
) -> None:
    guest = qemu(1)
    daemon.domains = [domain(1, guest.path)]

    def reason() -> str:
        return "".join(each.reason for each in (channel_report.read(run_directory) or {}).values())

    for said in (1, 3):
        daemon.start()
        assert lines_of(guest, daemon)
        daemon.stop()
        wait_until(lambda: len(process.lines()) == said, PATIENCE, "it is logged")  # noqa: B023
        guest.read()
        wait_until(lambda: "virt-rapld does not answer" in reason(), PATIENCE, "it is reported why there are no lines")
    guest.read()
    assert guest.peer
    with pytest.raises(BlockingIOError):
        guest.peer.recv(1)  # the guest's port stays connected meanwhile
    away = f"virt-rapl: virt-rapld does not answer at {run_directory / paths.CHANNEL_STREAM_SOCKET}"
    assert process.lines() == [away, "virt-rapl: virt-rapld answers again", away]


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_without_the_right_to_ask_it_says_so(
    run_directory: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.start()
    run_directory.chmod(0o711)
    (run_directory / paths.DAEMON).chmod(0o700)  # this process keeps its group
    monkeypatch.setattr(channel_process, "PATIENCE_SECONDS", -1)
    logged: list[str] = []
    process = ChannelProcess(run_directory, logged.append)
    os.seteuid(4321)
    try:
        process.follow()
    finally:
        os.seteuid(0)
    group = (run_directory / paths.DAEMON).group()
    place = f"{run_directory / paths.DAEMON} is not open to it (mode 0700, group {group})"
    assert logged[0] == f"virt-rapl-channel may not ask virt-rapld: {place}"


def test_a_restart_of_virt_rapld_is_not_logged(daemon: Daemon, process: Process, qemu: Callable[[int], Qemu]) -> None:
    guest = qemu(1)
    daemon.domains = [domain(1, guest.path)]
    for _ in range(3):
        daemon.start()
        assert lines_of(guest, daemon)
        daemon.stop()
        guest.read()
    assert process.lines() == []


def test_lines_that_are_not_understood_are_logged_once(daemon: Daemon, process: Process) -> None:
    daemon.domains = [domain(1, "/run/1.sock", uuid=["of another kind"])]
    daemon.start()

    def is_logged() -> bool:
        daemon.sample()
        return any("cannot understand" in line for line in process.lines())

    wait_until(is_logged, PATIENCE, "it is logged")
    said, made = process.lines(), daemon.made

    def are_more() -> bool:
        daemon.sample()
        return daemon.made > made + 5

    wait_until(are_more, PATIENCE, "more of them come")
    assert process.lines() == said


def serve_one(run_directory: Path, daemon: Daemon, qemu: Callable[[int], Qemu]) -> Qemu:
    """Return a guest that gets lines, when that is reported."""
    guest = qemu(1)
    daemon.domains = [domain(1, guest.path)]
    daemon.start()
    assert lines_of(guest, daemon)
    wait_until(lambda: channel_report.read(run_directory), PATIENCE, "it reports")
    return guest


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly(
    run_directory: Path,
    daemon: Daemon,
    process: Process,
    qemu: Callable[[int], Qemu],
    systemd: socket.socket,
    how: signal.Signals,
) -> None:
    guest = serve_one(run_directory, daemon, qemu)
    assert process.end(how) == 0
    while (said := systemd.recv(100)) == b"WATCHDOG=1":
        pass
    assert said == b"STOPPING=1"
    assert channel_report.read(run_directory) is None
    guest.read()
    assert guest.peer
    assert guest.peer.recv(1) == b"", "it has hung up"


def test_a_second_one_refuses(
    run_directory: Path, daemon: Daemon, process: Process, qemu: Callable[[int], Qemu]
) -> None:
    guest = serve_one(run_directory, daemon, qemu)
    command = [sys.executable, "-m", "libvirt_rapl", "--config", str(run_directory / "virt-rapl.yaml"), "channel"]
    second = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
    assert second.returncode == 1
    assert f"another virt-rapl channel already uses {run_directory / paths.CHANNEL}" in second.stderr
    assert channel_report.read(run_directory), "the report of the first one is still there"
    assert lines_of(guest, daemon)
    assert process.lines() == []


def test_it_ends_while_it_waits_for_virt_rapld(process: Process) -> None:
    assert process.end() == 0
