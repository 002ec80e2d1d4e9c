"""RAPL zones, which count energy."""

from typing import Protocol

MOST_WATTS = 1000
"""The most that a zone draws if the machine does not say more: today's packages have up to 500 W."""
MOST_PSYS_WATTS = 4000
"""The same for a whole machine."""


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
        """Power that it never exceeds; see `most_watts` below."""

    def read(self) -> int:
        """Return microjoules, from 0 to `wrap` - 1. Raises OSError or ValueError when the counter cannot be read."""


def kind_of(name: str) -> str:
    """Return the kind of the zone of this name: `package` of `package-0`."""
    return name.partition("-")[0]


def most_watts(kind: str, thermal_watts: int = 0) -> int:
    """Return power that a zone of this kind never exceeds, in watts.

    `thermal_watts` is the thermal power of its package, 0 if unknown: short peaks may be well above it. A value above
    what a whole machine draws is not believed.
    """
    return max(MOST_PSYS_WATTS if kind == "psys" else MOST_WATTS, min(2 * thermal_watts, MOST_PSYS_WATTS))
