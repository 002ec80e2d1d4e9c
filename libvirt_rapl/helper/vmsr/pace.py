"""How often a peer of a helper is answered. No I/O; times are seconds of any clock that only grows.

How often it gets a new reading of energy is the matter of libvirt_rapl.helper.vmsr.shaping.
"""


class Bucket:
    """Tokens for requests: some to begin with, and new ones over time."""

    def __init__(self, size: float, per_second: float, now: float) -> None:
        """Begin full."""
        self._size = size
        self._per_second = per_second
        self._tokens = size
        self._since = now

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until there will be one."""
        self._tokens = min(self._size, self._tokens + (now - self._since) * self._per_second)
        self._since = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._per_second
        self._tokens -= 1
        return 0.0
