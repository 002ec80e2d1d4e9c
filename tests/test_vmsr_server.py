"""The native helper on a real socket: what it answers, which peers it hangs up on, and which get in nevertheless."""

import contextlib
import errno
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from instance import answer, ask

from libvirt_rapl.helper.vmsr import server as server_module
from libvirt_rapl.helper.vmsr.client import probe
from libvirt_rapl.helper.vmsr.protocol import ENERGY, POWER_INFO, POWER_LIMIT, POWER_UNIT, REPLY, REQUEST, ReadRegister
from libvirt_rapl.helper.vmsr.server import (
    BURST_REQUESTS,
    PATIENCE_SECONDS,
    REQUESTS_PER_SECOND,
    SLOTS,
    TICK_SECONDS,
    Server,
)
from libvirt_rapl.sockets import listen

VALUES = {POWER_UNIT: 0xA0E03, POWER_LIMIT: 0x42816000DD8498, POWER_INFO: 0x4F002D80000690, ENERGY: 2**40 + 7}


class Helper:
    """A server in a thread, on a socket of its own."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "helper.sock"
        self.values = dict(VALUES)
        listener = listen(self.path)
        self.of_domain: bool | None = None
        self.server = Server(
            listener,
            owner_uid=os.getuid(),
            reader_for=lambda _: self.read,
            is_of_domain=lambda _: self.of_domain,
        )
        self.thread = threading.Thread(target=self.server.serve)
        self.thread.start()

    def read(self, register: int, cpu: int) -> int:
        if cpu != 0:
            raise OSError("no such CPU")
        return self.values[register]

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(self.path))  # as QEMU does: it waits where many others do
        peer.settimeout(10)
        return peer

    def close(self) -> None:
        self.server.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.server.close()


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    """A helper that slows nobody down."""
    monkeypatch.setattr(server_module, "REQUESTS_PER_SECOND", 10_000)
    helper = Helper(tmp_path)
    yield helper
    helper.close()


def test_it_answers_the_four_registers_of_qemu(helper: Helper) -> None:
    with helper.connect() as peer:
        assert {register: ask(peer, register) for register in VALUES} == VALUES


def test_the_probe_asks_as_qemu_does(helper: Helper) -> None:
    probe(helper.path, timeout=10)
    helper.values[POWER_INFO] = 0
    with pytest.raises(ValueError, match="0x614 reads 0"):
        probe(helper.path, timeout=10)


@pytest.mark.parametrize("register", [0, 0x10, 0x3A, 0x607, 0x619, 0xFFFFFFFF])
def test_another_register_closes_the_connection(helper: Helper, register: int) -> None:
    with helper.connect() as peer:
        assert ask(peer, register) is None
    with helper.connect() as peer:
        assert ask(peer, ENERGY) == VALUES[ENERGY]


def test_a_thread_of_somebody_else_reads_nothing(helper: Helper) -> None:
    with helper.connect() as peer:
        assert ask(peer, ENERGY, tid=1) == 0
        assert ask(peer, ENERGY, tid=threading.get_native_id()) == VALUES[ENERGY]


def test_a_register_that_cannot_be_read_is_0(helper: Helper) -> None:
    with helper.connect() as peer:
        assert ask(peer, ENERGY, cpu=9) == 0


def test_a_mistake_of_ours_is_logged_once_and_reads_0(helper: Helper, capsys: pytest.CaptureFixture[str]) -> None:
    del helper.values[ENERGY]
    with helper.connect() as peer:
        assert [ask(peer, ENERGY) for _ in range(3)] == [0, 0, 0]
        assert ask(peer, POWER_UNIT) == VALUES[POWER_UNIT]
    assert capsys.readouterr().err == "virt-rapl: error: register 0x611 of CPU 0: KeyError(1553)\n"


def test_a_request_may_arrive_in_pieces_while_others_are_served(helper: Helper) -> None:
    request = REQUEST.pack(ENERGY, 0, os.getpid())
    with helper.connect() as slow, helper.connect() as other:
        for position in range(REQUEST.size - 1):
            slow.sendall(request[position : position + 1])
            assert ask(other, ENERGY) == VALUES[ENERGY]
        slow.sendall(request[-1:])
        assert REPLY.unpack(slow.recv(REPLY.size)) == (VALUES[ENERGY],)


def test_requests_sent_at_once_are_answered_one_by_one(helper: Helper) -> None:
    requests = [REQUEST.pack(register, 0, os.getpid()) for register in VALUES] * 5
    with helper.connect() as peer:
        peer.sendall(b"".join(requests))
        assert [answer(peer) for _ in requests] == list(VALUES.values()) * 5


def test_a_peer_that_reads_no_replies_loses_its_connection(helper: Helper) -> None:
    with helper.connect() as peer, helper.connect() as other:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_on(peer, REQUEST.pack(ENERGY, 0, os.getpid()) * 100)
        assert ask(other, ENERGY) == VALUES[ENERGY]


def test_a_peer_that_goes_away_half_way_is_forgotten(helper: Helper) -> None:
    for _ in range(3 * SLOTS):
        with helper.connect() as peer:
            peer.sendall(b"\x11\x06")
    with helper.connect() as peer:
        assert ask(peer, ENERGY) == VALUES[ENERGY]


def send_on(peer: socket.socket, data: bytes) -> None:
    for _ in range(1_000_000):
        peer.sendall(data)


OTHER_PROCESS = """
import os, socket, struct, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.settimeout(10)
try:
    if sys.argv[2] == "ask":
        peer.sendall(struct.pack("=3I", 0x611, 0, os.getpid()))
    print("answered" if peer.recv(8) else "turned away")
