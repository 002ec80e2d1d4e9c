"""The native helper: answers one domain's QEMU on a listening socket, any number of domains' trouble notwithstanding.

Whoever breaks the protocol loses that connection and nothing else: a register outside the list, a thread that is not
the peer's, bytes beyond one request before its reply was read, a peer that is neither the domain's user nor root.
"""

import os
import selectors
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from libvirt_rapl.vmsr.protocol import REGISTERS, REPLY, REQUEST

MAX_CONNECTIONS = 8
"""QEMU needs one and a health check a second; the rest is slack. What comes beyond is turned away."""

ReadRegister = Callable[[int, int], int]
"""(register, cpu) -> value; raises OSError when it cannot be read."""

ReaderFor = Callable[[int], ReadRegister]
"""PID of a peer -> how registers are read for it; called once for each connection."""


class Connection:
    """One peer: who it is, and the part of a request that has arrived."""

    read_register: ReadRegister
    """What this peer reads; set when it is accepted."""

    def __init__(self, peer: socket.socket, proc: Path) -> None:
        """Take an accepted socket and ask the kernel who is at the other end."""
        self.socket = peer
        self.pid, self.uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.tasks = proc / str(self.pid) / "task"
        self.buffer = b""

    def serve(self) -> bool:
        """Take what has arrived and answer a whole request. False: the connection is to be closed."""
        arrived = self.socket.recv(REQUEST.size + 1)
        self.buffer += arrived
        if len(self.buffer) < REQUEST.size:
            return bool(arrived)
        if len(self.buffer) > REQUEST.size:
            return False
        register, cpu, tid = REQUEST.unpack(self.buffer)
        self.buffer = b""
        if register not in REGISTERS:
            return False
        try:
            # QEMU may name a thread that has just ended. It would take 0 for what its window begins with.
            own = (self.tasks / str(tid)).exists() or not (self.tasks.parents[1] / str(tid)).exists()
            value = self.read_register(register, cpu) if own else 0
        except OSError:
            value = 0
        return self.socket.send(REPLY.pack(value)) == REPLY.size


class Server:
    """Serves `listener` until stop(); `owner_uid` is the user of the domain's QEMU."""

    def __init__(
        self, listener: socket.socket, *, owner_uid: int, reader_for: ReaderFor, proc: Path = Path("/proc")
    ) -> None:
        """Take a listening socket."""
        self.owner_uid = owner_uid
        self.reader_for = reader_for
        self.proc = proc
        self.selector = selectors.DefaultSelector()
        self.connections = 0
        self.listener = listener
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ)
        self.wake_up, self._stopper = socket.socketpair()
        self.selector.register(self.wake_up, selectors.EVENT_READ)

    def stop(self) -> None:
        """Make serve() return; may be called from a signal handler or another thread."""
        self._stopper.send(b"x")

    def serve(self) -> None:
        """Answer until stop()."""
        while True:
            # The listener last: who has hung up makes room for who comes.
            for key, _ in sorted(self.selector.select(), key=lambda event: event[0].fileobj is self.listener):
                if key.fileobj is self.wake_up:
                    return
                if key.fileobj is self.listener:
                    self._accept()
                else:
                    self._answer(key.data)

    def _accept(self) -> None:
        try:
            peer, _ = self.listener.accept()
        except OSError:
            return  # the peer has given up already
        connection = Connection(peer, self.proc)
        if self.connections == MAX_CONNECTIONS or connection.uid not in (self.owner_uid, 0):
            peer.close()
            return
        peer.setblocking(False)
        connection.read_register = self.reader_for(connection.pid)
        self.connections += 1
        self.selector.register(peer, selectors.EVENT_READ, connection)

    def _answer(self, connection: Connection) -> None:
        try:
            keep = connection.serve()
        except OSError:
            keep = False  # the peer has gone, or does not read its replies
        if not keep:
            self.selector.unregister(connection.socket)
            connection.socket.close()
            self.connections -= 1


def serve_until_terminated(listener: socket.socket, *, owner_uid: int, reader_for: ReaderFor) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = Server(listener, owner_uid=owner_uid, reader_for=reader_for)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    server.serve()


def listen(path: Path, *, uid: int, gid: int, mode: int = 0o600) -> socket.socket:
    """Listen on a Unix socket at `path`, owned by uid:gid with this mode, which appears there only when it is ready.

    An old socket of that name is replaced. Raises OSError.
    """
    # A relative name while it is made: the one beside the final path may be too long for a socket address.
    os.chdir(path.parent)
    aside = f".{path.name[:8]}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o777 & ~mode)
    try:
        listener.bind(aside)
        os.chown(aside, uid, gid)
        listener.listen()
        Path(aside).replace(path.name)
    except OSError:
        listener.close()
        Path(aside).unlink(missing_ok=True)
        raise
    finally:
        os.umask(umask)
    return listener
