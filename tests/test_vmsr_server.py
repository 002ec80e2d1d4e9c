"""The native helper on a real socket: what it answers, which peers it hangs up on, and which get in nevertheless."""

import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance import answer, ask

from libvirt_rapl.helper.vmsr import server as server_module
from libvirt_rapl.helper.vmsr.client import probe
from libvirt_rapl.helper.vmsr.protocol import ENERGY, POWER_INFO, POWER_LIMIT, POWER_UNIT, REPLY, REQUEST
from libvirt_rapl.helper.vmsr.server import SLOTS, SLOTS_OF_ONE, Server
from libvirt_rapl.sockets import listen

VALUES = {POWER_UNIT: 0xA0E03, POWER_LIMIT: 0x42816000DD8498, POWER_INFO: 0x4F002D80000690, ENERGY: 2**40 + 7}


class Helper:
    """A server in a thread, on a socket of its own."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "helper.sock"
        self.values = dict(VALUES)
        listener = listen(self.path)
        self.qemu_pid: int | None = None
        self.of_domain: bool | None = None
        self.connected: list[bool] = []
        """The argument of each tick."""
        self.server = Server(
            listener,
            owner_uid=os.getuid(),
            reader_for=lambda _: self.read,
            qemu_pid=lambda: self.qemu_pid,
            is_of_domain=lambda _: self.of_domain,
            tick=self.connected.append,
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
    """A helper of little patience, for a test that waits for its end. Nobody here is slowed down."""
    monkeypatch.setattr(server_module, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(server_module, "PATIENCE_SECONDS", 0.5)
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


@pytest.mark.parametrize("begun", [b"", b"\x11\x06"], ids=["nothing", "half a request"])
def test_who_never_asks_is_hung_up_on(helper: Helper, begun: bytes) -> None:
    with helper.connect() as peer:
        peer.sendall(begun)
        assert answer(peer) is None


def test_half_a_request_that_grows_byte_by_byte_does_not_stay(helper: Helper) -> None:
    with helper.connect() as peer:
        assert ask(peer, ENERGY) == VALUES[ENERGY]
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_on(peer, b"\x11", pause=0.2, times=REQUEST.size - 1)


def send_on(peer: socket.socket, data: bytes, pause: float = 0.0, times: int = 1_000_000) -> None:
    for _ in range(times):
        peer.sendall(data)
        time.sleep(pause)


def test_who_has_asked_may_be_silent(helper: Helper) -> None:
    with helper.connect() as peer:
        assert ask(peer, ENERGY) == VALUES[ENERGY]
        time.sleep(3 * server_module.PATIENCE_SECONDS)
        assert ask(peer, ENERGY) == VALUES[ENERGY]


def test_who_asks_too_much_waits_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BURST_REQUESTS", 3)
    monkeypatch.setattr(server_module, "REQUESTS_PER_SECOND", 4)
    helper = Helper(tmp_path)
    with helper.connect() as greedy:
        greedy.sendall(REQUEST.pack(ENERGY, 0, os.getpid()) * 8)
        greedy.settimeout(0.1)
        assert [answer(greedy) for _ in range(3)] == [VALUES[ENERGY]] * 3
        with pytest.raises(TimeoutError):
            answer(greedy)
        assert other_process(helper, "ask") == "answered"
        greedy.settimeout(10)
        assert [answer(greedy) for _ in range(5)] == [VALUES[ENERGY]] * 5
    helper.close()


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
        assert ask(peer, ENERGY) is None
        server.stop()
        thread.join(10)
        server.close()


def test_a_process_has_a_few_slots(helper: Helper) -> None:
    with helper.connect() as first, helper.connect() as second:
        assert SLOTS_OF_ONE == 2
        assert ask(first, ENERGY)
        assert ask(second, ENERGY)
        with helper.connect() as third:
            assert answer(third) is None
        assert ask(first, ENERGY) == VALUES[ENERGY]
    with helper.connect() as peer:
        assert ask(peer, ENERGY) == VALUES[ENERGY]


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
def test_qemu_keeps_its_slot_whoever_comes(helper: Helper) -> None:
    with helper.connect() as qemu:
        assert ask(qemu, ENERGY)
        helper.qemu_pid = os.getpid()
        time.sleep(0.2)  # a few ticks: it is known now
        others = [helper.connect() for _ in range(3 * SLOTS)]
        assert ask(qemu, ENERGY) == VALUES[ENERGY]
        for other in others:
            other.close()


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


def test_a_process_of_another_domain_is_turned_away(helper: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    with helper.connect() as root:
        helper.of_domain = False
        assert ask(root, ENERGY)
    monkeypatch.setattr(server_module, "_CREDENTIALS", Another)
    monkeypatch.setattr(helper.server, "_owner_uid", Another.UID)
    assert other_process(helper, "ask") == "turned away"
    helper.of_domain = None
    assert other_process(helper, "ask") == "answered"


class Another:
    """Credentials of peers, as if they were another user's."""

    UID = 4243
    size = 12

    @classmethod
    def unpack(cls, data: bytes) -> tuple[int, int, int]:
        pid, _, _ = struct.unpack("3i", data)
        return pid, cls.UID, cls.UID


