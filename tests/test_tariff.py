"""Prices and CO2: what the configuration accepts, and what is valid at which time."""

import math
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from libvirt_rapl.config import load
from libvirt_rapl.config_file import Loader
from libvirt_rapl.energy import factors
from libvirt_rapl.energy.factors import read_rows
from libvirt_rapl.errors import VirtRaplError, WrongPartError
from libvirt_rapl.tariff import parse_carbon, parse_tariff

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(params=["Europe/Berlin", "America/St_Johns"])
def local(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The machine's time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def as_configured(text: str) -> object:
    """Return a value as the configuration is read."""
    return Loader(text).get_single_data()


NIGHT = "{days: mon-fri, from: 22:00, to: 06:00, price: 0.2}"


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("0.3", [], "mapping"),
        ("{price: 0.3}", ["currency"], "three letters"),
        ("{currency: Euro, price: 0.3}", ["currency"], "three letters"),
        ("{currency: EUR, prise: 0.3}", ["prise"], "price"),
        ("{currency: EUR, price: cheap}", ["price"], "number"),
        ("{currency: EUR, price: .nan}", ["price"], "number"),
        ("{currency: EUR, price: snan}", ["price"], "number"),
        ("{currency: EUR, price: -.inf}", ["price"], "at most 1000000"),
        ("{currency: EUR, price: '1e9999999'}", ["price"], "at most 1000000"),
        ("{currency: EUR, price: 1000001}", ["price"], "at most 1000000"),
        ("{currency: EUR, price: true}", ["price"], "number"),
        ("{currency: EUR, price: '0,31'}", ["price"], "decimal point"),
        ("{currency: EUR, price: 0,31}", [], "decimal point"),
        ("{currency: EUR, price: 0,08}", [], "decimal point"),
        ("{currency: EUR, price: 1, windows: [{from: 1:00, to: 2:00, price: 0,31}]}", ["windows", 0], "decimal point"),
        ("{currency: EUR}", [], "no price at mon 00:00"),
        ("{currency: EUR, csv: prices.csv}", ["csv"], "absolute"),
        ("{currency: EUR, csv: /prices.csv, price: 1}", ["csv"], "either"),
        ("{currency: EUR, price: 1, time_zone: Mars/Phobos}", ["time_zone"], "time zone"),
        ("{currency: EUR, price: 1, time_zone: ../../etc/passwd}", ["time_zone"], "time zone"),
        ("{currency: EUR, price: 1, windows: {}}", ["windows"], "list"),
        ("{currency: EUR, price: 1, windows: [{from: 1:00, to: 2:00}]}", ["windows", 0], "price is missing"),
        ("{currency: EUR, price: 1, windows: [{from: 25:00, to: 2:00, price: 1}]}", ["windows", 0, "from"], "time"),
        *(
            (
                f"{{currency: EUR, price: 1, windows: [{{from: {number}, to: 6:00, price: 1}}]}}",
                ["windows", 0, "from"],
                "22:00",
            )
            for number in ("22", "0", "60", "1320", "2200", "0600", "22.5", "true")
        ),
        ("{currency: EUR, price: 1, windows: [{from: 1:00, to: '2', price: 1}]}", ["windows", 0, "to"], "time"),
        ("{currency: EUR, price: 1, windows: [{from: 1:00, to: '24:01', price: 1}]}", ["windows", 0, "to"], "time"),
        (
            "{currency: EUR, price: 1, windows: [{days: [mon, foo], from: 1:00, to: 2:00, price: 1}]}",
            ["windows", 0, "days"],
            "mon-fri",
        ),
        (
            "{currency: EUR, price: 1, windows: [{days: [], from: 1:00, to: 2:00, price: 1}]}",
            ["windows", 0, "days"],
            "mon-fri",
        ),
        ("{currency: EUR, price: 1, windows: [{from: 7:01, to: 7:15, price: 1}]}", ["windows", 0], "no quarter"),
        (
            f"{{currency: EUR, price: 1, windows: [{NIGHT}, {{days: sat, from: 05:00, to: 07:00, price: 1}}]}}",
            ["windows", 1],
            "windows[0] at sat 05:00",
        ),
        (f"{{currency: EUR, windows: [{NIGHT}]}}", [], "no price at mon 00:00"),
        (
            "{currency: EUR, windows: [{from: 00:00, to: 12:00, price: 1}, {from: 12:15, to: 24:00, price: 2}]}",
            [],
            "no price at mon 12:00",
        ),
    ],
)
def test_what_is_no_tariff(text: str, where: list[str | int], problem: str) -> None:
    with pytest.raises(WrongPartError) as raised:
        parse_tariff(as_configured(text))
    assert raised.value.where == where
    assert problem in raised.value.problem


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{grams_per_kwh: 363}", ["source"]),
        ("{source: me}", []),
        ("{grams_per_kwh: 1, csv: /x, source: me}", []),
        ("{grams_per_kwh: much, source: me}", ["grams_per_kwh"]),
        ("{source: me, grams_per_kwh: 363,5}", []),
        ("{csv: x, source: me}", ["csv"]),
        ("{grams_per_kwh: 363, sauce: me}", ["sauce"]),
    ],
)
def test_what_is_no_carbon(text: str, where: list[str]) -> None:
    with pytest.raises(WrongPartError) as raised:
        parse_carbon(as_configured(text))
    assert raised.value.where == where


