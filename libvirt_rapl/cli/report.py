"""Show what domains used in a time: kWh, cost, CO2 and share of the host, from the history that virt-rapld keeps.

The energy is that of the packages; what domains, other and idle have is together what the host used. Times are rounded
to quarters of an hour. Prices, CO2 and PUE are those of the configuration, and each report ends with where its figures
come from and what is missing in them.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import cast, get_args

from libvirt_rapl.cli import report_formats, report_picture, when
from libvirt_rapl.cli.history import configured_factors, open_history, round_down, round_up
from libvirt_rapl.config import Config, load
from libvirt_rapl.energy import report
from libvirt_rapl.energy.calendar import Span
from libvirt_rapl.energy.extract import Known, Name
from libvirt_rapl.energy.provenance import local, provenance
from libvirt_rapl.energy.report import By, Question, with_uuid
from libvirt_rapl.errors import VirtRaplError, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "--since", metavar="WHEN", type=when.instant, default="this month", help=f"{when.HELP} (default: this month)"
    )
    parser.add_argument("--until", metavar="WHEN", type=when.instant, default="now", help="the same (default: now)")
    parser.add_argument(
        "--by",
        metavar="WHAT",
        type=rows,
        default="domain",
        help=f"one of {', '.join(get_args(By))}; or a time and another of them: day,domain (default: domain)",
    )
    parser.add_argument(
        "--domain", metavar="DOMAIN", action="append", default=[], help="name or UUID; may be repeated (default: all)"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--format", choices=report_formats.FORMATS, default="table", help="default: table")
    output.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=report_picture.path,
        help="draw it, too: FILE.svg or FILE.png (needs matplotlib)",
    )


def rows(text: str) -> tuple[By, ...]:
    """Turn the value of --by into one or two words. Raises ArgumentTypeError."""
    words = text.split(",")
    wrong = [word for word in words if word not in get_args(By)]
    if wrong:
        raise argparse.ArgumentTypeError(f"expected {', '.join(get_args(By))}, found {wrong[0]!r}")
    if len(words) > 2 or (len(words) == 2 and ("total" in words or sum(word in get_args(Span) for word in words) != 1)):
        raise argparse.ArgumentTypeError(f"expected one, or a time and domain, project or zone, found {text!r}")
    return cast("tuple[By, ...]", tuple(words))


def run(options: argparse.Namespace) -> int:
    """Print the report, and draw it."""
    config = load(options.config)
    now = time.time()
    since, until = round_down(options.since), round_up(min(options.until, now))
    if options.since > now:
        raise VirtRaplError(f"{local(options.since)} is in the future", "give an earlier --since")
    if options.since == options.until:
        message = f"the report would end when it begins, at {local(options.since)}"
        raise VirtRaplError(message, "for all of yesterday: --since yesterday --until today")
    if options.since > options.until:
        raise VirtRaplError(f"the report would end at {local(options.until)}, before it begins", "correct --until")
    known_factors = configured_factors(config)
    with open_history(config) as history:
        uuids = _uuids(history.known(since, until), options.domain) if options.domain else frozenset()
        question = Question(since=since, until=until, by=options.by, uuids=uuids)
        made = report.make(history, question, known_factors)
    if not made.host.microjoules:
        message = f"there is no history from {local(since)} to {local(until)}"
        raise VirtRaplError(message, _why_there_is_none(made.known, config))
    lines = provenance(made, config)
    if options.plot:
        report_picture.draw(made, options.plot)
    sys.stdout.write(report_formats.FORMATS[options.format](made, lines))
    return 0


def _why_there_is_none(known: Known, config: Config) -> str:
    if known.begin is not None:
        return f"it begins at {local(known.begin)}"
    if not config.history.on:
        return "history is off in the configuration"
    return "virt-rapld records every ten seconds what was used: systemctl status virt-rapld"


def _uuids(known: Known, domains: list[str]) -> frozenset[str]:
    """Return the domains that were called so at any time; also as a report shows their names."""
    found: set[str] = set()
    for domain in domains:
        uuids = {uuid for uuid, names in known.names.items() if domain == uuid or domain in _spellings(uuid, names)}
        if not uuids:
            raise VirtRaplError(f"no domain {domain!r} in the history", "virt-rapl report shows those that there are")
        found |= uuids
    return frozenset(found)


def _spellings(uuid: str, names: Sequence[Name]) -> set[str]:
    shown = {printable(each.name) for each in names}
    return {each.name for each in names} | shown | {with_uuid(name, uuid) for name in shown}
