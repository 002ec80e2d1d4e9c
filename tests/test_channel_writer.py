"""Lines for guests over real sockets: who does not read, floods, hangs or is not QEMU costs no other, and no memory."""

import contextlib
import grp
import json
import os
import random
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from fakes.channel import Qemu, domain, lines

from libvirt_rapl.daemon import channel_report, channel_writer
from libvirt_rapl.daemon.channel_writer import ChannelWriter
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.lifecycle.channel_state import Delivery

PID = os.getpid()
NewQemu = Callable[..., Qemu]


class Clock:
    """Moves when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Host:
    """A writer, its log, and what virt-rapld would send it second by second."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.writer = ChannelWriter(self.lines.append)
        self.seconds = 0

    def second(self, *domains: dict[str, Any]) -> None:
        """Let a second pass, after which these domains run."""
        self.seconds += 1
        self.writer.write(lines(self.seconds, *domains))

    def delivery(self, number: int) -> Delivery | None:
        return self.writer.deliveries().get(domain(number, None)["uuid"])


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.writer.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path short enough for a socket address."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def qemu(directory: Path) -> Iterator[NewQemu]:
    """Make the sockets of QEMUs: by number of the guest, and how many connections may wait."""
    made: list[Qemu] = []

    def new(number: int = 0, backlog: int = 1) -> Qemu:
        made.append(Qemu(directory / f"{number}.sock", backlog))
        return made[-1]

    yield new
    for each in made:
        each.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of writer and connections, which then passes only when a test says so."""
    clock = Clock()
    monkeypatch.setattr(channel_writer, "time", clock)
    monkeypatch.setattr("libvirt_rapl.sockets.time", clock)
    return clock


def numbers(text: bytes) -> list[float]:
    """Return the energies of the lines in it, all of which are whole."""
    assert text == b"" or text.endswith(b"\n")
    return [json.loads(line)["energy_joules"] for line in text.splitlines()]


def test_each_guest_gets_its_own_line_each_second(host: Host, qemu: NewQemu) -> None:
    first, second = qemu(1), qemu(2)
    for joules in (10.0, 20.0, 30.0):
        host.second(
            domain(1, first.path, energy_joules=joules),
            domain(2, second.path, energy_joules=joules + 1),
            domain(3, None),
        )
        assert numbers(first.read()) == [joules]
        assert numbers(second.read()) == [joules + 1]
    assert [host.delivery(number) for number in (1, 2, 3)] == [Delivery(PID, "connected")] * 2 + [None]
    assert host.lines == []


def test_no_guest_gets_energy_finer_than_a_second(host: Host, qemu: NewQemu) -> None:
    guest = qemu(1)
    got = []
    for tenth in range(31):
        host.writer.write(lines(tenth / 10, domain(1, guest.path, energy_joules=float(tenth))))
        got += numbers(guest.read())
    assert got == [0.0, 10.0, 20.0, 30.0]


@pytest.mark.parametrize(("step", "count"), [(1.0, 5), (0.995, 5), (0.98, 3), (0.0, 5), (-3600.0, 5), (60.0, 5)])
def test_samples_that_are_a_second_apart_the_same_one_again_and_clocks_that_are_set(
    host: Host, qemu: NewQemu, step: float, count: int
) -> None:
    guest = qemu(1)
    for number in range(5):
        host.writer.write(lines(number * step, domain(1, guest.path)))
        count -= len(numbers(guest.read()))
    assert count == 0


def test_there_is_no_line_before_the_first_sample(host: Host, qemu: NewQemu) -> None:
    guest = qemu(1)
    first = lines(0, domain(1, guest.path))
    first["sampled_at"] = None
    host.writer.write(first)
    with pytest.raises(BlockingIOError):
        guest.accept()
    host.second(domain(1, guest.path, vcpus=[]))
    assert guest.read() == b""
    assert host.delivery(1) == Delivery(PID, "connected")


def test_who_does_not_read_is_given_nothing_new_until_he_does(host: Host, qemu: NewQemu, clock: Clock) -> None:
    slow, other = qemu(1), qemu(2)
    states = []
    for second in range(1, 10):
        host.second(domain(1, slow.path, energy_joules=float(second)), domain(2, other.path, energy_joules=-1.0))
        assert numbers(other.read()) == [-1.0]
        states.append(host.delivery(1))
        clock.now += 1.0
    stalled = Delivery(PID, "stalled", channel_writer.STALLED)
    assert states == [Delivery(PID, "connected")] * 6 + [stalled] * 3
    assert numbers(slow.read()) == [1.0]
    assert slow.read() == b""
    host.second(domain(1, slow.path, energy_joules=10.0))
    assert numbers(slow.read()) == [10.0]
    assert host.delivery(1) == Delivery(PID, "connected")
    assert host.lines == [], "what a guest does fills no journal"


def test_who_reads_a_byte_a_second_gets_whole_lines(host: Host, qemu: NewQemu) -> None:
    slow = qemu(1)
    text = b""
    for second in range(1, 1500):
        host.second(domain(1, slow.path, energy_joules=float(second)))
        text += slow.read(1)
    whole = text[: text.rindex(b"\n") + 1]
    read = numbers(whole)
    assert len(read) > 1
    assert read[0] == 1.0
    length = len(text.splitlines()[0]) + 1
    assert read[1] == length + 1, "the newest of when the first was read"


def test_a_line_that_no_socket_holds_is_finished_first(host: Host, qemu: NewQemu) -> None:
    guest = qemu(1)
    vcpus = [{"id": each, "power_watts": random.random(), "energy_joules": float(each)} for each in range(10_000)]
    text = b""
    for second in range(1, 20):
        host.second(domain(1, guest.path, energy_joules=float(second), vcpus=vcpus))
        text += guest.read(1 << 17)
    lines = text[: text.rindex(b"\n") + 1].splitlines()
    assert len(lines) > 1
    assert [len(json.loads(line)["vcpus"]) for line in lines] == [10_000] * len(lines)


@pytest.mark.parametrize("garbage", [os.urandom(1_000_000), b"\n" * 1_000_000, b'{"schema": 1}\n' * 70_000])
def test_what_a_guest_floods_us_with_stays_outside(host: Host, qemu: NewQemu, garbage: bytes) -> None:
    hostile, other = qemu(1), qemu(2)
    host.second(domain(1, hostile.path), domain(2, other.path))
    before, sent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for _ in range(28):
        if hostile.peer is None:
            hostile.accept()
        assert hostile.peer
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += hostile.peer.send(garbage)
        assert numbers(hostile.read()) == [1000.0 + 1], "it is given its lines all the same"
        host.second(domain(1, hostile.path), domain(2, other.path))
        assert numbers(other.read()) != []
    assert sent < 1_000_000, "the kernel takes no more than a socket holds"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20_000, f"{grown} KiB"
    assert host.lines == []


def test_a_qemu_that_hangs_up_is_met_again_at_the_next_lines(host: Host, qemu: NewQemu) -> None:
    guest = qemu(1)
    host.second(domain(1, guest.path, energy_joules=1.0))
    assert numbers(guest.read()) == [1.0]
    assert guest.peer
    guest.peer.close()
    host.second(domain(1, guest.path, energy_joules=2.0))
    assert host.delivery(1) == Delivery(PID, "waiting", "QEMU has hung up")
    host.second(domain(1, guest.path, energy_joules=3.0))
    guest.accept()
    assert numbers(guest.read()) == [3.0]
    assert host.delivery(1) == Delivery(PID, "connected")
    assert host.lines == [], "a QEMU that ends is nothing to log"


def test_a_qemu_that_hangs_up_with_a_line_unread(host: Host, qemu: NewQemu) -> None:
    guest = qemu(1)
    host.second(domain(1, guest.path))
    guest.accept().close()
    host.second(domain(1, guest.path))
    host.second(domain(1, guest.path, energy_joules=3.0))
    guest.accept()
    assert numbers(guest.read()) == [3.0]


def test_a_domain_that_is_started_anew_has_another_socket(host: Host, qemu: NewQemu) -> None:
    before, after = qemu(1), qemu(2)
    host.second(domain(1, before.path))
    assert numbers(before.read()) != []
    host.second(domain(1, after.path, energy_joules=5.0))
    assert numbers(after.read()) == [5.0]
    assert before.peer
    assert before.peer.recv(1) == b"", "it was hung up on"


def test_who_is_not_in_the_document_any_more_is_hung_up_on(host: Host, qemu: NewQemu) -> None:
    guest = qemu(1)
    host.second(domain(1, guest.path))
    assert numbers(guest.read()) != []
    host.second(domain(1, None))
    assert guest.peer
    assert guest.peer.recv(1) == b""
    assert host.writer.deliveries() == {}


def test_a_socket_that_is_not_its_qemus_gets_nothing(host: Host, qemu: NewQemu, clock: Clock) -> None:
    """Whoever may write a domain's XML could otherwise send lines, or connections, to any program."""
    guest = qemu(1)
    for _ in range(3):
        host.second(domain(1, guest.path, pid=PID + 1))
    assert guest.read() == b""
    with pytest.raises(BlockingIOError):
        guest.accept()  # there was one attempt
    clock.now += channel_writer.FOREIGN_SECONDS
    host.second(domain(1, guest.path, pid=PID + 1))
    assert guest.accept().recv(1) == b""
    delivery = host.delivery(1)
    assert delivery
    assert (delivery.pid, delivery.state) == (PID + 1, "waiting")
    assert f"process {PID} listens there" in delivery.reason
    assert len(host.lines) == 1, "once"
    assert "guest-1" in host.lines[0]


