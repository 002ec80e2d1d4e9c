"""Zones read from model-specific registers, /dev/cpu/N/msr, for hosts where powercap does not show them.

The address of a register is the offset in the file; its 64 bits are in native byte order. Registers and units: Intel
SDM volumes 3B ("RAPL Interfaces") and 4, AMD PPR ("RAPL"). Where models differ from that, the lists are those of the
Linux kernel (rapl_ids in drivers/powercap/intel_rapl_common.c, model numbers in arch/x86/include/asm/intel-family.h).
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from libvirt_rapl.host.topology import Processor, dies, first_of_each_core, packages, processor
from libvirt_rapl.host.zones import most_watts

POWER_UNIT, AMD_POWER_UNIT = 0x606, 0xC0010299
"""Bits 0 to 3 hold n: power is in units of 2**-n W. Bits 8 to 12: energy is in units of 2**-n J."""

ENERGY_STATUS = {"package": 0x611, "core": 0x639, "uncore": 0x641, "dram": 0x619}
"""Intel's energy registers of a die: 32 bits, wrap. core is the SDM's PP0, uncore its PP1."""
PSYS_ENERGY_STATUS = 0x64D
"""Intel's, of the whole machine; on servers only the first package has it."""
PACKAGE_POWER_INFO = 0x614
"""Intel's. Bits 0 to 14: thermal power of the package."""

AMD_PACKAGE_ENERGY, AMD_CORE_ENERGY = 0xC001029B, 0xC001029A
"""32 bits, wrap. Each core has its own register; all CPUs of a package read the same package register."""
AMD_VENDORS = ("AuthenticAMD", "HygonGenuine")

DRAM_IN_15_MICROJOULES = {
    0x3F,  # Haswell-X
    0x4F,  # Broadwell-X
    0x55,  # Skylake-X, Cascade Lake
    0x57,  # Xeon Phi, Knights Landing
    0x6A,  # Ice Lake-X
    0x6C,  # Ice Lake-D
    0x85,  # Xeon Phi, Knights Mill
}
"""Models of Intel's family 6 whose dram unit is 15.3 uJ (2**-16 J), whatever POWER_UNIT says."""
PSYS_IN_JOULES = {0x8F, 0xCF}
"""Sapphire Rapids, Emerald Rapids: psys counts whole joules."""
MICROJOULE_UNITS = {0x37, 0x4A, 0x4C, 0x5A}
"""Silvermont and Airmont Atoms: the unit is 2**n microjoules."""

_REGISTER = struct.Struct("=Q")
_RANGE = 1 << 32


def read_register(dev: Path, cpu: int, register: int) -> int:
    """Return the 64 bits of a register. Raises OSError: EIO when the CPU does not have it."""
    descriptor = os.open(dev / f"cpu/{cpu}/msr", os.O_RDONLY | os.O_CLOEXEC)
    try:
        (value,) = _REGISTER.unpack(os.pread(descriptor, _REGISTER.size, register))
    except struct.error as error:
        raise OSError(f"short read of register {register:#x} on CPU {cpu}") from error
    finally:
        os.close(descriptor)
    return int(value)


class MsrZone(NamedTuple):
    """A zone read from the same register of one or several CPUs; see libvirt_rapl.host.zones.Zone."""

    name: str
    """Powercap's name for it."""
    kind: str
    package: int | None
    register: int
    cpus: tuple[int, ...]
    """Their registers are added up."""
    unit: float
    """Microjoules: a power of two, or a million divided by one. So this is exact, and so are its products here."""
    most_watts: int
    dev: Path

    @property
    def wrap(self) -> int:
        """32 bits of units, in microjoules."""
        return int(_RANGE * self.unit)

    def read(self) -> int:
        """Return microjoules. A sum wraps as its parts do: modulo 2**32 their wraps cancel out."""
        units = sum(read_register(self.dev, cpu, self.register) for cpu in self.cpus) % _RANGE
        return int(units * self.unit)


def msr_zones(*, sys: Path, proc: Path, dev: Path) -> list[MsrZone]:
    """Return the zones whose register counts, ordered by name; none when the CPUs have no RAPL.

    A register that does not exist, or reads 0 (as some existing ones do), has no zone. Raises PermissionError when
    registers may not be read, OSError or ValueError when sysfs or /proc does not describe the CPUs.
    """
    identity = processor(proc)
    zones = _amd(sys, dev) if identity.vendor in AMD_VENDORS else _intel(identity, sys, dev)
    return sorted((zone for zone in zones if _read(zone)), key=lambda zone: zone.name)


def _intel(identity: Processor, sys: Path, dev: Path) -> Iterator[MsrZone]:
    places = dies(sys)
    several = len(places) > len({package for package, _ in places})
    for number, ((package, die), cpus) in enumerate(sorted(places.items())):
        units = _register(dev, cpus[0], POWER_UNIT)
        if units is None:
            continue
        exponent = units >> 8 & 0x1F
        thermal = (_register(dev, cpus[0], PACKAGE_POWER_INFO) or 0) & 0x7FFF
        for kind, register in ENERGY_STATUS.items():
            name = f"{kind}-{package}-die-{die}" if several else f"{kind}-{package}"
            most = most_watts(kind, thermal >> (units & 0xF))
            yield MsrZone(name, kind, package, register, (cpus[0],), _unit(identity, kind, exponent), most, dev)
        if number == 0:
            unit = _unit(identity, "psys", exponent)
            yield MsrZone("psys", "psys", None, PSYS_ENERGY_STATUS, (cpus[0],), unit, most_watts("psys"), dev)


def _unit(identity: Processor, kind: str, exponent: int) -> float:
    """Return the microjoules of one unit."""
    model = identity.model if identity.family == 6 else None
    if kind == "dram" and model in DRAM_IN_15_MICROJOULES:
        return 1_000_000 / (1 << 16)
    if kind == "psys" and model in PSYS_IN_JOULES:
        return 1_000_000
    return 1 << exponent if model in MICROJOULE_UNITS else 1_000_000 / (1 << exponent)


def _amd(sys: Path, dev: Path) -> Iterator[MsrZone]:
    for package, cpus in packages(sys).items():
        units = _register(dev, cpus[0], AMD_POWER_UNIT)
        if units is None:
            continue
        unit = 1_000_000 / (1 << (units >> 8 & 0x1F))
        for kind, register, readers in (
            ("package", AMD_PACKAGE_ENERGY, cpus[:1]),
            ("core", AMD_CORE_ENERGY, first_of_each_core(sys, cpus)),
        ):
            yield MsrZone(f"{kind}-{package}", kind, package, register, tuple(readers), unit, most_watts(kind), dev)


def _register(dev: Path, cpu: int, register: int) -> int | None:
    try:
        return read_register(dev, cpu, register)
    except PermissionError:
        raise
    except OSError:
        return None


def _read(zone: MsrZone) -> int:
    try:
        return zone.read()
    except PermissionError:
        raise
    except OSError:
        return 0
