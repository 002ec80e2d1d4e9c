"""Show the power and energy of every domain and vCPU.

Two samples are taken one second apart. With --watch it goes on every second; energies are counted since the command
started.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from libvirt_rapl import domains, domxml, instances
from libvirt_rapl.config import Config, load
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host.clocks import allow_many_descriptors
from libvirt_rapl.host.cpus import model_name, packages
from libvirt_rapl.host.source import open_source
from libvirt_rapl.meter import DomainUsage, Meter, Usage
from libvirt_rapl.registry import Record, Registry
from libvirt_rapl.runstate import RunState, read_run_state

SYS, PROC, DEV = Path("/sys"), Path("/proc"), Path("/dev")
INTERVAL_SECONDS = 1.0
SCHEMA = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("domains", metavar="DOMAIN", nargs="*", help="name or UUID (default: all domains)")
    parser.add_argument("--json", action="store_true", help="print JSON; with --watch one document a line")
    parser.add_argument(
        "--watch", action="store_true", help="go on every second; energies are counted since the command started"
    )


def run(options: argparse.Namespace) -> int:
    """Measure and show; with --watch until interrupted."""
    allow_many_descriptors()
    view = View(options.connect, load(options.config), options.domains)
    view.sample()
    due = time.monotonic()
    while True:
        due += INTERVAL_SECONDS
        time.sleep(max(0.0, due - time.monotonic()))
        view.sample()
        document = view.document()
        if options.json:
            print(json.dumps(document, indent=None if options.watch else 2), flush=True)
        else:
            # A terminal is redrawn from its top left corner.
            clear = "\033[H\033[J" if options.watch and sys.stdout.isatty() else ""
            print(clear + "\n".join(table(document)), flush=True)
        if not options.watch:
            return 0


class View:
    """What the command sees: libvirt's domains, their records, and a meter of its own."""

    def __init__(self, uri: str, config: Config, names: list[str]) -> None:
        """Open everything. Raises VirtRaplError when there is no energy to read, no libvirt, or no such domain."""
        self.source = open_source(config.source, sys=SYS, dev=DEV, packages=packages(SYS))
        self.meter = Meter(self.source, sys=SYS, proc=PROC)
        self.model = model_name(PROC)
        self.registry = Registry(config.run_directory)
        self.connection = domains.connect(uri)
        self.found: list[domains.Domain] = []
        self.states: dict[str, RunState | None] = {}
        self.chosen = {domains.lookup(self.connection, name).uuid for name in names}

    def sample(self) -> None:
        """Measure every domain once, whichever were asked for: what they use is not `other`."""
        self.found = domains.every_domain(self.connection)
        self.states = {domain.uuid: self._run_state(domain) for domain in self.found}
        self.meter.sample((uuid, state.pid) for uuid, state in self.states.items() if state)

    def document(self) -> dict[str, Any]:
        """Return what the last two samples tell, of the domains that were asked for."""
        shown = [domain for domain in self.found if not self.chosen or domain.uuid in self.chosen]
        return {
            "schema": SCHEMA,
            "host": {
                "source": self.source.name,
                "model": self.model,
                "interval_seconds": self.meter.interval_seconds,
                "zones": [{"name": name, **_figures(usage)} for name, usage in self.meter.zones.items()],
                "domains_watts": self.meter.domains_watts,
                "other_watts": self.meter.other.watts,
                "idle_watts": self.meter.idle.watts,
            },
            "domains": [each for domain in shown if (each := self._domain(domain))],
        }

    def _run_state(self, domain: domains.Domain) -> RunState | None:
        try:
            return read_run_state(domain.name, proc=PROC) if domain.active else None
        except PermissionError as error:
            raise VirtRaplError(f"may not read {error.filename}", "run as root") from error

    def _domain(self, domain: domains.Domain) -> dict[str, Any] | None:
        """Describe one domain; None when it has gone since it was listed, as a transient one does at its end."""
        record = self.registry.read(domain.uuid)
        try:
            vrapl = vrapl_state(domain, record)
        except VirtRaplError:
            if any(other.uuid == domain.uuid for other in domains.every_domain(self.connection)):
                raise
            return None
        state = self.states[domain.uuid]
        usage = self.meter.domains.get(domain.uuid, DomainUsage())
        tids = state.vcpu_tids if state else {}
        return {
            "name": domain.name,
            "uuid": domain.uuid,
            "id": domain.id,
            "state": domain.state,
            "pid": state.pid if state else None,
            "vrapl": vrapl,
            "reason": degraded_reason(record) if vrapl == "degraded" else None,
            "helper": self._helper(record),
            **_figures(usage),
            "zones": {"package": _figures(usage)},
            "vcpus": [
                {"id": vcpu, "tid": tids.get(vcpu), **_figures(usage.vcpus.get(vcpu, Usage()))}
                for vcpu in sorted(tids.keys() | usage.vcpus.keys())
            ],
        }

    def _helper(self, record: Record | None) -> dict[str, Any] | None:
        if record is None:
            return None
        return {
            "backend": record.backend,
            "pid": record.helper_pid,
            "socket": str(self.registry.path(record.uuid, "sock")),
            "healthy": instances.alive(record),
        }


