"""A report as a picture, drawn by matplotlib."""

import argparse
import contextlib
import errno
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from libvirt_rapl.energy.calendar import Span
from libvirt_rapl.energy.provenance import local
from libvirt_rapl.energy.report import Report
from libvirt_rapl.errors import VirtRaplError, printable
from libvirt_rapl.files import temporary

TOP = 10
"""How many names are shown; if there are more, the last of them is OTHERS."""
OTHERS = "others"
LONGEST_NAME = 40


def path(text: str) -> Path:
    """Turn the value of --plot into a path. Raises ArgumentTypeError."""
    file = Path(text)
    if file.suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .svg or .png, found {text!r}")
    return file


def draw(report: Report, file: Path) -> None:
    """Draw the energy of each name: a bar, or over time, bars on each other. Raises VirtRaplError."""
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
        names = [key[1 - time] if len(by) > 1 else "domains" for key in report.shown_keys()]
        shown = _shown(names, report)
        labels = list(dict.fromkeys(row.key[time] for row in report.rows))
        bottoms = dict.fromkeys(labels, 0.0)
        for part in dict.fromkeys(shown.values()):
            heights = dict.fromkeys(labels, 0.0)
            for row, name in zip(report.rows, names, strict=True):
                if shown[name] == part:
                    heights[row.key[time]] += row.amount.kwh
            axes.bar(labels, list(heights.values()), bottom=list(bottoms.values()), label=_literal(part))
            bottoms = {label: bottoms[label] + height for label, height in heights.items()}
        axes.tick_params(axis="x", rotation=90)
        axes.set_ylabel("kWh")
        if shown:
            axes.legend()
    else:
        names = [key[0] for key in report.shown_keys()]
        shown = _shown(names, report)
        widths = dict.fromkeys(list(shown.values())[::-1], 0.0)
        for row, name in zip(report.rows, names, strict=True):
            widths[shown[name]] += row.amount.kwh
        axes.barh(range(len(widths)), list(widths.values()), tick_label=[_literal(name) for name in widths])
        axes.set_xlabel("kWh")
    picture = io.BytesIO()
    with warnings.catch_warnings():  # of letters that its font does not have: it draws a box instead
        warnings.filterwarnings("ignore", "Glyph|Matplotlib currently does not support")
        figure.savefig(picture, format=file.suffix[1:])
    _write(file, picture.getvalue())


def _shown(names: Sequence[str], report: Report) -> dict[str, str]:
    """Return as what each row's name is shown, itself or OTHERS, from the one that used most down."""
    sums: dict[str, int] = {}
    for name, row in zip(names, report.rows, strict=True):
        sums[name] = sums.get(name, 0) + row.amount.microjoules
    largest = sorted(sums, key=lambda name: -sums[name])
    most = TOP if len(largest) <= TOP else TOP - 1
    return {name: name if number < most else OTHERS for number, name in enumerate(largest)}


def _literal(name: str) -> str:
    """Return a name as matplotlib shows it: `$` would begin a formula."""
    name = printable(name)
    return (name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…").replace("$", r"\$")


def _write(file: Path, content: bytes) -> None:
    """Write a file, or leave it as it was and raise VirtRaplError."""
    aside = file.with_name(temporary(file.name))
    try:
        with aside.open("xb") as opened:
            opened.write(content)
        aside.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "where there is space" if is_full else "in a directory that you may write"
        raise VirtRaplError(f"cannot write {file}: {error.strerror}", f"give --plot a file {hint}") from error
