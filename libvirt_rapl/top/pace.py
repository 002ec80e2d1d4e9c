"""Which documents are shown: each, or one in so many seconds."""

EARLY_SECONDS = 0.2
"""A document may come a little earlier than the one before it did, counted from the second."""


class Pace:
    """Chooses documents."""

    def __init__(self) -> None:
        """Choose the first."""
        self._last = float("-inf")

    def is_due(self, now: float, interval: float) -> bool:
        """Return whether to show a document that comes now; `now` and `interval` are in seconds."""
        if now < self._last + interval - EARLY_SECONDS:
            return False
        self._last = now
        return True