def test_a_mistake_in_the_configuration_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "virt-rapl.yaml"
    path.write_text(
        "tariff:\n  currency: EUR\n  price: 1\n  windows:\n    - {from: 1:00, to: 2:00,\n       price: x}\n"
    )
    with pytest.raises(VirtRaplError) as raised:
        load(path)
    assert raised.value.message.startswith(f"{path}:6: tariff.windows[0].price: expected a number")
    path.write_text("tariff: off\ncarbon: off\nhistory: off\npue: 1.5\n")
    config = load(path)
    assert (config.tariff, config.carbon, config.history.on, config.pue) == (False, False, False, 1.5)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("history: 35", "history: expected off, or days"),
        ("history: {days: 1}", "history: expected off, or days"),
        ("history: {hours: 0}", "history.hours: expected days from 1 to 36500"),
        ("history: {hours: 36501}", "history.hours: expected days from 1 to 36500"),
        ("history: {quarter_hours: 1.5}", "history.quarter_hours: expected days from 1 to 36500"),
        (
            "history: {quarter_hours: 401}",
            "history.quarter_hours: expected no more days than for hours, which are 400",
        ),
        (
            "history: {quarter_hours: 400, hours: 35}",
            "history.quarter_hours: expected no more days than for hours, which are 35",
        ),
        ("pue: 0.9", "pue: expected a number from 1 to 10"),
        ("pue: x", "pue: expected a number from 1 to 10"),
    ],
)
def test_what_is_neither_history_nor_pue(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "virt-rapl.yaml"
    path.write_text(text)
    with pytest.raises(VirtRaplError) as raised:
        load(path)
    assert raised.value.message.startswith(f"{path}:1: {problem}")


def test_the_longest_history(tmp_path: Path) -> None:
    path = tmp_path / "virt-rapl.yaml"
    path.write_text("history: {quarter_hours: 36500, hours: 36500}")
    assert load(path).history.hours == 36500


@pytest.mark.parametrize("window", ["{from: 7:00, to: 7:01, price: 1}", "{from: 23:59, to: 0:01, price: 1}"])
def test_a_short_window_with_the_beginning_of_a_quarter_in_it(window: str) -> None:
    tariff = parse_tariff(as_configured(f"{{currency: EUR, price: 0, windows: [{window}]}}"))
    assert {tariff.week[minute] for minute in range(0, len(tariff.week), 15)} == {0, 1}


@pytest.mark.usefixtures("local")
def test_windows_of_the_week_in_a_time_zone() -> None:
    tariff = parse_tariff(
        as_configured(
            f"""
            currency: EUR
            price: 0.3
            time_zone: Europe/Berlin
            windows:
              - {NIGHT}
              - {{days: sun-mon, from: 12:00, to: 13:30, price: 0.1}}
            """
        )
    )
    price = factors.price(tariff)

    def at(text: str) -> Decimal | None:
        return price(int(datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()))

    night, noon, base = Decimal("0.2"), Decimal("0.1"), Decimal("0.3")
    assert [at(f"2026-11-{day}") for day in ("02T21:59", "02T22:00", "03T05:59", "03T06:00")] == [
        base,
        night,
        night,
        base,
    ]
    friday_to_saturday, sunday_to_monday = ("06T23:00", "07T05:59", "07T06:00"), ("08T23:00", "09T05:59")
    assert [at(f"2026-11-{day}") for day in friday_to_saturday] == [night, night, base]
    assert [at(f"2026-11-{day}") for day in sunday_to_monday] == [base, base]
    assert [at(f"2026-11-{day}") for day in ("08T12:00", "09T13:15", "10T12:00")] == [noon, noon, base]
    # In the night of 2026-10-25, Berlin's clocks go from 3:00 back to 2:00: a local time, whichever of two, decides.
    assert at("2026-10-26T05:59") == base == at("2026-10-24T12:00")


@pytest.mark.usefixtures("local")
def test_windows_are_in_local_time_by_default() -> None:
    price = factors.price(parse_tariff({"currency": "EUR", "price": 1, "windows": [as_configured(NIGHT)]}))
    assert price(int(datetime(2026, 11, 2, 22).timestamp())) == Decimal("0.2")
    assert price(int(datetime(2026, 11, 2, 21, 59).timestamp())) == 1


@pytest.mark.usefixtures("local")
def test_a_file_is_valid_where_it_has_rows(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    hours = ("00:00", "01:00", "02:00", "05:00", "06:00")
    file.write_text(
        "time,price\n" + "".join(f"2026-11-02T{hour}+01:00,{number}\n" for number, hour in enumerate(hours))
    )
    price = factors.price(parse_tariff({"currency": "EUR", "csv": str(file)}))

    def at(text: str) -> Decimal | None:
        return price(int(datetime.fromisoformat(f"2026-11-02T{text}+01:00").timestamp()))

    found = [at(text) for text in ("00:00", "00:59", "01:00", "02:59", "03:00", "04:59", "05:00", "06:59", "07:00")]
    assert found == [0, 0, 1, 2, None, None, 3, 4, None]
    assert price(int(datetime.fromisoformat("2026-11-01T23:59+01:00").timestamp())) is None


def hours_of(file: Path, times: list[str]) -> list[float]:
    """Return for how many hours each row of a file of these times is valid."""
    file.write_text("".join(f"{time},1\n" for time in times))
    return [(row.until - row.since) / 3600 for row in read_rows(file, BERLIN)]


@pytest.mark.parametrize(
    ("times", "hours"),
    [
        (["2026-10-25T01:00", "2026-10-25T02:00", "2026-10-25T02:00", "2026-10-25T03:00"], [1, 1, 1, 1]),
        (["2026-03-29T01:00", "2026-03-29T03:00", "2026-03-29T04:00"], [1, 1, 1]),
        (["2026-03-28", "2026-03-29", "2026-03-30", "2026-03-31"], [24, 23, 24, 24]),
        (["2026-10-24", "2026-10-25", "2026-10-26", "2026-10-27"], [24, 25, 24, 24]),
        (["2026-11-02", "2026-11-03", "2026-11-05", "2026-11-06"], [24, 24, 24, 24]),
        (["2026-11-02", "2026-11-03", "2026-11-05"], [24, 24, 24]),
        (["2026-11-02", "2026-11-04", "2026-11-05"], [24, 24, 24]),
        (["2026-01-01", "2026-02-01", "2026-03-01", "2026-04-01"], [31 * 24, 28 * 24, 31 * 24 - 1, 31 * 24 - 1]),
        (["2026-01-01", "2026-03-15", "2026-10-01"], [73 * 24, 200 * 24 - 1, 200 * 24 - 1]),
        (["2026-11-02T00:00", "2026-11-02T06:00"], [6, 6]),
        (["2026-11-02"], [math.inf]),
    ],
)
def test_hours_days_and_price_changes_are_as_long_as_they_are(
    tmp_path: Path, times: list[str], hours: list[float]
) -> None:
    assert hours_of(tmp_path / "prices.csv", times) == hours


HOURS, QUARTERS = [60] * 3, [15] * 8
"""Minutes between rows."""


@pytest.mark.parametrize(
    ("minutes", "holes"),
    [
        (HOURS + QUARTERS, []),
        (QUARTERS + HOURS, []),
        (HOURS + QUARTERS + HOURS, []),
        ([*HOURS, 120, *HOURS], [(3, 60)]),
        ([*HOURS, 180, *HOURS], [(3, 60)]),
        ([*QUARTERS, 30, *QUARTERS], [(8, 15)]),
        ([*HOURS, 90, *QUARTERS], [(3, 60)]),
        ([*HOURS, 3 * 1440, *HOURS, 120, *HOURS], [(3, 60), (7, 60)]),
    ],
)
def test_a_file_may_go_from_hours_to_quarters_and_back_and_has_holes_where_rows_are_missing(
    tmp_path: Path, minutes: list[int], holes: list[tuple[int, int]]
) -> None:
    begin = datetime(2026, 11, 2)
    times = [begin + timedelta(minutes=sum(minutes[:number])) for number in range(len(minutes) + 1)]
    expected = [*minutes, minutes[-1]]
    for row, valid in holes:
        expected[row] = valid
    found = hours_of(tmp_path / "prices.csv", [time.isoformat() for time in times])
    assert [round(hours * 60, 6) for hours in found] == expected


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        (b"\xef\xbb\xbftime,price\n2026-11-01,1\n2026-11-02,2\n", 1, "byte order mark"),
        (b"2026-11-01,1\n2026-11-02,\xff\n", 2, "UTF-8"),
        (b"2026-11-02,1\n2026-11-01,2\n", 2, "not later"),
        (b"2026-11-01,1\n2026-11-02,1\n\n2026-11-02,2\n", 4, "twice"),
        (b"2026-11-01,1\n2026-11-02,much\n", 2, "number"),
        (b"2026-11-01,1\n2026-11-02,\n", 2, "number"),
        (b"2026-11-01,1\n2026-11-02,inf\n", 2, "number"),
        (b"2026-11-01,1\n2026-11-02,1e400\n", 2, "number"),
        (b"2026-11-01,1\n2026-11-02,1_0\n", 2, "number"),
        (b"2026-11-01,1\n2026-11-02,\xd9\xa3\n", 2, "number"),
        (b"2026-11-01,1\n2026-11-02,1000001\n", 2, "at most 1000000"),
        (b"2026-11-01,1\n2026-11-02,-1234567890123\n", 2, "at most 1000000"),
        (b"time,grams\n2026-11-01,1\n2026-11-02,1\n", 1, "time,price"),
        (b"2026-11-01,1\n2026-11-02,0,31\n", 2, "3 fields"),
        (b"2026-11-01;1\n2026-11-02;2\n", 1, "1 fields"),
        (b"time,price\nyesterday,1\n2026-11-02,2\n", 2, "time"),
        *(
            (b"2026-11-01,1\n%b,1\n" % time, 2, "expected a time")
            for time in (b"2026-02-30", b"0001-01-01T00:00+14:00", b"9999-12-31T23:59-14:00")
        ),
        (b'2026-11-01,1\n"2026-11-02,2\n', 2, "end of data"),
    ],
)
def test_what_is_no_file_of_prices(tmp_path: Path, text: bytes, line: int, problem: str) -> None:
    file = tmp_path / "prices.csv"
    file.write_bytes(text)
    with pytest.raises(VirtRaplError) as raised:
        read_rows(file, None)
    assert raised.value.message.startswith(f"{file}:{line}: ")
    assert problem in raised.value.message


