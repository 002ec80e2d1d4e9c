"""The power of each domain over the last half hour, for its trend: means over SECONDS."""

from collections import deque

from libvirt_rapl.daemon.document import Document

SECONDS = 20
MOST = 90
"""So many means are kept."""


class Trends:
    """Remembers powers by UUID. A domain that a document does not have is forgotten."""

    def __init__(self) -> None:
        """Begin without any."""
        self._trends: dict[str, _Trend] = {}
        self._slot = 0

    def add(self, document: Document, now: float) -> None:
        """Add the powers of a document; `now` is in seconds and never goes back. An unknown power is left out."""
        slot = int(now // SECONDS)
        passed = min(slot - self._slot, MOST + 1)
        before, self._trends, self._slot = self._trends, {}, slot
        for domain in document.domains:
            trend = self._trends[domain.uuid] = before.get(domain.uuid) or _Trend()
            for _ in range(passed):
                trend.pass_on()
            if not domain.unread:
                trend.watts += domain.power_watts
                trend.count += 1

    def of(self, uuid: str, most: int) -> list[float | None]:
        """Return the last means in watts, at most so many, the present one last; None where the power is not known."""
        trend = self._trends.get(uuid)
        return [*trend.means, trend.mean][-most:] if trend and most > 0 else []


class _Trend:
    """The means of one domain, and what is known of the present one."""

    __slots__ = ("count", "means", "watts")

    def __init__(self) -> None:
        self.means: deque[float | None] = deque(maxlen=MOST)
        self.watts, self.count = 0.0, 0

    @property
    def mean(self) -> float | None:
        return self.watts / self.count if self.count else None

    def pass_on(self) -> None:
        """Note that the present mean is over."""
        if self.means or self.count:  # a domain that is new has no past
            self.means.append(self.mean)
        self.watts, self.count = 0.0, 0
