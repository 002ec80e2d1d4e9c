"""The document of each sample: made once, for the first client that asks, and returned to all until the next sample.

What was shown must never be lost, or energies would go back at a restart. So a document is returned when the totals
that it shows are on the disk: their figures are copied, and the ledger notes them while the document is made. That is
one note per sample, however many clients ask, and none if no client does. A disk that hangs delays a document by
KEPT_SECONDS.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable

from libvirt_rapl.daemon.document import Document, render
from libvirt_rapl.daemon.kept_meter import KeptMeter
from libvirt_rapl.energy.snapshot import Snapshot

FIRST_SECONDS = 10.0
"""How long the first clients wait for an interval: a daemon that has just started knows no power for a second."""
KEPT_SECONDS = 1.0
"""How long a document waits for the disk."""
LONG_SECONDS = 1.0
"""If samples are further apart, new documents are made between them, because the state of domains changes meanwhile."""
AGAIN = 10.0
"""Such a document is used for this many times as long as it took to make, so that clients cannot cost much."""


class Rendered:
    """What is made of the newest document, once for all who ask."""

    def __init__(self, newest: Callable[[], Document], make: Callable[[Document], bytes]) -> None:
        """Take a function that returns the newest document, and one that makes something of it."""
        self._newest = newest
        self._make = make
        self._lock = threading.Lock()
        self._made = b""
        self._of: Document | None = None

    def __call__(self) -> bytes:
        """Return it: the same object until there is a new document."""
        with self._lock:
            document = self._newest()
            if document is not self._of:
                self._made, self._of = self._make(document), document
            return self._made


class Publisher:
    """Makes documents of a meter's figures."""

    def __init__(self, meter: KeptMeter, describe: Callable[[Snapshot], Document], interval: float) -> None:
        """Take the meter, a function that makes a document of its figures, and the seconds between two samples."""
        self._meter = meter
        self._describe = describe
        self._makes_between = interval > LONG_SECONDS
        self._lock = threading.Lock()
        """Held while a document is made or looked up."""
        self._document: Document | None = None
        self._sample = -1
        """The number of the sample that the document shows."""
        self._until = 0.0
        """How long the document is valid if there is no new sample, in monotonic seconds."""
        self.text = Rendered(self.document, lambda document: render(document).encode())
        """Returns it as JSON in one line."""

    def document(self) -> Document:
        """Return the document: the same object until there is a new one."""
        self._meter.has_power.wait(FIRST_SECONDS)
        with self._lock:
            if self._sample != self._meter.samples or time.monotonic() >= self._until or self._document is None:
                self._document = self._make()
            return self._document

    def _make(self) -> Document:
        began, sample = time.monotonic(), self._meter.samples
        figures = self._meter.snapshot()
        kept = self._meter.keep_shown(figures)
        document = self._describe(figures)
        now = time.monotonic()
        self._until = now + AGAIN * (now - began) if self._makes_between else math.inf
        with contextlib.suppress(TimeoutError):
            kept.result(KEPT_SECONDS)
        self._sample = sample
        return document
