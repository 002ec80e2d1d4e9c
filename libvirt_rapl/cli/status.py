"""Show the power and energy of every domain and vCPU.

If virt-rapld runs, it is asked: energies are its totals. Otherwise two samples are taken one second apart, and energies
are counted since the command started. --watch continues: with each sample of virt-rapld, or every second if its
`interval` is longer or it does not run.
"""

import argparse
import json
import sys

from libvirt_rapl.cli import aligned, documents
from libvirt_rapl.config import load
from libvirt_rapl.daemon import explanations
from libvirt_rapl.daemon.document import Document, read
from libvirt_rapl.errors import printable


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
    found = documents.find(options.connect, load(options.config), options.domains)
    if found.origin == "own, as virt-rapld does not answer":
        print("virt-rapl: virt-rapld does not answer; these are samples of the command's own", file=sys.stderr)
    for document in documents.until_gone(found):
        if options.json:
            print(json.dumps(document, indent=None if options.watch else 2), flush=True)
        else:
            # A terminal is redrawn from its top left corner.
            clear = "\033[H\033[J" if options.watch and sys.stdout.isatty() else ""
            since = explanations.local_time(document["host"]["since"])
            since = since if found.origin == "virt-rapld" else "this command started"
            lines = map(printable, [*table(read(document)), f"joules are counted since {since}"])
            print(clear + "\n".join(lines), flush=True)
        if not options.watch:
            break
    return 0


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
    lines += [*aligned(rows, right={4, 5}), ""]
    for explain in (explanations.of_meter, explanations.of_channel, explanations.of_helper):
        lines += [line for domain in domains for line in explain(domain)]
    return [*lines, *explanations.of_host(host)]