except (BrokenPipeError, ConnectionResetError):
    print("turned away")
"""


def other_process(helper: Helper, *arguments: str) -> str:
    command = [sys.executable, "-ISc", OTHER_PROCESS, str(helper.path), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=30).stdout.strip()


CONNECT = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).connect(sys.argv[2])"


def test_who_has_ended_before_it_is_seen_is_turned_away(tmp_path: Path) -> None:
    """A process of another domain could have children connect for it, which no cgroup shows any more."""
    path = tmp_path / "helper.sock"
    listener = listen(path)
    with socket.socket(socket.AF_UNIX) as peer:
        command = [sys.executable, "-ISc", CONNECT, str(peer.fileno()), str(path)]
        subprocess.run(command, check=True, pass_fds=[peer.fileno()], timeout=30)
        server = Server(listener, owner_uid=os.getuid(), reader_for=lambda _: lambda *_: 1)
        thread = threading.Thread(target=server.serve)
        thread.start()
        peer.settimeout(10)
        try:
            assert ask(peer, ENERGY) is None
        finally:
            server.stop()
            thread.join(10)
            server.close()


@pytest.fixture
def many_slots_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each connection were another process's."""
    monkeypatch.setattr(server_module, "SLOTS_OF_ONE", 10_000)


@pytest.mark.usefixtures("many_slots_for_one")
def test_the_newest_gets_the_slot_of_who_asked_for_the_least(helper: Helper) -> None:
    peers = [helper.connect() for _ in range(SLOTS)]
    for peer in [*peers[1:], peers[1]]:  # the first never asks; of the others, the third is silent longest
        assert ask(peer, POWER_UNIT)
    with helper.connect() as late:
        assert ask(late, ENERGY) == VALUES[ENERGY]
        assert answer(peers[0]) is None
        with helper.connect() as later:
            assert ask(later, ENERGY) == VALUES[ENERGY]
            assert answer(peers[2]) is None
            assert all(ask(peer, POWER_UNIT) for peer in [peers[1], *peers[3:]])
    for peer in peers:
        peer.close()


@pytest.mark.usefixtures("many_slots_for_one")
def test_who_asked_for_energy_keeps_its_slot_while_qemu_is_not_known(helper: Helper) -> None:
    peers = [helper.connect() for _ in range(SLOTS)]
    assert all(ask(peer, ENERGY) for peer in peers)
    with helper.connect() as late:
        assert answer(late) is None
    assert all(ask(peer, ENERGY) for peer in peers)
    for peer in peers:
        peer.close()


