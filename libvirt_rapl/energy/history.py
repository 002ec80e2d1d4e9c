"""The ledger's history: how much each total has grown, in buckets of 15 minutes, then an hour, then a day (UTC).

A write of the ledger adds the growth of its totals to the buckets of the time in which it was metered, in the same
transaction: both lose the same when the process dies, and nothing is counted twice. For each part there is always

    what it had when its history began (its opening) + its history = its total

A clock that is set changes in which bucket energy is found, never how much there is. In each bucket a zone's history of
the host is that of domains, other and idle together.

Energies are in microjoules, times in seconds since the epoch.
"""

import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from libvirt_rapl.choices import KeepHistory
from libvirt_rapl.energy.snapshot import GONE, HOST, PACKAGE, Part, Totals

QUARTER, HOUR, DAY = 900, 3600, 86400
GAP_SECONDS = 10.0
"""What is shorter, such as a restart of the daemon, is no gap."""

TABLES = (
    "ALTER TABLE ledger ADD COLUMN written REAL NOT NULL DEFAULT 0",
    """CREATE TABLE part (
        id INTEGER PRIMARY KEY, owner TEXT NOT NULL, zone TEXT NOT NULL,
        opening INTEGER NOT NULL CHECK (typeof(opening) = 'integer'),
        UNIQUE (owner, zone)
    )""",
    """INSERT INTO part (owner, zone, opening)
        SELECT owner, zone, microjoules FROM total WHERE vcpu = -1 AND zone <> 'package'""",
    """CREATE TABLE history (
        seconds INTEGER NOT NULL, start INTEGER NOT NULL, part INTEGER NOT NULL,
        microjoules INTEGER NOT NULL CHECK (typeof(microjoules) = 'integer' AND microjoules > 0),
        PRIMARY KEY (seconds, start, part)
    ) WITHOUT ROWID""",
    """CREATE TABLE lost (
        start INTEGER NOT NULL, zone TEXT NOT NULL, intervals INTEGER NOT NULL, PRIMARY KEY (start, zone)
    ) WITHOUT ROWID""",
    "CREATE TABLE gap (since REAL NOT NULL, until REAL NOT NULL, reason TEXT NOT NULL)",
    """CREATE TABLE identity (
        uuid TEXT NOT NULL, since REAL NOT NULL, name TEXT NOT NULL, title TEXT NOT NULL, labels TEXT NOT NULL,
        PRIMARY KEY (uuid, since)
    ) WITHOUT ROWID""",
    "CREATE TABLE metering (since REAL NOT NULL, model TEXT NOT NULL, source TEXT NOT NULL)",
)
"""How a ledger gets its history, which begins with its totals as they are."""

Reason = Literal["daemon", "host", "clock", "off"]
"""Why nothing is known of a time: virt-rapld did not run, nor did the host, the host's clock was set forward, or the
configuration said `history: off`."""


class Identity(NamedTuple):
    """What a domain is called."""

    name: str
    title: str = ""
    labels: Mapping[str, str] = {}
    """By the names that the configuration gives them."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The circumstances of a write."""

    now: float = field(default_factory=time.time)
    booted: float = 0.0
    """When the host was started."""
    first: bool = False
    """Whether this process has not written before."""
    model: str = ""
    """How energy was attributed, and its source."""
    source: str = ""
    lost: Mapping[str, int] = field(default_factory=dict)
    """In how many intervals the count of a zone was lost since the write before, by zone."""
    domains: Mapping[str, Identity] = field(default_factory=dict)
    """By UUID."""


Energies = defaultdict[tuple[str, str], int]
"""By owner and zone."""


def record(
    database: sqlite3.Connection,
    before: Totals,
    after: Totals,
    retired: Collection[str],
    seconds: float,
    moment: Moment,
    keep: KeepHistory,
) -> None:
    """Add the growth of totals to the buckets of the `seconds` before the moment, in which it was metered.

    `before` are the totals in the ledger, `after` those that are written now. Where history is off, openings grow
    instead; so they do in a new file that is written from memory, because the old one was damaged.
    """
    (written,) = database.execute("SELECT written FROM ledger").fetchone()
    begin = moment.now - seconds
    growth, openings = _changes(before, after, retired)
    _open(database, openings)
    if keep.on and (written or moment.first):
        _add(database, divided(growth, shares(begin, moment.now)))
        _note_lost(database, moment)
    else:
        _open(database, growth)
    if written:
        _note_gap(database, written, begin, moment, keep)
    _note_names(database, moment)
    if keep.on and written // QUARTER != moment.now // QUARTER:
        compact(database, moment.now, keep)
    database.execute("UPDATE ledger SET written = ?", (moment.now,))


def _changes(before: Totals, after: Totals, retired: Collection[str]) -> tuple[Energies, Energies]:
    """Return by how much history and openings change.

    What retired domains had becomes GONE's opening. Their own history stays, and their openings are lowered so that
    what is left of their total is right: nothing, or what a new domain of that UUID has used.
    """
    growth: Energies = defaultdict(int)
    openings: Energies = defaultdict(int)
    for part, microjoules in before.items():
        if part.owner in retired and _has_history(part):
            openings[part.owner, part.zone] -= microjoules
            openings[GONE, part.zone] += microjoules
    for part, total in after.items():
        if _has_history(part):
            known = 0 if part.owner in retired else before.get(part, 0)
            if part.owner == GONE:
                known += openings[GONE, part.zone]
            growth[part.owner, part.zone] = max(0, total - known)  # the ledger lets no total go back
    return growth, openings


