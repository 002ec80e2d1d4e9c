"""Lines for the journal: safe to print, and of those that others can cause not too many."""

import sys
from collections.abc import Callable

from libvirt_rapl.errors import printable
from libvirt_rapl.token_bucket import TokenBucket


def log(message: str) -> None:
    """Write one line for the journal."""
    print(f"virt-rapl: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)


class SparingLog:
    """Logs what others can cause as often as they like: so many lines, and a count of those that are left out."""

    def __init__(self, log: Callable[[str], None], bucket: TokenBucket) -> None:
        """Take the function that logs a line, and the limit."""
        self._log = log
        self._bucket = bucket
        self._left_out = 0

    def __call__(self, line: str) -> None:
        """Log the line, or leave it out."""
        if not self._bucket.takes():
            self._left_out += 1
            return
        if self._left_out:
            line, self._left_out = f"{line} ({self._left_out} lines like this were left out before it)", 0
        self._log(line)
