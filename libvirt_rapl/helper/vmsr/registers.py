"""Where a helper finds the four registers it answers: the CPU's own, or powercap's files to compute them from.

Who starts a helper finds them once; libvirt_rapl.helper.vmsr.readers reads them. Layouts: Intel SDM volume
3B, "RAPL Interfaces". Values computed from powercap use the units that most CPUs have.
"""

from pathlib import Path
from typing import NamedTuple

from libvirt_rapl.choices import EnergySource
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.vmsr.protocol import ENERGY, POWER_INFO, POWER_LIMIT, POWER_UNIT
from libvirt_rapl.host.msr import MsrZone, msr_zones, read_register
from libvirt_rapl.host.powercap import PowercapZone, powercap_zones
from libvirt_rapl.host.topology import packages
from libvirt_rapl.paths import DEV, PROC, SYS

UNITS = 0xA0E03
"""Power in 2**-3 W (bits 0-3), energy in 2**-14 J (bits 8-12), time in 2**-10 s (bits 16-19)."""
EIGHTHS_MASK = 0x7FFF
"""A power in eighths of a watt is 15 bits wide in POWER_LIMIT and POWER_INFO."""
LIMIT_ENABLED = 1 << 15


class Counter(NamedTuple):
    """A counter of energy of a package, or of one of its dies."""

    package: int
    file: str | int
    """Path; of registers, the descriptor as soon as the helper has opened them."""
    register: int
    """Its address in the file; 0: a text file of powercap."""
    wrap: int
    """As of libvirt_rapl.host.zones.Zone, in microjoules; so is the next."""
    most_watts: int


class Registers(NamedTuple):
    """Everything needed to answer: only numbers, texts and tuples of them, so that marshal can pass it on."""

    constants: tuple[tuple[int, int], ...]
    """Value of each register but ENERGY, by address; none is 0, which QEMU refuses."""
    counters: tuple[Counter, ...]
    cpus: tuple[tuple[int, int], ...]
    """Package of each CPU."""
    unit: tuple[int, int]
    """Microjoules of ENERGY's unit, a fraction."""


def find(source: EnergySource, *, sys: Path = SYS, dev: Path = DEV, proc: Path = PROC) -> Registers:
    """Return where registers are found.

    `source` is `msr`, `powercap`, or `auto`: the CPU's own registers if they read anything (on some CPUs they are all
    0 and only powercap has values), else powercap. Raises VirtRaplError when there is neither.
    """
    cpus = tuple(sorted((cpu, package) for package, cpus in packages(sys).items() for cpu in cpus))
    cause = None
    if source in ("msr", "auto"):
        try:
            if registers := [zone for zone in msr_zones(sys=sys, proc=proc, dev=dev) if zone.register == ENERGY]:
                return _from_msr(registers, cpus, dev)
            trouble = "register 0x606 or 0x611 reads 0"
        except OSError as error:
            trouble, cause = str(error), error
        if source == "msr":
            raise VirtRaplError(
                f"cannot read RAPL registers: {trouble}", "modprobe msr, or set `source: powercap`"
            ) from cause
    if zones := [zone for zone in powercap_zones(sys) if zone.kind == "package" and zone.package is not None]:
        return _from_powercap(zones, cpus)
    raise VirtRaplError("neither RAPL registers nor powercap zones", "modprobe msr, or modprobe intel_rapl_msr")


def _from_msr(zones: list[MsrZone], cpus: tuple[tuple[int, int], ...], dev: Path) -> Registers:
    counters = [
        Counter(zone.package, str(dev / f"cpu/{zone.cpus[0]}/msr"), ENERGY, zone.wrap, zone.most_watts)
        for zone in zones
        if zone.package is not None
    ]
    values = [read_register(dev, cpus[0][0], register) for register in (POWER_UNIT, POWER_LIMIT, POWER_INFO)]
    return Registers(_constants(*values), tuple(counters), cpus, zones[0].unit.as_integer_ratio())


def _from_powercap(zones: list[PowercapZone], cpus: tuple[tuple[int, int], ...]) -> Registers:
    counters = [
        Counter(zone.package, str(zone.path / "energy_uj"), 0, zone.wrap, zone.most_watts)
        for zone in zones
        if zone.package is not None
    ]
    first = [zone for zone in zones if zone.package == zones[0].package]
    limit = _eighths(first, "constraint_0_power_limit_uw") | LIMIT_ENABLED
    power = _eighths(first, "constraint_0_max_power_uw")
    unit = 1_000_000 / (1 << (UNITS >> 8 & 0x1F))  # exact
    return Registers(_constants(UNITS, limit, power), tuple(counters), cpus, unit.as_integer_ratio())


def _constants(units: int, limit: int, power: int) -> tuple[tuple[int, int], ...]:
    """Return the registers by address. QEMU refuses 0, so an unknown power reads as the smallest one."""
    return (POWER_UNIT, units), (POWER_LIMIT, limit or LIMIT_ENABLED), (POWER_INFO, power or 1)


def _eighths(zones: list[PowercapZone], file: str) -> int:
    """Return a power of powercap in eighths of a watt; 0 if powercap does not have it."""
    try:
        microwatts = sum(int((zone.path / file).read_text()) for zone in zones)
    except (OSError, ValueError):
        return 0
    return min(max(0, microwatts) * 8 // 1_000_000, EIGHTHS_MASK)