@pytest.mark.usefixtures("many_slots_for_one")
def test_a_process_of_the_domain_gets_a_slot_and_keeps_it_before_qemu_is_known(helper: Helper) -> None:
    peers = [helper.connect() for _ in range(SLOTS)]
    assert all(ask(peer, ENERGY) for peer in peers)
    helper.of_domain = True  # as the processes' cgroups show for the next one
    code = (
        OTHER_PROCESS
        + "sys.stdout.flush()\nsys.stdin.readline()\npeer.sendall(struct.pack('=3I', 0x611, 0, os.getpid()))\n"
    )
    code += "print('answered' if peer.recv(8) else 'turned away')"
    command = [sys.executable, "-ISc", code, str(helper.path), "ask"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdin
        assert qemu.stdout
        assert qemu.stdout.readline() == "answered\n"
        helper.of_domain = None
        late = [helper.connect() for _ in range(3 * SLOTS)]
        qemu.stdin.write("\n")
        qemu.stdin.flush()
        assert qemu.stdout.readline() == "answered\n"
    for peer in peers + late:
        peer.close()


def test_a_thousand_connections_keep_nobody_out(helper: Helper) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with helper.connect() as early:
            assert ask(early, ENERGY)
            crowd = [helper.connect() for _ in range(1000)]
            assert ask(early, ENERGY) == VALUES[ENERGY]
            assert other_process(helper, "ask") == "answered"
            for peer in crowd:
                peer.close()
            assert ask(early, ENERGY) == VALUES[ENERGY]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_a_peer_of_another_user_is_turned_away(helper: Helper) -> None:
    helper.server._owner_uid = 4243
    helper.path.chmod(0o777)
    helper.path.parent.chmod(0o755)
    becoming = f"import os, sys\nos.setuid(int(sys.argv.pop()))\n{OTHER_PROCESS}"
    for user, outcome in (("4242", "turned away"), ("4243", "answered")):
        done = subprocess.run(
            [sys.executable, "-ISc", becoming, helper.path.name, "ask", user],
            cwd=helper.path.parent,  # its parents are closed to others
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=30,
        )
        assert done.stdout.strip() == outcome


def test_after_stop_it_serves_on_until_who_asked_has_gone(helper: Helper) -> None:
    with helper.connect() as peer, helper.connect():
        assert ask(peer, ENERGY)
        helper.server.stop(patience=60)
        assert ask(peer, ENERGY) == VALUES[ENERGY]
        assert helper.thread.is_alive()
    helper.thread.join(10)
    assert not helper.thread.is_alive()


def test_the_socket_is_ours_alone_and_replaces_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 80 + ".sock")
    path.touch()
    here = Path.cwd()
    with listen(path):
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (os.geteuid(), os.getegid(), 0o600)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    os.chdir(here)


def test_the_frames_are_those_of_qemu() -> None:
    assert struct.calcsize("=3I") == REQUEST.size == 12
    assert REPLY.size == 8


# With a clock that the test sets, and processes that exist in a /proc of its own.

OWNER, QEMU, OTHER, ROOTS = 4243, 100, 200, 300
"""A user, two processes of its, and one of root's; after the latter two come more of the kind."""
WAITS = "waits"


class IdleError(Exception):
    """The server has nothing to do until time passes or somebody asks."""


