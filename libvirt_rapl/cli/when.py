"""Times as people write them, for options such as --since."""

import argparse
import re
import time
from datetime import date, datetime, timedelta

from libvirt_rapl.energy.calendar import midnight
from libvirt_rapl.errors import VirtRaplError

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
FIRST_YEAR, LAST_YEAR = 1970, 9998
"""Python's years end with 9999, and a report looks for the day after."""

HELP = (
    "a date or local time (2026-01-31, 2026-01-31T12:00), how long ago (90s, 10m, 2h, 7d, 4w), or where one of these "
    "begins: today, yesterday, this or last week, month or year"
)


def instant(text: str, now: datetime | None = None) -> float:
    """Turn a time into seconds since the epoch; `now` is for tests.

    Raises ArgumentTypeError, or VirtRaplError where local time cannot be shown.
    """
    try:
        found = _instant(text, now or datetime.fromtimestamp(time.time()))
        local = datetime.fromtimestamp(found)
        if not FIRST_YEAR <= local.year <= LAST_YEAR:
            raise OverflowError
    except (ValueError, OverflowError) as error:
        message = f"{text!r} is not within the years {FIRST_YEAR} to {LAST_YEAR}"
        raise argparse.ArgumentTypeError(message) from error
    try:
        local.astimezone()
    except ValueError as error:
        raise VirtRaplError("the time zone is 24 hours or more from UTC", "correct the variable TZ") from error
    return found


def _instant(text: str, now: datetime) -> float:
    """Turn a time into seconds since the epoch.

    Raises ArgumentTypeError, or ValueError or OverflowError if it is too far away.
    """
    if ago := re.fullmatch(r"(\d+)([smhdw])", text):
        return now.timestamp() - float(ago[1]) * UNIT_SECONDS[ago[2]]
    if text == "now":
        return now.timestamp()
    if day := _day(" ".join(text.lower().split()), now.date()):
        return midnight(day)
    try:
        written = datetime.fromisoformat(text)
    except ValueError as error:
        is_one = re.fullmatch(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?", text)
        problem = "is no day or no time of a day" if is_one else f"is none of these: {HELP}"
        raise argparse.ArgumentTypeError(f"{text!r} {problem}") from error
    return written.timestamp()


def _day(text: str, today: date) -> date | None:
    """Return the day on which that begins; None for other words."""
    monday, month, year = today - timedelta(days=today.weekday()), today.replace(day=1), today.replace(month=1, day=1)
    days = {
        "today": today,
        "yesterday": today - timedelta(days=1),
        "this week": monday,
        "last week": monday - timedelta(days=7),
        "this month": month,
        "last month": (month - timedelta(days=1)).replace(day=1),
        "this year": year,
        "last year": year.replace(year=year.year - 1),
    }
    return days.get(text)
