"""What a meter has counted as a flat list of totals, to be kept and to be taken up again."""

from collections.abc import Iterator
from typing import NamedTuple

from libvirt_rapl.meter import DomainUsage, Meter, Usage

HOST, OTHER, IDLE = "host", "other", "idle"
WHOLE = -1
PACKAGE = "package"


class Part(NamedTuple):
    """Whose total it is."""

    owner: str
    """`host` (what a zone counted), `other`, `idle`, or the UUID of a domain."""
    vcpu: int
    """vCPU of the domain, or WHOLE."""
    zone: str
    """Name of the zone where the owner is the host, else the kind of zone that was given out."""


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
    for name, usage in meter.zones.items():
        yield Part(HOST, WHOLE, name), usage
    yield Part(OTHER, WHOLE, PACKAGE), meter.other
    yield Part(IDLE, WHOLE, PACKAGE), meter.idle
    for uuid, domain in meter.domains.items():
        yield Part(uuid, WHOLE, PACKAGE), domain
        for vcpu, usage in domain.vcpus.items():
            yield Part(uuid, vcpu, PACKAGE), usage


def _usage(meter: Meter, part: Part) -> Usage:
    match part:
        case Part(owner="host"):
            # Also a zone that is not there today: it may come back, and must not begin at 0 then.
            return meter.zones.setdefault(part.zone, Usage())
        case Part(owner="other"):
            return meter.other
        case Part(owner="idle"):
            return meter.idle
    domain = meter.domains.setdefault(part.owner, DomainUsage())
    return domain if part.vcpu == WHOLE else domain.vcpus.setdefault(part.vcpu, Usage())
