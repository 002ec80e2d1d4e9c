"""What energy costs, and how much CO2 it stands for: the keys `tariff` and `carbon` of the configuration. Pure."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from libvirt_rapl.errors import WrongPartError

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES = 24 * 60
WEEK = len(WEEKDAYS) * MINUTES
QUARTER = 15
"""Minutes. Energy is kept by quarters of an hour, and each has one price."""

TARIFF_KEYS = ("currency", "price", "windows", "csv", "time_zone")
WINDOW_KEYS = ("days", "from", "to", "price")
CARBON_KEYS = ("grams_per_kwh", "csv", "time_zone", "source")

MOST = 10**6
"""Of a price, or of grams."""

_TIME = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)")
_CURRENCY = re.compile(r"[A-Z]{3}")


class Window(NamedTuple):
    """Hours of some weekdays with a price of their own."""

    days: tuple[int, ...]
    """On which it begins; 0 is Monday."""
    begin: int
    """Minutes after midnight."""
    end: int
    """Also of the next day, if that is not after `begin`."""
    price: Decimal

    def minutes(self) -> list[int]:
        """Return the minutes of the week that it covers; 0 is Monday's first."""
        length = (self.end - self.begin) % MINUTES or MINUTES
        return [(day * MINUTES + self.begin + minute) % WEEK for day, minute in product(self.days, range(length))]


@dataclass(frozen=True, kw_only=True)
class Tariff:
    """What a kilowatt hour costs, by the time of the week or by a file."""

    currency: str
    """As ISO 4217 has it."""
    price: Decimal | None = None
    """Outside windows."""
    windows: tuple[Window, ...] = ()
    csv: Path | None = None
    time_zone: ZoneInfo | None = None
    """Of windows, and of times in the file that do not say theirs; None is that of the machine."""

    @cached_property
    def week(self) -> list[Decimal | None]:
        """The price in each minute of the week; 0 is Monday's first."""
        prices = [self.price] * WEEK
        for window in self.windows:
            for minute in window.minutes():
                prices[minute] = window.price
        return prices


@dataclass(frozen=True, kw_only=True)
class Carbon:
    """The grams of CO2 equivalent of a kilowatt hour: always the same, or by a file."""

    grams: Decimal | None = None
    csv: Path | None = None
    time_zone: ZoneInfo | None = None
    source: str
    """Who says so."""


def parse_tariff(written: object) -> Tariff:
    """Parse the value in the configuration. Raises WrongPartError."""
    values = _mapping(written, TARIFF_KEYS)
    currency = values.get("currency")
    if not isinstance(currency, str) or not _CURRENCY.fullmatch(currency):
        raise WrongPartError(["currency"], "expected three letters, such as EUR")
    windows = values.get("windows", [])
    if not isinstance(windows, list):
        raise WrongPartError(["windows"], "expected a list")
    tariff = Tariff(
        currency=currency,
        price=_number(values["price"], ["price"]) if "price" in values else None,
        windows=tuple(_window(window, number) for number, window in enumerate(windows)),
        csv=_file(values),
        time_zone=_time_zone(values),
    )
    if tariff.csv and (tariff.windows or tariff.price is not None):
        raise WrongPartError(["csv"], "expected either this, or price and windows")
    if not tariff.csv:
        _check_week(tariff)
    return tariff


def parse_carbon(written: object) -> Carbon:
    """Parse the value in the configuration. Raises WrongPartError."""
    values = _mapping(written, CARBON_KEYS)
    if ("grams_per_kwh" in values) == ("csv" in values):
        raise WrongPartError([], "expected either grams_per_kwh or csv")
    source = values.get("source")
    if not isinstance(source, str) or not source.isprintable() or not source:
        raise WrongPartError(["source"], "expected a text that says whose figure it is")
    grams = _number(values["grams_per_kwh"], ["grams_per_kwh"]) if "grams_per_kwh" in values else None
    return Carbon(grams=grams, csv=_file(values), time_zone=_time_zone(values), source=source)


