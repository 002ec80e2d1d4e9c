"""RAPL zones: what counts energy."""

from typing import Protocol

MOST_WATTS = 1000
"""What a zone draws at most, where the machine tells no more: packages of today have up to 500 W."""
MOST_PSYS_WATTS = 4000
"""The same of a whole machine."""


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

    `told` is the thermal power of its package, 0 when it is not known: short peaks may be well above it. More than a
    whole machine draws is not believed.
    """
    return max(MOST_PSYS_WATTS if kind == "psys" else MOST_WATTS, min(2 * told, MOST_PSYS_WATTS))
