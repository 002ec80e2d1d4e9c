"""What is shown while top runs: documents as they come, at the pace that the user wants, and how current they are."""

import time
from collections.abc import Callable, Iterable

from libvirt_rapl.daemon.document import Document
from libvirt_rapl.top.background import Background
from libvirt_rapl.top.figures import Figures, Today
from libvirt_rapl.top.pace import Pace
from libvirt_rapl.top.trends import Trends


class Session:
    """Begin, then call advance() and figures() in turn."""

    def __init__(
        self,
        first: Document,
        documents: Iterable[Document | None],
        todays: Iterable[Today],
        *,
        today: Today,
        is_own: bool,
        record: Callable[[Document, Today], None],
    ) -> None:
        """Take the first document, the others (None while virt-rapld is away), and what becomes known of today.

        `today` is what is known of it at first.

        `record` gets each document that is shown, or that would be if the screen were not paused.
        """
        self._documents = Background(documents)
        self._todays = Background(todays)
        self._is_own = is_own
        self._record = record
        self._today = today
        self._trends = Trends()
        self._pace = Pace()
        self._shown = self._latest = first
        self._heard = 0.0
        self._is_away = False
        self.frames = 0
        """How many documents have been recorded."""
        self._take(first, 0.0)

    def advance(self, interval: float, *, is_paused: bool) -> bool:
        """Take what has come; return whether there is something new to show. Raises what failed, as VirtRaplError."""
        is_new = False
        for today in self._todays.come():
            self._today, is_new = today, True
        for document in self._documents.come():
            is_new |= self._is_away != (document is None)
            self._is_away = document is None
            if document:
                self._take(document, interval)
        if self._shown is not self._latest and not is_paused:
            self._shown, is_new = self._latest, True
        return is_new

    def _take(self, document: Document, interval: float) -> None:
        self._heard = time.monotonic()
        self._trends.add(document, self._heard)
        if self._pace.is_due(self._heard, interval):
            self._latest = document
            self._record(document, self._today)
            self.frames += 1

    def figures(self) -> Figures:
        """Return everything that there is to show now."""
        return Figures(
            document=self._shown,
            is_own=self._is_own,
            silent_seconds=time.monotonic() - self._heard,
            is_away=self._is_away,
            today=self._today,
            trends=self._trends,
        )