class Epoll:
    """The server's own, which never waits: it ends the server's turn."""

    def __init__(self, epoll: select.epoll) -> None:
        self.epoll = epoll
        self.wait = 0.0
        """How long the server would have waited."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (register, modify and others)
        return getattr(self.epoll, name)

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        self.wait = seconds
        if not (events := self.epoll.poll(0)):
            raise IdleError
        return events


class Stage:
    """A server that acts when it is its turn."""

    size = 12

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.directory = directory
        self.values = dict(VALUES)
        self.readers: list[int] = []
        """The processes for which a reader was made."""
        self.gone: set[int] = set()
        """Those that have ended when theirs is made."""
        self.qemu_pid: int | None = None
        self.looks = 0
        """How often it was asked for."""
        self.domains: dict[int, bool] = {}
        self.ticks: list[bool] = []
        self.peer = (QEMU, OWNER, OWNER)
        monkeypatch.setattr(server_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(server_module, "_CREDENTIALS", self)
        for pid in (QEMU, *range(OTHER, OTHER + 3 * SLOTS), *range(ROOTS, ROOTS + 3 * SLOTS)):
            (directory / f"proc/{pid}/task/{pid}").mkdir(parents=True)
        self.path = directory / "socket"
        self.server = Server(
            listen(self.path),
            owner_uid=OWNER,
            reader_for=self.reader_for,
            qemu_pid=self.look,
            is_of_domain=self.domains.get,
            tick=self.ticks.append,
            proc=str(directory / "proc"),
        )
        self.epoll = Epoll(self.server._epoll)
        monkeypatch.setattr(self.server, "_epoll", self.epoll)
        self.sockets: list[socket.socket] = []
        self.ended = False

    def unpack(self, _data: bytes) -> tuple[int, int, int]:
        """Return who a peer is, in place of what the kernel shows."""
        return self.peer

    def reader_for(self, pid: int) -> ReadRegister:
        if pid in self.gone:
            raise ProcessLookupError(pid)
        self.readers.append(pid)
        return lambda register, cpu: self.values[register] + cpu

    def look(self) -> int | None:
        self.looks += 1
        return self.qemu_pid

    def turn(self, seconds: float = 0.0) -> None:
        """Let the server act, after so many seconds."""
        self.now += seconds
        try:
            self.server.serve()
        except IdleError:
            return
        self.ended = True

    def connect(self, pid: int = QEMU, uid: int | None = None, *, seen: bool = True) -> socket.socket:
        """Connect as a process; the server sees it at once, or at its next turn."""
        uid = (0 if pid >= ROOTS else OWNER) if uid is None else uid
        self.peer = (pid, uid, uid)
        self.sockets.append(socket.socket(socket.AF_UNIX))
        self.sockets[-1].setblocking(False)
        self.sockets[-1].connect(str(self.path))
        if seen:
            self.turn()
        return self.sockets[-1]

    def ask(self, peer: socket.socket, register: int = ENERGY, cpu: int = 0, tid: int = QEMU) -> int | str | None:
        """Ask and let the server act; returns the answer, WAITS, or None when it has hung up."""
        with contextlib.suppress(BrokenPipeError):
            peer.sendall(REQUEST.pack(register, cpu, tid))
        self.turn()
        return self.answer(peer)

    def answer(self, peer: socket.socket) -> int | str | None:
        try:
            return answer(peer)
        except BlockingIOError:
            return WAITS

    def answered(self, pid: int, uid: int | None = None) -> bool:
        """Return whether a new connection of a process is answered."""
        return self.ask(self.connect(pid, uid), tid=pid) == VALUES[ENERGY]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(tmp_path, monkeypatch)
    stage.turn()
    yield stage
    stage.server.close()
    for each in stage.sockets:
        each.close()


UNKNOWN = 0


@pytest.mark.parametrize(
    ("pid", "uid", "qemu", "of_domain", "welcome"),
    [
        (QEMU, OWNER, UNKNOWN, None, True),
        (QEMU, OWNER, UNKNOWN, True, True),
        (QEMU, OWNER, UNKNOWN, False, False),
        (QEMU, OWNER, QEMU, None, True),
        (QEMU, OWNER, QEMU, False, True),  # once QEMU is known, that counts
        (QEMU, OWNER, OTHER, None, False),
        (QEMU, OWNER, OTHER, True, False),
        (ROOTS, 0, UNKNOWN, None, True),
        (ROOTS, 0, UNKNOWN, False, True),
        (ROOTS, 0, QEMU, None, True),
        (QEMU, OWNER + 1, UNKNOWN, None, False),
        (QEMU, OWNER + 1, UNKNOWN, True, False),
        (QEMU, OWNER + 1, QEMU, True, False),
        (999, OWNER, UNKNOWN, True, False),  # it has ended
        (999, 0, UNKNOWN, None, False),
    ],
)
def test_who_is_answered(stage: Stage, pid: int, uid: int, qemu: int, of_domain: bool | None, welcome: bool) -> None:
    if of_domain is not None:
        stage.domains[pid] = of_domain
    stage.qemu_pid = qemu or None
    stage.turn(TICK_SECONDS)
    assert stage.answered(pid, uid) == welcome
    assert stage.readers == [pid] * welcome


def test_once_qemu_is_known_others_of_its_user_lose_their_connections(stage: Stage) -> None:
    peers = {pid: stage.connect(pid) for pid in (QEMU, OTHER, ROOTS)}
    stage.qemu_pid = QEMU
    stage.turn(TICK_SECONDS)
    assert [stage.ask(peer, tid=pid) for pid, peer in peers.items()] == [VALUES[ENERGY], None, VALUES[ENERGY]]
    assert stage.looks == 2, "it does not change"
    stage.turn(TICK_SECONDS)
    assert stage.looks == 2


def test_qemu_is_looked_for_at_once_and_every_tick_and_each_tick_shows_whether_it_is_here(stage: Stage) -> None:
    assert (stage.looks, stage.ticks, stage.epoll.wait) == (1, [True], TICK_SECONDS)
    stage.turn(TICK_SECONDS - 0.5)
    assert (stage.looks, stage.ticks, stage.epoll.wait) == (1, [True], 0.5)
    stage.turn(0.5)
    assert (stage.looks, stage.ticks) == (2, [True, True]), "as long as it is not known, it may be here"
    stage.qemu_pid = QEMU
    stage.turn(TICK_SECONDS)
    qemu, second, _ = stage.connect(QEMU), stage.connect(QEMU), stage.connect(ROOTS)
    stage.turn(TICK_SECONDS)
    qemu.close()
    stage.turn(TICK_SECONDS)
    second.close()
    stage.turn(TICK_SECONDS)
    assert stage.ticks[2:] == [False, True, True, False]


def test_a_request_brings_forward_a_tick_that_is_due_soon(stage: Stage) -> None:
    """QEMU asks twice a second, so the helper need not wake up for its ticks alone."""
    peer = stage.connect(QEMU)
    stage.now += TICK_SECONDS / 2 - 0.1
    assert stage.ask(peer) == VALUES[ENERGY]
    assert len(stage.ticks) == 1
    assert stage.epoll.wait == pytest.approx(TICK_SECONDS / 2 + 0.1)
    stage.now += 0.1
    assert stage.ask(peer) == VALUES[ENERGY]
    assert (len(stage.ticks), stage.epoll.wait) == (2, TICK_SECONDS)


@pytest.mark.parametrize(
    ("tid", "answered"),
    [(QEMU, True), (QEMU + 1, True), (OTHER, False), (999, True), (0, True), (0xFFFFFFFF, True)],
    ids=["its main thread", "a thread", "another process", "a thread that has ended", "0", "no number of a thread"],
)
def test_a_process_asks_for_its_own_threads(stage: Stage, tid: int, *, answered: bool) -> None:
    (stage.directory / f"proc/{QEMU}/task/{QEMU + 1}").mkdir()
    assert stage.ask(stage.connect(), tid=tid) == (VALUES[ENERGY] if answered else 0)


def test_each_register_is_of_the_cpu_that_was_asked_for(stage: Stage) -> None:
    qemu = stage.connect()
    assert [stage.ask(qemu, register, cpu=7) for register in VALUES] == [value + 7 for value in VALUES.values()]


def test_a_process_has_one_reader_and_two_slots(stage: Stage) -> None:
    first, second = stage.connect(), stage.connect()
    assert [stage.ask(peer) for peer in (first, second, stage.connect(), first)] == [
        *[VALUES[ENERGY]] * 2,
        None,
        VALUES[ENERGY],
    ]
    assert stage.readers == [QEMU]
    second.close()
    assert stage.answered(QEMU)
    assert stage.readers == [QEMU]


def test_a_process_that_ends_while_it_is_admitted_takes_no_slot(stage: Stage) -> None:
    stage.gone = {QEMU}
    assert not any(stage.answered(QEMU) for _ in range(2 * SLOTS))
    stage.gone = set()
    assert stage.answered(QEMU)


def test_whoever_hangs_up_makes_room_for_who_comes_at_the_same_moment(stage: Stage) -> None:
    first, second = stage.connect(), stage.connect()
    newcomer = stage.connect(seen=False)
    second.close()
    assert [stage.ask(peer) for peer in (newcomer, first)] == [VALUES[ENERGY]] * 2


@pytest.mark.parametrize("known", [True, False])
def test_qemu_keeps_its_slot_whoever_comes(stage: Stage, *, known: bool) -> None:
    """Known by its PID or, before that, by its cgroup, although others have asked for energy later."""
    stage.domains[QEMU] = True
    qemu = stage.connect()
    assert stage.ask(qemu)
    stage.qemu_pid = QEMU if known else None
    stage.turn(TICK_SECONDS)
    register = ENERGY if known else POWER_UNIT  # before it is known, whoever asks for energy might be QEMU
    for pid in range(ROOTS, ROOTS + 3 * SLOTS):
        newcomer = stage.connect(pid)
        assert stage.ask(newcomer, register, tid=pid) == VALUES[register]
    assert stage.ask(qemu) == VALUES[ENERGY]


def test_a_slot_that_is_wanted_shows_who_qemu_is(stage: Stage) -> None:
    """Not at the next tick, when it might be lost."""
    qemu = stage.connect()
    assert stage.ask(qemu, POWER_UNIT)
    others = [stage.connect(OTHER + number) for number in range(SLOTS - 1)]
    assert [stage.ask(other, tid=OTHER + number) for number, other in enumerate(others)] == [VALUES[ENERGY]] * len(
        others
    )
    stage.qemu_pid = QEMU
    looks = stage.looks
    assert not stage.answered(OTHER + SLOTS)
    assert stage.looks == looks + 1
    assert stage.ask(qemu) == VALUES[ENERGY]
    assert {stage.answer(other) for other in others} == {None}


@pytest.mark.parametrize("how", ["closes", "shuts down"])
def test_a_peer_that_hangs_up_while_it_waits_is_forgotten(stage: Stage, how: str) -> None:
    for _ in range(3 * SLOTS):
        peer = stage.connect(OTHER)
        while stage.ask(peer, tid=OTHER) != WAITS:
            pass
        stage.connect(OTHER)
        if how == "closes":
            peer.close()
            stage.sockets.pop().close()
        else:
            peer.shutdown(socket.SHUT_RDWR)
            stage.sockets.pop().shutdown(socket.SHUT_RDWR)
        stage.turn()
    assert stage.server._connections == {}


def test_a_process_that_asks_too_much_waits_on_all_its_connections_and_nobody_else(stage: Stage) -> None:
    stage.qemu_pid = QEMU
    stage.turn(TICK_SECONDS)
    first, second, root = stage.connect(), stage.connect(), stage.connect(ROOTS)
    answers = [stage.ask(first if number % 2 else second) for number in range(BURST_REQUESTS)]
    assert answers == [VALUES[ENERGY]] * BURST_REQUESTS
    assert [stage.ask(first), stage.ask(second)] == [WAITS] * 2
    assert stage.epoll.wait == pytest.approx(1 / REQUESTS_PER_SECOND)
    assert stage.ask(root, tid=ROOTS) == VALUES[ENERGY]
    stage.turn(1 / REQUESTS_PER_SECOND)
    assert sorted([str(stage.answer(first)), str(stage.answer(second))]) == [str(VALUES[ENERGY]), WAITS]
    stage.turn(1 / REQUESTS_PER_SECOND)
    assert sorted([str(stage.answer(first)), str(stage.answer(second))]) == [str(VALUES[ENERGY]), WAITS]
    for peer in (first, second):
        peer.close()
    stage.turn()
    assert stage.ask(stage.connect()) == WAITS, "not even on a new one"


def test_the_rest_of_a_request_is_no_request(stage: Stage) -> None:
    qemu = stage.connect()
    for _ in range(BURST_REQUESTS):
        for part in (b"\x11\x06", b"\0\0\0\0\0\0" + REQUEST.pack(0, 0, QEMU)[8:]):
            qemu.sendall(part)
            stage.turn()
        assert stage.answer(qemu) == VALUES[ENERGY]
    assert stage.ask(qemu) == WAITS


def test_a_request_ends_where_the_next_one_begins(stage: Stage) -> None:
    qemu = stage.connect()
    requests = b"".join(REQUEST.pack(register, 0, QEMU) for register in VALUES)
    for part in (requests[:2], requests[2:20], requests[20:]):
        qemu.sendall(part)
        stage.turn()
    assert [stage.answer(qemu) for _ in VALUES] == list(VALUES.values())


def test_qemu_never_waits_on_a_host_of_eight_packages_and_a_flood_does(stage: Stage) -> None:
    qemu, flood = stage.connect(), stage.connect(ROOTS)
    assert all(stage.ask(qemu, register) != WAITS for register in (POWER_UNIT, POWER_LIMIT, POWER_INFO))
    answers = 0
    for _ in range(60):
        assert {stage.ask(qemu) for _ in range(2 * 8)} == {VALUES[ENERGY]}
        for _ in range(50):
            with contextlib.suppress(BlockingIOError):
                flood.sendall(REQUEST.pack(ENERGY, 0, ROOTS))
            stage.turn(0.02)
            answers += stage.answer(flood) == VALUES[ENERGY]
    assert answers <= 60 * 20


@pytest.mark.parametrize(
    ("first", "steps", "kept"),
    [
        ("nothing", [PATIENCE_SECONDS], True),
        ("nothing", [PATIENCE_SECONDS, 0.1], False),
        ("half a request", [PATIENCE_SECONDS, 0.1], False),
        ("a request", [1e6, 1e6], True),
        ("half a request", [1, 1, 1, 1, 1], True),
        ("half a request", [1, 1, 1, 1, 1, 1], False),  # although it grows
        ("one and a half", [PATIENCE_SECONDS], True),
        ("one and a half", [PATIENCE_SECONDS, 0.1], False),
        ("half and a request an hour later", [PATIENCE_SECONDS], True),
        ("half and a request an hour later", [PATIENCE_SECONDS, 0.1], False),
    ],
)
def test_how_long_a_slot_is_kept(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, first: str, steps: list[float], *, kept: bool
) -> None:
    monkeypatch.setattr(server_module, "TICK_SECONDS", 0.001)
    monkeypatch.setattr(server_module, "LONELY_SECONDS", 1e9)
    stage.turn(TICK_SECONDS)
    qemu = stage.connect()
    if first in ("a request", "one and a half", "half and a request an hour later"):
        assert stage.ask(qemu) == VALUES[ENERGY]
    if first == "half and a request an hour later":
        stage.turn(3600)
    if first in ("half a request", "one and a half", "half and a request an hour later"):
        qemu.sendall(b"\x11")
        stage.turn()
    for seconds in steps:
        stage.turn(seconds)
        if "half" in first:
            with contextlib.suppress(BrokenPipeError):
                qemu.sendall(b"\x11")
    stage.turn()
    assert (stage.answer(qemu) == WAITS) == kept


@pytest.mark.parametrize("asks", [True, False])
def test_it_ends_five_minutes_after_the_last_that_asked_has_gone(stage: Stage, *, asks: bool) -> None:
    if asks:
        qemu = stage.connect()
        assert stage.ask(qemu)
        stage.turn(3600)
        stage.turn(TICK_SECONDS)
        assert stage.ask(qemu) == VALUES[ENERGY], "a quiet QEMU is company"
        qemu.close()
    for _ in range(int(300 / TICK_SECONDS)):
        stage.connect(ROOTS)  # one that asks for nothing is not
        stage.turn(TICK_SECONDS)
        assert not stage.ended
    stage.turn(TICK_SECONDS)
    stage.turn()
    assert stage.ended


@pytest.mark.parametrize(
    ("patience", "hangs_up", "seconds", "ended"),
    [
        (0.0, False, 0.0, True),
        (5.0, False, 0.0, False),
        (5.0, False, 4.9, False),
        (5.0, False, 5.0, True),
        (5.0, True, 0.0, True),
    ],
)
def test_when_it_ends_after_stop(stage: Stage, patience: float, hangs_up: bool, seconds: float, ended: bool) -> None:
    qemu, _ = stage.connect(), stage.connect()  # one that has asked nothing is not waited for
    assert stage.ask(qemu)
    stage.server.stop(patience)
    if hangs_up:
        qemu.close()
        stage.turn()
    stage.turn(seconds)
    assert stage.ended == ended


def test_after_stop_it_wakes_up_for_its_end_and_listens_no_longer(stage: Stage) -> None:
    qemu = stage.connect()
    assert stage.ask(qemu)
    stage.server.stop(0.5)
    stage.turn()
    assert stage.epoll.wait == 0.5
    with pytest.raises(ConnectionRefusedError):
        stage.connect()
    stage.server.stop(3 * TICK_SECONDS)
    stage.turn(TICK_SECONDS)  # the listener is not taken up again
    assert stage.ask(qemu) == VALUES[ENERGY]
    assert stage.epoll.wait == TICK_SECONDS


class Listener:
    """The server's own, which fails as often as a test wants."""

    def __init__(self, listener: Any) -> None:  # noqa: ANN401 (a socket of the server's kind)
        self.listener = listener
        self.errors: list[int] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (fileno and others)
        return getattr(self.listener, name)

    def _accept(self) -> tuple[int, object]:
        if self.errors:
            raise OSError(self.errors.pop(), "")
        return self.listener._accept()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        *((error, 1) for error in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)),
        *((error, 2) for error in (errno.ECONNABORTED, errno.EAGAIN)),
    ],
)
def test_a_newcomer_that_cannot_be_accepted_waits_for_the_next_tick(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, error: int, tries: int
) -> None:
    qemu = stage.connect()
    listener = Listener(stage.server._listener)
    monkeypatch.setattr(stage.server, "_listener", listener)
    listener.errors = [error] * 2
    newcomer = stage.connect(OTHER)
    assert len(listener.errors) == 2 - tries, "it is not tried again and again"
    assert stage.ask(qemu) == VALUES[ENERGY], "who is here is served"
    stage.turn(TICK_SECONDS)
    stage.turn(TICK_SECONDS)
    assert stage.ask(newcomer, tid=OTHER) == VALUES[ENERGY]


