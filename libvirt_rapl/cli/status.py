"""Show the power and energy of every domain and vCPU.

If virt-rapld runs, it is asked: energies are its totals. Otherwise two samples are taken one second apart, and energies
are counted since the command started. --watch continues: with each sample of virt-rapld, or every second if its
`interval` is longer or it does not run.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from libvirt_rapl import paths
from libvirt_rapl.cli import DEFAULT_URI, aligned
from libvirt_rapl.config import Config, load
from libvirt_rapl.daemon import status_socket, stream_socket
from libvirt_rapl.daemon.document import Document, DomainReading, read, render
from libvirt_rapl.daemon.host_meter import HostMeter
from libvirt_rapl.domains import inventory
from libvirt_rapl.domains.connection import connect
from libvirt_rapl.domains.domain import Domain, every_domain, lookup, no_such_domain
from libvirt_rapl.energy import snapshot
from libvirt_rapl.energy.meter import Meter, Running
from libvirt_rapl.errors import VirtRaplError, printable
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.process_clock import allow_many_descriptors

INTERVAL_SECONDS = 1.0
RESTART_SECONDS = 30.0
"""How long --watch waits for a daemon that has gone: it may be restarting."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("domains", metavar="DOMAIN", nargs="*", help="name or UUID (default: all domains)")
    parser.add_argument("--json", action="store_true", help="print JSON; with --watch one document a line")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="continue with each sample; without virt-rapld energies are counted since the command started",
    )


def run(options: argparse.Namespace) -> int:
    """Show the document; with --watch each new one, until interrupted."""
    config = load(options.config)
    socket = config.run_directory / paths.STATUS_SOCKET
    with contextlib.suppress(FileNotFoundError, PermissionError):  # or a user who made it could answer for virt-rapld
        Registry(config.run_directory).check_directory()
    # virt-rapld meters the machine's own libvirt, and no other.
    first = status_socket.ask(socket) if options.connect == DEFAULT_URI else None
    if first is None:
        if options.connect == DEFAULT_URI and status_socket.listens(socket):
            print("virt-rapl: virt-rapld does not answer; these are samples of the command's own", file=sys.stderr)
        documents, since = _sampled(options.connect, config, options.domains), "this command started"
    else:
        documents, since = _from_daemon(config, first, options.domains), _local_time(first["host"]["since"])
    for document in documents:
        if options.json:
            print(json.dumps(document, indent=None if options.watch else 2), flush=True)
        else:
            # A terminal is redrawn from its top left corner.
            clear = "\033[H\033[J" if options.watch and sys.stdout.isatty() else ""
            lines = map(printable, [*table(read(document)), f"joules are counted since {since}"])
            print(clear + "\n".join(lines), flush=True)
        if not options.watch:
            break
    return 0


def _from_daemon(config: Config, first: dict[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the daemon's documents with the named domains, as it makes them. Raises VirtRaplError if it has gone."""
    chosen = {_uuid(first, name) for name in names}
    document: dict[str, Any] | None = first
    heard = time.monotonic()
    while True:
        if document:
            heard = time.monotonic()
            yield _of(document, chosen)
        elif time.monotonic() > heard + RESTART_SECONDS:
            raise VirtRaplError("virt-rapld has gone", "systemctl start virt-rapld, or run this again without it")
        for streamed in stream_socket.follow(config.run_directory / paths.STREAM_SOCKET):
            heard = time.monotonic()
            yield _of(streamed, chosen)
        time.sleep(INTERVAL_SECONDS)
        document = status_socket.ask(config.run_directory / paths.STATUS_SOCKET)  # an older daemon has no stream


def _of(document: dict[str, Any], chosen: set[str]) -> dict[str, Any]:
    if not chosen:
        return document
    shown = [domain for domain in document["domains"] if domain["uuid"] in chosen]
    return {name: value for name, value in document.items() if name != "ended"} | {"domains": shown}


def _uuid(document: dict[str, Any], name_or_uuid: str) -> str:
    for key in ("name", "uuid"):
        for domain in document["domains"]:
            if domain[key] == name_or_uuid:
                return str(domain["uuid"])
    raise no_such_domain(name_or_uuid)


def _sampled(uri: str, config: Config, names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield a document with the named domains once a second, from samples of our own."""
    allow_many_descriptors()
    host = HostMeter(config)
    connection = connect(uri)
    chosen = {lookup(connection, name).uuid for name in names}
    _sample(host.meter, connection)
    due = time.monotonic()
    while True:
        due += INTERVAL_SECONDS
        time.sleep(max(0.0, due - time.monotonic()))
        found = _sample(host.meter, connection)
        wanted = (domain for domain in found if not chosen or domain.uuid in chosen)
        entries = inventory.describe_all(wanted, config.labels)
        yield json.loads(render(host.document(snapshot.take(host.meter), entries)))


def _sample(meter: Meter, connection: Any) -> list[Domain]:  # noqa: ANN401
    """Measure every domain once, named or not: none of their energy is `other`."""
    found = every_domain(connection)
    states = {domain.uuid: inventory.run_state(domain) for domain in found}
    meter.sample(Running(uuid, state.pid, state.vcpu_tids) for uuid, state in states.items() if state)
    return found


def _local_time(instant: str) -> str:
    return datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _why(domain: DomainReading) -> str:
    if domain.vrapl == "degraded":
        since = f" since {_local_time(domain.since)}" if domain.since else ""
        return f"{domain.name} runs without its meter{since}: {domain.reason}"
    who = f"{domain.name} gets no meter at its next start, though the configuration's `domains` choose it"
    return f"{who}: {domain.reason}"


def table(document: Document) -> list[str]:
    """Return the document as lines for people."""
    host, domains = document.host, document.domains
    zones = ", ".join(f"{zone.name} {zone.power_watts:.2f} W" for zone in host.zones)
    lines = ["energy is SIMULATED: it is not this machine's own"] if host.source == "simulated" else []
    lines += [
        f"{host.model or 'unknown processor'} ({host.source})",
        f"zones: {zones}",
        f"packages: domains {host.domains_watts:.2f} W, other {host.other_watts:.2f} W, idle {host.idle_watts:.2f} W",
        "",
    ]
    rows = [("NAME", "STATE", "VRAPL", "CHANNEL", "WATTS", "JOULES", "WATTS OF VCPUS")]
    for domain in domains:
        vcpus = " ".join(f"{vcpu.id}:{vcpu.power_watts:.2f}" for vcpu in domain.vcpus)
        watts, joules = f"{domain.power_watts:.2f}", f"{domain.energy_joules:.2f}"
        rows.append((domain.name, domain.state, domain.vrapl, domain.channel, watts, joules, vcpus or "-"))
    lines += [*aligned(rows, right={4, 5}), "", *(_why(domain) for domain in domains if domain.reason)]
    lines += [f"{each.name}: channel {each.channel}: {each.channel_reason}" for each in domains if each.channel_reason]
    lines += [f"{domain.name}: {domain.helper.note}" for domain in domains if domain.helper and domain.helper.note]
    if host.trouble:
        lines.append(f"not everything could be read: {host.trouble}")
    lines += [
        f"{zone.name}: lost the count {zone.lost_intervals} times (counter not readable, or read so late that "
        "it may have wrapped more than once); that energy is missing"
        for zone in host.zones
        if zone.lost_intervals
    ]
    return lines
