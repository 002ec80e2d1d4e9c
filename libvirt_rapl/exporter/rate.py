"""`rate_limit` of the web configuration: a token bucket, as exporter-toolkit has it."""

import threading
import time
from collections.abc import Callable

from libvirt_rapl.exporter.web_config import RateLimit


class RateLimiter:
    """Counts the requests of everybody together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with a full bucket."""
        self._clock = clock
        self._lock = threading.Lock()
        self._limit: RateLimit | None = None
        self._tokens = 0.0
        self._at = 0.0

    def allows(self, limit: RateLimit) -> bool:
        """Return whether one more request may be answered now. The bucket is full when the limit has changed."""
        with self._lock:
            now = self._clock()
            if limit != self._limit:
                self._limit, self._tokens = limit, float(limit.burst)
            else:
                self._tokens = min(float(limit.burst), self._tokens + (now - self._at) / limit.interval)
            self._at = now
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True
