"""Zones read from model-specific registers, /dev/cpu/N/msr (Intel SDM volume 3B, "RAPL Interfaces").

The address of a register is the offset in the file, its 64 bits come in native byte order.
"""

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

POWER_UNIT = 0x606
"""Bits 8 to 12 hold n: energy counts in units of 2**-n joules."""

ENERGY_STATUS = {"package": 0x611}
"""The energy register of each kind of zone that is read: 32 bits, wraps."""

_REGISTER = struct.Struct("=Q")


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


@dataclass(frozen=True)
class MsrZone:
    """A zone read through one CPU of its package; see libvirt_rapl.host.zones.Zone."""

    kind: str
    package: int
    cpu: int
    unit_exponent: int
    dev: Path

    @property
    def name(self) -> str:
        """As powercap names it."""
        return f"{self.kind}-{self.package}"

    @property
    def wrap(self) -> int:
        """32 bits of units, in microjoules."""
        return (1 << 32) * 1_000_000 >> self.unit_exponent

    def read(self) -> int:
        """Return microjoules."""
        units = read_register(self.dev, self.cpu, ENERGY_STATUS[self.kind]) & 0xFFFFFFFF
        return units * 1_000_000 >> self.unit_exponent


def msr_zones(dev: Path, packages: Mapping[int, Iterable[int]]) -> list[MsrZone]:
    """Return the zones of `packages` (package -> its CPUs), ordered by name; none when the CPUs have no RAPL.

    Raises PermissionError when registers may not be read.
    """
    zones = []
    for package, cpus in sorted(packages.items()):
        cpu = min(cpus)
        try:
            exponent = read_register(dev, cpu, POWER_UNIT) >> 8 & 0x1F
            zones += [MsrZone(kind, package, cpu, exponent, dev) for kind in ENERGY_STATUS]
        except PermissionError:
            raise
        except OSError:
            continue
    return zones
