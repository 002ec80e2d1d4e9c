"""Threads that answer clients on a Unix socket of virt-rapld's.

The directory belongs to the daemon's user, whichever that is; the run directory is root's, for the hook. Clients must
not hinder the daemon: a fixed number of threads answer, and only a few of them for one user.
"""

import contextlib
import errno
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from libvirt_rapl.sockets import listen, peer_of

DIRECTORY_MODE, MODE = 0o750, 0o660
"""For root, and the user and group that the daemon's unit names: fine readings of energy show what a guest computes."""

SEND_SECONDS = 5.0
"""How long a client may take to read what is sent to it at once."""


class Answerers:
    """Threads that answer on a socket from now until close()."""

    def __init__(
        self, path: Path, answer: Callable[[socket.socket], None], name: str, threads: int, of_one: int
    ) -> None:
        """Make the socket, and that many threads, of which so many answer one user who is not root.

        `answer` takes a client, whose time-out is SEND_SECONDS. Raises OSError when the socket cannot be made.
        """
        self._answer = answer
        self._of_one = of_one
        self._asking: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._listener = listen(path, MODE)
        for number in range(threads):
            threading.Thread(target=self._answer_all, name=f"{name} {number}", daemon=True).start()

    def close(self) -> None:
        """Stop answering; the socket's name stays."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which wakes threads that wait in accept()

    def _answer_all(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError as error:
                if error.errno == errno.EINVAL:  # closed
                    return
                time.sleep(1)  # too many open files: that may pass
                continue
            with peer, contextlib.suppress(OSError), self._turn(peer):  # OSError: the client has gone
                peer.settimeout(SEND_SECONDS)
                self._answer(peer)

    @contextlib.contextmanager
    def _turn(self, peer: socket.socket) -> Iterator[None]:
        """Count the peer among those of its user. Raises ConnectionRefusedError if there are too many."""
        uid = peer_of(peer).user
        with self._lock:
            if uid != 0 and self._asking[uid] >= self._of_one:
                raise ConnectionRefusedError
            self._asking[uid] += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking[uid] -= 1
