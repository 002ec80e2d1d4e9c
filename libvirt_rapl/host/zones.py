"""RAPL zones: what counts energy, and the difference of two readings of a counter that wraps."""

import contextlib
from typing import Protocol

MOST_WATTS = 1000
"""What a zone draws at most, where the machine tells no more: packages of today have up to 500 W."""
MOST_PSYS_WATTS = 4000
"""The same of a whole machine."""
SLACK_NS = 1_000_000_000
"""Counters move in steps, of a joule at the coarsest: that much time is granted on top."""


class Zone(Protocol):
    """One counter of energy. powercap and MSR each have a class of this shape."""

    @property
    def name(self) -> str:
        """Unique on the host: `package-0`, `dram-0`, `psys`."""

    @property
    def kind(self) -> str:
        """What it covers: `package`, `core`, `uncore`, `dram`, `psys`."""

    @property
    def package(self) -> int | None:
        """The physical package it belongs to; None for `psys`, which is the whole machine."""

    @property
    def wrap(self) -> int:
        """The counter starts again from 0 after this many microjoules."""

    @property
    def most_watts(self) -> int:
        """Power that it does not exceed; see `most_watts` below."""

    def read(self) -> int:
        """Return microjoules, from 0 to `wrap` - 1. Raises OSError or ValueError when the counter cannot be read."""


def most_watts(kind: str, told: int = 0) -> int:
    """Return power that a zone of this kind does not exceed, in watts.

    `told` is the thermal power of its package, 0 when it is not known: short peaks may be well above it.
    """
    return max(MOST_PSYS_WATTS if kind == "psys" else MOST_WATTS, 2 * told)


class EnergyCounter:
    """Turns the readings of a zone into what was counted between them."""

    def __init__(self, zone: Zone) -> None:
        """Take the zone; nothing is read yet."""
        self.zone = zone
        self.lost = 0
        """How often the count was broken: what was counted then is known to nobody."""
        self._last: tuple[int, int] | None = None

    def advance(self, time: int) -> int | None:
        """Return the microjoules counted since the previous call; `time` is now, in nanoseconds that count suspend.

        None when there is nothing to compare: at the first call, when the zone cannot be read, and at the call after
        that. What was counted meanwhile is left out rather than given to the wrong interval.

        None, too, when the difference proves nothing. In T ns a zone counts most = most_watts x (T + 1 s) at most.
        When that reaches a whole wrap, as after a suspend or in a process that was stopped, one may be hidden. When
        more than that was counted, the counter was set back, as a suspend does on some machines.
        """
        last, self._last = self._last, None
        with contextlib.suppress(OSError, ValueError):
            self._last = time, self.zone.read()
        if last is None:
            return None
        if self._last is not None:
            counted = (self._last[1] - last[1]) % self.zone.wrap
            most = self.zone.most_watts * (time - last[0] + SLACK_NS) // 1000  # W x ns are nanojoules
            if counted <= most < self.zone.wrap:
                return counted
        self.lost += 1
        return None
