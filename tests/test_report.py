"""`virt-rapl report`: what it adds up, by what, for which time, and how it is shown."""

import contextlib
import csv
import errno
import json
import re
import sqlite3
import sys
import time
from argparse import ArgumentTypeError
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from libvirt_rapl.choices import KeepHistory
from libvirt_rapl.cli import main, report_formats, report_picture, when
from libvirt_rapl.cli.report import rows as by_words
from libvirt_rapl.config import Config
from libvirt_rapl.energy import calendar, factors, report
from libvirt_rapl.energy.extract import Gap, Known, Lost, Metering, Name, Slot, open_ledger
from libvirt_rapl.energy.history import DAY, HOUR, QUARTER, Identity, Moment
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.provenance import provenance
from libvirt_rapl.energy.report import PER_KWH, By, Factors, Question
from libvirt_rapl.energy.snapshot import HOST, IDLE, OTHER, WHOLE, Kept, Part
from libvirt_rapl.tariff import parse_tariff

A, B = "aaaaaaaa-0000-0000-0000-000000000000", "bbbbbbbb-0000-0000-0000-000000000000"
NOON = 1_793_620_800
"""2026-11-02T12:00:00 UTC, a Monday."""
KWH = PER_KWH


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(params=["Europe/Berlin", "Asia/Kathmandu", "America/St_Johns"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ZoneInfo]:
    """The machine's time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield ZoneInfo(request.param)
    monkeypatch.undo()
    time.tzset()


class Buckets:
    """A history of buckets that a test writes down: (start, owner, zone): microjoules, without the host's."""

    def __init__(self, energies: dict[tuple[int, str, str], int], **known: Any) -> None:  # noqa: ANN401  of Known
        self.energies = energies
        values: dict[str, Any] = {
            "begin": min((start for start, _, _ in energies), default=None),
            "simulated": False,
            "widths": [QUARTER],
            "names": {A: [Name(0, "web", "", {"project": "x"})], B: [Name(0, "db", "", {})]},
            "gaps": [],
            "lost": [],
            "metering": [Metering(0, "capacity", "powercap")],
        }
        self.what_is_known = Known(**values | known)

    def known(self, since: int, until: int) -> Known:
        return self.what_is_known

    def slots(self, edges: Sequence[int], width: int, *, packages_only: bool) -> Iterator[Slot]:
        assert width == QUARTER
        for since, until in pairwise(edges):
            energy: defaultdict[tuple[str, str], int] = defaultdict(int)
            for (start, owner, zone), microjoules in self.energies.items():
                if since <= start < until and (zone.startswith("package-") or not packages_only):
                    energy[owner, zone] += microjoules
                    energy[HOST, zone] += microjoules
            yield Slot(since, until, dict(energy))


def question(*by: By, since: int = NOON, until: int = NOON + DAY, uuids: Sequence[str] = ()) -> Question:
    return Question(since=since, until=until, by=by, uuids=frozenset(uuids))


def amounts(made: report.Report) -> dict[tuple[str, ...], int]:
    return {row.key: row.amount.microjoules for row in made.rows}


TWO = Buckets(
    {
        (NOON, A, "package-0"): 100,
        (NOON, A, "package-1"): 20,
        (NOON, A, "dram-0"): 7,
        (NOON + HOUR, B, "package-0"): 50,
        (NOON + HOUR, OTHER, "package-0"): 5,
        (NOON + 13 * HOUR, A, "package-0"): 30,
        (NOON + 13 * HOUR, IDLE, "package-1"): 3,
    }
)


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (["total"], {("total",): 200}),
        (["domain"], {("web",): 150, ("db",): 50}),
        (["project"], {("x",): 150, ("(no project)",): 50}),
        (["zone"], {("package-0",): 180, ("package-1",): 20}),
        (["day"], {("2026-11-02",): 170, ("2026-11-03",): 30}),
        (["week"], {("2026-W45",): 200}),
        (["month"], {("2026-11",): 200}),
        (
            ["hour"],
            {("2026-11-02T13:00+01:00",): 120, ("2026-11-02T14:00+01:00",): 50, ("2026-11-03T02:00+01:00",): 30},
        ),
        (["day", "domain"], {("2026-11-02", "web"): 120, ("2026-11-02", "db"): 50, ("2026-11-03", "web"): 30}),
        (
            ["zone", "day"],
            {("package-0", "2026-11-02"): 150, ("package-1", "2026-11-02"): 20, ("package-0", "2026-11-03"): 30},
        ),
    ],
)
def test_rows(by: list[By], expected: dict[tuple[str, ...], int]) -> None:
    made = report.make(TWO, question(*by), Factors())
    assert amounts(made) == expected
    assert (made.domains.microjoules, made.other.microjoules, made.idle.microjoules) == (200, 5, 3)
    assert made.host.microjoules == 208
    zones = [(each.name, each.counted, each.domains, each.other, each.idle) for each in made.zones]
    assert zones == (
        [("dram-0", 7, 7, 0, 0), ("package-0", 185, 180, 5, 0), ("package-1", 23, 20, 0, 3)] if "zone" in by else []
    )


