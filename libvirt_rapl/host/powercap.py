"""Zones of the kernel's powercap tree: /sys/class/powercap/intel-rapl:P and intel-rapl:P:S.

AMD's counters appear under the same names. Any control type `intel-rapl*` is read; `intel-rapl-mmio` shows the package
by another way and is used only where nothing else shows it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(r"(?P<control_type>intel-rapl[^:]*):\d+(:\d+)*")
_PACKAGE = re.compile(r"package-(?P<package>\d+)(?P<die>-die-\d+)?")


@dataclass(frozen=True)
class PowercapZone:
    """A zone read from a directory of sysfs; see libvirt_rapl.host.zones.Zone."""

    name: str
    kind: str
    package: int | None
    wrap: int
    path: Path

    def read(self) -> int:
        """Return microjoules."""
        return int((self.path / "energy_uj").read_text())


def powercap_zones(sys: Path) -> list[PowercapZone]:
    """Return the zones, ordered by name; none when there is no powercap or its zones vanish meanwhile."""
    zones: dict[str, PowercapZone] = {}
    for entry in _entries(sys / "class/powercap"):
        try:
            zone = _zone(entry)
        except (FileNotFoundError, ValueError):
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
    kind = _text(path / "name")
    package, die = None, ""
    # intel-rapl:0:1 is a part of intel-rapl:0; psys and packages have no parent.
    top = path.with_name(":".join(path.name.split(":")[:2]))
    if match := _PACKAGE.fullmatch(_text(top / "name")):
        package, die = int(match["package"]), match["die"] or ""
        kind = "package" if path == top else kind
    name = kind if package is None else f"{kind}-{package}{die}"
    # The highest value the counter shows; one more and it is 0 again.
    return PowercapZone(name, kind, package, int(_text(path / "max_energy_range_uj")) + 1, path)


def _text(path: Path) -> str:
    return path.read_text().strip()
