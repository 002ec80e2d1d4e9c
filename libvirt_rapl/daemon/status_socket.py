"""RUN_DIRECTORY/daemon/status.sock: the daemon writes the status document, as JSON, to every client that connects.

It reads nothing. The directory belongs to the daemon's user, whichever that is; the run directory is root's, for the
hook. Clients must not hinder the daemon: a fixed number of threads answer, and only a few of them for one user.
"""

import contextlib
import errno
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from libvirt_rapl.daemon.document import SCHEMA
from libvirt_rapl.errors import explain
from libvirt_rapl.sockets import listen

DIRECTORY_MODE, MODE = 0o750, 0o660
"""For root, and the user and group that the daemon's unit names: fine readings of energy show what a guest computes."""

ANSWERERS = 16
"""Threads; if all are busy, new clients wait."""
ANSWERERS_OF_ONE = 4
"""Of them, for one user who is not root: a client that does not read occupies one for SEND_SECONDS."""
SEND_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""How long a client waits for an answer."""

_CREDENTIALS = struct.Struct("3i")


def user_of(peer: socket.socket) -> int:
    """Return the user of the client at the other end."""
    _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


class CarefulText:
    """Returns the document, or nothing if it cannot be made, which is logged once: its server continues."""

    def __init__(self, text: Callable[[], bytes], log: Callable[[str], None]) -> None:
        """Take the function that makes it, and `log`, which takes a line."""
        self._make = text
        self._log = log
        self._trouble = ""

    def __call__(self) -> bytes:
        """Make it."""
        try:
            text, self._trouble = self._make(), ""
        except Exception as error:
            before, self._trouble = self._trouble, f"{type(error).__name__}: {explain(error)}"
            if not before:
                self._log(f"cannot answer `virt-rapl status`: {self._trouble}")
            return b""
        return text


class Answerers:
    """Threads that answer on a socket from now until close()."""

    def __init__(self, path: Path, text: Callable[[], bytes], log: Callable[[str], None]) -> None:
        """Make the socket; `text` returns the document, `log` takes a line. Raises OSError when it cannot be made."""
        self._text = CarefulText(text, log)
        self._asking: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._listener = listen(path, MODE)
        for number in range(ANSWERERS):
            threading.Thread(target=self._answer_all, name=f"status {number}", daemon=True).start()

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
                peer.sendall(self._text())

    @contextlib.contextmanager
    def _turn(self, peer: socket.socket) -> Iterator[None]:
        """Count the peer among those of its user. Raises ConnectionRefusedError if there are too many."""
        uid = user_of(peer)
        with self._lock:
            if uid != 0 and self._asking[uid] >= ANSWERERS_OF_ONE:
                raise ConnectionRefusedError
            self._asking[uid] += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking[uid] -= 1


def ask(path: Path, seconds: float = ANSWER_SECONDS) -> dict[str, Any] | None:
    """Return the daemon's document; None when no daemon answers there, or with nothing that we understand."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(seconds)
        try:
            peer.connect(str(path))
            with peer.makefile("rb") as stream:
                document = json.load(stream)
        except (OSError, ValueError):
            return None
    return understood(document)


def understood(document: Any) -> dict[str, Any] | None:  # noqa: ANN401  any JSON
    """Return it if it is a document that this version can read; else None."""
    return document if isinstance(document, dict) and document.get("schema") == SCHEMA else None


def listens(path: Path) -> bool:
    """Return whether a daemon has the socket open, whether it answers or not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.setblocking(False)
        return peer.connect_ex(str(path)) in (0, errno.EAGAIN)  # EAGAIN: its backlog is full