@pytest.mark.parametrize("debug", [True, False])
def test_a_mistake_of_ours_is_logged_once_for_a_process(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, debug: bool
) -> None:
    monkeypatch.setenv("VIRT_RAPL_DEBUG", "1" if debug else "")
    stage.values.clear()
    peers = [(QEMU, stage.connect()), (QEMU, stage.connect()), (ROOTS, stage.connect(ROOTS))]
    assert [stage.ask(peer, tid=pid) for pid, peer in peers for _ in range(2)] == [0] * 6
    errors = capsys.readouterr().err
    assert errors.count("virt-rapl: error: register 0x611 of CPU 0: KeyError") == 2
    assert errors.count("Traceback") == 2 * debug


def test_a_log_that_is_full_does_no_harm(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    del stage.values[ENERGY]

    def full(_text: str) -> None:
        raise OSError(errno.ENOSPC, "")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", SimpleNamespace(write=full, flush=lambda: None))
        assert stage.ask(stage.connect()) == 0
    assert stage.ask(stage.sockets[-1], POWER_UNIT) == VALUES[POWER_UNIT]


def test_it_closes_whatever_it_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    stage = Stage(tmp_path, monkeypatch)
    peers = [stage.connect(), stage.connect(ROOTS), stage.connect(999)]
    stage.server.close()
    assert [stage.answer(peer) for peer in peers] == [None] * 3
    for peer in peers:
        peer.close()
    assert set(Path("/proc/self/fd").iterdir()) == before
