"""What each peer of a helper reads: constants, and energy made for its own windows.

Imports next to nothing, as libvirt_rapl.helper.vmsr.threads.
"""

from __future__ import annotations

from libvirt_rapl.helper.vmsr.cpus import Cpus
from libvirt_rapl.helper.vmsr.energy import Package, Zone
from libvirt_rapl.helper.vmsr.shaping import Shaper
from libvirt_rapl.helper.vmsr.threads import Domain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from libvirt_rapl.helper.vmsr.protocol import ReadRegister
    from libvirt_rapl.helper.vmsr.registers import Registers


class Readers:
    """The registers of this host, and how each peer reads them."""

    def __init__(self, registers: Registers) -> None:
        """Read every counter once. Raises OSError or ValueError when one cannot be read."""
        constants, counters, cpus, self._unit = registers
        self._constants = dict(constants)
        self._cpus = Cpus(dict(cpus))
        self._packages = {
            package: Package([Zone(counter, self._unit) for counter in counters if counter[0] == package])
            for package in sorted({counter[0] for counter in counters})
        }

    def reader_for(self, pid: int) -> ReadRegister:
        """Return the function that reads registers for a peer: (register, cpu) -> value; it raises OSError."""
        shaper: Shaper | None = None

        def read(register: int, cpu: int) -> int:
            nonlocal shaper
            package = self.package_of(cpu)
            if register in self._constants:
                return self._constants[register]
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
