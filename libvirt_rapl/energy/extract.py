"""What a report needs of the ledger's history: the energy of each slot of time, and what is known of that time.

It is read from the file, or comes as lines of JSON from virt-rapld, for those who may not open the file.
"""

import contextlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from libvirt_rapl.energy import ledger_content as content
from libvirt_rapl.energy.history import DAY, HOUR, QUARTER, Reason
from libvirt_rapl.energy.ledger import check_files
from libvirt_rapl.energy.ledger_content import SCHEMA, DamagedError
from libvirt_rapl.energy.snapshot import HOST


class OlderError(DamagedError):
    """The ledger is that of an older virt-rapld, and not damaged."""


class Name(NamedTuple):
    """What a domain was called from a time on."""

    since: float
    name: str
    title: str
    labels: Mapping[str, str]


class Gap(NamedTuple):
    """A time of which nothing is known."""

    since: float
    until: float
    reason: Reason


class Lost(NamedTuple):
    """In how many intervals of the quarter of an hour from `start` on the count of a zone was lost."""

    start: int
    zone: str
    intervals: int


class Metering(NamedTuple):
    """How energy was metered from a time on: attribution model and source."""

    since: float
    model: str
    source: str


class Slot(NamedTuple):
    """The energy of a time, in microjoules."""

    since: int
    until: int
    energy: Mapping[tuple[str, str], int]
    """By owner (a UUID, `host`, `other`, `idle` or `gone`) and name of the zone."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of the time of an extract."""

    begin: int | None
    """When history begins, in seconds since the epoch; None if there is none yet."""
    simulated: bool
    widths: Sequence[int]
    """Seconds of the kinds of buckets that there are in that time: QUARTER, HOUR, DAY."""
    names: Mapping[str, Sequence[Name]]
    """By UUID, in the order of time."""
    gaps: Sequence[Gap]
    lost: Sequence[Lost]
    metering: Sequence[Metering]

    def to_json(self) -> str:
        """Return it as a line."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return what was in to_json(), decoded. Raises ValueError, KeyError or TypeError if it is something else."""
        return cls(
            begin=values["begin"],
            simulated=values["simulated"],
            widths=values["widths"],
            names={uuid: [Name(*name) for name in names] for uuid, names in values["names"].items()},
            gaps=[Gap(*gap) for gap in values["gaps"]],
            lost=[Lost(*each) for each in values["lost"]],
            metering=[Metering(*each) for each in values["metering"]],
        )


class History(Protocol):
    """Where a report finds its energy. What it does raises DamagedError where that cannot be read."""

    def known(self, since: int, until: int) -> Known:
        """Return what is known of this time, in seconds since the epoch."""

    def slots(self, edges: Sequence[int], width: int, *, packages_only: bool) -> Iterator[Slot]:
        """Yield the energy of buckets of this width between each two edges; a bucket is where its middle is."""


@contextlib.contextmanager
def open_ledger(path: Path) -> Iterator["LedgerHistory"]:
    """Read a ledger as it is at one moment, while virt-rapld may write it. Raises OSError or DamagedError."""
    check_files(path)
    path.lstat()  # SQLite does not say why it cannot open a file
    with _as_damage(), contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        database.execute("BEGIN")
        if content.check_version(database) != SCHEMA:
            raise OlderError("it is of an older version, which virt-rapld upgrades when it starts")
        yield LedgerHistory(database)


@contextlib.contextmanager
def _as_damage() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise DamagedError(str(error)) from error


class LedgerHistory:
    """The history in a ledger that is open."""

    def __init__(self, database: sqlite3.Connection) -> None:
        """Take the connection."""
        self._database = database

    def known(self, since: int, until: int) -> Known:
        """Return what is known of this time."""
        read = self._database.execute
        _, simulated = content.origin(self._database)
        begins = [row[0] for row in read("SELECT min(start) FROM history GROUP BY seconds")]
        widths = [
            width
            for width in (QUARTER, HOUR, DAY)
            if read(
                "SELECT 1 FROM history WHERE seconds = ? AND start >= ? AND start < ? LIMIT 1",
                (width, since - width // 2, until - width // 2),
            ).fetchone()
        ]
        names: dict[str, list[Name]] = {}
        for uuid, begin, name, title, labels in read(
            "SELECT uuid, since, name, title, labels FROM identity ORDER BY uuid, since"
        ):
            names.setdefault(uuid, []).append(Name(begin, name, title, _labels(labels, uuid)))
        gaps = read("SELECT * FROM gap WHERE since < ? AND until > ? ORDER BY since", (until, since))
        lost = read("SELECT * FROM lost WHERE start < ? AND start >= ? ORDER BY start, zone", (until, since))
        return Known(
            begin=min(begins, default=None),
            simulated=simulated,
            widths=widths,
            names=names,
            gaps=[Gap(*row) for row in gaps],
            lost=[Lost(*row) for row in lost],
            metering=[
                Metering(*row) for row in read("SELECT * FROM metering WHERE since < ? ORDER BY rowid", (until,))
            ],
        )

    def slots(self, edges: Sequence[int], width: int, *, packages_only: bool) -> Iterator[Slot]:
        """Yield the energy of buckets of this width between each two edges."""
        read = self._database.execute
        parts = {number: (owner, zone) for number, owner, zone in read("SELECT id, owner, zone FROM part")}
        for since, until in pairwise(edges):
            rows = read(
                """SELECT part, sum(microjoules) FROM history
                WHERE seconds = ? AND start >= ? AND start < ?
                AND (? OR part IN (SELECT id FROM part WHERE zone LIKE 'package-%'))
                GROUP BY part""",
                (width, since - width // 2, until - width // 2, not packages_only),
            ).fetchall()
            unknown = [number for number, _ in rows if number not in parts]
            slot = Slot(since, until, {parts[number]: energy for number, energy in rows if number not in unknown})
            if unknown or (wrong := imbalance(slot)):
                raise DamagedError(f"its history is damaged: {f'part {unknown[0]} is missing' if unknown else wrong}")
            yield slot


def _labels(text: str, uuid: str) -> dict[str, str]:
    """Return the labels of a domain, which are JSON in the file. Raises DamagedError."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        labels = json.loads(text)
        if isinstance(labels, dict) and all(isinstance(value, str) for value in labels.values()):
            return labels
    raise DamagedError(f"its history is damaged: the labels of {uuid} cannot be read")


def imbalance(slot: Slot) -> str:
    """Return where a slot's energies are not those of one host; empty if they are.

    What a zone of the host has counted is what domains, other and idle have of it together.
    """
    difference: dict[str, int] = defaultdict(int)
    for (owner, zone), microjoules in slot.energy.items():
        difference[zone] += microjoules if owner == HOST else -microjoules
    wrong = [zone for zone, microjoules in difference.items() if microjoules]
    if not wrong:
        return ""
    since, until = (datetime.fromtimestamp(edge, UTC).isoformat() for edge in (slot.since, slot.until))
    return f"{wrong[0]} does not add up from {since} to {until}"
