"""When somebody has scraped last: the exporter reports it to systemd; `systemctl status` and doctor show it."""

import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from libvirt_rapl import systemd

if TYPE_CHECKING:
    from libvirt_rapl.exporter.site import Respond

REPORT_SECONDS = 10.0
"""Reported at most once in this time: a stranger who scrapes again and again must not keep systemd busy."""


class LastScrape:
    """Reports the scrapes that were answered; several threads may use it."""

    def __init__(
        self,
        respond: "Respond",
        notify: Callable[[str], None] = systemd.notify,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take what answers a scrape."""
        self._respond = respond
        self._notify = notify
        self._clock = clock
        self._lock = threading.Lock()
        self._reported: float | None = None

    def respond(self, accept: str, accept_encoding: str) -> tuple[str, dict[str, str], bytes]:
        """Answer a scrape, and report it."""
        answer = self._respond(accept, accept_encoding)
        with self._lock:
            now = self._clock()
            due = self._reported is None or abs(now - self._reported) >= REPORT_SECONDS  # the clock may be set back
            if due:
                self._reported = now
        if due:
            self._notify(f"STATUS=last scraped at {_text(now)}")
        return answer

    def none_yet(self) -> str:
        """Return the status before the first scrape."""
        return f"STATUS=not scraped since {_text(self._clock())}"


def parse(status: str) -> tuple[float, bool] | None:
    """Return the time that a status names, and whether somebody scraped then; None if it is no status of ours."""
    found = re.fullmatch(r"(last scraped at|not scraped since) (\S+)", status.strip())
    try:
        return (datetime.fromisoformat(found[2]).timestamp(), found[1] == "last scraped at") if found else None
    except ValueError:
        return None


def _text(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")
