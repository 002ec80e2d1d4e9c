"""The table of domains: its rows, in which order they stand, which of them a filter leaves, and its columns."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from libvirt_rapl.daemon.document import Document, DomainReading
from libvirt_rapl.display import width
from libvirt_rapl.top.figures import DIGITS, Today, Unit, amount, meter
from libvirt_rapl.top.signs import Signs
from libvirt_rapl.top.state import Column, State
from libvirt_rapl.top.trends import SECONDS, Trends

WORDS = ("name", "state", "meter")
"""Columns of words, which are sorted from a to z; the others begin with the largest figure."""
LETTERS: dict[str, Column] = {
    "n": "name",
    "s": "state",
    "m": "meter",
    "v": "vcpus",
    "p": "cpu",
    "w": "figure",
    "t": "today",
    "c": "cost",
    "e": "total",
}
"""Keys that sort by a column."""

DIGITS_OF = {"vcpus": 0, "cpu": 1, "today": 4, "cost": 4, "total": 0}
"""Digits after the point, at most."""
LONGEST_NAME, LONGEST_TREND = 48, 40
"""Wider columns help nobody."""
FIRST_TO_GO = ("total", "trend", "cost", "today", "vcpus", "meter", "state", "cpu")
"""Columns that a narrow terminal lacks, unless rows are sorted by them."""


class Row(NamedTuple):
    """A domain in the table, by column; None is not known, or not there."""

    domain: DomainReading
    name: str
    state: str
    meter: str
    vcpus: int | None
    cpu: float | None
    figure: float | None
    today: float | None
    cost: float | None
    total: float


def rows(document: Document, today: Today, unit: Unit) -> list[Row]:
    """Return a row for each domain; `figure` is in the unit, `total` in joules."""
    return [
        Row(
            domain,
            domain.name,
            domain.state,
            meter(domain),
            len(domain.vcpus) if domain.pid is not None else None,
            None if domain.unread else domain.cpu_percent,
            None if domain.unread and unit == "W" else amount(domain.power_watts, domain.energy_joules, unit),
            today.kwh_of(domain.uuid),
            None if domain.unread else today.cost_of(domain.power_watts),
            domain.energy_joules,
        )
        for domain in document.domains
    ]


def chosen(found: Iterable[Row], state: State) -> list[Row]:
    """Return the rows that the filter leaves, in order; rows that are equal there stay in the order of names.

    The filter is a part of a name, title or UUID, or of the state of domain or meter, in large or small letters.
    """
    wanted = state.filter.casefold()
    left = [row for row in found if not wanted or wanted in _searched(row)]
    left.sort(key=lambda row: (row.name.casefold(), row.name, row.domain.uuid))
    if state.sort in WORDS:
        left.sort(key=lambda row: str(getattr(row, state.sort)).casefold(), reverse=state.is_reversed)
    else:
        left.sort(key=lambda row: _figure(row, state.sort), reverse=not state.is_reversed)
    return left


def _figure(row: Row, column: Column) -> float:
    value: float | None = getattr(row, column)
    return -math.inf if value is None else value


def _searched(row: Row) -> str:
    return f"{row.name}\n{row.domain.title}\n{row.domain.uuid}\n{row.state}\n{row.meter}".casefold()


class Layout(NamedTuple):
    """The columns that there is room for, from left to right."""

    columns: tuple[str, ...]
    widths: tuple[int, ...]
    headings: tuple[str, ...]

    @property
    def sortable(self) -> list[Column]:
        """The columns that rows can be sorted by."""
        return [column for column in LETTERS.values() if column in self.columns]


def layout(found: Sequence[Row], today: Today, state: State, signs: Signs, columns: int) -> Layout:
    """Return which columns there is room for, and how wide each is, with the space before the next one.

    The column that rows are sorted by stays, or their order would puzzle.
    """
    headings = {
        "name": "DOMAIN",
        "state": "STATE",
        "meter": "METER",
        "vcpus": "vCPU",
        "cpu": "CPU %",
        "figure": state.unit,
        "trend": "",
        "today": "kWh TODAY",
        "cost": f"{today.currency}/h",
        "total": "TOTAL J",
    }
    figure = {"W": 8, "J": 12, "kWh": 11}[state.unit]
    widths = {"name": 17, "state": 9, "meter": 10, "vcpus": 5, "cpu": 7, "figure": figure, "trend": 7}
    widths |= {"today": 10, "cost": 7, "total": 12}
    absent = {"cost"} if not today.currency else set()
    absent |= {"total"} if state.unit != "W" else set()
    for column in FIRST_TO_GO:
        if sum(size for name, size in widths.items() if name not in absent) <= columns:
            break
        absent |= {column} - {state.sort}
    widths = {name: size for name, size in widths.items() if name not in absent}
    spare = max(0, columns - sum(widths.values()))
    longest = max((width(signs.text(row.name)) for row in found), default=0)
    widths["name"] += (wider := min(spare, max(0, min(LONGEST_NAME, longest) + 1 - widths["name"])))
    if "trend" in widths:
        widths["trend"] += min(spare - wider, LONGEST_TREND + 1 - widths["trend"])
        headings["trend"] = f"{(widths['trend'] - 1) * SECONDS / 60:.0f} MIN"
    return Layout(tuple(widths), tuple(widths.values()), tuple(headings[name] for name in widths))


def heading(table: Layout, state: State, signs: Signs) -> str:
    """Return the line of headings, with a mark at the column that rows are sorted by."""
    mark = signs.ascending if (state.sort in WORDS) != state.is_reversed else signs.descending
    cells = []
    for column, columns, title in zip(table.columns, table.widths, table.headings, strict=True):
        if column in WORDS:
            cells.append(signs.fit(title + mark * (column == state.sort), columns))
        else:
            cells.append(signs.fit(mark * (column == state.sort) + title, columns, right=True))
    return "".join(cells)


def line(row: Row, table: Layout, state: State, trends: Trends, signs: Signs) -> str:
    """Return a row as a line."""
    cells = []
    for column, columns in zip(table.columns, table.widths, strict=True):
        if column == "trend":
            trend = signs.trend(trends.of(row.domain.uuid, columns - 1))
            cells.append(signs.fit(trend, columns, right=True))
        elif column in WORDS:
            text = signs.text(getattr(row, column))
            cells.append(signs.fit(text, columns - 1) + " ")
        else:
            cells.append(signs.fit(cell(row, column, state.unit, columns - 1), columns, right=True))
    return "".join(cells)


def cell(row: Row, column: str, unit: Unit, columns: int) -> str:
    """Return a figure as it is shown: `-` where it is not known, and with fewer digits where there is no room."""
    value = getattr(row, column)
    if value is None:
        return "-"
    most = DIGITS[unit] if column == "figure" else DIGITS_OF[column]
    texts = [f"{value:.{digits}f}" for digits in range(most, -1, -1)]
    return next((text for text in texts if len(text) <= columns), texts[-1])