def test_a_slot_that_is_wanted_shows_who_qemu_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the next tick, when it might be lost."""
    monkeypatch.setattr(server_module, "TICK_SECONDS", 3600)
    monkeypatch.setattr(server_module, "SLOTS_OF_ONE", 10_000)
    monkeypatch.setattr(Server, "_welcomes", lambda server, pid, _uid: server._qemu_pid in (None, pid))
    helper = Helper(tmp_path)
    with helper.connect() as qemu:
        assert ask(qemu, POWER_UNIT)
        helper.qemu_pid = os.getpid()
        for _ in range(SLOTS):
            other_process(helper, "ask")
        others = [helper.connect() for _ in range(SLOTS)]
        assert other_process(helper, "ask") == "turned away"
        assert ask(qemu, ENERGY)
        for other in others:
            other.close()
    helper.close()


def test_each_tick_is_reported_whether_qemu_is_connected(helper: Helper) -> None:
    with helper.connect() as qemu:
        assert ask(qemu, ENERGY)
        helper.qemu_pid = os.getpid()
        time.sleep(0.2)
        assert set(helper.connected) == {True}
    time.sleep(0.2)
    assert helper.connected[-1] is False
    assert helper.connected == sorted(helper.connected, reverse=True)


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


def test_once_qemu_is_known_another_process_of_its_user_is_turned_away(
    helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if we were not root, which is always admitted.
    monkeypatch.setattr(Server, "_welcomes", lambda server, pid, _uid: server._qemu_pid in (None, pid))
    with helper.connect() as peer:
        assert ask(peer, ENERGY)
        assert other_process(helper, "ask") == "answered"
        helper.qemu_pid = os.getpid()
        time.sleep(0.2)
        assert other_process(helper, "wait") == "turned away"
        assert ask(peer, ENERGY) == VALUES[ENERGY]


def test_it_ends_when_nobody_comes_or_stays(helper: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    with helper.connect() as qemu:
        assert ask(qemu, ENERGY)
        time.sleep(0.2)  # a tick later it is known that somebody is there
        monkeypatch.setattr(server_module, "LONELY_SECONDS", 0.3)
        time.sleep(1)
        assert ask(qemu, ENERGY)  # a quiet QEMU is company
    with helper.connect():  # one that asks nothing is not
        helper.thread.join(10)
    assert not helper.thread.is_alive()


def test_after_stop_it_serves_on_until_who_asked_has_gone(helper: Helper) -> None:
    with helper.connect() as peer, helper.connect():
        assert ask(peer, ENERGY)
        helper.server.stop(patience=60)
        assert ask(peer, ENERGY) == VALUES[ENERGY]
        assert helper.thread.is_alive()
    helper.thread.join(10)
    assert not helper.thread.is_alive()


def test_after_stop_it_ends_when_patience_does(helper: Helper) -> None:
    with helper.connect() as peer:
        assert ask(peer, ENERGY)
        helper.server.stop(patience=0.3)
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
