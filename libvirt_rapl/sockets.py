"""Unix sockets: make one to listen on, see who is at the other end, and send lines to those who may not read them."""

import contextlib
import fcntl
import functools
import grp
import socket
import stat
import struct
import termios
import time
from pathlib import Path
from typing import NamedTuple

from libvirt_rapl import listening

_CREDENTIALS = struct.Struct("3i")
OVERFLOW_GROUP = 65534
"""What other groups look like to a process in a user namespace, as of systemd's PrivateUsers=."""
_NOTHING = bytes(4)
"""An int of 0."""


def listen(path: Path, mode: int = 0o600) -> socket.socket:
    """Listen on a Unix socket at `path`, as listening.listen() does."""
    return socket.socket(fileno=listening.listen(str(path), mode).detach())


class Peer(NamedTuple):
    """The process at the other end of a connection."""

    pid: int
    user: int
    group: int


def peer_of(connection: socket.socket) -> Peer:
    """Return who connected; or, where we have connected, who called listen(). Raises OSError."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(credentials))


def what_is_closed(path: str | Path) -> str:
    """Return what keeps us from connecting to a socket, a directory above it or itself, and to whom that is open.

    One line, in which `it` is this process.
    """
    place = Path(path)
    for directory in reversed(place.parents):
        try:
            directory.joinpath("..").stat()  # which takes the right to search it
        except OSError:
            place = directory
            break
    try:
        found = place.stat()
    except OSError:
        return f"{place} is not open to it"
    return f"{place} is not open to it (mode {stat.S_IMODE(found.st_mode):04o}, group {_name_of(found.st_gid)})"


@functools.cache  # a directory service may take its time
def _name_of(group: int) -> str:
    with contextlib.suppress(KeyError):
        return "unknown to it" if group == OVERFLOW_GROUP else grp.getgrgid(group).gr_name
    return "unknown to it"


class LineSender:
    """Sends lines to a peer that may be slow or not read at all. It never waits, cuts no line and queues none."""

    def __init__(self, peer: socket.socket) -> None:
        """Take a connection that does not block."""
        self.peer = peer
        self.begun = time.monotonic()
        """When the last line was begun; when we began if there is none yet."""
        self._rest = memoryview(b"")

    def all_is_read(self) -> bool:
        """Return whether the peer has read, as the kernel counts it, all that was to be sent. Raises OSError."""
        return not self._rest and fcntl.ioctl(self.peer, termios.TIOCOUTQ, _NOTHING) == _NOTHING

    def begin(self, line: bytes) -> bool:
        """Begin a line, when all is read; return whether a rest of it remains to be sent by go_on(). Raises OSError."""
        self._rest, self.begun = memoryview(line), time.monotonic()
        return self.go_on()

    def go_on(self) -> bool:
        """Send what remains of the line, as far as there is room; return whether a rest remains. Raises OSError."""
        if self._rest:
            try:
                sent = self.peer.send(self._rest)
            except BlockingIOError:
                sent = 0
            self._rest = self._rest[sent:]
        return bool(self._rest)
