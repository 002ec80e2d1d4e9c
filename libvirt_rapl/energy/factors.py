"""The price and the CO2 of a kilowatt hour at any time: from the configuration, or a CSV file of time,value.

A row of a file is valid until the next one. Where rows are missing, nothing is known: neither 0 nor the value before.
That they are is seen by the distances before and after, because a file may change from hours to quarters of an hour.
"""

import csv
import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.tariff import MINUTES, MOST, Carbon, Tariff

_NUMBER = re.compile(r"-?[0-9]{1,24}(\.[0-9]{1,24})?")
LONGER = 1.12
"""Rows are missing where a distance is more than so many times the usual one. A day may be 1.087 times another."""
LONGEST_DAY = 25 * 3600.0
"""Seconds. Distances that are longer are those of a list of changes, which has no usual one."""

Factor = Callable[[int], Decimal | None]
"""Returns what is valid at a time, in seconds since the epoch; None if that is not known."""


class Row(NamedTuple):
    """A value that is valid from `since` to `until`, in seconds since the epoch."""

    since: float
    until: float
    value: Decimal


def price(tariff: Tariff) -> Factor:
    """Return the price of a kilowatt hour by time. Raises VirtRaplError if its file cannot be used."""
    if tariff.csv:
        return _by_row(read_rows(tariff.csv, tariff.time_zone))

    def at(instant: int) -> Decimal | None:
        local = datetime.fromtimestamp(instant, tariff.time_zone)
        return tariff.week[local.weekday() * MINUTES + local.hour * 60 + local.minute]

    return at


def grams(carbon: Carbon) -> Factor:
    """Return the grams of CO2 of a kilowatt hour by time. Raises VirtRaplError if its file cannot be used."""
    if carbon.csv:
        return _by_row(read_rows(carbon.csv, carbon.time_zone, "grams"))
    return lambda _: carbon.grams


def _by_row(rows: list[Row]) -> Factor:
    starts = [row.since for row in rows]

    def at(instant: int) -> Decimal | None:
        number = bisect_right(starts, instant) - 1
        return rows[number].value if number >= 0 and instant < rows[number].until else None

    return at


def read_rows(path: Path, time_zone: ZoneInfo | None, what: str = "price") -> list[Row]:
    """Read a file; its first line may be the heading time,WHAT. Raises VirtRaplError with file and line."""
    rows = list(_values(path, time_zone, what))
    if not rows:
        raise VirtRaplError(f"{path}: there is no row of time,value in it", f"correct {path}")
    distances = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(rows)]
    return [
        Row(since, since + seconds, value) for (since, value), seconds in zip(rows, _validity(distances), strict=True)
    ]


def _validity(distances: list[float]) -> list[float]:
    """Return for how many seconds each row is valid, by the distances between them."""
    valid: list[float] = []
    for number, distance in enumerate(distances):
        usual = max(distances[max(0, number - 1) : number] + distances[number + 1 : number + 2], default=distance)
        rows_are_missing = usual <= LONGEST_DAY and distance > LONGER * usual
        valid.append(usual if rows_are_missing else distance)
    return [*valid, valid[-1] if valid else math.inf]


def _values(path: Path, time_zone: ZoneInfo | None, what: str) -> Iterator[tuple[float, Decimal]]:
    before = float("-inf")
    for line, fields in _lines(path):
        place = f"{path}:{line}"
        if len(fields) != 2:
            raise VirtRaplError(f"{place}: expected time,value, found {len(fields)} fields", f"correct {place}")
        if line == 1 and not any(sign.isdigit() for sign in "".join(fields)):
            if fields != ["time", what]:
                raise VirtRaplError(f"{place}: expected the heading time,{what}", f"correct {place}")
            continue
        since = _instant(fields[0], time_zone, before, place)
        if since == before:
            raise VirtRaplError(f"{place}: {fields[0]} is there twice", "keep one of the two rows")
        if since < before:
            raise VirtRaplError(f"{place}: {fields[0]} is not later than the row before", f"sort the rows of {path}")
        if not _NUMBER.fullmatch(fields[1]):
            raise VirtRaplError(f"{place}: expected a number such as 0.31, found {fields[1]!r}", f"correct {place}")
        value = Decimal(fields[1])
        if value.copy_abs() > MOST:
            raise VirtRaplError(f"{place}: expected a number of at most {MOST}, found {value}", f"correct {place}")
        before = since
        yield since, value


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line that is not empty. Raises VirtRaplError."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe without a writer would never end
            raise VirtRaplError(f"{path} is not a regular file", "correct the path in the configuration")
        text = path.read_bytes().decode()
    except PermissionError as error:
        hint = "run the command as root, or let others read the file and search its directory"
        raise VirtRaplError(f"cannot read {path}: {error.strerror}", hint) from error
    except OSError as error:
        raise VirtRaplError(f"cannot read {path}: {error.strerror}", "correct the path in the configuration") from error
    except UnicodeDecodeError as error:
        place = f"{path}:{1 + error.object[: error.start].count(10)}"
        raise VirtRaplError(f"{place}: not UTF-8", f"correct {place}") from error
    if text.startswith("\ufeff"):
        raise VirtRaplError(f"{path}:1: it begins with a byte order mark", f"sed -i '1s/^\\xef\\xbb\\xbf//' {path}")
    try:
        reader = csv.reader(text.splitlines(), strict=True)
        for fields in reader:
            if fields:
                yield reader.line_num, [field.strip() for field in fields]
    except csv.Error as error:
        raise VirtRaplError(f"{path}:{reader.line_num}: {error}", f"correct {path}") from error


def _instant(text: str, time_zone: ZoneInfo | None, before: float, place: str) -> float:
    """Return a time of a row, in seconds since the epoch.

    When clocks are set back, an hour without an offset is there twice: the second time it is the later one.
    """
    try:
        time = datetime.fromisoformat(text)
        local = time if time.tzinfo else time.replace(tzinfo=time_zone)
        first = local.timestamp()
        shown = datetime.fromtimestamp(first, local.tzinfo)
    except (ValueError, OverflowError):  # also for a year that is too far away
        raise VirtRaplError(
            f"{place}: expected a time such as 2026-11-01T13:00 or 2026-11-01T13:00+01:00, found {text!r}",
            f"correct {place}",
        ) from None
    if shown.replace(tzinfo=None) != time.replace(tzinfo=None):
        hint = f"correct {place}; a time with its offset, such as 2026-11-01T13:00+01:00, always exists"
        raise VirtRaplError(f"{place}: {text} does not exist: clocks were set forward then", hint)
    return first if first > before else local.replace(fold=1).timestamp()