def _has_history(part: Part) -> bool:
    """Return whether it is of a zone; a whole, which vCPUs share, is that of its packages."""
    return part.zone != PACKAGE


def shares(begin: float, end: float) -> list[tuple[int, int]]:
    """Return the buckets that this time is in, and how many of its milliseconds have passed when each ends."""
    first, last = int(min(begin, end) // QUARTER), int(end // QUARTER)
    return [
        (number * QUARTER, round((min(end, (number + 1) * QUARTER) - begin) * 1000) or 1)
        for number in range(first, last + 1)
    ]


def divided(growth: Energies, buckets: list[tuple[int, int]]) -> Iterator[tuple[int, str, str, int]]:
    """Yield how much of each growth belongs to each bucket: the bucket's start, owner, zone and energy.

    Rounding loses nothing, and in each bucket the host has what the others have together.
    """
    whole = buckets[-1][1]
    given: Energies = defaultdict(int)
    for start, passed in buckets:
        by_now: Energies = defaultdict(int)
        for (owner, zone), microjoules in growth.items():
            if owner != HOST:
                by_now[owner, zone] = microjoules * passed // whole
                by_now[HOST, zone] += by_now[owner, zone]
        for (owner, zone), microjoules in by_now.items():
            if microjoules > given[owner, zone]:
                yield start, owner, zone, microjoules - given[owner, zone]
        given = by_now


def _open(database: sqlite3.Connection, openings: Energies) -> None:
    """Let openings grow by this."""
    rows = [(owner, zone, microjoules) for (owner, zone), microjoules in openings.items() if microjoules]
    database.executemany(
        """INSERT INTO part (owner, zone, opening) VALUES (?, ?, ?)
        ON CONFLICT DO UPDATE SET opening = opening + excluded.opening""",
        rows,
    )


def _add(database: sqlite3.Connection, energies: Iterable[tuple[int, str, str, int]]) -> None:
    """Add energies to quarters of an hour: their start, owner, zone and energy."""
    rows = [(QUARTER, start, microjoules, owner, zone) for start, owner, zone, microjoules in energies]
    new = "INSERT OR IGNORE INTO part (owner, zone, opening) VALUES (?, ?, 0)"
    database.executemany(new, [(owner, zone) for *_, owner, zone in rows])
    database.executemany(
        """INSERT INTO history SELECT ?, ?, id, ? FROM part WHERE owner = ? AND zone = ?
        ON CONFLICT DO UPDATE SET microjoules = microjoules + excluded.microjoules""",
        rows,
    )


def _note_lost(database: sqlite3.Connection, moment: Moment) -> None:
    start = int(moment.now // QUARTER) * QUARTER
    database.executemany(
        """INSERT INTO lost VALUES (?, ?, ?)
        ON CONFLICT DO UPDATE SET intervals = intervals + excluded.intervals""",
        [(start, zone, intervals) for zone, intervals in moment.lost.items() if intervals],
    )


def _note_gap(database: sqlite3.Connection, written: float, begin: float, moment: Moment, keep: KeepHistory) -> None:
    """Note that nothing is known from the last write until `begin`, or if history is off, until now."""
    if not keep.on:
        more = "UPDATE gap SET until = ? WHERE until = ? AND reason = 'off'"
        if database.execute(more, (moment.now, written)).rowcount == 0:
            database.execute("INSERT INTO gap VALUES (?, ?, 'off')", (written, moment.now))
    elif begin - written > GAP_SECONDS:
        reason: Reason = "clock" if not moment.first else "host" if moment.booted > written else "daemon"
        database.execute("INSERT INTO gap VALUES (?, ?, ?)", (written, begin, reason))


def _note_names(database: sqlite3.Connection, moment: Moment) -> None:
    """Note what domains are called and how energy is metered, where that has changed."""
    latest = "SELECT name, title, labels FROM identity WHERE uuid = ? ORDER BY since DESC LIMIT 1"
    for uuid, (name, title, labels) in moment.domains.items():
        names = (name, title, json.dumps(dict(labels), sort_keys=True))
        if names != database.execute(latest, (uuid,)).fetchone():
            database.execute(
                "DELETE FROM identity WHERE uuid = ? AND since >= ?", (uuid, moment.now)
            )  # a clock was wrong
            database.execute("INSERT INTO identity VALUES (?, ?, ?, ?, ?)", (uuid, moment.now, *names))
    how = (moment.model, moment.source)
    if how != database.execute("SELECT model, source FROM metering ORDER BY rowid DESC LIMIT 1").fetchone():
        database.execute("INSERT INTO metering VALUES (?, ?, ?)", (moment.now, *how))


def compact(database: sqlite3.Connection, now: float, keep: KeepHistory) -> None:
    """Add up what is older than `keep` says: quarters of an hour to hours, and those to days.

    A day of it at most, so that no write takes long.
    """
    for seconds, coarser, days in ((QUARTER, HOUR, keep.quarter_hours), (HOUR, DAY, keep.hours)):
        (first,) = database.execute("SELECT min(start) FROM history WHERE seconds = ?", (seconds,)).fetchone()
        if first is None:
            continue
        until = min(int((now - days * DAY) // coarser) * coarser, first - first % DAY + DAY)
        database.execute(
            """INSERT INTO history
            SELECT :coarser, start - start % :coarser, part, sum(microjoules) FROM history
            WHERE seconds = :seconds AND start < :until GROUP BY 2, 3
            ON CONFLICT DO UPDATE SET microjoules = microjoules + excluded.microjoules""",
            {"seconds": seconds, "coarser": coarser, "until": until},
        )
        database.execute("DELETE FROM history WHERE seconds = ? AND start < ?", (seconds, until))
