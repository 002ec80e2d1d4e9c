"""The energy of each package as a number that never wraps. Imports next to nothing, as threads does."""

from __future__ import annotations

import os
import time

from libvirt_rapl.host.energy_counter import EnergyCounter, reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from libvirt_rapl.helper.vmsr.registers import Counter


class Zone:
    """One counter: a file of powercap, or an open register; see libvirt_rapl.host.zones.Zone."""

    __slots__ = ("_file", "_register", "_unit", "kind", "most_watts", "name", "package", "wrap")

    def __init__(self, counter: Counter, unit: tuple[int, int]) -> None:
        """Take the place of the counter and, for a register, its unit: a fraction of microjoules."""
        self.package, self._file, self._register, self.wrap, self.most_watts = counter
        self._unit = unit
        self.name = f"package-{self.package}"
        self.kind = "package"

    def read(self) -> int:
        """Return microjoules. Raises OSError or ValueError."""
        if isinstance(self._file, int):
            value = int.from_bytes(os.pread(self._file, 8, self._register)[:4], "little")  # bits 0 to 31 count
            return value * self._unit[0] // self._unit[1]
        descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(descriptor, 32))
        finally:
            os.close(descriptor)


class Package:
    """The sum of what a package has counted: one counter, or one for each of its dies."""

    __slots__ = ("_counters", "microjoules")

    def __init__(self, zones: list[Zone]) -> None:
        """Begin with the current values. Raises OSError or ValueError when one cannot be read."""
        self._counters = [EnergyCounter(zone) for zone in zones]
        self.microjoules = sum(reading(zone) for zone in zones)
        self.advance(boot_nanoseconds())

    def advance(self, now: int) -> int:
        """Return all microjoules that were counted until now, without what a broken count hides."""
        for counter in self._counters:
            self.microjoules += counter.advance(now) or 0
        return self.microjoules


def boot_nanoseconds() -> int:
    """Return nanoseconds since the machine was started, including those in which it was suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
