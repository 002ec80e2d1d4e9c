"""Zones of the kernel's powercap tree: /sys/class/powercap/intel-rapl:P and intel-rapl:P:S.

AMD's counters have the same names, but there the kernel's `core` is only one core of the package, while the registers
(libvirt_rapl.host.msr) show all of them. Any control type `intel-rapl*` is read; `intel-rapl-mmio` shows the package in
another way and is used only where nothing else shows it.
"""

import re
from pathlib import Path
from typing import NamedTuple

from libvirt_rapl.host.zones import most_watts

_ENTRY = re.compile(r"(?P<control_type>intel-rapl[^:]*):\d+(:\d+)*")
_PACKAGE = re.compile(r"package-(?P<package>\d+)(?P<die>-die-\d+)?")


class PowercapZone(NamedTuple):
    """A zone read from a directory of sysfs; see libvirt_rapl.host.zones.Zone."""

    name: str
    kind: str
    package: int | None
    wrap: int
    most_watts: int
    path: Path

    def read(self) -> int:
        """Return microjoules."""
        with open(f"{self.path}/energy_uj", "rb", buffering=0) as file:  # half the time of read_text(), each second
            return int(file.read())


def powercap_zones(sys: Path) -> list[PowercapZone]:
    """Return the zones, ordered by name; none when there is no powercap or its zones vanish meanwhile."""
    zones: dict[str, PowercapZone] = {}
    for entry in _entries(sys / "class/powercap"):
        try:
            zone = _zone(entry)
        except PermissionError:
            raise
        except (OSError, ValueError):  # it has vanished, or does not describe itself
            continue
        zones.setdefault(zone.name, zone)
    return [zones[name] for name in sorted(zones)]


def _entries(directory: Path) -> list[Path]:
    try:
        entries = [entry for entry in directory.iterdir() if _ENTRY.fullmatch(entry.name)]
    except FileNotFoundError:
        return []
    return sorted(entries, key=lambda entry: ("-mmio:" in entry.name, entry.name))


def _zone(path: Path) -> PowercapZone:
    name = _text(path / "name")
    kind, package = re.sub(r"-\d+$", "", name), None  # psys of a further package is psys-1
    # intel-rapl:0:1 is a part of intel-rapl:0; psys and packages have no parent.
    top = path.with_name(":".join(path.name.split(":")[:2]))
    if match := _PACKAGE.fullmatch(_text(top / "name")):
        package = int(match["package"])
        kind = "package" if path == top else name
        name = f"{kind}-{package}{match['die'] or ''}"
    return PowercapZone(name, kind, package, _wrap(path), most_watts(kind, _thermal_watts(top)), path)


def _wrap(zone: Path) -> int:
    """Return the highest value that the counter shows, plus one: there it wraps to 0. 0 if unknown."""
    highest = _text(zone / "max_energy_range_uj")
    return max(0, int(highest) + 1) if highest.lstrip("-").isdecimal() else 0


def _thermal_watts(package: Path) -> int:
    """Return the thermal power of a package; 0 if powercap does not have it."""
    try:
        return int(_text(package / "constraint_0_max_power_uw")) // 1_000_000
    except (OSError, ValueError):
        return 0


def _text(path: Path) -> str:
    return path.read_text().strip()
