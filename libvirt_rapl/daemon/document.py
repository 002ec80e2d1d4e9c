"""What `status` tells: a meter of this host, and the document that shows its figures with what is known of each domain.

One place for the daemon, which counts on, and for the command, which samples by itself where there is no daemon.
"""

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from libvirt_rapl.config import Config
from libvirt_rapl.domains.inventory import Entry
from libvirt_rapl.energy.meter import DomainUsage, Meter, Usage, ZoneUsage
from libvirt_rapl.errors import message_of
from libvirt_rapl.helper import instances
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.host.energy_source import open_source
from libvirt_rapl.host.requirements import check_processor
from libvirt_rapl.host.topology import model_name
from libvirt_rapl.lifecycle.meter_state import unknown_qemu, vrapl_state
from libvirt_rapl.paths import DEV, PROC, SYS

SCHEMA = 1


class View:
    """A meter, where its energy comes from, and the records of the domains' helpers."""

    def __init__(self, config: Config) -> None:
        """Open the zones. Raises VirtRaplError when there is no energy to read."""
        self.source = open_source(config.source, sys=SYS, dev=DEV, proc=PROC)
        self.meter = Meter(self.source, sys=SYS, proc=PROC, model=config.model)
        self.since = time.time()
        """When counting began, in seconds since the epoch."""
        self.trouble = ""
        """What could not be read at the last sample, for its owner to tell."""
        self._model = model_name(PROC)
        self._no_meters = message_of(check_processor) or None
        """Why no domain of this host gets its meter, enabled or not; None where they do."""
        self._registry = Registry(config.run_directory)

    def document(
        self, domains: Iterable[Entry], refusals: Mapping[str, str] | None = None, trouble: str = ""
    ) -> dict[str, Any]:
        """Return what the last two samples tell of the host and of these domains, in the order of their names.

        `refusals`: why domains that the policy wants to enable are not, by UUID. `trouble`: why there may be others.
        """
        troubles = "; ".join(filter(None, (self.trouble, trouble)))
        return {
            "schema": SCHEMA,
            "host": {
                "source": self.source.name,
                "model": self._model,
                "since": _instant(self.since),
                "interval_seconds": self.meter.interval_seconds,
                "zones": [self._zone(name, usage) for name, usage in self.meter.zones.items()],
                "domains_watts": self.meter.domains_watts,
                "other_watts": self.meter.other.watts,
                "idle_watts": self.meter.idle.watts,
                **({"trouble": troubles} if troubles else {}),
            },
            "domains": [
                self._domain(domain, (refusals or {}).get(domain.uuid))
                for domain in sorted(domains, key=lambda domain: domain.name)
            ],
        }

    def _zone(self, name: str, usage: ZoneUsage) -> dict[str, Any]:
        """Tell of a zone; what its domains, other and idle have adds up to what it counted."""
        domains = usage.microjoules - usage.other.microjoules - usage.idle.microjoules
        lost = self.meter.lost.get(name, 0)
        return {
            "name": name,
            **_figures(usage),
            "domains_joules": domains / 1_000_000,
            "other_joules": usage.other.joules,
            "idle_joules": usage.idle.joules,
            **({"lost_intervals": lost} if lost else {}),  # only a zone whose count was broken says so
        }

    def _domain(self, domain: Entry, refusal: str | None) -> dict[str, Any]:
        record = self._registry.read(domain.uuid)
        vrapl, reason = vrapl_state(domain, record, self._registry)
        usage = self.meter.domains.get(domain.uuid, DomainUsage())
        tids = self.meter.vcpu_tids(domain.uuid)
        return {
            "name": domain.name,
            "uuid": domain.uuid,
            "id": domain.id,
            "state": domain.state,
            "pid": domain.pid,
            "vrapl": vrapl,
            "reason": reason or refusal or (self._no_meters if vrapl == "pending" else None),
            "since": self._degraded_since(record) if vrapl == "degraded" else None,
            "helper": self._helper(record),
            **_figures(usage),
            "zones": {kind: _figures(part) for kind, part in self.meter.zones_of(domain.uuid).items()},
            "vcpus": [
                {"id": vcpu, "tid": tids.get(vcpu), **_figures(usage.vcpus.get(vcpu, Usage()))}
                for vcpu in sorted(tids.keys() | usage.vcpus.keys())
            ],
        }

    def _degraded_since(self, record: Record | None) -> str | None:
        """Tell since when a domain runs without a working helper; None when nobody knows."""
        if record is None:
            return None
        since = instances.ended_at(record, self._registry) if record.state == "ready" else record.since
        return _instant(since) if since else None

    def _helper(self, record: Record | None) -> dict[str, Any] | None:
        if record is None:
            return None
        return {
            "backend": record.backend,
            "pid": record.helper_pid,
            "socket": self._registry.socket(record.uuid),
            "healthy": not instances.trouble(record, self._registry),
            "note": unknown_qemu(record),
        }


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _figures(usage: Usage) -> dict[str, float]:
    return {"power_watts": usage.watts, "energy_joules": usage.joules}
