"""RAPL zones: what counts energy, and the difference of two readings of a counter that wraps."""

from typing import Protocol


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

    def read(self) -> int:
        """Return microjoules, from 0 to `wrap` - 1. Raises OSError or ValueError when the counter cannot be read."""


class EnergyCounter:
    """Turns the readings of a zone into what was counted between them."""

    def __init__(self, zone: Zone) -> None:
        """Take the zone; nothing is read yet."""
        self.zone = zone
        self._last: int | None = None

    def advance(self) -> int | None:
        """Return the microjoules counted since the previous call; at most one wrap lies between.

        None when there is nothing to compare: at the first call, when the zone cannot be read, and at the call
        after that. What was counted meanwhile is left out rather than given to the wrong interval.
        """
        last = self._last
        try:
            self._last = self.zone.read()
        except (OSError, ValueError):
            self._last = None
        return None if last is None or self._last is None else (self._last - last) % self.zone.wrap
