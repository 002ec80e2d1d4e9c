"""Check everything that a domain's meter depends on, and say what to do about each problem. Changes nothing.

Exit status: 0 when nothing failed, 1 otherwise. For a user who is not root it lists what it could not check.
"""

import argparse
import json
from collections import Counter

from libvirt_rapl import doctor
from libvirt_rapl.cli import DEFAULT_URI
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.errors import VirtRaplError, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    """Print each check as it is made."""
    if options.connect != DEFAULT_URI:
        raise VirtRaplError(f"doctor looks at this machine and its own libvirt only ({DEFAULT_URI})", "log in there")
    states: Counter[str] = Counter()
    checks = []
    for check in doctor.examine(Machine(options.connect, options.config)):
        states[check.state] += 1
        checks.append(check)
        if not options.json:
            print(printable(f"{check.state:8} {check.name}: {check.message}"), flush=True)
            if check.hint:
                print(printable(f"{'':8} hint: {check.hint}"), flush=True)
    if options.json:
        print(json.dumps(doctor.document(checks), indent=2))
    else:
        print(", ".join(f"{state}: {states[state]}" for state in ("failed", "warning", "ok", "skipped")))
    return 1 if states["failed"] else 0