def test_a_share_is_of_what_the_host_used_in_the_rows_time() -> None:
    shares = {row.key: row.share for row in report.make(TWO, question("hour", "domain"), Factors()).rows}
    assert [round(share or 0, 3) for share in shares.values()] == [1, round(50 / 55, 3), round(30 / 33, 3)]
    assert [row.share for row in report.make(TWO, question("domain"), Factors()).rows] == [150 / 208, 50 / 208]


def test_only_some_domains() -> None:
    made = report.make(TWO, question("domain", uuids=[B]), Factors())
    assert amounts(made) == {("db",): 50}
    assert made.domains.microjoules == 200


ENERGIES = st.dictionaries(
    st.tuples(
        st.integers(0, 60).map(lambda number: NOON + number * QUARTER),
        st.sampled_from([A, B, OTHER, IDLE]),
        st.sampled_from(["package-0", "package-1", "dram-0"]),
    ),
    st.integers(1, 2**50),
)


@settings(max_examples=50, deadline=None)
@given(ENERGIES, st.sampled_from(["domain", "project", "zone", "hour", "day", "total"]))
def test_rows_are_the_domains_and_all_is_the_host(energies: dict[tuple[int, str, str], int], by: By) -> None:
    price = Factors(price=lambda instant: Decimal(instant % 7), grams=lambda _: Decimal(5))
    made = report.make(Buckets(energies), question(by), price)
    assert sum(amounts(made).values()) == made.domains.microjoules
    assert made.host.microjoules == made.domains.microjoules + made.other.microjoules + made.idle.microjoules
    packages = {key: value for key, value in energies.items() if key[2].startswith("package-")}
    assert made.host.microjoules == sum(packages.values())
    cost = sum((Decimal(start % 7) * value for (start, _, _), value in packages.items()), Decimal(0)) / PER_KWH
    assert abs((made.host.cost or Decimal(0)) - cost) < Decimal("1e-15")


def test_cost_and_grams_are_added_up_bucket_by_bucket() -> None:
    buckets = Buckets({(NOON, A, "package-0"): 2 * KWH, (NOON + QUARTER, A, "package-0"): KWH})
    price = Factors(
        price=lambda at: Decimal(1 if at < NOON + QUARTER else 10), grams=lambda _: Decimal(300), pue=Decimal(2)
    )
    (row,) = report.make(buckets, question("domain"), price).rows
    assert (row.amount.cost, row.amount.grams) == (Decimal(24), Decimal(1800))
    assert row.amount.kwh == 3


def test_what_has_no_price_has_no_cost() -> None:
    buckets = Buckets(
        {(NOON, A, "package-0"): KWH, (NOON + QUARTER, B, "package-0"): KWH, (NOON + 2 * QUARTER, B, "package-0"): KWH}
    )
    price = Factors(price=lambda at: None if at == NOON + QUARTER else Decimal(1), grams=lambda _: None)
    made = report.make(buckets, question("domain"), price)
    assert {row.key: row.amount.cost for row in made.rows} == {("web",): 1, ("db",): None}
    assert made.host.cost is None
    assert made.unpriced == [(NOON + QUARTER, NOON + 2 * QUARTER)]
    assert made.ungraded == [(NOON, NOON + DAY)]


