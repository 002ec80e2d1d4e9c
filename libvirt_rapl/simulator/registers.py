"""How RAPL hardware and the kernel show energy: 32-bit registers, and the microjoules made of them. Pure.

Layouts are those of the Intel SDM, volume 3B, "RAPL Interfaces", and of AMD's PPR, "RAPL". powercap's microjoules come
from the same register by the kernel's own arithmetic (61.035 uJ a unit, not 61.03515625), so both views agree and wrap
together.
"""

import random
from dataclasses import dataclass

from libvirt_rapl.simulator.power import Model
from libvirt_rapl.simulator.processor import Vendor

POWER_LIMIT = 0x610
POWER_INFO = 0x614
"""Only Intel has these two."""

_RANGE = 1 << 32


@dataclass(frozen=True)
class Layout:
    """The registers of a vendor's processors."""

    power_unit: int
    """Address of the register that holds the units."""
    units: int
    """Its value: power in 2**-n W (bits 0 to 3), energy in 2**-n J (bits 8 to 12), time in 2**-n s (bits 16 to 19)."""
    energy_status: dict[int, str]
    """Zone of each energy register, by address. AMD's `core` is that of the CPU's own core, Intel's of all of them."""
    zeros: tuple[int, ...]
    """Registers without which turbostat gives up: microcode revision, platform info, C- or P-states. They read 0."""

    @property
    def units_per_joule(self) -> int:
        """How far an energy register advances for a joule."""
        return 1 << (self.units >> 8 & 0x1F)

    @property
    def nanojoules_per_unit(self) -> int:
        """As the kernel rounds it."""
        return 1_000_000_000 // self.units_per_joule

    @property
    def max_energy_range(self) -> int:
        """The greatest value of energy_uj, as on real machines: 262143328850 on Intel's, 65532610987 on AMD's."""
        return (_RANGE - 1) * self.nanojoules_per_unit // 1000


LAYOUTS: dict[Vendor, Layout] = {
    "intel": Layout(0x606, 0xA0E03, {0x611: "package", 0x639: "core", 0x619: "dram"}, (0x8B, 0xCE, 0xE2)),
    "amd": Layout(0xC0010299, 0xA1003, {0xC001029B: "package", 0xC001029A: "core"}, (0x8B,)),
}


class Counters:
    """The energy registers: where each starts, and how far energy has moved it.

    `place` is the number of a package or, of AMD's cores, of the core's first CPU.
    """

    def __init__(self, model: Model) -> None:
        """Take the model, whose seed decides where they start."""
        self.layout = LAYOUTS[model.cpu]
        self._model = model
        self._starts: dict[tuple[int, str], int] = {}

    def register(self, place: int, zone: str, microjoules: int) -> int:
        """Return the 32 bits of a zone's register, this much energy after the start."""
        return (self._start(place, zone) + microjoules * self.layout.units_per_joule // 1_000_000) % _RANGE

    def energy_uj(self, place: int, zone: str, microjoules: int) -> int:
        """Return what powercap shows of that register."""
        return self.register(place, zone, microjoules) * self.layout.nanojoules_per_unit // 1000

    def _start(self, place: int, zone: str) -> int:
        if (place, zone) not in self._starts:
            chance = random.Random(f"{self._model.seed} {place} {zone}")  # noqa: S311 (repeatable, and no secret)
            self._starts[place, zone] = (
                self._near_the_end(zone, chance) if self._model.wrap_soon else chance.randrange(_RANGE)
            )
        return self._starts[place, zone]

    def _near_the_end(self, zone: str, chance: random.Random) -> int:
        # Memory uses a tenth of what its package does, so it must start nearer to its wrap to wrap as soon.
        joules = chance.uniform(4, 8) if zone == "dram" else chance.uniform(40, 80)
        return _RANGE - int(joules * self.layout.units_per_joule)


class Limits:
    """Power limits of a package. They limit nothing, but readers need plausible values, and QEMU none that is 0."""

    def __init__(self, model: Model, cpus: int) -> None:
        """Compute the design power: what the package draws when all its CPUs are busy."""
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

        Not cut to the 15 bits of the registers: readers estimate from it what the zone can count.
        """
        short = self._eighths + self._eighths // 4
        return [("long_term", self._eighths * 125_000, 27_983_872), ("short_term", short * 125_000, 2_440)]