@pytest.mark.parametrize("text", ["", "\n", "time,price\n"])
def test_a_file_without_rows(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(text)
    with pytest.raises(VirtRaplError, match="there is no row"):
        read_rows(file, None)


def test_a_single_row_is_valid_from_then_on(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text("time,price\n2026-11-01T00:00Z,0.5\n")
    price = factors.price(parse_tariff({"currency": "EUR", "csv": str(file)}))
    begin = int(datetime.fromisoformat("2026-11-01T00:00Z").timestamp())
    assert [price(at) for at in (begin - 1, begin, begin + 10**9)] == [None, Decimal("0.5"), Decimal("0.5")]


def test_a_time_that_clocks_skip(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text("".join(f"2026-03-29T0{hour}:00,1\n" for hour in range(5)))
    with pytest.raises(VirtRaplError) as raised:
        read_rows(file, BERLIN)
    assert raised.value.message == f"{file}:3: 2026-03-29T02:00 does not exist: clocks were set forward then"
    assert len(read_rows(file, ZoneInfo("UTC"))) == 5


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("time_zone", [None, BERLIN])
def test_a_time_that_clocks_of_the_machine_skip(tmp_path: Path, time_zone: ZoneInfo | None) -> None:
    file = tmp_path / "prices.csv"
    skipped = "2026-03-29T02:30" if time_zone or os.environ["TZ"] == "Europe/Berlin" else "2026-03-08T02:30"
    file.write_text(f"2026-03-07,1\n{skipped},1\n")
    with pytest.raises(VirtRaplError, match=f"{file}:2: {skipped} does not exist"):
        read_rows(file, time_zone)


def test_numbers_of_a_file_may_have_all_digits(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text("2026-11-01,-1000000\n2026-11-02,0.30000000000000004\n")
    assert [row.value for row in read_rows(file, None)] == [-1_000_000, Decimal("0.30000000000000004")]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VirtRaplError, match="cannot read"):
        read_rows(tmp_path / "none", None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VirtRaplError, match="not a regular file"):
        read_rows(tmp_path / "pipe", None)


def test_a_file_that_we_may_not_read(tmp_path: Path, shut_out: Callable[[], None]) -> None:
    (tmp_path / "prices.csv").write_text("2026-11-01,1\n")
    shut_out()
    with pytest.raises(VirtRaplError) as raised:
        read_rows(tmp_path / "prices.csv", None)
    assert raised.value.message == f"cannot read {tmp_path}/prices.csv: Permission denied"
    assert "as root" in raised.value.hint