def _mapping(written: object, keys: tuple[str, ...]) -> Mapping[str, object]:
    if not isinstance(written, Mapping):
        raise WrongPartError([], f"expected a mapping with {', '.join(keys)}")
    for key in written:
        if str(key).isdecimal():  # YAML takes `{price: 0,31}` for two keys
            raise WrongPartError([], f"{key} is no key; a number has a decimal point, not a comma")
        if key not in keys:
            raise WrongPartError([key], f"expected one of {', '.join(keys)}")
    return written


def _number(written: object, where: list[str | int]) -> Decimal:
    number = Decimal("NaN")
    if isinstance(written, int | float | str):
        with contextlib.suppress(InvalidOperation):
            number = Decimal(str(written))
    if number.is_nan():
        raise WrongPartError(where, "expected a number with a decimal point, such as 0.31")
    if number.copy_abs() > MOST:
        raise WrongPartError(where, f"expected a number of at most {MOST}")
    return number


def _file(values: Mapping[str, object]) -> Path | None:
    if "csv" not in values:
        return None
    file = values["csv"]
    if not isinstance(file, str) or not file.startswith("/") or not file.isprintable():
        raise WrongPartError(["csv"], "expected the absolute path of a file")
    return Path(file)


def _time_zone(values: Mapping[str, object]) -> ZoneInfo | None:
    if "time_zone" not in values:
        return None
    try:
        return ZoneInfo(str(values["time_zone"]))
    except (KeyError, OSError, ValueError):
        raise WrongPartError(["time_zone"], "expected a time zone such as Europe/Berlin") from None


def _window(written: object, number: int) -> Window:
    where: list[str | int] = ["windows", number]
    try:
        values = _mapping(written, WINDOW_KEYS)
        for key in ("from", "to", "price"):
            if key not in values:
                raise WrongPartError([], f"{key} is missing")
        window = Window(
            days=_days(values.get("days", "mon-sun")),
            begin=_minutes(values["from"], "from") % MINUTES,
            end=_minutes(values["to"], "to"),
            price=_number(values["price"], ["price"]),
        )
        if all(minute % QUARTER for minute in window.minutes()):
            raise WrongPartError([], "no quarter of an hour begins in it, and each has the price of its beginning")
    except WrongPartError as error:
        raise WrongPartError([*where, *error.where], error.problem) from None
    return window


def _minutes(written: object, key: Literal["from", "to"]) -> int:
    if isinstance(written, str) and (found := _TIME.fullmatch(written)):
        minutes = int(found[1]) * 60 + int(found[2])
        if minutes <= MINUTES:
            return minutes
    raise WrongPartError([key], "expected a time such as 22:00")


def _days(written: object) -> tuple[int, ...]:
    items = written if isinstance(written, list) else [written]
    spans = [(first, last or first) for first, _, last in (str(item).lower().partition("-") for item in items)]
    if not spans or not {day for span in spans for day in span} <= set(WEEKDAYS):
        raise WrongPartError(["days"], f"expected days such as mon-fri, or a list of {', '.join(WEEKDAYS)}")
    days: set[int] = set()
    for begin, end in ((WEEKDAYS.index(first), WEEKDAYS.index(last)) for first, last in spans):
        days |= {day % 7 for day in range(begin, end + 1 + (7 if end < begin else 0))}
    return tuple(sorted(days))


def _check_week(tariff: Tariff) -> None:
    """Raise WrongPartError if two windows overlap, or a minute of the week has no price."""
    taken: dict[int, int] = {}
    for number, window in enumerate(tariff.windows):
        for minute in window.minutes():
            if taken.setdefault(minute, number) != number:
                raise WrongPartError(
                    ["windows", number], f"it overlaps with windows[{taken[minute]}] at {moment_of_week(minute)}"
                )
    if None in tariff.week:
        raise WrongPartError([], f"there is no price at {moment_of_week(tariff.week.index(None))}: set `price`")


def moment_of_week(minute: int) -> str:
    """Return a minute of the week in words: `tue 08:15`."""
    day, rest = divmod(minute, MINUTES)
    return f"{WEEKDAYS[day]} {rest // 60:02}:{rest % 60:02}"
