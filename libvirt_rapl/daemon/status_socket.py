"""RUN_DIRECTORY/daemon/status.sock: the daemon writes the status document, as JSON, to every client that connects.

It reads nothing.
"""

import errno
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from libvirt_rapl.daemon.answerers import Answerers
from libvirt_rapl.daemon.document import SCHEMA
from libvirt_rapl.errors import explain

ANSWERERS = 16
"""Threads; if all are busy, new clients wait."""
ANSWERERS_OF_ONE = 4
"""Of them, for one user who is not root: a client that does not read occupies one for SEND_SECONDS."""
ANSWER_SECONDS = 10.0
"""How long a client waits for an answer."""


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


def serve(path: Path, text: Callable[[], bytes], log: Callable[[str], None]) -> Answerers:
    """Answer from now on; `text` returns the document, `log` takes a line. Raises OSError if there can be no socket."""
    careful = CarefulText(text, log)
    return Answerers(path, lambda peer: peer.sendall(careful()), "status", ANSWERERS, ANSWERERS_OF_ONE)


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
    return _tried(path) in (0, errno.EAGAIN)  # EAGAIN: its backlog is full


def is_forbidden(path: Path) -> bool:
    """Return whether we have no right to ask there, whether a daemon runs or not."""
    return _tried(path) == errno.EACCES


def _tried(path: Path) -> int:
    """Connect, and return the error's number, or 0."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.setblocking(False)
        return peer.connect_ex(str(path))
