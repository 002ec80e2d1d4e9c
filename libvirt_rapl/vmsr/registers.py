"""The four registers a helper answers, read from the CPU's own or made from powercap's files.

Layouts: Intel SDM volume 3B, "RAPL Interfaces". Values made from powercap use the units most CPUs have.
"""

from pathlib import Path

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host.clocks import boot_nanoseconds
from libvirt_rapl.host.cpus import packages
from libvirt_rapl.host.msr import read_register
from libvirt_rapl.host.powercap import PowercapZone, powercap_zones
from libvirt_rapl.host.zones import EnergyCounter
from libvirt_rapl.vmsr import protocol
from libvirt_rapl.vmsr.protocol import ReadRegister

UNITS = 0xA0E03
"""Power in 2**-3 W (bits 0-3), energy in 2**-14 J (bits 8-12), time in 2**-10 s (bits 16-19)."""
ENERGY_EXPONENT = UNITS >> 8 & 0x1F
EIGHTHS_MASK = 0x7FFF
"""A power in eighths of a watt is 15 bits wide in POWER_LIMIT and POWER_INFO."""
LIMIT_ENABLED = 1 << 15


def registers(source: str, *, sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> ReadRegister:
    """Return how to read a register of a CPU: (register, cpu) -> value, raising OSError.

    `source` is `msr`, `powercap`, or `auto`: the CPU's own registers where they read anything (on some CPUs they are
    all 0 and only powercap knows), else powercap. Raises VirtRaplError when there is neither.
    """

    def msr(register: int, cpu: int) -> int:
        return read_register(dev, cpu, register)

    if source in ("msr", "auto"):
        try:
            if msr(protocol.POWER_UNIT, 0):
                return msr
            trouble = "register 0x606 reads 0"
        except OSError as error:
            trouble = str(error)
        if source == "msr":
            raise VirtRaplError(f"cannot read RAPL registers: {trouble}", "modprobe msr, or set `source: powercap`")
    zones = [zone for zone in powercap_zones(sys) if zone.kind == "package"]
    if not zones:
        raise VirtRaplError("neither RAPL registers nor powercap zones", "modprobe msr, or modprobe intel_rapl_msr")
    return PowercapRegisters(zones, {cpu: package for package, cpus in packages(sys).items() for cpu in cpus}).read


class PowercapRegisters:
    """Registers made from the package zones of powercap. The energy register has 64 bits here and never wraps."""

    def __init__(self, zones: list[PowercapZone], package_of: dict[int, int]) -> None:
        """Take the zones (several of one package are its dies) and the package of each CPU; reads every zone once."""
        self.package_of = package_of
        self.zones = {package: [zone for zone in zones if zone.package == package] for package in package_of.values()}
        self.counters = {package: [EnergyCounter(zone) for zone in zones] for package, zones in self.zones.items()}
        self.microjoules = {package: sum(zone.read() for zone in zones) for package, zones in self.zones.items()}
        for package in self.counters:
            self._advance(package)

    def read(self, register: int, cpu: int) -> int:
        """Return a register of `cpu`; OSError for a CPU or register that is not there."""
        package = self.package_of.get(cpu)
        if package is None or not self.zones[package]:
            raise OSError(f"no package zone for CPU {cpu}")
        match register:
            case protocol.POWER_UNIT:
                return UNITS
            case protocol.POWER_LIMIT:
                return LIMIT_ENABLED | self._eighths(package, "constraint_0_power_limit_uw")
            case protocol.ENERGY:
                self._advance(package)
                return (self.microjoules[package] << ENERGY_EXPONENT) // 1_000_000
            case protocol.POWER_INFO:
                # QEMU refuses 0, so an unknown power reads as the smallest there is.
                return self._eighths(package, "constraint_0_max_power_uw") or 1
        raise OSError(f"no register {register:#x}")

    def _advance(self, package: int) -> None:
        now = boot_nanoseconds()
        self.microjoules[package] += sum(counter.advance(now) or 0 for counter in self.counters[package])

    def _eighths(self, package: int, file: str) -> int:
        """Return a power of powercap in eighths of a watt; 0 where powercap does not tell."""
        try:
            microwatts = sum(int((zone.path / file).read_text()) for zone in self.zones[package])
        except (OSError, ValueError):
            return 0
        return min(microwatts * 8 // 1_000_000, EIGHTHS_MASK)
