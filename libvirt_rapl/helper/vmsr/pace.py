"""How often a peer gets an answer, and how often a new value. No I/O; times are seconds of any monotonic clock.

Fine readings of energy reveal what others on the package compute (CVE-2020-8694), so no peer gets finer ones than
QEMU's thread makes. For each package that thread asks for energy, sleeps for a second, asks again, and starts over at
once.
"""

from _collections_abc import Callable  # collections.abc, without the memory that the rest of collections takes

from libvirt_rapl.helper.vmsr.protocol import ENERGY, ReadRegister

WINDOW_SECONDS = 0.9
"""QEMU sleeps for a second between the start and the end of a window; a peer that asks sooner is not that thread."""


class Windows:
    """Passes on to a reader only the starts and ends of a peer's windows, package by package, and nothing in between.

    The reader is asked for energy only, twice in WINDOW_SECONDS at most; other requests get the last answer again.
    """

    def __init__(self, read: ReadRegister, package_of: Callable[[int], int], clock: Callable[[], float]) -> None:
        """`package_of` returns the package of a CPU; it raises OSError if there is no such CPU, as `read` may."""
        self._read = read
        self._package_of = package_of
        self._clock = clock
        self._windows: dict[int, tuple[float | None, int]] = {}
        """By package: when the open window was started (None: no window is open), and the last answer."""

    def read(self, register: int, cpu: int) -> int:
        """Return the reader's answer, or its last one. Raises OSError."""
        assert register == ENERGY
        package, now = self._package_of(cpu), self._clock()
        started, answer = self._windows.get(package, (None, 0))
        if started is None:
            self._windows[package] = now, self._read(register, cpu)
        elif now - started >= WINDOW_SECONDS:
            self._windows[package] = None, self._read(register, cpu)
        else:
            return answer
        return self._windows[package][1]


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
