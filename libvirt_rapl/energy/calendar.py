"""Hours, days, weeks and months of local time, whatever its offset does within them. Pure.

Instants are in seconds since the epoch.
"""

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Literal

Span = Literal["hour", "day", "week", "month"]


def edges(span: Span, since: int, until: int) -> Iterator[int]:
    """Yield where such spans begin after `since` and before `until`."""
    begin = first(span, since)
    while begin < until:
        if begin > since:
            yield begin
        begin = following(span, begin)


def first(span: Span, instant: int) -> int:
    """Return when the span began that an instant is in."""
    local = datetime.fromtimestamp(instant)
    if span == "hour":
        return (
            instant - local.minute * 60 - local.second
        )  # by the offset that is valid now: that hour may be there twice
    return midnight(_day(span, local.date()))


def following(span: Span, begin: int) -> int:
    """Return when the span ends that begins then."""
    if span == "hour":
        return begin + 3600
    day = datetime.fromtimestamp(begin).date()
    days = {"day": 1, "week": 7, "month": 31}[span]
    return midnight(_day(span, day + timedelta(days=days)))


def label(span: Span, instant: int) -> str:
    """Return the name of the span that an instant is in."""
    local = datetime.fromtimestamp(first(span, instant)).astimezone()
    match span:
        case "hour":
            return local.isoformat(timespec="minutes")
        case "day":
            return local.date().isoformat()
        case "week":
            year, week, _ = local.isocalendar()
            return f"{year}-W{week:02}"
        case "month":
            return f"{local:%Y-%m}"


def midnight(day: date) -> int:
    """Return when a day begins."""
    return int(datetime(day.year, day.month, day.day).timestamp())


def _day(span: Span, day: date) -> date:
    """Return the first day of the span that a day is in."""
    match span:
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
    return day
