"""A meter's figures at one moment: to be shown, and as flat tables for the ledger, from which a meter can continue.

The meter changes with each sample. A copy of its figures is made in a millisecond or two, between samples, and never
changes: documents and tables are made from it while the meter continues.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from libvirt_rapl.energy.meter import DomainUsage, Meter, Usage, ZoneUsage
from libvirt_rapl.host.zones import kind_of

HOST, OTHER, IDLE, GONE = "host", "other", "idle", "gone"
WHOLE = -1
PACKAGE = "package"
"""All packages together."""

GONE_SECONDS = 30 * 86400.0
"""A domain that libvirt does not know and that has not run for so much metered time does not come back."""


class Figures(NamedTuple):
    """What a zone, domain or vCPU has used: a copy of Usage."""

    microjoules: int = 0
    watts: float = 0.0
    """Over the last interval."""

    @property
    def joules(self) -> float:
        """The energy in joules."""
        return self.microjoules / 1_000_000


class ZoneFigures(NamedTuple):
    """A copy of ZoneUsage."""

    kind: str
    counted: Figures
    other: Figures
    idle: Figures
    lowest: tuple[int, int]
    """Microjoules and nanoseconds of the interval of lowest power; no time when there has been none."""
    lost: int
    """In how many intervals its count was lost."""
    unread: bool
    """Whether it could not be read in the last interval, so that its power is not known."""


class DomainFigures(NamedTuple):
    """A copy of DomainUsage."""

    whole: Figures = Figures()
    zones: Mapping[str, Figures] = {}
    """By the zone's name."""
    vcpus: Mapping[int, Figures] = {}
    tids: Mapping[int, int] = {}
    """The thread of each vCPU that is followed, by vCPU number."""
    last_ran: float | None = None
    cpus: float = 0.0
    """How many CPUs it kept busy over the last interval."""


class Snapshot(NamedTuple):
    """A copy of a meter's figures."""

    since: float
    """When counting began, in seconds since the epoch."""
    trouble: str
    interval_seconds: float
    sampled_at: float
    """When the last sample was taken, in seconds since the epoch; 0 if none was."""
    sample_seconds: float
    """How long it took."""
    read: frozenset[str]
    """Domains whose use in the last interval is known, by UUID, also if they used nothing."""
    metered: float
    zones: Mapping[str, ZoneFigures]
    """By name, including those that are not there now."""
    domains: Mapping[str, DomainFigures]
    """By UUID."""
    domains_watts: float
    other: Figures
    """Of the packages, as `idle`."""
    idle: Figures

    def by_kind(self, uuid: str) -> dict[str, Figures]:
        """Return what a domain has used of each kind of zone: `package` and others."""
        kinds = dict.fromkeys((zone.kind for zone in self.zones.values()), Figures())
        for name, figures in self.domains.get(uuid, DomainFigures()).zones.items():
            microjoules, watts = kinds[self.zones[name].kind]
            kinds[self.zones[name].kind] = Figures(microjoules + figures.microjoules, watts + figures.watts)
        return kinds


def take(meter: Meter) -> Snapshot:
    """Copy the meter's figures; it must not sample meanwhile."""
    lost = meter.lost
    return Snapshot(
        since=meter.since,
        trouble=meter.trouble,
        interval_seconds=meter.interval_seconds,
        sampled_at=meter.sampled_at,
        sample_seconds=meter.sample_seconds,
        read=meter.read_domains,
        metered=meter.metered,
        zones={
            name: ZoneFigures(
                zone.kind,
                _figures(zone),
                _figures(zone.other),
                _figures(zone.idle),
                zone.lowest,
                lost.get(name, 0),
                name in meter.unread_zones,
            )
            for name, zone in meter.zones.items()
        },
        domains={
            uuid: DomainFigures(
                _figures(domain),
                {name: Figures(usage.microjoules, usage.watts) for name, usage in domain.zones.items()},
                {vcpu: Figures(usage.microjoules, usage.watts) for vcpu, usage in domain.vcpus.items()},
                meter.vcpu_tids(uuid),
                domain.last_ran,
                _cpus(meter, uuid),
            )
            for uuid, domain in meter.domains.items()
        },
        domains_watts=meter.domains_watts,
        other=_figures(meter.other),
        idle=_figures(meter.idle),
    )


def _figures(usage: Usage) -> Figures:
    return Figures(usage.microjoules, usage.watts)


def _cpus(meter: Meter, uuid: str) -> float:
    ran = sum(time.total for time in meter.times.get(uuid, {}).values())
    return ran / 1_000_000_000 / meter.interval_seconds if ran else 0.0


class Part(NamedTuple):
    """What a total belongs to."""

    owner: str
    """`host` (what a zone counted), `other`, `idle`, the UUID of a domain, or `gone`: all domains gone for good."""
    vcpu: int
    """vCPU of the domain, or WHOLE."""
    zone: str
    """Name of the zone, or PACKAGE: a domain's energy as a whole, which its vCPUs share."""