LISTEN_ELSEWHERE = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listens", flush=True)
sys.stdin.read()
"""


def test_the_pid_is_of_the_process_that_listens(host: Host, directory: Path) -> None:
    path = directory / "1.sock"
    command = [sys.executable, "-c", LISTEN_ELSEWHERE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        host.second(domain(1, path))
        delivery = host.delivery(1)
        assert delivery
        assert f"process {process.pid} listens" in delivery.reason
        host.second(domain(1, path, pid=process.pid))
        assert host.delivery(1) == Delivery(process.pid, "connected")
        process.communicate()


def no_socket(path: Path) -> None:
    pass


def regular_file(path: Path) -> None:
    path.write_text("precious")


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def datagrams(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))


@pytest.mark.parametrize("make", [no_socket, regular_file, link_to_nothing, dead_socket, datagrams, Path.mkdir])
def test_what_is_no_socket_of_qemus_is_left_alone(
    host: Host, qemu: NewQemu, directory: Path, make: Callable[[Path], None]
) -> None:
    path, other = directory / "1.sock", qemu(2)
    make(path)
    for _ in range(3):
        host.second(domain(1, path), domain(2, other.path))
        assert numbers(other.read()) != []
    delivery = host.delivery(1)
    assert delivery
    assert (delivery.pid, delivery.state) == (PID, "waiting")
    assert delivery.reason.startswith(f"cannot connect to {path}: ")
    assert host.lines == [f"guest-1: {delivery.reason}"]
    assert not path.is_file() or path.read_text() == "precious"


@pytest.mark.parametrize("path", ["/run/" + "x" * 200, "a\0b", "", "no\udcff"])
def test_a_path_that_no_socket_can_have(host: Host, qemu: NewQemu, path: str) -> None:
    other = qemu(2)
    for _ in range(2):
        host.second({**domain(1, None), "channel_socket": path or "."}, domain(2, other.path))
        assert numbers(other.read()) != []
    delivery = host.delivery(1)
    assert delivery
    assert delivery.state == "waiting"
    assert "cannot connect" in delivery.reason


def test_a_link_to_another_guests_socket_does_not_deceive(host: Host, qemu: NewQemu, directory: Path) -> None:
    victim = qemu(2)
    (directory / "1.sock").symlink_to(victim.path)
    host.second(domain(1, directory / "1.sock", pid=PID + 1), domain(2, victim.path, energy_joules=2.0))
    first, second = victim.accept(), victim.accept()
    with first, second:
        read = [first.recv(1000), second.recv(1000)]
    assert sorted(map(numbers, read)) == [[], [2.0]], "one was hung up on without a word"


def test_a_socket_that_appears_and_goes(host: Host, qemu: NewQemu, directory: Path) -> None:
    path = directory / "1.sock"
    for _ in range(3):
        host.second(domain(1, path))
    guest = qemu(1)
    host.second(domain(1, path, energy_joules=4.0))
    assert numbers(guest.read()) == [4.0]
    assert host.lines == [
        f"guest-1: cannot connect to {path}: No such file or directory",
        "guest-1: its channel is connected",
    ]


def test_a_qemu_that_accepts_nobody_delays_no_other(host: Host, qemu: NewQemu) -> None:
    hanging, other = qemu(1, backlog=0), qemu(2)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(str(hanging.path))
        for _ in range(3):
            host.second(domain(1, hanging.path), domain(2, other.path))
            assert numbers(other.read()) != []
        delivery = host.delivery(1)
        assert delivery
        assert delivery.state == "waiting"
        assert "accepts no connection" in delivery.reason
        hanging.accept()
        host.second(domain(1, hanging.path, energy_joules=4.0))
        assert host.delivery(1) == Delivery(PID, "connected")
    hanging.accept()
    assert numbers(hanging.read()) == [4.0]


def test_another_program_that_was_faster_is_among_the_reasons(host: Host, qemu: NewQemu, clock: Clock) -> None:
    """QEMU serves it; what connects after it waits in the backlog, and so do our lines."""
    guest = qemu(1)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(guest.path))
        guest.accept()
        for _ in range(7):
            host.second(domain(1, guest.path))
            clock.now += 1
    delivery = host.delivery(1)
    assert delivery
    assert delivery.state == "stalled"
    for reason in ("guest does not read", "QEMU hangs or is paused", "another program has connected"):
        assert reason in delivery.reason
    assert len(delivery.reason) < channel_report.REASON_LENGTH


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(
    ("group", "name"), [(1, grp.getgrgid(1).gr_name), (65534, "unknown to it"), (54321, "unknown to it")]
)
def test_a_socket_that_we_may_not_connect_to(host: Host, qemu: NewQemu, directory: Path, group: int, name: str) -> None:
    guest = qemu(1)
    guest.path.chmod(0o755)
    os.chown(directory, 0, group)

    def reason(mode: int) -> str:
        directory.chmod(mode)
        os.seteuid(4321)
        try:
            host.second(domain(1, guest.path))
        finally:
            os.seteuid(0)
        delivery = host.delivery(1)
        assert delivery
        return delivery.reason

    why = "virt-rapl-channel may not connect: {} is not open to it (mode {}, group {})"
    assert reason(0o750) == why.format(directory, "0750", name)
    assert reason(0o755) == why.format(guest.path, "0755", grp.getgrgid(guest.path.stat().st_gid).gr_name)


def test_many_guests_each_get_their_line(host: Host, qemu: NewQemu) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        guests = {number: qemu(number) for number in range(300)}
        for joules in (1.0, 2.0, 3.0):
            host.second(
                *(domain(number, guest.path, energy_joules=number + joules) for number, guest in guests.items())
            )
            for number, guest in guests.items():
                assert numbers(guest.read()) == [number + joules]
    finally:
        host.writer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_open_files_are_a_reason_like_others(host: Host, qemu: NewQemu) -> None:
    guests = [qemu(number) for number in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        os.close(taken.pop())
        host.second(*(domain(number, guest.path) for number, guest in enumerate(guests)))
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    reasons = [delivery.reason for delivery in host.writer.deliveries().values()]
    assert ["Too many open files" in reason for reason in sorted(reasons)] == [False, True, True]
    host.second(*(domain(number, guest.path) for number, guest in enumerate(guests)))
    assert {delivery.state for delivery in host.writer.deliveries().values()} == {"connected"}


def test_guests_are_served_in_turn(host: Host, qemu: NewQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    guests = [qemu(number) for number in range(3)]
    order: list[str] = []
    real = ChannelWriter._serve

    def serve(self: ChannelWriter, uuid: str, *about: Any) -> None:  # noqa: ANN401
        order.append(uuid[-1])
        real(self, uuid, *about)

    monkeypatch.setattr(ChannelWriter, "_serve", serve)
    for _ in range(6):
        host.second(*(domain(number, guest.path) for number, guest in enumerate(guests)))
        for guest in guests:
            guest.read()
    assert "".join(order[::3]) in "012012012"
    assert sorted(order) == sorted("012" * 6)


def test_nothing_stays_open(qemu: NewQemu) -> None:
    host, guest = Host(), qemu(1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        host.second(domain(1, guest.path, pid=PID + number % 2), domain(2, guest.path.with_name("none")))
    host.writer.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert host.writer.deliveries() == {}


def test_a_qemu_that_was_taken_over_does_not_fill_the_journal(host: Host, qemu: NewQemu, clock: Clock) -> None:
    guest, now = qemu(1), clock.now
    for _ in range(100):
        for pid in (PID + 1, PID + 1, PID):
            host.second(domain(1, guest.path, pid=pid))
            with contextlib.suppress(BlockingIOError):
                guest.accept().close()
    assert clock.now == now
    assert len(host.lines) == channel_writer.LINES_AT_ONCE


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.pop("sampled_at"),
        lambda made: made.update(sampled_at="yesterday"),
        lambda made: made.pop("guests"),
        lambda made: made.update(guests=None),
        lambda made: made.update(guests=[None]),
        lambda made: made["guests"][0].pop(),
        lambda made: made["guests"][0].append(None),
    ],
)
def test_lines_of_another_version(host: Host, qemu: NewQemu, change: Callable[[dict[str, Any]], object]) -> None:
    made = lines(1, domain(1, qemu(1).path))
    change(made)
    with pytest.raises(VirtRaplError, match="cannot understand the answer of virt-rapld"):
        host.writer.write(made)
