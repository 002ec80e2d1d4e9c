"""The screen: figures, state and size in, lines out."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from libvirt_rapl.daemon import explanations
from libvirt_rapl.daemon.document import Document, Zone
from libvirt_rapl.top import table
from libvirt_rapl.top.domain_page import LEAST_COLUMNS, domain_page
from libvirt_rapl.top.figures import Figures, Unit, alarms, amount, notes, written
from libvirt_rapl.top.help_page import HELP
from libvirt_rapl.top.signs import Signs
from libvirt_rapl.top.state import Column, State
from libvirt_rapl.top.table import Row

Style = Literal["plain", "title", "alarm", "note", "heading", "selected", "warning", "faint"]
KEYS = "h help  q quit  Enter open  / filter  < > sort  R reverse  u unit  space pause"
BACK = "q back  arrows scroll"
MOST_LINES = 3
"""Of an alarm or a note."""


class Line(NamedTuple):
    """One line of the screen."""

    text: str
    style: Style = "plain"


class Screen(NamedTuple):
    """What is seen, and what keys refer to."""

    lines: list[Line]
    """At most as many as there is room for, none wider than that."""
    uuids: tuple[str, ...] = ()
    """The domains in the table, in order, seen or not."""
    page: int = 1
    """How many lines are scrolled by a page."""
    most_scroll: int = 0
    """How far the page can be scrolled."""
    sortable: tuple[Column, ...] = ()
    """The columns that rows can be sorted by, from left to right."""


def screen(figures: Figures, state: State, signs: Signs, size: tuple[int, int]) -> Screen:
    """Return what is seen on a terminal of this size, in columns and lines."""
    columns, height = size
    if state.page == "domains":
        return _domains(figures, state, signs, columns, height)
    if state.page == "help":
        body = [Line(line) for line in HELP.splitlines()]
    else:
        body = [Line(line) for line in domain_page(figures, state, signs, columns)]
    head = [_title(figures, state, signs), *_alarms(figures, state, signs, columns)]
    room = max(0, height - len(head) - 1)
    most = max(0, len(body) - room)
    begin = min(state.scroll, most)
    body = body[begin : begin + room]
    lines = [*head, *body, *[Line("")] * (room - len(body)), _last(state, BACK, signs)]
    return Screen(_fitted(lines, signs, columns, height), page=max(1, room), most_scroll=most)


def frame(figures: Figures, state: State, signs: Signs, columns: int) -> list[str]:
    """Return the table with all its rows as lines of this width, for who reads them on paper or in a file."""
    shown = _table(figures, state, signs, columns)
    lines = [*_head(figures, state, signs, columns), shown.heading, *map(shown.line, shown.rows), *shown.empty]
    return [signs.cut(line.text, columns).rstrip() for line in lines]


def _domains(figures: Figures, state: State, signs: Signs, columns: int, height: int) -> Screen:
    head, shown = _head(figures, state, signs, columns), _table(figures, state, signs, columns)
    uuids = tuple(row.domain.uuid for row in shown.rows)
    room = max(0, height - len(head) - 2)
    at = uuids.index(state.selected) if state.selected in uuids else 0
    begin = max(0, min(at - room // 2, len(uuids) - room))
    rows = [shown.line(row) for row in shown.rows[begin : begin + room]] or shown.empty
    if begin <= at < begin + room and uuids:
        rows[at - begin] = Line(signs.fit(rows[at - begin].text, columns), "selected")
    lines = [*head, shown.heading, *rows, *[Line("")] * (room - len(rows)), _last(state, KEYS, signs)]
    return Screen(_fitted(lines, signs, columns, height), uuids, max(1, room), 0, shown.sortable)


class _Table(NamedTuple):
    """The table of domains, whose lines are made when they are wanted."""

    heading: Line
    rows: Sequence[Row]
    """Those that the filter leaves, in order."""
    line: Callable[[Row], Line]
    empty: list[Line]
    """Why there is no row; empty if there are any."""
    sortable: tuple[Column, ...]


def _table(figures: Figures, state: State, signs: Signs, columns: int) -> _Table:
    every = table.rows(figures.document, figures.today, state.unit)
    found = table.chosen(every, state)
    layout = table.layout(found, figures.today, state, signs, columns)

    def line(row: Row) -> Line:
        is_wrong = row.domain.reason or row.domain.channel == "stalled"
        style: Style = "warning" if is_wrong else "faint" if row.domain.pid is None else "plain"
        return Line(table.line(row, layout, state, figures.trends, signs), style)

    empty = []
    if not every:
        without = figures.document.host.libvirt_trouble
        empty = [Line("no domain runs" if without else "libvirt knows no domain; virt-install makes one", "note")]
    elif not found:
        empty = [Line(signs.text(f"no domain matches {state.filter!r}; Esc shows all"), "note")]
    heading = Line(signs.fit(table.heading(layout, state, signs), columns), "heading")
    return _Table(heading, found, line, empty, tuple(layout.sortable))


def _head(figures: Figures, state: State, signs: Signs, columns: int) -> list[Line]:
    document, unit = figures.document, state.unit
    parts = _parts(document, unit)
    whole = f"packages {written(sum(parts), unit)} {unit}  "
    legend = (
        f"{sign} {name} {written(value, unit)} {unit}"
        for sign, name, value in zip(signs.parts, ("domains", "other", "idle"), parts, strict=True)
    )
    packages_first = sorted(document.host.zones, key=lambda zone: not zone.name.startswith("package-"))
    zones = (_zone(zone, unit) for zone in packages_first)
    return [
        _title(figures, state, signs),
        Line(whole + signs.bar(parts, max(0, columns - len(whole)))),
        Line("  " + "   ".join(legend)),
        Line(f"{document.host.source}: {', '.join(zones)}"),
        *_alarms(figures, state, signs, columns),
        *_wrapped(notes(figures), "note", signs, columns),
    ]


def _title(figures: Figures, state: State, signs: Signs) -> Line:
    domains = figures.document.domains
    running = sum(domain.pid is not None for domain in domains)
    words = [f"virt-rapl top  {figures.clock}", f"{len(domains)} domain{'s' * (len(domains) != 1)}, {running} running"]
    if state.unit != "W":
        words.append(f"since {explanations.local_time(figures.document.host.since)}")
    if state.filter:
        words.append(f"only {state.filter!r}")
    if state.interval:
        words.append(f"every {state.interval:g} s")
    return Line(signs.text("  ".join(words)), "title")


def _alarms(figures: Figures, state: State, signs: Signs, columns: int) -> Iterator[Line]:
    paused = [f"PAUSED: figures are those of {figures.clock}; space goes on"] if state.is_paused else []
    return _wrapped([*paused, *alarms(figures)], "alarm", signs, columns)


def _wrapped(texts: Iterable[str], style: Style, signs: Signs, columns: int) -> Iterator[Line]:
    for text in texts:
        lines = textwrap.wrap(signs.text(text), max(columns, LEAST_COLUMNS), break_on_hyphens=False)
        yield from (Line(line, style) for line in lines[:MOST_LINES])


def _parts(document: Document, unit: Unit) -> tuple[float, float, float]:
    """Return what domains, other and idle have of the packages."""
    host = document.host
    if unit == "W":
        return host.domains_watts, host.other_watts, host.idle_watts
    packages = [zone for zone in host.zones if zone.name.startswith("package-")]
    return (
        amount(0, sum(zone.domains_joules for zone in packages), unit),
        amount(0, sum(zone.other_joules for zone in packages), unit),
        amount(0, sum(zone.idle_joules for zone in packages), unit),
    )


def _zone(zone: Zone, unit: Unit) -> str:
    value = written(amount(zone.power_watts, zone.energy_joules, unit), unit)
    figure = "unread" if zone.unread and unit == "W" else f"{value} {unit}"
    return f"{zone.name} {figure}" + f" (lost {zone.lost_intervals} times)" * bool(zone.lost_intervals)


def _last(state: State, keys: str, signs: Signs) -> Line:
    if state.entry:
        prompt = {"filter": "/", "interval": "seconds between two frames: "}[state.entry.what]
        return Line(signs.text(f"{prompt}{state.entry.text}_"), "title")
    return Line(signs.text(state.message), "alarm") if state.message else Line(keys, "faint")


def _fitted(lines: list[Line], signs: Signs, columns: int, height: int) -> list[Line]:
    return [Line(signs.cut(line.text, columns), line.style) for line in lines[:height]]
