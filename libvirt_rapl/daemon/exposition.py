"""The metrics for Prometheus: one table of them, and how they are made of a document. No I/O.

A reading that is missing has no sample: 0 always means that 0 was read.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from libvirt_rapl import __version__
from libvirt_rapl.choices import ChannelState, MeterState
from libvirt_rapl.daemon.document import Document, DomainReading
from libvirt_rapl.errors import printable
from libvirt_rapl.host.zones import kind_of

KEPT_SECONDS = 3600.0
"""How long the counters of a domain stay after it has ended, so that its last joules are scraped."""


@dataclass(frozen=True)
class Declared:
    """One metric."""

    name: str
    """As Prometheus has it."""
    type: Literal["counter", "gauge", "info"]
    unit: str
    """Empty if it has none."""
    labels: tuple[str, ...]
    help: str

    def family(self) -> Metric:
        """Return it without samples."""
        return Metric(self.name.removesuffix("_total").removesuffix("_info"), self.help, self.type, self.unit)


DOMAIN_ENERGY = Declared(
    "virt_rapl_domain_energy_joules_total",
    "counter",
    "joules",
    ("domain", "uuid", "zone"),
    "Energy that a domain has used of all zones of a kind: package, core, uncore, dram or psys. Do not add kinds up: "
    "package contains core and uncore, psys contains package.",
)
DOMAIN_POWER = Declared(
    "virt_rapl_domain_power_watts",
    "gauge",
    "watts",
    ("domain", "uuid"),
    "Power of a running domain over the last interval, of the packages. Absent if not all could be read.",
)
VCPU_ENERGY = Declared(
    "virt_rapl_vcpu_energy_joules_total",
    "counter",
    "joules",
    ("domain", "uuid", "vcpu"),
    "Energy that a vCPU has used of the packages; those of a domain add up to the domain's. Only with --vcpus.",
)
DOMAIN_INFO = Declared(
    "virt_rapl_domain_info",
    "info",
    "",
    ("domain", "uuid", "title"),
    "1, with the title of a domain and the labels that the configuration takes from its metadata.",
)
DOMAIN_METER_STATE = Declared(
    "virt_rapl_domain_meter_state",
    "gauge",
    "",
    ("domain", "uuid", "state"),
    "1 for the state that the guest's own meter is in, 0 for the others: active, degraded, pending or off. Absent if "
    "the domain does not run, or libvirt would have to be asked and cannot be.",
)
DOMAIN_CHANNEL_STATE = Declared(
    "virt_rapl_domain_channel_state",
    "gauge",
    "",
    ("domain", "uuid", "state"),
    "1 for the state that the domain's energy channel is in, 0 for the others: off, waiting, connected or stalled. "
    "Absent if the domain does not run, or libvirt would have to be asked and cannot be.",
)
ZONE_ENERGY = Declared(
    "virt_rapl_zone_energy_joules_total",
    "counter",
    "joules",
    ("zone",),
    "Energy that a zone of this machine has counted. Do not add zones up: a package contains its core and uncore, psys "
    "contains the packages.",
)
UNATTRIBUTED_ENERGY = Declared(
    "virt_rapl_unattributed_energy_joules_total",
    "counter",
    "joules",
    ("zone", "kind"),
    "Energy of a zone that no domain has used: other (the host's own work) or idle. With that of the domains, those "
    "that are gone included, it is what the zone counted.",
)
LOST_INTERVALS = Declared(
    "virt_rapl_lost_intervals_total",
    "counter",
    "",
    ("zone",),
    "Intervals in which a zone's count was lost (not readable, or read too late): that energy is missing everywhere.",
)
SAMPLE_DURATION = Declared(
    "virt_rapl_sample_duration_seconds", "gauge", "seconds", (), "How long virt-rapld's last sample took."
)
SAMPLE_OVERRUNS = Declared(
    "virt_rapl_sample_overruns_total",
    "counter",
    "",
    (),
    "Samples that began more than an interval later than they should have, since virt-rapld started.",
)
LAST_SAMPLE = Declared(
    "virt_rapl_last_sample_timestamp_seconds",
    "gauge",
    "seconds",
    (),
    "When virt-rapld read the counters last, in seconds since the epoch.",
)
SIMULATED = Declared(
    "virt_rapl_simulated", "gauge", "", (), "1 if the energy is simulated and not this machine's own, else 0."
)
UP = Declared(
    "virt_rapl_up",
    "gauge",
    "",
    (),
    "1 if virt-rapld answers and can ask libvirt. 0 if it does not answer (nothing else is exported then), or if it "
    "cannot ask libvirt: running domains are still metered, others may be missing.",
)
BUILD_INFO = Declared(
    "virt_rapl_build_info", "info", "", ("component", "version"), "1, with the version of exporter and virt-rapld."
)

METRICS = (
    DOMAIN_ENERGY,
    DOMAIN_POWER,
    VCPU_ENERGY,
    DOMAIN_INFO,
    DOMAIN_METER_STATE,
    DOMAIN_CHANNEL_STATE,
    ZONE_ENERGY,
    UNATTRIBUTED_ENERGY,
    LOST_INTERVALS,
    SAMPLE_DURATION,
    SAMPLE_OVERRUNS,
    LAST_SAMPLE,
    SIMULATED,
    UP,
    BUILD_INFO,
)
STATES: tuple[MeterState, ...] = get_args(MeterState)
CHANNEL_STATES: tuple[ChannelState, ...] = get_args(ChannelState)


class Families:
    """The metrics with their samples."""

    def __init__(self) -> None:
        """Begin without samples."""
        self._families = {metric: metric.family() for metric in METRICS}

    def add(self, metric: Declared, value: float, *labels: str, **more: str) -> None:
        """Add a sample with the values of the labels that are declared, and `more` that the configuration adds."""
        names = dict(zip(metric.labels, map(printable, labels), strict=True))
        for name, text in more.items():
            names[name] = printable(text)
        self._families[metric].add_sample(metric.name, names, value)

    def __iter__(self) -> Iterator[Metric]:
        """Yield those that have samples."""
        return (family for family in self._families.values() if family.samples)


def families(
    document: Document | None, ended: Iterable[DomainReading] = (), *, vcpus: bool = False
) -> Iterable[Metric]:
    """Return the metrics of a document; None if virt-rapld does not answer.

    `ended`: domains that do not run any more and whose counters are still shown. `vcpus`: with the energy of each vCPU.
    """
    made = Families()
    made.add(BUILD_INFO, 1, "exporter", __version__)
    if document is None:
        made.add(UP, 0)
        return made
    _add_host(made, document)
    kinds = {kind_of(zone.name) for zone in document.host.zones if zone.energy_joules or not zone.unread}
    packages_are_read = not any(zone.unread for zone in document.host.zones if kind_of(zone.name) == "package")
    for domain in document.domains:
        if not is_running(domain):
            continue
        name, uuid = domain.name, domain.uuid
        _add_counters(made, domain, kinds, vcpus=vcpus)
        if packages_are_read and not domain.unread:
            made.add(DOMAIN_POWER, domain.power_watts, name, uuid)
        if domain.vrapl in ("active", "degraded") or not document.host.libvirt_trouble:
            for state in STATES:
                made.add(DOMAIN_METER_STATE, float(domain.vrapl == state), name, uuid, state)
        if domain.channel != "off" or not document.host.libvirt_trouble:
            for channel_state in CHANNEL_STATES:
                made.add(DOMAIN_CHANNEL_STATE, float(domain.channel == channel_state), name, uuid, channel_state)
    for domain in ended:
        _add_counters(made, domain, kinds, vcpus=vcpus)
    return made


def is_running(domain: DomainReading) -> bool:
    """Return whether it has a process, running or paused."""
    return domain.pid is not None


def _add_host(made: Families, document: Document) -> None:
    host = document.host
    made.add(UP, float(not host.libvirt_trouble))
    made.add(SIMULATED, float(host.source == "simulated"))
    if document.version:
        made.add(BUILD_INFO, 1, "virt-rapld", document.version)
    if host.sample_seconds is not None:
        made.add(SAMPLE_DURATION, host.sample_seconds)
    if host.overruns is not None:
        made.add(SAMPLE_OVERRUNS, host.overruns)
    if host.sampled_at is not None:
        made.add(LAST_SAMPLE, datetime.fromisoformat(host.sampled_at).timestamp())
    for zone in host.zones:
        made.add(LOST_INTERVALS, zone.lost_intervals, zone.name)
        if zone.energy_joules or not zone.unread:  # else it has never been read
            made.add(ZONE_ENERGY, zone.energy_joules, zone.name)
            made.add(UNATTRIBUTED_ENERGY, zone.other_joules, zone.name, "other")
            made.add(UNATTRIBUTED_ENERGY, zone.idle_joules, zone.name, "idle")


def _add_counters(made: Families, domain: DomainReading, kinds: set[str], *, vcpus: bool) -> None:
    name, uuid = domain.name, domain.uuid
    made.add(DOMAIN_INFO, 1, name, uuid, domain.title, **domain.labels)
    if domain.unread and not domain.energy_joules:  # it has never been read
        return
    for kind, reading in domain.zones.items():
        if kind in kinds:
            made.add(DOMAIN_ENERGY, reading.energy_joules, name, uuid, kind)
    if vcpus:
        for vcpu in domain.vcpus:
            made.add(VCPU_ENERGY, vcpu.energy_joules, name, uuid, str(vcpu.id))


class Recent:
    """Remembers domains that have ended, for KEPT_SECONDS, whether they are still in the document or not."""

    def __init__(self) -> None:
        """Begin without any."""
        self._last: dict[str, tuple[float, DomainReading]] = {}
        """When each domain ran last or its energy changed, and its last reading, by UUID."""

    def ended(self, document: Document, now: float) -> list[DomainReading]:
        """Return those that do not run, have used energy and ended less than KEPT_SECONDS ago; `now` is monotonic.

        A domain that is first seen when it does not run counts as one that has just ended.
        """
        there = {domain.uuid: domain for domain in (*document.ended, *document.domains)}
        for uuid, domain in there.items():
            seen, before = self._last.get(uuid, (now, domain))
            changes = is_running(domain) or domain.energy_joules != before.energy_joules
            self._last[uuid] = now if changes else seen, domain
        recent = {uuid for uuid, (seen, _) in self._last.items() if now < seen + KEPT_SECONDS}
        self._last = {uuid: last for uuid, last in self._last.items() if uuid in there or uuid in recent}
        return [
            domain
            for uuid, (_, domain) in self._last.items()
            if uuid in recent and domain.energy_joules and not (uuid in there and is_running(domain))
        ]


class Exposition(Collector):
    """Collects the metrics of virt-rapld's document, for a CollectorRegistry of prometheus_client."""

    def __init__(
        self,
        ask: Callable[[], Document | None],
        *,
        vcpus: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take a function that returns the present document, or None if virt-rapld does not answer.

        `vcpus`: whether to export the energy of each vCPU.
        """
        self._ask = ask
        self._vcpus = vcpus
        self._clock = clock
        self._recent = Recent()
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Return all metrics; threads may do so at once."""
        document = self._ask()
        ended: list[DomainReading] = []
        if document is not None:
            with self._lock:
                ended = self._recent.ended(document, self._clock())
        return families(document, ended, vcpus=self._vcpus)
