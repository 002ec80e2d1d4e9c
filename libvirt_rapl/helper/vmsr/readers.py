"""What each peer of a helper reads: energy shaped for its own windows or, without shaping, the package's energy.

Imports next to nothing, as libvirt_rapl.helper.vmsr.threads.
"""

from __future__ import annotations

from libvirt_rapl.helper.vmsr.cpus import Cpus
from libvirt_rapl.helper.vmsr.energy import Package, Zone, boot_nanoseconds
from libvirt_rapl.helper.vmsr.shaping import Shaper
from libvirt_rapl.helper.vmsr.threads import Domain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from libvirt_rapl.helper.vmsr.protocol import ReadRegister
    from libvirt_rapl.helper.vmsr.registers import Registers

FRESH_NS = 900_000_000
"""Without shaping a package is read at most this often; QEMU's windows take a second."""


class Readers:
    """The registers of this host, and how each peer reads them."""

    def __init__(self, registers: Registers, *, shaping: bool) -> None:
        """Read every counter once. Raises OSError or ValueError when one cannot be read."""
        constants, counters, cpus, self._unit = registers
        self._constants = dict(constants)
        self._cpus = Cpus(dict(cpus))
        self._packages = {
            package: Package([Zone(counter, self._unit) for counter in counters if counter[0] == package])
            for package in sorted({counter[0] for counter in counters})
        }
        self._shaping = shaping
        self._read: dict[int, tuple[int, int]] = {}

    def reader_for(self, pid: int) -> ReadRegister:
        """Return the function that reads registers for a peer: (register, cpu) -> value; it raises OSError."""
        shaper: Shaper | None = None

        def read(register: int, cpu: int) -> int:
            nonlocal shaper
            package = self.package_of(cpu)
            if register in self._constants:
                return self._constants[register]
            if not self._shaping:
                return self._energy(package)
            if shaper is None:  # a peer that asks for no energy, such as a health check, costs nothing
                domain = Domain(pid, by_cpu=len(self._packages) > 1)
                shaper = Shaper(domain, self._packages, self._cpus, self._unit)
            return shaper.energy(package)

        return read

    def package_of(self, cpu: int) -> int:
        """Return the package of a CPU. Raises OSError if there is no such CPU, or its package has no counter."""
        if cpu not in self._cpus.package_of:
            self._cpus.look()
        package = self._cpus.package_of.get(cpu)
        if package not in self._packages:
            raise OSError(f"no package zone for CPU {cpu}")
        return package

    def _energy(self, package: int) -> int:
        """Return what a package has counted, in units; the last value if that was read less than FRESH_NS ago."""
        now = boot_nanoseconds()
        read, energy = self._read.get(package, (0, 0))
        if not read or now - read >= FRESH_NS:
            energy = max(1, self._packages[package].advance(now) * self._unit[1] // self._unit[0])
            self._read[package] = now, energy
        return energy
