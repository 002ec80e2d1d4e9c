"""Show all domains as top does for processes: power, CPU time, energy and cost, live. h shows what keys do.

The figures are virt-rapld's, which root and the group virt-rapl may ask; where it does not run, top takes samples of
its own, once a second, and energies are counted from its start on. kWh of today are of the history that virt-rapld
keeps, asked for once a minute.
"""

import argparse
import locale
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

from libvirt_rapl.cli import DEFAULT_URI, count, documents
from libvirt_rapl.cli.history import configured_factors, open_history, round_down, round_up
from libvirt_rapl.config import Config, load
from libvirt_rapl.daemon.document import Document, read
from libvirt_rapl.energy import calendar, report
from libvirt_rapl.energy.report import Factors, Question
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.top import terminal
from libvirt_rapl.top.csv_file import CsvFile
from libvirt_rapl.top.figures import Figures, Today
from libvirt_rapl.top.keys import seconds
from libvirt_rapl.top.pace import Pace
from libvirt_rapl.top.screen import frame
from libvirt_rapl.top.session import Session
from libvirt_rapl.top.signs import signs_for
from libvirt_rapl.top.state import State
from libvirt_rapl.top.trends import Trends

TODAY_SECONDS = 60.0
"""How often the history is asked."""
WIDTH = 120
"""Of a frame that goes to no terminal."""

Record = Callable[[Document, Today], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("-b", "--batch", action="store_true", help="print frames as plain text, one below the other")
    parser.add_argument("-n", metavar="N", type=count, help="end after so many frames (default: never)")
    parser.add_argument(
        "-d", metavar="S", type=_seconds, default=0.0, help="seconds between two frames (default: each sample is one)"
    )
    parser.add_argument(
        "--csv",
        metavar="FILE",
        type=Path,
        help="write a row for each domain and frame there, too, in place of the file",
    )


def _seconds(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(options: argparse.Namespace) -> int:
    """Show frames until the user ends it, or there have been enough."""
    config = load(options.config)
    found = documents.find(options.connect, config, [])
    record: Record = CsvFile(options.csv).add if options.csv else lambda *_: None

    def ask() -> Today:
        return _today(config) if options.connect == DEFAULT_URI else Today()

    trouble = "" if options.batch else terminal.trouble()
    if trouble:
        print(f"virt-rapl: {trouble}: frames are plain text, as with --batch", file=sys.stderr)
    if options.batch or trouble:
        _print_frames(found, ask, record, options.d, options.n)
        return 0
    session = Session(
        read(next(documents.until_gone(found))),
        (read(values) if values else None for values in found.each),
        _again_and_again(ask),
        today=Today(currency=config.tariff.currency if config.tariff else ""),
        is_own=found.origin != "virt-rapld",
        record=record,
    )
    terminal.run(session, State(interval=options.d), signs_for(locale.nl_langinfo(locale.CODESET)), options.n)
    return 0


def _print_frames(
    found: documents.Documents, ask: Callable[[], Today], record: Record, interval: float, frames: int | None
) -> None:
    signs, columns = signs_for(sys.stdout.encoding), shutil.get_terminal_size((WIDTH, 0)).columns
    trends, pace, printed = Trends(), Pace(), 0
    asked, today = float("-inf"), Today()
    for values in documents.until_gone(found):
        document, now = read(values), time.monotonic()
        trends.add(document, now)
        if not pace.is_due(now, interval):
            continue
        if now >= asked + TODAY_SECONDS:
            asked, today = now, ask()
        record(document, today)
        figures = Figures(document=document, is_own=found.origin != "virt-rapld", today=today, trends=trends)
        print("\n".join([*frame(figures, State(interval=interval), signs, columns), ""]), flush=True)
        printed += 1
        if printed == frames:
            return


def _again_and_again(ask: Callable[[], Today]) -> Iterator[Today]:
    while True:
        yield ask()
        time.sleep(TODAY_SECONDS)


def _today(config: Config) -> Today:
    """Ask the history for the energy of today, and the tariff for the present price."""
    now = time.time()
    kwh, price, troubles = None, None, []
    try:
        factors = configured_factors(config)
        price = factors.price(int(now)) if factors.price else None
    except VirtRaplError as error:
        troubles.append(error.message)
    try:
        with open_history(config) as history:
            since = round_down(calendar.first("day", int(now)))
            made = report.make(history, Question(since=since, until=round_up(now), by=("domain",)), Factors())
        kwh = {row.uuid: row.amount.kwh for row in made.rows}
    except VirtRaplError as error:
        troubles.append(error.message)
    if not config.history.on:
        kwh, troubles = None, [*troubles, "history is off in the configuration"]
    return Today(
        kwh=kwh,
        price=None if price is None else price * Decimal(str(config.pue)),
        currency=config.tariff.currency if config.tariff else "",
        trouble="; ".join(troubles),
    )
