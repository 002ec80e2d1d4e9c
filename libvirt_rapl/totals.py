"""What a meter has counted as a flat list of totals, to be kept and to be taken up again."""

from collections.abc import Iterator
from typing import NamedTuple

from libvirt_rapl.meter import Meter, Usage, ZoneUsage

HOST, OTHER, IDLE = "host", "other", "idle"
WHOLE = -1
PACKAGE = "package"
"""All packages together."""


class Part(NamedTuple):
    """Whose total it is."""

    owner: str
    """`host` (what a zone counted), `other`, `idle`, or the UUID of a domain."""
    vcpu: int
    """vCPU of the domain, or WHOLE."""
    zone: str
    """Name of the zone, or PACKAGE: that is a domain's energy as a whole, and what its vCPUs share."""


Totals = dict[Part, int]
"""Microjoules."""


def totals(meter: Meter) -> Totals:
    """Return all that the meter has counted."""
    return {part: usage.microjoules for part, usage in _parts(meter)}


def add(meter: Meter, kept: Totals) -> None:
    """Let the meter count on from what an earlier one had counted, on top of what it has counted itself."""
    for part, microjoules in kept.items():
        _usage(meter, part).microjoules += microjoules


def _parts(meter: Meter) -> Iterator[tuple[Part, Usage]]:
    for name, zone in meter.zones.items():
        yield Part(HOST, WHOLE, name), zone
        yield Part(OTHER, WHOLE, name), zone.other
        yield Part(IDLE, WHOLE, name), zone.idle
    yield Part(OTHER, WHOLE, PACKAGE), meter.other
    yield Part(IDLE, WHOLE, PACKAGE), meter.idle
    for uuid, domain in meter.domains.items():
        yield Part(uuid, WHOLE, PACKAGE), domain
        for name, usage in domain.zones.items():
            yield Part(uuid, WHOLE, name), usage
        for vcpu, usage in domain.vcpus.items():
            yield Part(uuid, vcpu, PACKAGE), usage


def _usage(meter: Meter, part: Part) -> Usage:
    if part.zone != PACKAGE and part.zone not in meter.zones:
        # Also a zone that is not there today has its totals: it may come back, and must not begin at 0 then.
        meter.zones[part.zone] = ZoneUsage(kind=part.zone.partition("-")[0])
    match part:
        case Part(owner="other", zone="package"):
            return meter.other
        case Part(owner="idle", zone="package"):
            return meter.idle
        case Part(owner="host"):
            return meter.zones[part.zone]
        case Part(owner="other"):
            return meter.zones[part.zone].other
        case Part(owner="idle"):
            return meter.zones[part.zone].idle
    domain = meter.domains[part.owner]
    if part.vcpu != WHOLE:
        return domain.vcpus[part.vcpu]
    return domain if part.zone == PACKAGE else domain.zones[part.zone]
