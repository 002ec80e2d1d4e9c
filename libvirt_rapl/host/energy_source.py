"""Choose where energy is read: powercap if it has package zones, else model-specific registers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from libvirt_rapl.choices import EnergySource
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host.energy_counter import reading
from libvirt_rapl.host.msr import msr_zones
from libvirt_rapl.host.powercap import powercap_zones
from libvirt_rapl.host.zones import Zone
from libvirt_rapl.paths import PROC

TRY_SIMULATOR = "to try it without: virt-rapl simulate -- COMMAND"
REGISTERS = "virt-rapld sees registers only with the drop-in that docs/status.md shows"
HINTS: dict[EnergySource, str] = {
    "powercap": f"modprobe intel_rapl_msr; {TRY_SIMULATOR}",
    "msr": f"modprobe msr; {REGISTERS}; {TRY_SIMULATOR}",
    "auto": f"modprobe intel_rapl_msr, or modprobe msr; {REGISTERS}; {TRY_SIMULATOR}",
}

Listing = Literal["powercap", "msr"]


@dataclass(frozen=True)
class Source:
    """Zones that can be read."""

    name: Listing | Literal["simulated"]
    """`simulated` when the energy is not this machine's."""
    zones: tuple[Zone, ...]
    """As of when it was opened; at least one of kind `package`."""
    list_zones: Callable[[], list[Zone]] = field(repr=False)
    """Returns the zones that can be read now. Raises OSError or ValueError."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Zones that were there when it was opened but could not be read: name and reason."""


def open_source(choice: EnergySource, *, sys: Path, dev: Path, proc: Path = PROC) -> Source:
    """Find the zones of `choice`.

    Every zone has been read once. Raises VirtRaplError when there is none or it may not be read.
    """
    listings: dict[Listing, Callable[[], Sequence[Zone]]] = {
        "powercap": lambda: powercap_zones(sys),
        "msr": lambda: msr_zones(sys=sys, proc=proc, dev=dev),
    }
    left_out: dict[str, str] = {}
    try:
        for name in listings if choice == "auto" else (choice,):

            def list_zones(listing: Callable[[], Sequence[Zone]] = listings[name]) -> list[Zone]:
                return [zone for zone in listing() if not _trouble(zone)]

            left_out |= {zone.name: why for zone in listings[name]() if (why := _trouble(zone))}
            zones = list_zones()
            if any(zone.kind == "package" for zone in zones):
                simulated = (sys / "class/powercap/virt-rapl-simulator").exists()
                return Source("simulated" if simulated else name, tuple(zones), list_zones, left_out)
    except PermissionError as error:
        hint = "run as root; the group virt-rapl may ask virt-rapld, where that runs"
        raise VirtRaplError(f"may not read {error.filename}: energy counters are root's", hint) from error
    missing = "RAPL zones" if choice == "auto" else f"{choice} zones"
    why = "".join(f"; {zone}: {why}" for zone, why in left_out.items())
    raise VirtRaplError(f"this machine shows no {missing} of its CPU packages{why}", HINTS[choice])


def _trouble(zone: Zone) -> str:
    """Return why a zone cannot be read; empty when it can."""
    try:
        reading(zone)
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        return str(error)
    return ""
