"""How much energy the simulated packages use: a power model in exact integers, without I/O.

A package draws `idle_watts` all the time and `cpu_watts` more for each of its CPUs while that CPU is busy:

    package = idle_watts x time + cpu_watts x busy CPU time
    core    = cpu_watts x busy CPU time: the part of the package that its cores use
    dram    = a tenth of package, in addition to the package, as memory is in hardware

AMD's processors count no dram, and they count each core separately.

Energy is computed from the totals since the start, never added up from intervals, so rounding errors do not accumulate,
however often it is read. Times are nanoseconds, energies microjoules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator.processor import Vendor

ZONES: dict[Vendor, tuple[str, ...]] = {"intel": ("package", "core", "dram"), "amd": ("package", "core")}

_NANOSECONDS = 1_000_000_000
_DRAM_PART = 10


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the user chooses."""

    cpu: Vendor = "intel"
    """The vendor of the processor."""
    packages: int = 1
    idle_watts: float = 20.0
    """What each package draws when nothing runs."""
    cpu_watts: float = 40.0
    """What each busy CPU adds to its package."""
    wrap_soon: bool = False
    """Energy counters start a few joules before they wrap."""
    seed: int = 1
    """Decides where the counters start."""

    def microjoules(self, elapsed: int, busy: int) -> dict[str, int]:
        """Return the energy of each zone of a package, since the start, by the formula above."""
        idle = round(self.idle_watts * 1_000_000) * elapsed
        core = round(self.cpu_watts * 1_000_000) * busy
        energy = {
            "package": (idle + core) // _NANOSECONDS,
            "core": core // _NANOSECONDS,
            "dram": (idle + core) // (_NANOSECONDS * _DRAM_PART),
        }
        return {zone: energy[zone] for zone in ZONES[self.cpu]}


@dataclass(frozen=True)
class PackageEnergy:
    """What one package has used since the start."""

    zones: dict[str, int]
    """Microjoules of each of the processor's ZONES; unwrapped."""
    busy: int
    """Busy time of its CPUs, summed, in nanoseconds."""
    cores: dict[int, int]
    """Microjoules of each of its cores, by the core's first CPU; `core` is their sum, except for rounding."""


class Simulation:
    """The energy of all packages, from one reading of the clocks to the next. It never goes back."""

    def __init__(
        self,
        model: Model,
        packages: Sequence[Sequence[int]],
        time: int,
        busy: Mapping[int, int],
        cores: Mapping[int, int] | None = None,
    ) -> None:
        """Start at `time`, when each CPU had been busy for `busy`; `packages` are the CPUs of each package.

        `cores`: the first CPU of each CPU's core; None if each CPU is a core of its own.
        """
        self.model = model
        self.packages = packages
        self.core_of = cores or {cpu: cpu for cpus in packages for cpu in cpus}
        self.time = time
        self._start = time
        self._busy_start = {cpu: busy[cpu] for cpus in packages for cpu in cpus}
        self._busy = dict(self._busy_start)

    def advance(self, time: int, busy: Mapping[int, int]) -> list[PackageEnergy]:
        """Return the energy of each package at `time`, when each CPU had been busy for `busy` since boot.

        A CPU that is missing (switched off) or whose clock goes back counts as idle meanwhile.
        """
        self.time = max(self.time, time)
        for cpu, before in self._busy.items():
            self._busy[cpu] = max(before, busy.get(cpu, before))
        return [self._energy(cpus) for cpus in self.packages]

    def _energy(self, cpus: Sequence[int]) -> PackageEnergy:
        busy = {cpu: self._busy[cpu] - self._busy_start[cpu] for cpu in cpus}
        cores: dict[int, int] = {}
        for cpu in cpus:
            cores[self.core_of[cpu]] = cores.get(self.core_of[cpu], 0) + busy[cpu]
        total = sum(busy.values())
        return PackageEnergy(
            self.model.microjoules(self.time - self._start, total),
            total,
            {core: self.model.microjoules(0, own)["core"] for core, own in cores.items()},
        )


def deal(cores: Mapping[int, int], packages: int) -> list[list[int]]:
    """Deal CPUs to packages: a core with all its threads to one, and to each equally many cores, give or take one.

    `cores`: the first CPU of each CPU's core. Raises VirtRaplError if a package gets none.
    """
    firsts = sorted(set(cores.values()))
    if packages > len(firsts):
        raise VirtRaplError(
            f"{packages} packages need as many cores, and this machine has {len(firsts)} online",
            f"choose --packages {len(firsts)} or less",
        )
    edges = [len(firsts) * package // packages for package in range(packages + 1)]
    runs = [firsts[first:last] for first, last in pairwise(edges)]
    return [sorted(cpu for cpu, core in cores.items() if core in run) for run in runs]
