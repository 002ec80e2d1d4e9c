"""This host's meter, and the document that shows its figures with what is known of each domain.

Used by the daemon, which counts continuously, and by the command, which samples by itself if there is no daemon.
"""

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from libvirt_rapl import __version__
from libvirt_rapl.config import Config
from libvirt_rapl.daemon import channel_report
from libvirt_rapl.daemon.document import Document, DomainReading, HelperState, Host, Reading, Vcpu, Zone
from libvirt_rapl.domains.inventory import Entry
from libvirt_rapl.energy.meter import Meter
from libvirt_rapl.energy.snapshot import DomainFigures, Figures, Snapshot, ZoneFigures
from libvirt_rapl.errors import message_of
from libvirt_rapl.helper import instances
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.host.energy_source import open_source
from libvirt_rapl.host.requirements import check_processor
from libvirt_rapl.host.topology import model_name
from libvirt_rapl.lifecycle.channel_state import Delivery, channel_state
from libvirt_rapl.lifecycle.meter_state import by_policy, state_with, unknown_qemu
from libvirt_rapl.paths import DEV, PROC, SYS


class HostMeter:
    """A meter, the source of its energy, and the records of the domains' helpers."""

    def __init__(self, config: Config) -> None:
        """Open the zones. Raises VirtRaplError when there is no energy to read."""
        self.source = open_source(config.source, sys=SYS, dev=DEV, proc=PROC)
        self.meter = Meter(self.source, sys=SYS, proc=PROC, model=config.model)
        self.meter.since = time.time()
        self._model = model_name(PROC)
        self._no_meters = message_of(check_processor) or None
        """Why no domain of this host can have its meter, enabled or not; None if they can."""
        self._registry = Registry(config.run_directory)
        self._run_directory = config.run_directory

    def document(
        self,
        snapshot: Snapshot,
        domains: Iterable[Entry],
        refusals: Mapping[str, str] | None = None,
        libvirt_trouble: str = "",
        overruns: int | None = 0,
        gone: Iterable[Entry] = (),
    ) -> Document:
        """Return the document of the meter's figures for the host and these domains.

        `refusals`: why the policy could not enable domains, by UUID. `libvirt_trouble`: why there may be more domains.
        `overruns`: how many samples were late; None without virt-rapld. `gone`: domains that libvirt knows no more.

        The meter may sample meanwhile.
        """
        entries = sorted(domains, key=lambda entry: entry.name)
        records = self._registry.read_all(entry.uuid for entry in entries)
        refused = refusals or {}
        deliveries = channel_report.read(self._run_directory) if any(entry.channel for entry in entries) else None
        return Document(
            version=__version__,
            host=Host(
                source=self.source.name,
                model=self._model,
                since=_instant(snapshot.since),
                interval_seconds=snapshot.interval_seconds,
                sampled_at=_instant(snapshot.sampled_at, "milliseconds") if snapshot.sampled_at else None,
                sample_seconds=snapshot.sample_seconds if snapshot.sampled_at else None,
                overruns=overruns,
                zones=tuple(_zone(name, zone) for name, zone in snapshot.zones.items()),
                domains_watts=snapshot.domains_watts,
                other_watts=snapshot.other.watts,
                idle_watts=snapshot.idle.watts,
                trouble="; ".join(filter(None, (snapshot.trouble, libvirt_trouble))),
                libvirt_trouble=libvirt_trouble,
            ),
            domains=tuple(
                self._domain(entry, records.get(entry.uuid), refused.get(entry.uuid), deliveries, snapshot)
                for entry in entries
            ),
            ended=tuple(
                self._domain(entry, None, None, None, snapshot) for entry in gone if entry.uuid in snapshot.domains
            ),
        )

    def _domain(
        self,
        entry: Entry,
        record: Record | None,
        refusal: str | None,
        deliveries: Mapping[str, Delivery] | None,
        snapshot: Snapshot,
    ) -> DomainReading:
        trouble = instances.trouble(record, self._registry) if record else ""
        vrapl, reason = state_with(entry, record, trouble)
        channel, channel_reason = channel_state(entry, deliveries)
        figures = snapshot.domains.get(entry.uuid, DomainFigures())
        return DomainReading(
            name=entry.name,
            uuid=entry.uuid,
            title=entry.title,
            labels=entry.labels,
            id=entry.id,
            state=entry.state,
            pid=entry.pid,
            vrapl=vrapl,
            by="policy" if by_policy(entry, record) else "",
            reason=reason or refusal or (self._no_meters if vrapl == "pending" else None),
            since=self._degraded_since(record) if vrapl == "degraded" else None,
            helper=self._helper(record, healthy=not trouble) if record else None,
            channel=channel,
            channel_reason=channel_reason or None,
            channel_pending=entry.channel is not None and entry.channel.socket is None,
            channel_socket=entry.channel.socket if entry.channel and entry.pid is not None else None,
            unread=entry.pid is not None and entry.uuid not in snapshot.read,
            cpu_percent=round(100 * figures.cpus, 3),
            power_watts=figures.whole.watts,
            energy_joules=figures.whole.joules,
            zones={
                kind: Reading(power_watts=part.watts, energy_joules=part.joules)
                for kind, part in snapshot.by_kind(entry.uuid).items()
            },
            vcpus=tuple(
                _vcpu(number, figures.tids.get(number), figures.vcpus.get(number, Figures()))
                for number in sorted(figures.tids.keys() | figures.vcpus.keys())
            ),
        )

    def _degraded_since(self, record: Record | None) -> str | None:
        """Return since when a domain runs without a working helper; None if unknown."""
        if record is None:
            return None
        since = instances.ended_at(record, self._registry) if record.state == "ready" else record.since
        return _instant(since) if since else None

    def _helper(self, record: Record, *, healthy: bool) -> HelperState:
        return HelperState(
            backend=record.backend,
            pid=record.helper_pid,
            socket=self._registry.socket(record.uuid),
            healthy=healthy,
            note=unknown_qemu(record),
        )


def _zone(name: str, zone: ZoneFigures) -> Zone:
    domains = zone.counted.microjoules - zone.other.microjoules - zone.idle.microjoules
    return Zone(
        name=name,
        power_watts=zone.counted.watts,
        energy_joules=zone.counted.joules,
        domains_joules=Figures(domains).joules,
        other_joules=zone.other.joules,
        idle_joules=zone.idle.joules,
        lost_intervals=zone.lost,
        unread=zone.unread,
    )


def _vcpu(number: int, tid: int | None, figures: Figures) -> Vcpu:
    return Vcpu(id=number, tid=tid, power_watts=figures.watts, energy_joules=figures.joules)


def _instant(seconds: float, precision: str = "seconds") -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision)
