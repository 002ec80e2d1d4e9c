"""A report as a picture, drawn by matplotlib."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from libvirt_rapl.energy.calendar import Span
from libvirt_rapl.energy.provenance import local
from libvirt_rapl.energy.report import Report
from libvirt_rapl.errors import VirtRaplError, printable
from libvirt_rapl.files import temporary

TOP = 10
"""How many rows, or parts of a bar, are shown; in a bar the others are together."""


def path(text: str) -> Path:
    """Turn the value of --plot into a path. Raises ArgumentTypeError."""
    file = Path(text)
    if file.suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .svg or .png, found {text!r}")
    return file


def draw(report: Report, file: Path) -> None:
    """Draw the energy of each row: a bar, or over time, bars on each other. Raises VirtRaplError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = "apt install python3-matplotlib, or pip install 'virt-rapl[plot]'"
        raise VirtRaplError("--plot needs matplotlib", hint) from error
    by = report.question.by
    times = [number for number, each in enumerate(by) if each in get_args(Span)]
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{local(report.question.since)} to {local(report.question.until)}")
    if times:
        (time,) = times
        whats = [row.key[1 - time] if len(by) > 1 else "domains" for row in report.rows]
        labels = list(dict.fromkeys(row.key[time] for row in report.rows))
        bottoms = dict.fromkeys(labels, 0.0)
        for what in _largest(whats, report):
            heights = dict.fromkeys(labels, 0.0)
            for row, each in zip(report.rows, whats, strict=True):
                if each == what or (what == "others" and each not in _largest(whats, report)):
                    heights[row.key[time]] += row.amount.kwh
            axes.bar(labels, list(heights.values()), bottom=list(bottoms.values()), label=_literal(what))
            bottoms = {label: bottoms[label] + height for label, height in heights.items()}
        axes.tick_params(axis="x", rotation=90)
        axes.set_ylabel("kWh")
        axes.legend()
    else:
        rows = report.rows[:TOP][::-1]
        axes.barh([_literal(row.key[0]) for row in rows], [row.amount.kwh for row in rows])
        axes.set_xlabel("kWh")
    aside = file.with_name(temporary(file.name))
    figure.savefig(aside, format=file.suffix[1:])
    aside.replace(file)


def _largest(whats: Sequence[str], report: Report) -> list[str]:
    """Return what has used most, and `others`."""
    sums: dict[str, int] = {}
    for what, row in zip(whats, report.rows, strict=True):
        sums[what] = sums.get(what, 0) + row.amount.microjoules
    largest = sorted(sums, key=lambda what: -sums[what])
    return largest if len(largest) <= TOP else [*largest[: TOP - 1], "others"]


def _literal(text: str) -> str:
    """Return a name as matplotlib shows it: `$` would begin a formula."""
    return printable(text).replace("$", r"\$")