def test_a_domain_is_called_as_it_was_and_its_energy_is_its_projects_of_that_time() -> None:
    names = {A: [Name(0, "old", "", {"project": "x"}), Name(NOON + QUARTER + 60, "new", "", {"project": "y"})]}
    energies = {(NOON + number * QUARTER, A, "package-0"): 10**number for number in range(4)}
    buckets = Buckets(energies, names=names)
    assert amounts(report.make(buckets, question("domain"), Factors())) == {("new",): 1111}
    assert amounts(report.make(buckets, question("domain", until=NOON + QUARTER), Factors())) == {("old",): 1}
    assert amounts(report.make(buckets, question("project"), Factors())) == {("x",): 1, ("y",): 1110}
    assert amounts(report.make(Buckets(energies, names={}), question("domain"), Factors())) == {(A,): 1111}


def test_days_months_and_hours_of_local_time(zone: ZoneInfo) -> None:
    since, until = (int(datetime(2026, month, 1, tzinfo=zone).timestamp()) for month in (3, 12))
    for span in ("day", "week", "month"):
        found = [datetime.fromtimestamp(edge, zone) for edge in calendar.edges(span, since, until)]
        assert all((edge.hour, edge.minute) == (0, 0) for edge in found)
        labels = [calendar.label(span, edge) for edge in (since, *calendar.edges(span, since, until))]
        assert len(labels) == len(set(labels)) == {"day": 275, "week": 41, "month": 9}[span]
    hours = [since, *calendar.edges("hour", since, until)]
    assert {later - earlier for earlier, later in pairwise(hours)} == {HOUR}
    assert len({calendar.label("hour", edge) for edge in hours}) == len(hours)


