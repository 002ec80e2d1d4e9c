"""`rate_limit` of the web configuration: a token bucket, as exporter-toolkit has it."""

import threading
import time
from collections.abc import Callable

from libvirt_rapl.exporter.web_config import RateLimit
from libvirt_rapl.token_bucket import TokenBucket


class RateLimiter:
    """Counts the requests of everybody together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without a limit."""
        self._clock = clock
        self._lock = threading.Lock()
        self._limit: RateLimit | None = None
        self._bucket = TokenBucket(0, 1.0, clock)

    def allows(self, limit: RateLimit) -> bool:
        """Return whether one more request may be answered now. The bucket is full when the limit has changed."""
        with self._lock:
            if limit != self._limit:
                self._limit, self._bucket = limit, TokenBucket(limit.burst, limit.interval, self._clock)
            return self._bucket.takes()
