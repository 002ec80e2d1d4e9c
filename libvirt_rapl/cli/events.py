"""Show what was done to domains since the machine started: hook operations and `enable --live`, oldest first.

Where systemd runs, its journal has them too, and keeps them for longer: journalctl VIRT_RAPL_DOMAIN=NAME
"""

import argparse
import json
from datetime import datetime

from libvirt_rapl.cli import aligned, when
from libvirt_rapl.config import load
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.lifecycle import events


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("domains", metavar="DOMAIN", nargs="*", help="name or UUID (default: all domains)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--since",
        metavar="WHEN",
        type=when.instant,
        default=0.0,
        help=when.HELP,
    )


def run(options: argparse.Namespace) -> int:
    """Show the events."""
    try:
        logged = list(events.read(load(options.config).run_directory))
    except PermissionError as error:
        raise VirtRaplError(f"may not read {error.filename}", "run as root") from error
    found = [
        event
        for event in logged
        if event.time >= options.since and (not options.domains or {event.domain, event.uuid} & set(options.domains))
    ]
    if options.json:
        print(json.dumps({"schema": 1, "events": [event._asdict() for event in found]}, indent=2))
    else:
        print("\n".join(table(found)))
    return 0


def table(found: list[events.Event]) -> list[str]:
    """Return the events as lines of a table for people."""
    if not found:
        return ["no events"]
    rows = [("TIME", "DOMAIN", "OPERATION", "MS", "RESULT", "REASON")]
    for event in found:
        when = datetime.fromtimestamp(event.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        rows.append((when, event.domain, event.operation, str(event.milliseconds), event.result, event.reason))
    return aligned(rows, right={3})