@pytest.mark.usefixtures("berlin")
def test_days_on_which_clocks_are_set() -> None:
    spring, autumn = (int(datetime.fromisoformat(f"2026-{day}").timestamp()) for day in ("03-29", "10-25"))
    assert [(calendar.following("day", day) - day) // HOUR for day in (spring, autumn)] == [23, 25]
    assert [calendar.label("hour", autumn + hour * HOUR)[11:] for hour in (1, 2, 3, 4)] == [
        "01:00+02:00",
        "02:00+02:00",
        "02:00+01:00",
        "03:00+01:00",
    ]


def test_times_as_people_write_them(zone: ZoneInfo) -> None:
    now = datetime(2026, 3, 31, 15, 30)

    def instant(text: str) -> float:
        return when.instant(text, now)

    found = {
        text: datetime.fromtimestamp(instant(text), zone).strftime("%m-%d %H:%M")
        for text in ("now", "today", "yesterday", "This  Month", "last month", "last week", "last year", "2h")
    }
    assert found == {
        "now": "03-31 15:30",
        "today": "03-31 00:00",
        "yesterday": "03-30 00:00",
        "This  Month": "03-01 00:00",
        "last month": "02-01 00:00",
        "last week": "03-23 00:00",
        "last year": "01-01 00:00",
        "2h": "03-31 13:30",
    }
    assert instant("7d") == now.timestamp() - 7 * DAY
    assert when.instant("2026-03-01") == datetime(2026, 3, 1, tzinfo=zone).timestamp()
    assert when.instant("2026-03-01T10:00Z") == datetime.fromisoformat("2026-03-01T10:00+00:00").timestamp()


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "7", "7x", "2026-1-01", "last fortnight", "-7d", "1e3", "2026-02-30x"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is none of these"):
        when.instant(text)


@pytest.mark.parametrize("text", ["2026-13-01", "2026-02-30", "2026-11-01T24:30", "2026-11-01 12:61", "0000-01-01"])
def test_what_is_written_as_a_time_and_is_none(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"^{text!r} is no day or no time of a day$"):
        when.instant(text)


@pytest.mark.parametrize(
    "text",
    [
        "999999w",
        "99999999999d",
        "9" * 5000 + "s",
        "1969-12-30",
        "9999-01-02",
        "9999-12-31T23:59-14:00",
        "0001-01-01",
        "0001-01-01T00:00+14:00",
    ],
)
def test_times_that_are_too_far_away(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not within the years 1970 to 9998"):
        when.instant(text)


@pytest.mark.parametrize("text", ["", "vm", "domain,zone", "day,hour", "day,total", "day,domain,zone", "day,"])
def test_what_nothing_goes_by(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        by_words(text)


class Host:
    """A machine with a ledger: two domains for two hours, of which the second in vain."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "virt-rapl.yaml"
        self.ledger = directory / "state/ledger.db"
        self.configure("")

    def configure(self, text: str) -> None:
        self.config.write_text(f"state_directory: {self.ledger.parent}\n{text}\n")

    def record(self) -> None:
        ledger = Ledger(self.ledger, simulated=True, log=pytest.fail)
        ledger.load()
        totals: defaultdict[Part, int] = defaultdict(int)
        now = NOON
        names = {A: Identity('we"b, <1>', "", {"project": "x"}), B: Identity("d\x1bb")}
        for hour in range(3):
            for owner, joules in ((A, 3_600_000), (B, 1_800_000), (OTHER, 900_000), (IDLE, 1)) if hour else ():
                for part in (
                    Part(HOST, WHOLE, "package-0"),
                    Part(owner, WHOLE, "package-0"),
                    Part(owner, WHOLE, "package"),
                ):
                    totals[part] += joules * 1_000_000 + hour
            moment = Moment(now=now, first=not hour, booted=0, model="capacity", source="simulated", domains=names)
            ledger.write(Kept(dict(totals), metered=hour * HOUR), (), moment)
            now += HOUR

    def report(self, *arguments: str) -> int:
        often = ["--since", "2026-11-02T13:00", "--until", "2026-11-02T16:00"]
        return main(
            ["--config", str(self.config), "report", *(often if "--since" not in arguments else []), *arguments]
        )


@pytest.fixture
def host(tmp_path: Path, berlin: None) -> Host:  # noqa: ARG001
    return Host(tmp_path)


PRICES = """
tariff: {currency: EUR, price: 0.5, windows: [{from: 13:30, to: 14:00, price: 0.1}], time_zone: Europe/Berlin}
carbon: {grams_per_kwh: 363, source: a book}
pue: 1.5
"""


def test_a_table(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.configure(PRICES)
    host.record()
    assert host.report() == 0
    _, rows, totals, _ = capsys.readouterr().out.split("\n\n", 3)
    assert [line.split() for line in rows.splitlines()] == [
        ["DOMAIN", "kWh", "EUR", "gCO2e", "SHARE"],
        ['we"b,', "<1>", "2.0000", "1.2000", "1089.0", "57.1%"],
        ["d\\x1bb", "1.0000", "0.6000", "544.5", "28.6%"],
    ]
    assert [line.split() for line in totals.splitlines()] == [
        ["=", "domains", "3.0000", "1.8000", "1633.5", "85.7%"],
        ["+", "other", "0.5000", "0.3000", "272.3", "14.3%"],
        ["+", "idle", "0.0000005556", "0.0000", "0.0", "0.0%"],
        ["=", "host", "3.5000", "2.1000", "1905.8", "100.0%"],
    ]


@pytest.mark.parametrize(("uuids", "said"), [([], "no domain used"), ([B], "no domain of these used")])
def test_a_table_without_rows_says_so(uuids: list[str], said: str) -> None:
    buckets = Buckets({(NOON, A if uuids else IDLE, "package-0"): KWH})
    lines = report_formats.table(report.make(buckets, question("domain", uuids=uuids), Factors()), []).splitlines()
    assert lines[2].split() == ["DOMAIN", "kWh", "SHARE"]
    assert lines[3:5] == [f"{said} energy in this time", ""]
    assert lines[5].startswith("= domains")


@pytest.mark.parametrize(
    ("microjoules", "shown"),
    [(KWH // 1000, "0.0010"), (444_240_000, "0.0001234"), (KWH // 20_000, "0.00005000"), (1, "0.0000000000002778")],
)
def test_little_energy_has_four_digits(microjoules: int, shown: str) -> None:
    made = report.make(Buckets({(NOON, A, "package-0"): microjoules}), question("zone"), Factors())
    lines = report_formats.table(made, []).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("package-0")] == [shown, shown]
    assert [line.split()[2] for line in lines if line.startswith("+ idle")] == ["0.0000"]


TWINS = Buckets(
    {(NOON + hour * HOUR, owner, "package-0"): KWH for hour in (0, 1) for owner in (A, B, "c" * 36)},
    names={A: [Name(0, "w\x1bb", "", {})], B: [Name(0, r"w\x1bb", "", {})], "c" * 36: [Name(0, "db", "", {})]},
)
"""Two domains of one name, as far as one can see, and another."""


@pytest.mark.parametrize("by", [["domain"], ["hour", "domain"]])
def test_domains_of_one_name_are_told_apart_by_their_uuids(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: list[By]
) -> None:
    made = report.make(TWINS, question(*by), Factors())
    names = [r"w\x1bb (aaaaaaaa)", r"w\x1bb (bbbbbbbb)", "db"]
    _, rows, _ = report_formats.table(made, []).split("\n\n", 2)
    assert [re.split("  +", line)[-3] for line in rows.splitlines()[1:]] == names * len(by)
    assert drawn(made, monkeypatch, tmp_path) == dict.fromkeys(names, 2.0)
    text = report_formats.as_csv(made, [])
    assert {row["domain"] for row in csv.DictReader(text.splitlines()[:-2])} == {r"w\x1bb", "db"}


def test_json_is_a_contract(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.configure(PRICES)
    host.record()
    assert host.report("--json", "--by", "hour,domain") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["schema", "since", "until", "by", "simulated", "host", "rows", "zones", "provenance"]
    assert (found["schema"], found["since"], found["until"]) == (
        1,
        "2026-11-02T13:00:00+01:00",
        "2026-11-02T16:00:00+01:00",
    )
    assert (found["by"], found["simulated"]) == ("hour,domain", True)
    assert list(found["host"])[:4] == ["joules", "domains_joules", "other_joules", "idle_joules"]
    assert {tuple(row) for row in found["rows"]} == {
        ("key", "uuid", "joules", "kwh", "cost", "currency", "grams_co2e", "share")
    }
    assert [row["key"] for row in found["rows"]][:2] == [
        ["2026-11-02T13:00+01:00", 'we"b, <1>'],
        ["2026-11-02T13:00+01:00", "d\x1bb"],
    ]
    microjoules = sum(round(row["joules"] * 10**6) for row in found["rows"])
    assert microjoules == round(found["host"]["domains_joules"] * 10**6) == 2 * 5_400_000 * 10**6 + 6
    parts = sum(round(found["host"][f"{part}_joules"] * 10**6) for part in ("domains", "other", "idle"))
    assert parts == round(found["host"]["joules"] * 10**6)


@pytest.mark.parametrize("name", ["d\x1bb", r"d\x1bb", r"d\x1bb (bbbbbbbb)", B])
def test_a_domain_is_found_as_a_report_shows_it(host: Host, capsys: pytest.CaptureFixture[str], name: str) -> None:
    host.record()
    assert host.report("--json", "--domain", name) == 0
    assert [row["uuid"] for row in json.loads(capsys.readouterr().out)["rows"]] == [B]
    assert host.report("--domain", r"d\x1bb (aaaaaaaa)") == 1


def test_csv_is_read_back(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.record()
    assert host.report("--format", "csv") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [(row["domain"], row["uuid"], row["joules"], row["cost"], row["share"]) for row in rows] == [
        ('we"b, <1>', A, "7200000.000003", "", "0.571428"),
        ("d\\x1bb", B, "3600000.000003", "", "0.285714"),
    ]
    assert any("domains 10800000.000006 J + other 1800000.000003 J + idle" in line for line in lines)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "# host"])
def test_a_spreadsheet_takes_every_name_for_text(name: str) -> None:
    buckets = Buckets({(NOON, A, "package-0"): 1}, names={A: [Name(0, name, "", {"project": name})]})
    for by in ("domain", "project"):
        text = report_formats.as_csv(report.make(buckets, question(by), Factors()), [])
        assert [row[by] for row in csv.DictReader(text.splitlines()[:-2])] == [f"'{name}"]


@pytest.mark.parametrize("format_", ["table", "csv", "json"])
def test_each_report_ends_with_where_it_comes_from(
    host: Host, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    host.configure(PRICES)
    host.record()
    assert host.report("--format", format_, "--since", "2026-11-01", "--until", "2026-11-03") == 0
    shown = capsys.readouterr().out
    for what in (
        "simulated",
        "capacity",
        "PUE 1.5",
        "0.5, 0.1 EUR/kWh",
        "Europe/Berlin",
        "363 g/kWh, from a book",
        "wall",
    ):
        assert what in shown
    assert "nothing is known before 2026-11-02 13:00 +0100" in shown


def test_what_is_missing_in_the_figures_is_named() -> None:
    gaps = [Gap(NOON + hour * HOUR, NOON + hour * HOUR + 600, "daemon") for hour in range(12)]
    gaps += [Gap(NOON - DAY, NOON + 60, "host")]
    known = {"gaps": gaps, "lost": [Lost(NOON, "package-0", 2), Lost(NOON + 900, "package-0", 1)], "widths": [QUARTER]}
    metering = [
        Metering(0, "active", "msr"),
        Metering(NOON - 1, "capacity", "msr"),
        Metering(NOON + 9, "baseline", "msr"),
    ]
    made = report.make(Buckets(TWO.energies, metering=metering, **known), question("domain"), Factors())
    lines = "\n".join(provenance(made, Config()))
    assert lines.count("virt-rapld did not run") == 11
    assert "at 2 more times, 0.3 hours" in lines
    assert lines.count("host was off") == 1
    assert "package-0: its count was lost in 3 intervals" in lines
    assert "active" not in lines
    assert "read from msr" in lines
    assert lines.index("capacity") < lines.index("baseline")


def test_a_price_of_nothing_is_a_price() -> None:
    window = {"from": "0:00", "to": "6:00", "price": 0}
    config = Config(tariff=parse_tariff({"currency": "EUR", "price": 0.3, "windows": [window]}))
    lines = provenance(report.make(TWO, question("domain"), Factors()), config)
    assert "price: 0.3, 0 EUR/kWh by the time of the week (local), of the configuration" in lines


@pytest.mark.usefixtures("berlin")
def test_a_gap_within_a_minute_is_shown_by_the_second() -> None:
    gaps = [Gap(NOON + 5, NOON + 50.5, "daemon"), Gap(NOON + 50, NOON + 65, "clock")]
    metering = [Metering(0, "capacity", "simulated")]
    made = report.make(Buckets(TWO.energies, gaps=gaps, metering=metering), question("domain"), Factors())
    lines = provenance(made, Config())
    assert any("from 2026-11-02 13:00:05 +0100 to 2026-11-02 13:00:50 +0100" in line for line in lines)
    assert any("from 2026-11-02 13:00 +0100 to 2026-11-02 13:01 +0100" in line for line in lines)
    assert "attributed by the model capacity, simulated energy" in lines


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (["--since", "2126-01-01"], 1, "future"),
        (["--since", "yesterday", "--until", "last week"], 1, "before it begins"),
        (["--since", "yesterday", "--until", "yesterday"], 1, "--until today"),
        (["--since", "2020-01-01", "--until", "2020-01-02"], 1, "no history from"),
        (["--domain", "nobody"], 1, "nobody"),
        (["--by", "vm"], 2, "vm"),
        (["--since", "soon"], 2, "soon"),
        (["--format", "xml"], 2, "xml"),
        (["--json", "--format", "csv"], 2, "not allowed"),
        (["--plot", "x.gif"], 2, ".svg"),
    ],
)
def test_bad_questions(
    host: Host, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, problem: str
) -> None:
    host.record()
    with pytest.raises(SystemExit) as ended:  # argparse raises it
        sys.exit(host.report(*arguments))
    assert ended.value.code == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert problem in shown.err


def without(host: Host) -> None:
    pass


def empty(host: Host) -> None:
    Ledger(host.ledger, simulated=True, log=pytest.fail).load()


def damaged(host: Host) -> None:
    host.record()
    host.ledger.write_bytes(host.ledger.read_bytes()[:5000])


def older(host: Host) -> None:
    host.record()
    with contextlib.closing(sqlite3.connect(host.ledger)) as database:
        database.execute("PRAGMA user_version = 3")


def wrong_labels(host: Host) -> None:
    host.record()
    with contextlib.closing(sqlite3.connect(host.ledger)) as database:
        database.execute("""UPDATE identity SET labels = '{"a": 1}'""")
        database.commit()


def no_file(host: Host) -> None:
    host.ledger.parent.mkdir()
    host.ledger.symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (without, "there is no"),
        (empty, "no history"),
        (damaged, "cannot read"),
        (wrong_labels, "its history is damaged: the labels of"),
        (older, "older"),
        (no_file, "link"),
    ],
)
def test_ledgers_that_cannot_be_reported(
    host: Host, capsys: pytest.CaptureFixture[str], make: Callable[[Host], None], problem: str
) -> None:
    make(host)
    assert host.report() == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert problem in shown.err.splitlines()[0]
    assert shown.err.splitlines()[1].startswith("hint: ")
    assert len(shown.err.splitlines()) == 2


def test_virt_rapld_has_to_start_anew_for_an_older_ledger(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    older(host)
    assert host.report() == 1
    assert capsys.readouterr().err.splitlines()[1] == "hint: systemctl restart virt-rapld"


@pytest.mark.parametrize(
    ("text", "make", "hint"),
    [("history: off", empty, "off"), ("", empty, "ten seconds"), ("", Host.record, "2026-11-02 13:00 +0100")],
)
def test_why_there_is_no_history(
    host: Host, capsys: pytest.CaptureFixture[str], text: str, make: Callable[[Host], None], hint: str
) -> None:
    host.configure(text)
    make(host)
    assert host.report("--since", "2020-01-01", "--until", "2020-01-02") == 1
    assert hint in capsys.readouterr().err.splitlines()[1]


def test_a_time_zone_that_cannot_be_shown(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "AAA24")
    time.tzset()  # the fixture sets it back
    assert host.report() == 1
    assert "time zone" in capsys.readouterr().err


def test_a_price_that_is_missing_leaves_the_cost_empty(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    prices = host.config.with_name("prices.csv")
    prices.write_text("time,price\n2026-11-02T14:00+01:00,0.5\n2026-11-02T15:00+01:00,0.5\n")
    host.configure(f"tariff: {{currency: EUR, csv: {prices}}}")
    host.record()
    assert host.report("--json", "--by", "hour") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["cost"] for row in found["rows"]] == [None, 0.75]
    assert found["host"]["cost"] is None
    assert any("no price from 2026-11-02 13:00 +0100 to 2026-11-02 14:00 +0100" in line for line in found["provenance"])
    prices.write_text("time,price\n2026-11-02T14:00+01:00,0.5\n2026-11-02T14:00+01:00,0.5\n")
    assert host.report() == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{prices}:3: " in shown.err


@pytest.mark.parametrize("by", ["domain", "day,domain", "hour", "total"])
def test_a_picture(host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path, by: str) -> None:
    host.record()
    for suffix, begin in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        file = tmp_path / f"picture.{suffix}"
        assert host.report("--by", by, "--plot", str(file)) == 0
        assert file.read_bytes().startswith(begin)
    assert sorted(file.name for file in tmp_path.iterdir() if "picture" in file.name) == ["picture.png", "picture.svg"]
    assert "kWh" in capsys.readouterr().out


TWELVE = Buckets(
    {(NOON + hour * HOUR, f"uuid{number}", "package-0"): number * KWH for hour in (0, 1) for number in range(1, 13)},
    names={f"uuid{number}": [Name(0, f"vm{number}", "", {})] for number in range(1, 13)},
)


def drawn(made: report.Report, monkeypatch: pytest.MonkeyPatch, directory: Path) -> dict[str, float]:
    """Return the kilowatt hours that a picture shows, by name, in its order."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    report_picture.draw(made, directory / "picture.svg")
    (axes,) = figures[0].axes
    energies: defaultdict[str, float] = defaultdict(float)
    if len(made.question.by) == 1:
        names = [label.get_text() for label in axes.get_yticklabels()][::-1]
        for name, bar in zip(names, axes.patches[::-1], strict=True):
            energies[name] += bar.get_width()  # type: ignore[attr-defined]
    else:
        for bars in axes.containers:
            energies[str(bars.get_label())] += sum(bar.get_height() for bar in bars)
    return energies


@pytest.mark.parametrize("by", [["domain"], ["hour", "domain"]])
def test_a_picture_shows_nine_names_and_the_others_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: list[By]
) -> None:
    energies = drawn(report.make(TWELVE, question(*by), Factors()), monkeypatch, tmp_path)
    expected = {f"vm{number}": 2.0 * number for number in range(12, 3, -1)} | {"others": 12.0}
    assert list(energies.items()) == list(expected.items())


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("by", ["domain", "day"])
def test_a_picture_of_one_long_name_or_none(tmp_path: Path, by: By) -> None:
    for number, owner in enumerate([A, OTHER]):
        buckets = Buckets({(NOON, owner, "package-0"): KWH}, names={A: [Name(0, "$x" * 2500, "", {})]})
        file = tmp_path / f"{number}.svg"
        report_picture.draw(report.make(buckets, question(by), Factors()), file)
        assert "$x" * 20 not in file.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", ["\u4eee\u60f3\u6a5f", "\u0c05"])
@pytest.mark.parametrize("by", [["domain"], ["day", "domain"]])
def test_a_picture_with_letters_that_its_font_does_not_have(tmp_path: Path, name: str, by: list[By]) -> None:
    buckets = Buckets({(NOON, A, "package-0"): KWH}, names={A: [Name(0, name, "", {})]})
    for suffix in ("svg", "png"):
        file = tmp_path / f"picture.{suffix}"
        report_picture.draw(report.make(buckets, question(*by), Factors()), file)
        assert file.stat().st_size > 1000


@pytest.mark.parametrize("place", ["directory.svg", "missing/picture.svg", "file/picture.svg"])
def test_a_picture_that_cannot_be_written(
    host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path, place: str
) -> None:
    host.record()
    pictures = tmp_path / "pictures"
    (pictures / "directory.svg").mkdir(parents=True)
    (pictures / "file").write_text("")
    assert host.report("--plot", str(pictures / place)) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{pictures / place}: " in shown.err.splitlines()[0]
    assert sorted(file.name for file in pictures.rglob("*")) == ["directory.svg", "file"]


def test_a_picture_on_a_full_disk(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def replace(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    host.record()
    monkeypatch.setattr(Path, "replace", replace)
    assert host.report("--plot", str(tmp_path / "picture.svg")) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"virt-rapl: error: cannot write {tmp_path}/picture.svg: No space left on device",
        "hint: give --plot a file where there is space",
    ]
    assert not [file for file in tmp_path.iterdir() if "picture" in file.name]


def test_a_picture_without_matplotlib(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host.record()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert host.report("--plot", str(tmp_path / "picture.svg")) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "apt install python3-matplotlib" in shown.err


@pytest.mark.parametrize(
    "keep", [KeepHistory(), KeepHistory(quarter_hours=1, hours=400), KeepHistory(quarter_hours=1, hours=1)]
)
@pytest.mark.usefixtures("berlin")
def test_older_history_has_the_mean_price_of_its_time(tmp_path: Path, keep: KeepHistory) -> None:
    ledger = Ledger(tmp_path / "ledger.db", simulated=False, log=pytest.fail, history=keep)
    ledger.load()
    for number in range(10):  # a kilowatt hour an hour for five days; then compaction, a day at a time
        energy = min(number, 1) * 120 * KWH
        parts = [Part(HOST, WHOLE, "package-0"), Part(A, WHOLE, "package-0"), Part(A, WHOLE, "package")]
        moment = Moment(now=NOON + min(number, 1) * 5 * DAY + number * HOUR)
        ledger.write(Kept(dict.fromkeys(parts, energy), metered=number and 5 * DAY), (), moment)
    night = {"from": "22:00", "to": "06:00", "price": 0.1}
    price = factors.price(parse_tariff({"currency": "EUR", "price": 0.3, "windows": [night]}))
    with open_ledger(tmp_path / "ledger.db") as history:
        made = report.make(history, question("day", since=NOON - 2 * DAY, until=NOON + 8 * DAY), Factors(price=price))
    assert made.host.microjoules == 120 * KWH
    assert made.host.cost is not None
    assert float(made.host.cost) == pytest.approx(120 * (0.3 * 16 + 0.1 * 8) / 24, rel=0.01)
    whole = [row.amount.cost for row in made.rows if row.amount.microjoules > 23 * KWH]
    assert len(whole) >= 3
    assert all(float(cost or 0) == pytest.approx(24 * 5.6 / 24, rel=0.02) for cost in whole)


def test_what_has_no_price_for_a_part_of_an_older_bucket_has_no_cost() -> None:
    valid = Factors(price=lambda at: Decimal(4) if at >= NOON + QUARTER else None, grams=lambda at: Decimal(at % 7200))
    assert valid.over(QUARTER) is valid
    hourly = valid.over(HOUR)
    assert hourly.price
    assert hourly.grams
    assert [hourly.price(NOON), hourly.price(NOON + HOUR)] == [None, Decimal(4)]
    assert hourly.grams(NOON) == Decimal(sum(NOON % 7200 + number * QUARTER for number in range(4))) / 4


@pytest.mark.parametrize(
    ("since", "width", "first"),
    [
        (NOON, QUARTER, NOON),
        (NOON, HOUR, NOON),
        (NOON + 2 * QUARTER, HOUR, NOON),
        (NOON + 3 * QUARTER, HOUR, NOON + HOUR),
        (NOON, DAY, NOON - DAY // 2),
        (NOON + QUARTER, DAY, NOON + DAY // 2),
    ],
)
def test_a_bucket_is_where_its_middle_is(since: int, width: int, first: int) -> None:
    assert report.first_bucket(since, width) == first
