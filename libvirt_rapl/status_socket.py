"""RUN_DIRECTORY/daemon/status.sock: the daemon writes the status document, as JSON, to whoever connects.

It reads nothing. The directory is the daemon's own, whoever its user is; the run directory is root's and the hook's.
"""

import errno
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from libvirt_rapl.listener import listen
from libvirt_rapl.view import SCHEMA

DIRECTORY = "daemon"
NAME = f"{DIRECTORY}/status.sock"
DIRECTORY_MODE, MODE = 0o750, 0o660
"""For root, and the user and group that the daemon's unit names: fine readings of energy tell what a guest computes."""

SEND_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""A daemon that has just started takes a second to know any power."""


def serve(path: Path, document: Callable[[], dict[str, Any]]) -> None:
    """Answer from now on, in threads of its own. Raises OSError when the socket cannot be made."""
    listener = listen(path, MODE)
    threading.Thread(target=_accept, args=(listener, document), name="status", daemon=True).start()


def ask(path: Path) -> dict[str, Any] | None:
    """Return the daemon's document; None when no daemon answers there, or none that we understand."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(ANSWER_SECONDS)
        try:
            peer.connect(str(path))
            with peer.makefile("rb") as stream:
                document = json.load(stream)
        except (OSError, ValueError):
            return None
    return document if isinstance(document, dict) and document.get("schema") == SCHEMA else None


def listens(path: Path) -> bool:
    """Tell whether a daemon holds the socket, be it that it answers or not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.setblocking(False)
        return peer.connect_ex(str(path)) in (0, errno.EAGAIN)  # EAGAIN: its backlog is full


def _accept(listener: socket.socket, document: Callable[[], dict[str, Any]]) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:  # too many open files: that may pass
            time.sleep(1)
            continue
        threading.Thread(target=_answer, args=(peer, document), daemon=True).start()


def _answer(peer: socket.socket, document: Callable[[], dict[str, Any]]) -> None:
    with peer:
        peer.settimeout(SEND_SECONDS)
        text = json.dumps(document())
        try:
            peer.sendall(text.encode())
        except OSError:
            return  # it did not want to know