Totals = dict[Part, int]
"""Microjoules."""


@dataclass
class Kept:
    """Everything of a meter that is kept."""

    totals: Totals = field(default_factory=dict)
    lowest: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Microjoules and nanoseconds of the interval of lowest power, by zone."""
    last_ran: dict[str, float] = field(default_factory=dict)
    """When each domain ran last, in seconds of the time metered, by UUID."""
    metered: float = 0.0
    """Seconds metered in all: the only clock for ages, because the host's may have been wrong."""


def kept(snapshot: Snapshot) -> Kept:
    """Return everything that the meter had counted and learned."""
    return Kept(
        totals={part: figures.microjoules for part, figures in _parts(snapshot)},
        lowest={name: zone.lowest for name, zone in snapshot.zones.items() if zone.lowest[1]},
        last_ran={uuid: domain.last_ran for uuid, domain in snapshot.domains.items() if domain.last_ran is not None},
        metered=snapshot.metered,
    )


def add(meter: Meter, kept: Kept) -> None:
    """Add what an earlier meter had counted to what this one has counted, so that it continues from there."""
    for part, microjoules in kept.totals.items():
        _usage(meter, part).microjoules += microjoules
    for name, lowest in kept.lowest.items():
        _zone(meter, name).learn(*lowest)
    for domain in meter.domains.values():
        if domain.last_ran is not None:
            domain.last_ran += kept.metered
    meter.metered += kept.metered
    for uuid, last_ran in kept.last_ran.items():
        if meter.domains[uuid].last_ran is None:
            meter.domains[uuid].last_ran = last_ran


def retire(meter: Meter, *, running: Collection[str], known: Collection[str] | None) -> set[str]:
    """Move the energy of domains that are gone for good to `gone`, and return their UUIDs.

    `running` and `known` are the domains that run and that libvirt knows, by UUID; None when libvirt has not said.
    Otherwise a domain whose UUID is never seen again would be kept for ever.
    """
    retired = set()
    begin = meter.metered - GONE_SECONDS
    for uuid, domain in list(meter.domains.items()):
        if uuid in running or domain.last_ran is None:
            domain.last_ran = meter.metered
        elif domain.last_ran < begin and uuid != GONE and known is not None and uuid not in known:
            del meter.domains[uuid]
            _give(meter.domains[GONE], domain)
            retired.add(uuid)
    return retired


def _give(heir: DomainUsage, domain: DomainUsage) -> None:
    heir.microjoules += domain.microjoules
    for name, usage in domain.zones.items():
        heir.zones[name].microjoules += usage.microjoules
    for vcpu, usage in domain.vcpus.items():
        heir.vcpus[vcpu].microjoules += usage.microjoules


def imbalance(totals: Totals) -> str:
    """Return where totals do not add up as a meter's do; empty when they do.

    What all packages have counted is that of domains, other and idle together; a domain's vCPUs share all of its.
    """
    counted = sum(n for part, n in totals.items() if part.owner == HOST and part.zone.startswith("package-"))
    whole = {part.owner: n for part, n in totals.items() if part.vcpu == WHOLE and part.zone == PACKAGE}
    if counted != sum(whole.values()):
        return f"packages counted {counted} uJ, and {sum(whole.values())} are given out"
    vcpus: dict[str, int] = {}
    for part, microjoules in totals.items():
        if part.vcpu != WHOLE:
            vcpus[part.owner] = vcpus.get(part.owner, 0) + microjoules
    wrong = [owner for owner, microjoules in vcpus.items() if whole.get(owner) != microjoules]
    return f"the vCPUs of {wrong[0]} do not make up its energy" if wrong else ""


def _parts(snapshot: Snapshot) -> Iterator[tuple[Part, Figures]]:
    for name, zone in snapshot.zones.items():
        yield Part(HOST, WHOLE, name), zone.counted
        yield Part(OTHER, WHOLE, name), zone.other
        yield Part(IDLE, WHOLE, name), zone.idle
    yield Part(OTHER, WHOLE, PACKAGE), snapshot.other
    yield Part(IDLE, WHOLE, PACKAGE), snapshot.idle
    for uuid, domain in snapshot.domains.items():
        yield Part(uuid, WHOLE, PACKAGE), domain.whole
        for name, figures in domain.zones.items():
            yield Part(uuid, WHOLE, name), figures
        for vcpu, figures in domain.vcpus.items():
            yield Part(uuid, vcpu, PACKAGE), figures


def _zone(meter: Meter, name: str) -> ZoneUsage:
    # A zone that is not there now keeps its totals: it may come back, and must not begin at 0 then.
    return meter.zones.setdefault(name, ZoneUsage(kind=kind_of(name)))


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
