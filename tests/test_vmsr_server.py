"""The native helper on a real socket: what it answers, and whom it hangs up on."""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvirt_rapl.vmsr import server as server_module
from libvirt_rapl.vmsr.client import probe
from libvirt_rapl.vmsr.protocol import ENERGY, POWER_INFO, POWER_LIMIT, POWER_UNIT, REPLY, REQUEST
from libvirt_rapl.vmsr.server import MAX_CONNECTIONS, Server, listen

VALUES = {POWER_UNIT: 0xA0E03, POWER_LIMIT: 0x42816000DD8498, POWER_INFO: 0x4F002D80000690, ENERGY: 2**40 + 7}


class Helper:
    """A server in a thread, on a socket of its own."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "helper.sock"
        self.values = dict(VALUES)
        here = Path.cwd()
        listener = listen(self.path, uid=os.getuid(), gid=os.getgid())
        os.chdir(here)
        self.server = Server(listener, owner_uid=os.getuid(), reader_for=lambda _: self.read)
        self.thread = threading.Thread(target=self.server.serve)
        self.thread.start()

    def read(self, register: int, cpu: int) -> int:
        if cpu != 0:
            raise OSError("no such CPU")
        return self.values[register]

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(10)
        peer.connect(str(self.path))
        return peer

    def close(self) -> None:
        self.server.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()
        for key in list(self.server.selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self.server.selector.close()


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[Helper]:
    helper = Helper(tmp_path)
    yield helper
    helper.close()


def ask(peer: socket.socket, register: int, cpu: int = 0, tid: int | None = None) -> int | None:
    peer.sendall(REQUEST.pack(register, cpu, os.getpid() if tid is None else tid))
    return answer(peer)


def answer(peer: socket.socket) -> int | None:
    """Return the answer; None when the helper hung up."""
    try:
        reply = peer.recv(REPLY.size, socket.MSG_WAITALL)
    except ConnectionResetError:  # it hung up without reading all that we sent
        return None
    return int(REPLY.unpack(reply)[0]) if reply else None


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


def test_a_request_may_arrive_in_pieces_while_others_are_served(helper: Helper) -> None:
    request = REQUEST.pack(ENERGY, 0, os.getpid())
    with helper.connect() as slow, helper.connect() as other:
        for position in range(REQUEST.size - 1):
            slow.sendall(request[position : position + 1])
            assert ask(other, ENERGY) == VALUES[ENERGY]
        slow.sendall(request[-1:])
        assert REPLY.unpack(slow.recv(REPLY.size)) == (VALUES[ENERGY],)


def test_more_than_one_request_at_once_closes_the_connection(helper: Helper) -> None:
    with helper.connect() as peer, helper.connect() as other:
        peer.sendall(REQUEST.pack(ENERGY, 0, os.getpid()) * 2)
        assert answer(peer) is None
        assert ask(other, ENERGY) == VALUES[ENERGY]


def test_a_peer_that_goes_away_half_way_is_forgotten(helper: Helper) -> None:
    for _ in range(3 * MAX_CONNECTIONS):
        with helper.connect() as peer:
            peer.sendall(b"\x11\x06")
    with helper.connect() as peer:
        assert ask(peer, ENERGY) == VALUES[ENERGY]


def test_too_many_connections_are_turned_away_and_room_comes_back(helper: Helper) -> None:
    peers = [helper.connect() for _ in range(MAX_CONNECTIONS)]
    assert all(ask(peer, ENERGY) for peer in peers)
    with helper.connect() as late:
        assert answer(late) is None
    peers.pop().close()
    with helper.connect() as peer:
        assert ask(peer, ENERGY) == VALUES[ENERGY]
    for peer in peers:
        peer.close()


def test_a_peer_of_another_user_is_turned_away(helper: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stranger(server_module.Connection):
        def __init__(self, peer: socket.socket, proc: Path) -> None:
            super().__init__(peer, proc)
            self.uid = 4242

    monkeypatch.setattr(server_module, "Connection", Stranger)
    with helper.connect() as peer:
        assert answer(peer) is None


def test_the_socket_is_the_owners_alone_and_replaces_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 80 + ".sock")
    path.touch()
    here = Path.cwd()
    owner = (os.getuid(), os.getgid()) if os.getuid() else (1234, 1235)
    with listen(path, uid=owner[0], gid=owner[1]):
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (*owner, 0o600)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    os.chdir(here)


def test_the_frames_are_those_of_qemu() -> None:
    assert struct.calcsize("=3I") == REQUEST.size == 12
    assert REPLY.size == 8
