"""The files of a machine with RAPL, in the form that the kernel gives them.

    /cpu/N/msr    shown as /dev/cpu/N/msr
    /powercap     shown as /sys/class/powercap
    /topology/N   shown as /sys/devices/system/cpu/cpuN/topology/physical_package_id

/powercap/virt-rapl-simulator marks the energy as simulated. Its file `truth` is a JSON document: the time, and each
package's energy in microjoules since the start, unwrapped, according to the model. Its file `cpuinfo` is shown as
/proc/cpuinfo; a program that mounts its own /proc can show it there again.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from libvirt_rapl.simulator.power import ZONES, PackageEnergy, Simulation
from libvirt_rapl.simulator.registers import POWER_INFO, POWER_LIMIT, Counters, Limits

SIMULATOR = "powercap/virt-rapl-simulator"


@dataclass(frozen=True)
class Text:
    """A text file; a newline is added to what `content` returns."""

    mode: int
    content: Callable[[], object]


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Registers:
    """An msr file. `value` maps an address to the register's 64 bits; None if the CPU does not have it."""

    value: Callable[[int], int | None]


Entry = Text | Link | Registers


class Files:
    """All entries by path. Their energies are those of the instant they are read."""

    def __init__(self, simulation: Simulation, sample: Callable[[], list[PackageEnergy]], cpuinfo: str = "") -> None:
        """Show `simulation`; `sample` advances it to the present."""
        self.entries: dict[str, Entry] = {}
        self._simulation = simulation
        self._sample = sample
        self._counters = Counters(simulation.model)
        self._layout = self._counters.layout
        self._limits = [Limits(simulation.model, len(cpus)) for cpus in simulation.packages]
        self._add("/powercap/intel-rapl/enabled", 1, mode=0o644)
        self.entries[f"/{SIMULATOR}/truth"] = Text(0o444, self._truth)
        self._add(f"/{SIMULATOR}/cpuinfo", cpuinfo.removesuffix("\n"))
        for package, cpus in enumerate(simulation.packages):
            for cpu in cpus:
                self.entries[f"/cpu/{cpu}/msr"] = Registers(partial(self._register, package, cpu))
                self._add(f"/topology/{cpu}", package)
            self._add_package(package)

    def _add(self, path: str, value: object, mode: int = 0o444) -> None:
        self.entries[path] = Text(mode, lambda: value)

    def _add_package(self, package: int) -> None:
        name = f"intel-rapl:{package}"
        path = f"intel-rapl/{name}"
        intel = self._simulation.model.cpu == "intel"  # AMD's have no limits that the kernel knows
        constraints = self._limits[package].constraints if intel else []
        self._add_zone(path, f"package-{package}", package, "package", enabled=int(intel), constraints=constraints)
        # The kernel shows a limit for these, too; firmware usually leaves it off.
        no_limit = [("long_term", 0, 976)] if intel else []
        _, *parts = ZONES[self._simulation.model.cpu]
        for number, zone in enumerate(parts):
            self._add_zone(f"{path}/{name}:{number}", zone, package, zone, enabled=0, constraints=no_limit)

    def _add_zone(
        self, path: str, name: str, package: int, zone: str, enabled: int, constraints: list[tuple[str, int, int]]
    ) -> None:
        self.entries[f"/powercap/{path.rpartition('/')[2]}"] = Link(path)
        base = f"/powercap/{path}"
        self._add(f"{base}/name", name)
        self._add(f"{base}/enabled", enabled, mode=0o644)
        self._add(f"{base}/max_energy_range_uj", self._layout.max_energy_range)
        self.entries[f"{base}/energy_uj"] = Text(0o400, partial(self._energy_uj, package, zone))
        for number, (constraint, microwatts, microseconds) in enumerate(constraints):
            self._add(f"{base}/constraint_{number}_name", constraint)
            self._add(f"{base}/constraint_{number}_power_limit_uw", microwatts, mode=0o644)
            self._add(f"{base}/constraint_{number}_max_power_uw", microwatts)
            self._add(f"{base}/constraint_{number}_time_window_us", microseconds, mode=0o644)

    def _energy_uj(self, package: int, zone: str) -> int:
        # The kernel shows only one of AMD's cores: that of the package's first CPU.
        return self._counters.energy_uj(*self._counted(package, self._simulation.packages[package][0], zone))

    def _register(self, package: int, cpu: int, address: int) -> int | None:
        if zone := self._layout.energy_status.get(address):
            return self._counters.register(*self._counted(package, cpu, zone))
        if address in self._layout.zeros:
            return 0
        if address == self._layout.power_unit:
            return self._layout.units
        if self._simulation.model.cpu == "amd":
            return None
        limits = self._limits[package]
        return {POWER_LIMIT: limits.power_limit, POWER_INFO: limits.power_info}.get(address)

    def _counted(self, package: int, cpu: int, zone: str) -> tuple[int, str, int]:
        """Return place, zone and microjoules of the counter that a CPU shows for a zone."""
        energy = self._sample()[package]
        if zone == "core" and self._simulation.model.cpu == "amd":
            core = self._simulation.core_of[cpu]
            return core, zone, energy.cores[core]
        return package, zone, energy.zones[zone]

    def _truth(self) -> str:
        packages = self._sample()
        document = {
            "time": self._simulation.time / 1e9,
            "packages": [
                {"package": number, "zones": energy.zones, "busy_seconds": energy.busy / 1e9}
                for number, energy in enumerate(packages)
            ],
            "model": asdict(self._simulation.model),
        }
        return json.dumps(document)
