"""A limit of how often something may happen: a burst at once, and then once an interval."""

import time
from collections.abc import Callable


class TokenBucket:
    """Holds a token for each time that it may happen now. Not for several threads at once."""

    def __init__(self, burst: int, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with a full bucket of `burst` tokens; one comes back every `interval` seconds."""
        self._burst = float(burst)
        self._interval = interval
        self._clock = clock
        self._tokens = self._burst
        self._at = clock()

    def takes(self) -> bool:
        """Take a token; return whether there was one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) / self._interval)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
