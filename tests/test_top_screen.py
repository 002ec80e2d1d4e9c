"""What `virt-rapl top` shows: screens as they are expected in data/top, and what holds of every one of them.

Where a change of a screen is wanted: .venv/bin/python -m pytest tests/test_top_screen.py --renew, and look at the diff.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
from fakes.documents import document, domain, many, shut_off, uuid
from hypothesis import example, given, settings
from hypothesis import strategies as st

from libvirt_rapl.choices import ChannelState, MeterState
from libvirt_rapl.daemon.document import Document, HelperState
from libvirt_rapl.display import width
from libvirt_rapl.top import table
from libvirt_rapl.top.domain_page import METERS
from libvirt_rapl.top.figures import OLD_SECONDS, Figures, Today, Unit
from libvirt_rapl.top.help_page import HELP
from libvirt_rapl.top.screen import KEYS, Screen, frame, screen
from libvirt_rapl.top.signs import ASCII, BLOCKS, Signs, signs_for
from libvirt_rapl.top.state import Column, Entry, Page, State
from libvirt_rapl.top.trends import MOST, SECONDS, Trends

GOLDEN = Path(__file__).parent / "data/top"
PRICED = Today(kwh={uuid(1): 1.5, uuid(2): 0.0412}, price=Decimal("0.31"), currency="EUR")
FREE = Today(kwh={uuid(1): 1.5, uuid(2): 0.0412})
HELPER = HelperState(backend="native", pid=77, socket=f"/run/virt-rapl/{uuid(1)}.sock", healthy=True)
WEB = domain(
    1, "web", 12.25, 54_321.9, vrapl="active", helper=HELPER, title="The shop", labels={"project": "shop", "tier": "1"}
)
DATABASE = domain(
    2,
    "database",
    30.0,
    7_654_321.5,
    vrapl="degraded",
    reason="the helper cannot be started: there is no space on the device that holds its directory",
    since="2026-01-02T01:00:00+00:00",
)
USUAL = document(
    [
        WEB,
        DATABASE,
        domain(3, "cache", 1.5, 100, channel="stalled", channel_reason="the guest does not read it"),
        domain(4, "plain", 0.0, 0.0, unread=True),
        shut_off(5, "next", 12, vrapl="pending"),
    ]
)
HOSTILE = document(
    [
        domain(1, "\x1b[31mred\x1b[2J", 6, 6),
        domain(2, "数据库服务器的名字很长很长", 5, 5),
        domain(3, "\u202eevil\u2066", 4, 4),
        domain(4, "e\u0301clair " + "a\u0301" * 30, 3, 3),
        domain(5, "a\nb\rc\td", 2, 2),
        domain(6, "\udc80 \N{MAN}\u200d\N{PERSONAL COMPUTER} \N{HEBREW LETTER SHIN}", 1, 1),
    ]
)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def rising(shown: Document, minutes: int = 4) -> Trends:
    """Return trends in which each power rose from nothing to what it is."""
    trends, count = Trends(), minutes * 60 // SECONDS
    for number in range(count + 1):
        part = tuple(replace(each, power_watts=each.power_watts * number / count) for each in shown.domains)
        trends.add(replace(shown, domains=part), number * SECONDS)
    return trends


def figures(shown: Document, today: Today = PRICED, **fields: object) -> Figures:
    return replace(Figures(document=shown, today=today, trends=rising(shown)), **fields)  # type: ignore[arg-type]


Make = Callable[[], Screen]
USUALLY = figures(USUAL)
AS_EVER = (80, 24)
SCREENS: dict[str, Make] = {
    "usual": lambda: screen(USUALLY, State(), BLOCKS, AS_EVER),
    "without-a-tariff": lambda: screen(figures(USUAL, FREE), State(selected=uuid(3)), BLOCKS, AS_EVER),
    "ascii": lambda: screen(figures(HOSTILE), State(), ASCII, AS_EVER),
    "hostile-names": lambda: screen(figures(HOSTILE), State(), BLOCKS, AS_EVER),
    "wide": lambda: screen(USUALLY, State(unit="kWh", interval=5, sort="name"), BLOCKS, (150, 16)),
    "joules": lambda: screen(USUALLY, State(unit="J", is_reversed=True), BLOCKS, AS_EVER),
    "sorted-by-what-there-is-no-room-for": lambda: screen(USUALLY, State(sort="total"), BLOCKS, AS_EVER),
    "narrow": lambda: screen(USUALLY, State(), BLOCKS, (40, 12)),
    "many": lambda: screen(figures(many(500, 3)), State(selected=uuid(250), sort="name"), BLOCKS, AS_EVER),
    "simulated-without-virt-rapld": lambda: screen(
        figures(document([WEB], source="simulated"), is_own=True), State(), BLOCKS, AS_EVER
    ),
    "away": lambda: screen(replace(USUALLY, is_away=True, silent_seconds=99), State(), BLOCKS, AS_EVER),
    "old": lambda: screen(replace(USUALLY, silent_seconds=OLD_SECONDS + 1), State(is_paused=True), BLOCKS, AS_EVER),
    "without-libvirt": lambda: screen(
        figures(document(trouble="dram-0: gone; cannot connect", libvirt_trouble="cannot connect")),
        State(),
        BLOCKS,
        AS_EVER,
    ),
    "no-domains": lambda: screen(figures(document()), State(), BLOCKS, AS_EVER),
    "nothing-enabled": lambda: screen(
        figures(
            document([domain(1, "web", 3, 3)]),
            Today(trouble="there is no ledger " + "and no virt-rapld " * 5, currency="EUR"),
        ),
        State(),
        BLOCKS,
        AS_EVER,
    ),
    "no-match": lambda: screen(USUALLY, State(filter="WEBX", entry=Entry(what="filter", text="WEBX")), BLOCKS, AS_EVER),
    "a-domain-with-much-text": lambda: screen(
        figures(
            document([replace(WEB, title="a title " * 20, labels={f"label{number}": "x" * 20 for number in range(5)})])
        ),
        State(page="domain", selected=uuid(1)),
        BLOCKS,
        AS_EVER,
    ),
    "a-domain": lambda: screen(USUALLY, State(page="domain", selected=uuid(1)), BLOCKS, AS_EVER),
    "a-degraded-domain": lambda: screen(USUALLY, State(page="domain", selected=uuid(2), unit="kWh"), BLOCKS, AS_EVER),
    "a-domain-with-a-channel": lambda: screen(USUALLY, State(page="domain", selected=uuid(3)), ASCII, (60, 24)),
    "a-domain-that-was-not-read": lambda: screen(USUALLY, State(page="domain", selected=uuid(4)), BLOCKS, AS_EVER),
    "a-domain-that-went": lambda: screen(USUALLY, State(page="domain", selected=uuid(9)), BLOCKS, (80, 8)),
    "help": lambda: screen(USUALLY, State(page="help"), BLOCKS, AS_EVER),
    "message": lambda: screen(USUALLY, State(message="expected seconds"), BLOCKS, (80, 14)),
}


@pytest.mark.parametrize("name", SCREENS)
def test_the_screen(name: str, pytestconfig: pytest.Config) -> None:
    """Each line with its style before it."""
    text = "".join(f"{line.style:8}|{line.text}|\n" for line in SCREENS[name]().lines)
    golden = GOLDEN / f"{name}.txt"
    if pytestconfig.getoption("renew"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_no_screen_is_expected_that_nobody_makes() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == SCREENS.keys()


def test_every_help_line_is_seen_on_a_common_terminal() -> None:
    made = screen(USUALLY, State(page="help"), BLOCKS, AS_EVER)
    assert made.most_scroll == 0
    assert not any(line.text.endswith("…") for line in made.lines)


def test_a_page_that_was_scrolled_on_a_smaller_terminal_is_seen_to_its_end() -> None:
    made = screen(USUALLY, State(page="help", scroll=99), BLOCKS, (80, 12))
    assert made.lines[-2].text == HELP.splitlines()[-1]
    assert screen(USUALLY, State(page="help", scroll=made.most_scroll), BLOCKS, AS_EVER).lines[1].text[:6] == "arrows"


@pytest.mark.parametrize(
    ("fields", "noted"),
    [
        ({}, True),
        ({"vrapl": "pending"}, False),
        ({"channel": "waiting"}, False),
        ({"channel_pending": True}, False),
        ({"channel_reason": "it has its channel from its next start on"}, False),
    ],
)
def test_whether_any_guest_can_read_its_energy(fields: dict[str, Any], noted: bool) -> None:
    shown = figures(document([domain(1, "web", **fields), domain(2, "other")]))
    assert any("no guest can read" in line.text for line in screen(shown, State(), BLOCKS, AS_EVER).lines) == noted


names = st.text(max_size=30)
documents = st.lists(st.tuples(names, st.floats(0, 1e6), st.booleans()), max_size=30).map(
    lambda parts: document(
        domain(number, name, watts, 3 * watts, title=name, unread=unread)
        for number, (name, watts, unread) in enumerate(parts)
    )
)
states = st.builds(
    State,
    page=st.sampled_from(["domains", "domain", "help"]),
    selected=st.integers(0, 31).map(uuid),
    scroll=st.integers(0, 50),
    sort=st.sampled_from(list(table.LETTERS.values())),
    is_reversed=st.booleans(),
    filter=st.text(max_size=3),
    unit=st.sampled_from(["W", "J", "kWh"]),
    is_paused=st.booleans(),
    entry=st.none() | st.builds(Entry, what=st.sampled_from(["filter", "interval"]), text=names),
    message=names,
)


@settings(deadline=None)
@given(documents, states, st.sampled_from([BLOCKS, ASCII]), st.integers(1, 200), st.integers(1, 60))
@example(HOSTILE, State(), BLOCKS, 80, 24)
def test_a_screen_is_as_large_as_the_terminal_and_safe(
    shown: Document, state: State, signs: Signs, columns: int, height: int
) -> None:
    made = screen(figures(shown), state, signs, (columns, height))
    assert len(made.lines) <= height
    for line in made.lines:
        assert width(line.text) <= columns
        assert line.text.isprintable(), "what somebody has put into a name moves no cursor"
        assert line.text.isascii() or signs is BLOCKS
    seen = [line for line in made.lines if line.style == "selected"]
    if state.page == "domains" and made.uuids and height >= 20:
        assert len(made.lines) == height
        assert len(seen) == 1, "the cursor is on the screen"
        chosen = state.selected if state.selected in made.uuids else made.uuids[0]
        name = next(each.name for each in shown.domains if each.uuid == chosen)
        assert columns < 60 or not name.isascii() or not name.isalnum() or len(name) > 15 or name in seen[0].text


@settings(deadline=None)
@given(documents, states, st.integers(40, 200))
def test_a_frame_has_every_domain(shown: Document, state: State, columns: int) -> None:
    state = replace(state, page="domains", filter="")
    lines = frame(figures(shown), state, BLOCKS, columns)
    (heading,) = (
        line for line in screen(figures(shown), state, BLOCKS, (columns, 99)).lines if line.style == "heading"
    )
    at = lines.index(heading.text.rstrip())
    assert len(lines[at + 1 :]) == max(1, len(shown.domains)), "or why there is none"
    assert all(width(line) <= columns for line in lines)
    assert KEYS not in lines


SORTED = document(
    [
        domain(1, "b", 1.0, 30, vrapl="pending", cpu_percent=3.0),
        domain(2, "A", 3.0, 10, vrapl="active", cpu_percent=None),
        domain(3, "C", 2.0, 20, vrapl="active", cpu_percent=2.0, unread=True),
        shut_off(4, "d", 40),
    ]
)


@pytest.mark.parametrize(
    ("sort", "is_reversed", "expected"),
    [
        ("figure", False, "AbdC"),
        ("figure", True, "CdbA"),
        ("name", False, "AbCd"),
        ("name", True, "dCbA"),
        ("state", False, "AbCd"),
        ("state", True, "dAbC"),
        ("meter", False, "ACdb"),
        ("vcpus", False, "AbCd"),
        ("cpu", False, "bdAC"),
        ("today", False, "AbCd"),
        ("cost", True, "CdbA"),
        ("total", False, "dbCA"),
    ],
)
def test_the_order(sort: Column, is_reversed: bool, expected: str) -> None:
    """What is not known is less than everything; what is equal is in the order of names."""
    today = replace(PRICED, kwh={uuid(2): 1.0, uuid(1): 0.5})
    found = table.chosen(table.rows(SORTED, today, "W"), State(sort=sort, is_reversed=is_reversed))
    assert "".join(row.name for row in found) == expected


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("vcpus", 128, "128"),
        ("cpu", 99.96, "100.0"),
        ("cpu", 12800.0, "12800"),
        ("figure", 9999.99, "9999.99"),
        ("figure", 123456.7, "123457"),
        ("figure", 12345678.9, "12345679"),
        ("today", 12345.6789, "12345.679"),
        ("cost", 0.00004, "0.0000"),
        ("cost", 99.98765, "99.988"),
        ("total", 12345678901.6, "12345678902"),
        ("cost", None, "-"),
    ],
)
def test_a_figure_is_shown_as_exactly_as_there_is_room_for(column: str, value: float | None, shown: str) -> None:
    """It is not cut, which would make it another figure."""
    fields: dict[str, Any] = {column: value}
    row = table.rows(document([WEB]), PRICED, "W")[0]._replace(**fields)
    made = table.layout([row], PRICED, State(), BLOCKS, 200)
    assert table.cell(row, column, "W", made.widths[made.columns.index(column)] - 1) == shown


def test_a_host_without_packages_and_a_state_that_is_new() -> None:
    """As a virt-rapld of another version might show them."""
    shown = document([replace(WEB, vrapl="brand-new")], zones=())  # type: ignore[arg-type]
    pages: tuple[Page, ...] = ("domains", "domain")
    for page in pages:
        lines = screen(figures(shown), State(page=page, selected=uuid(1), unit="kWh"), BLOCKS, AS_EVER).lines
        assert any("brand-new" in line.text for line in lines)


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, "off"),
        ({"channel_pending": True}, "pending"),
        ({"channel": "waiting"}, "waiting"),
        ({"vrapl": "active", "channel": "stalled"}, "active"),
        ({"vrapl": "active", "channel_pending": True}, "active"),
    ],
)
def test_the_state_of_a_meter(fields: dict[str, Any], shown: str) -> None:
    (row,) = table.rows(document([shut_off(1, "web", **fields)]), PRICED, "W")
    assert row.meter == shown


def test_the_order_of_energies() -> None:
    unit: Unit
    for unit in ("J", "kWh"):
        found = table.chosen(table.rows(SORTED, PRICED, unit), State(unit=unit))
        assert "".join(row.name for row in found) == "dbCA"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("", {"web", "database", "cache", "plain", "next"}),
        ("WEB", {"web"}),
        ("the SHOP", {"web"}),
        ("shut", {"next"}),
        ("stalled", {"cache"}),
        ("degr", {"database"}),
        (uuid(4)[:8], {"plain"}),
        ("webdatabase", set()),
    ],
)
def test_a_filter(wanted: str, expected: set[str]) -> None:
    found = table.chosen(table.rows(USUAL, PRICED, "W"), State(filter=wanted))
    assert {row.name for row in found} == expected


@pytest.mark.parametrize("signs", [BLOCKS, ASCII])
def test_a_trend(signs: Signs) -> None:
    low, high = signs.steps[0], signs.steps[-1]
    assert signs.trend([]) == ""
    assert signs.trend([None, 0, 0.0]) == f" {low}{low}"
    assert signs.trend([0, None, 5.0]) == f"{low} {high}"
    assert signs.trend([7 * n for n in range(8)]) == signs.steps
    assert signs.trend([-3.0, 1.0]) == f"{low}{high}"


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e9), min_size=3, max_size=3), st.integers(0, 200))
def test_a_bar_is_as_long_as_it_should_be(shares: list[float], columns: int) -> None:
    bar = BLOCKS.bar(shares, columns)
    assert len(bar) == (columns if sum(shares) else 0)
    for share, part in zip(shares, BLOCKS.parts, strict=True):
        assert abs(bar.count(part) - (columns * share / sum(shares) if sum(shares) else 0)) <= 1
    assert bar == "".join(part * bar.count(part) for part in BLOCKS.parts)


@pytest.mark.parametrize(
    ("encoding", "signs"), [("utf-8", BLOCKS), ("ascii", ASCII), ("iso8859-15", ASCII), ("nonsense", ASCII)]
)
def test_signs_are_those_that_the_encoding_has(encoding: str, signs: Signs) -> None:
    assert signs_for(encoding) is signs


def at(seconds: float, trends: Trends, *domains: tuple[int, float]) -> None:
    trends.add(document(domain(number, str(number), watts) for number, watts in domains), seconds)


def test_trends_are_means() -> None:
    trends = Trends()
    at(5, trends, (1, 10))
    at(6, trends, (1, 20))
    assert trends.of(uuid(1), 9) == [15]
    at(SECONDS, trends, (1, 3), (2, 4))
    assert (trends.of(uuid(1), 9), trends.of(uuid(2), 9)) == ([15, 3], [4])
    at(4 * SECONDS, trends, (1, 1), (2, 1))
    assert trends.of(uuid(1), 9) == [15, 3, None, None, 1], "nothing is known of a time without documents"
    assert trends.of(uuid(1), 2) == [None, 1]
    assert trends.of(uuid(1), 0) == []
    trends.add(document([domain(1, "1", 0, unread=True)]), 4 * SECONDS + 1)
    assert trends.of(uuid(1), 1) == [1], "nor of a power that could not be read"
    assert trends.of(uuid(2), 9) == [], "it has gone"
    at(5 * SECONDS, trends, (2, 7))
    assert trends.of(uuid(2), 9) == [7]


def test_trends_are_of_half_an_hour() -> None:
    trends = Trends()
    for number in range(3 * MOST):
        at(number * SECONDS, trends, (1, number))
    assert trends.of(uuid(1), 10**6) == list(range(2 * MOST - 1, 3 * MOST))
    at(10**9, trends, (1, 5))
    assert trends.of(uuid(1), 10**6) == [None] * MOST + [5]


def test_every_state_of_a_meter_is_explained() -> None:
    assert METERS.keys() == {*get_args(MeterState), *get_args(ChannelState)}
