"""How RAPL hardware and the kernel show energy: 32-bit registers, and the microjoules made of them. Pure.

Layouts are those of the Intel SDM, volume 3B, "RAPL Interfaces". powercap's microjoules come from the same register
by the kernel's own arithmetic (61.035 uJ a unit, not 61.03515625), so both views agree and wrap together.
"""

import random

from libvirt_rapl.simulator.power import ZONES, Model

POWER_UNIT = 0x606
POWER_LIMIT = 0x610
POWER_INFO = 0x614
ENERGY_STATUS = {0x611: "package", 0x639: "core", 0x619: "dram"}

ZEROS = (0x8B, 0xCE, 0xE2)
"""Microcode revision, platform info, C-state control: turbostat gives up where they cannot be read. They read 0."""

UNITS = 0xA0E03
"""Value of POWER_UNIT: power in 2**-3 W, energy in 2**-14 J, time in 2**-10 s."""

_UNITS_PER_JOULE = 1 << 14
_NANOJOULES_PER_UNIT = 1_000_000_000 // _UNITS_PER_JOULE
_RANGE = 1 << 32

MAX_ENERGY_RANGE = (_RANGE - 1) * _NANOJOULES_PER_UNIT // 1000
"""The greatest value of energy_uj: 262143328850, as on real machines."""


class Counters:
    """The energy registers of all packages: where they start, and how far energy has moved them."""

    def __init__(self, model: Model) -> None:
        """Choose where they start by the model's seed."""
        chance = random.Random(model.seed)  # noqa: S311 (repeatable, and no secret)
        self._start = {
            (package, zone): _near_the_end(zone, chance) if model.wrap_soon else chance.randrange(_RANGE)
            for package in range(model.packages)
            for zone in ZONES
        }

    def register(self, package: int, zone: str, microjoules: int) -> int:
        """Return the 32 bits of a zone's register, this much energy after the start."""
        return (self._start[package, zone] + microjoules * _UNITS_PER_JOULE // 1_000_000) % _RANGE

    def energy_uj(self, package: int, zone: str, microjoules: int) -> int:
        """Return what powercap shows of that register."""
        return self.register(package, zone, microjoules) * _NANOJOULES_PER_UNIT // 1000


def _near_the_end(zone: str, chance: random.Random) -> int:
    # Memory draws a tenth of what its package does, so its wrap must be nearer to come as soon.
    joules = chance.uniform(4, 8) if zone == "dram" else chance.uniform(40, 80)
    return _RANGE - int(joules * _UNITS_PER_JOULE)


class Limits:
    """Power limits of a package. They limit nothing, but readers want them plausible, and QEMU not 0."""

    def __init__(self, model: Model, cpus: int) -> None:
        """Take what the package draws when all its CPUs are busy as its design power."""
        watts = model.idle_watts + model.cpu_watts * cpus
        self._eighths = max(1, round(8 * watts))
        self._long = min(self._eighths, 0x7FFF)
        self._short = min(self._long + self._long // 4, 0x7FFF)

    @property
    def power_limit(self) -> int:
        """Value of POWER_LIMIT: both limits enabled; windows of 28 s (2**14 x 1.75 units) and 2.4 ms (2 x 1.25)."""
        long = self._long | 1 << 15 | (3 << 5 | 14) << 17
        short = self._short | 1 << 15 | (1 << 5 | 1) << 17
        return short << 32 | long

    @property
    def power_info(self) -> int:
        """Value of POWER_INFO: design, least and greatest power."""
        return self._long | max(1, self._long // 2) << 16 | self._short << 32

    @property
    def constraints(self) -> list[tuple[str, int, int]]:
        """powercap's view of them: name, power in microwatts, window in microseconds (a unit is 976 us there).

        Not cut to the 15 bits of the registers: readers judge by it what the zone can count.
        """
        short = self._eighths + self._eighths // 4
        return [("long_term", self._eighths * 125_000, 27_983_872), ("short_term", short * 125_000, 2_440)]
