"""virt-rapld's document for the exporter, asked for when somebody scrapes, and at most once a second."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from libvirt_rapl.daemon import document, status_socket
from libvirt_rapl.daemon.document import Document
from libvirt_rapl.errors import VirtRaplError

SHARED_SECONDS = 1.0
"""Scrapes within this time get the same document."""
ANSWER_SECONDS = 3.0
"""How long to wait for virt-rapld, which usually takes milliseconds: the scrape has to end in time, too."""


class Feed:
    """Asks the status socket; several threads may use it."""

    def __init__(
        self,
        socket: Path,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Take the path of virt-rapld's socket."""
        self._socket = socket
        self._log = log
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._lock = threading.Lock()
        self._document: Document | None = None
        self._asked: float | None = None
        self._trouble = ""

    def document(self) -> Document | None:
        """Return the newest document; None if virt-rapld does not answer, which is logged once."""
        with self._lock:
            if self._asked is None or self._clock() >= self._asked + SHARED_SECONDS:
                self._document = self._ask()
                self._asked = self._clock()
            return self._document

    def _ask(self) -> Document | None:
        before, self._trouble = self._trouble, ""
        values = status_socket.ask(self._socket, self._answer_seconds)
        found = None
        try:
            if values:
                found = document.read(values)
            else:
                self._trouble = f"virt-rapld does not answer at {self._socket}: is it running, and may we connect?"
        except VirtRaplError as error:
            self._trouble = f"{error.message}; {error.hint}"
        if self._trouble != before:
            self._log(self._trouble or "virt-rapld answers again")
        return found
