"""Which package each CPU belongs to, while CPUs come and go. Imports next to nothing, as threads does."""

from __future__ import annotations

from libvirt_rapl.helper.vmsr.threads import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CPUS = "/sys/devices/system/cpu/"


class Cpus:
    """The CPUs of this host."""

    def __init__(self, package_of: Mapping[int, int], directory: str = CPUS) -> None:
        """Take the package of each CPU that is online."""
        self.package_of = dict(package_of)
        """Package of each CPU that was ever seen online."""
        self.counts = _counts(package_of)
        """How many CPUs of each package are online."""
        self._directory = directory
        self._online = read(f"{directory}online")

    def look(self) -> None:
        """Read which CPUs are online now. What sysfs does not show stays as it was."""
        online = read(f"{self._directory}online")
        if online == self._online or not online:
            return
        found = {}
        for part in online.split(b","):
            first, _, last = part.partition(b"-")
            for cpu in range(int(first), int(last or first) + 1):
                # The file is missing while the CPU is going online or offline.
                if package := read(f"{self._directory}cpu{cpu}/topology/physical_package_id"):
                    found[cpu] = int(package)
                else:
                    online = b""  # read again next time
        self._online = online
        self.package_of.update(found)
        self.counts = _counts(found)


def _counts(package_of: Mapping[int, int]) -> dict[int, int]:
    packages = list(package_of.values())
    return {package: packages.count(package) for package in packages}