def vrapl_state(domain: domains.Domain, record: Record | None) -> str:
    """Tell how far a domain is with its own meter.

    `active`: the guest reads its joules. `degraded`: it should, but runs without a working helper. `pending`: it will
    from its next start on. `off`: it is not enabled.
    """
    if domain.active and domxml.is_marked(domain.live_xml()):
        return "active" if record and record.state == "ready" and instances.alive(record) else "degraded"
    return "pending" if domxml.is_marked(domain.inactive_xml()) else "off"


def degraded_reason(record: Record | None) -> str:
    """Tell in one line why a domain runs without a working helper."""
    if record is None:
        return "the hook did not run or left no record when it started; see libvirt's log and `virt-rapl install`"
    return record.reason or instances.HELPER_ENDED


def _figures(usage: Usage) -> dict[str, float]:
    return {"power_watts": usage.watts, "energy_joules": usage.joules}


def table(document: dict[str, Any]) -> list[str]:
    """Lay the document out for people, in lines."""
    host = document["host"]
    zones = ", ".join(f"{zone['name']} {zone['power_watts']:.2f} W" for zone in host["zones"])
    lines = ["energy is SIMULATED: it is not this machine's own"] if host["source"] == "simulated" else []
    lines += [
        f"{host['model'] or 'unknown processor'} ({host['source']})",
        f"zones: {zones}",
        f"packages: domains {host['domains_watts']:.2f} W, other {host['other_watts']:.2f} W, "
        f"idle {host['idle_watts']:.2f} W",
        "",
    ]
    rows = [("NAME", "STATE", "VRAPL", "WATTS", "JOULES", "WATTS OF VCPUS")]
    for domain in document["domains"]:
        vcpus = " ".join(f"{vcpu['id']}:{vcpu['power_watts']:.2f}" for vcpu in domain["vcpus"])
        watts, joules = f"{domain['power_watts']:.2f}", f"{domain['energy_joules']:.2f}"
        rows.append((domain["name"], domain["state"], domain["vrapl"], watts, joules, vcpus or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, state, vrapl, watts, joules, vcpus in rows:
        left = f"{name:{widths[0]}}  {state:{widths[1]}}  {vrapl:{widths[2]}}"
        lines.append(f"{left}  {watts:>{widths[3]}}  {joules:>{widths[4]}}  {vcpus}")
    degraded = [domain for domain in document["domains"] if domain["reason"]]
    lines += ["", *(f"{domain['name']} runs without its meter: {domain['reason']}" for domain in degraded)]
    return [*lines, "joules are counted since this command started"]
