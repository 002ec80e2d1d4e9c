"""What a meter has counted and learned as flat tables, to be kept and to be taken up again."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from libvirt_rapl.meter import DomainUsage, Meter, Usage, ZoneUsage

HOST, OTHER, IDLE, GONE = "host", "other", "idle", "gone"
WHOLE = -1
PACKAGE = "package"
"""All packages together."""

GONE_SECONDS = 30 * 86400.0
"""A domain that libvirt does not know and that has not run for so long does not come back."""


class Part(NamedTuple):
    """Whose total it is."""

    owner: str
    """`host` (what a zone counted), `other`, `idle`, the UUID of a domain, or `gone`: all domains gone for good."""
    vcpu: int
    """vCPU of the domain, or WHOLE."""
    zone: str
    """Name of the zone, or PACKAGE: that is a domain's energy as a whole, and what its vCPUs share."""


Totals = dict[Part, int]
"""Microjoules."""


@dataclass
class Kept:
    """All that is kept of a meter."""

    totals: Totals = field(default_factory=dict)
    lowest: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Microjoules and nanoseconds of the interval of lowest power, by zone."""
    last_ran: dict[str, float] = field(default_factory=dict)
    """When each domain ran last, in seconds since the epoch, by UUID."""


def kept(meter: Meter) -> Kept:
    """Return all that the meter has counted and learned."""
    return Kept(
        totals={part: usage.microjoules for part, usage in _parts(meter)},
        lowest={name: zone.lowest for name, zone in meter.zones.items() if zone.lowest[1]},
        last_ran={uuid: domain.last_ran for uuid, domain in meter.domains.items() if domain.last_ran},
    )


def add(meter: Meter, kept: Kept) -> None:
    """Let the meter count on from what an earlier one had counted, on top of what it has counted itself."""
    for part, microjoules in kept.totals.items():
        _usage(meter, part).microjoules += microjoules
    for name, lowest in kept.lowest.items():
        _zone(meter, name).learn(*lowest)
    for uuid, last_ran in kept.last_ran.items():
        meter.domains[uuid].last_ran = max(meter.domains[uuid].last_ran, last_ran)


def retire(meter: Meter, *, running: Collection[str], known: Collection[str] | None, now: float) -> set[str]:
    """Give the energy of domains that are gone for good to `gone`, and return who they were.

    `running` and `known` are the domains that run and that libvirt knows, by UUID; None when libvirt has not told.
    A domain without a UUID that is ever seen again would otherwise be kept for ever. `now` is in seconds since the
    epoch.
    """
    retired = set()
    for uuid, domain in list(meter.domains.items()):
        if uuid in running or not domain.last_ran:
            domain.last_ran = now
        elif now - domain.last_ran > GONE_SECONDS and uuid != GONE and known is not None and uuid not in known:
            del meter.domains[uuid]
            for part, usage in _domain_parts(uuid, domain):
                _usage(meter, part._replace(owner=GONE)).microjoules += usage.microjoules
            retired.add(uuid)
    return retired


def redate(meter: Meter, step: float) -> None:
    """Move the dates of what ran last by `step` seconds, by which the clock has been set."""
    for domain in meter.domains.values():
        if domain.last_ran:
            domain.last_ran += step


def _parts(meter: Meter) -> Iterator[tuple[Part, Usage]]:
    for name, zone in meter.zones.items():
        yield Part(HOST, WHOLE, name), zone
        yield Part(OTHER, WHOLE, name), zone.other
        yield Part(IDLE, WHOLE, name), zone.idle
    yield Part(OTHER, WHOLE, PACKAGE), meter.other
    yield Part(IDLE, WHOLE, PACKAGE), meter.idle
    for uuid, domain in meter.domains.items():
        yield from _domain_parts(uuid, domain)


def _domain_parts(uuid: str, domain: DomainUsage) -> Iterator[tuple[Part, Usage]]:
    yield Part(uuid, WHOLE, PACKAGE), domain
    for name, usage in domain.zones.items():
        yield Part(uuid, WHOLE, name), usage
    for vcpu, usage in domain.vcpus.items():
        yield Part(uuid, vcpu, PACKAGE), usage


def _zone(meter: Meter, name: str) -> ZoneUsage:
    # Also a zone that is not there today has its totals: it may come back, and must not begin at 0 then.
    return meter.zones.setdefault(name, ZoneUsage(kind=name.partition("-")[0]))


def _usage(meter: Meter, part: Part) -> Usage:
    match part:
        case Part(owner="other", zone="package"):
            return meter.other
        case Part(owner="idle", zone="package"):
            return meter.idle
        case Part(owner="host"):
            return _zone(meter, part.zone)
        case Part(owner="other"):
            return _zone(meter, part.zone).other
        case Part(owner="idle"):
            return _zone(meter, part.zone).idle
    if part.zone != PACKAGE:
        _zone(meter, part.zone)
    domain = meter.domains[part.owner]
    if part.vcpu != WHOLE:
        return domain.vcpus[part.vcpu]
    return domain if part.zone == PACKAGE else domain.zones[part.zone]
