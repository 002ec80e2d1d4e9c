"""A report: what was used in a time, by domain, project, zone or span of time, with its cost and CO2.

Energies are in microjoules. What domains, other and idle have is together what the packages of the host counted, in
every report; costs and grams are added up bucket by bucket, with what was valid when a quarter of an hour began, or on
average in a bucket that is longer.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from itertools import pairwise
from typing import Literal, NamedTuple, Self, get_args

from libvirt_rapl.energy import calendar
from libvirt_rapl.energy.calendar import Span
from libvirt_rapl.energy.extract import History, Known, Name, Slot
from libvirt_rapl.energy.factors import Factor
from libvirt_rapl.energy.history import QUARTER
from libvirt_rapl.energy.snapshot import GONE, HOST, IDLE, OTHER
from libvirt_rapl.errors import printable

By = Literal["domain", "project", "zone", "hour", "day", "week", "month", "total"]
PER_KWH = 3_600_000_000_000
"""Microjoules in a kilowatt hour."""
PROJECT = "project"
"""The label that `--by project` goes by."""
NO_PROJECT = "(no project)"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a report is about."""

    since: int
    """In seconds since the epoch; as `until`, at the beginning of a quarter of an hour."""
    until: int
    by: tuple[By, ...]
    """One or two."""
    uuids: frozenset[str] = frozenset()
    """Domains whose rows are wanted; all if there is none."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What a kilowatt hour costs and stands for."""

    price: Factor | None = None
    currency: str = ""
    grams: Factor | None = None
    pue: Decimal = Decimal(1)
    """Cost and grams are multiplied by it."""

    def over(self, width: int) -> Self:
        """Return them as they are for buckets of this width, by the bucket's start: the mean over its time."""
        if width == QUARTER:
            return self
        return replace(
            self,
            price=_mean(self.price, width) if self.price else None,
            grams=_mean(self.grams, width) if self.grams else None,
        )


@dataclass
class Amount:
    """Energy, and what it costs and stands for."""

    microjoules: int = 0
    cost: Decimal | None = Decimal(0)
    """None where the price of a part of it is not known."""
    grams: Decimal | None = Decimal(0)

    def add(self, microjoules: int, price: Decimal | None, grams: Decimal | None) -> None:
        """Add energy with the price and the grams of its kilowatt hours."""
        self.microjoules += microjoules
        if microjoules:
            self.cost = None if price is None or self.cost is None else self.cost + price * microjoules / PER_KWH
            self.grams = None if grams is None or self.grams is None else self.grams + grams * microjoules / PER_KWH

    @property
    def joules(self) -> float:
        """The energy in joules."""
        return self.microjoules / 1_000_000

    @property
    def kwh(self) -> float:
        """The energy in kilowatt hours."""
        return self.microjoules / PER_KWH


class Key(NamedTuple):
    """What a row is about, as far as the question goes by it."""

    time: str = ""
    order: int = 0
    """When that time begins."""
    what: str = ""
    """A domain's UUID, a project or a zone."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row; `key` and `amount.microjoules` are of domains, whatever the row is about."""

    key: tuple[str, ...]
    """In the order of the question."""
    uuid: str = ""
    """Of the domain, in rows by domain."""
    amount: Amount
    share: float | None
    """Part of what the host used in the row's time; None if that is nothing."""


@dataclass(frozen=True, kw_only=True)
class ZoneEnergy:
    """What a zone counted, and whose it was, in microjoules."""

    name: str
    counted: int
    domains: int
    other: int
    idle: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is shown."""

    question: Question
    factors: Factors
    known: Known
    rows: Sequence[Row]
    host: Amount
    domains: Amount
    """All domains, whichever rows are wanted."""
    other: Amount
    idle: Amount
    zones: Sequence[ZoneEnergy]
    """Empty unless the question goes by zone."""
    unpriced: Sequence[tuple[int, int]]
    """When the host used energy and its price was not known."""
    ungraded: Sequence[tuple[int, int]]
    """The same for grams."""

    def shown_keys(self) -> list[tuple[str, ...]]:
        """Return the keys of the rows as people tell them apart: domains of one name have their UUIDs beside it."""
        if "domain" not in self.question.by:
            return [row.key for row in self.rows]
        place = self.question.by.index("domain")
        uuids: dict[str, set[str]] = {}
        for row in self.rows:
            uuids.setdefault(printable(row.key[place]), set()).add(row.uuid)
        return [
            (*row.key[:place], with_uuid(name, row.uuid) if len(uuids[name]) > 1 else name, *row.key[place + 1 :])
            for row, name in ((row, printable(row.key[place])) for row in self.rows)
        ]


def with_uuid(name: str, uuid: str) -> str:
    """Return a name with the beginning of the UUID."""
    return f"{name} ({uuid[:8]})"


def make(history: History, question: Question, factors: Factors) -> Report:
    """Make a report. Raises DamagedError if the history cannot be read."""
    known = history.known(question.since, question.until)
    sums = _Sums(question, known)
    for width in known.widths:
        valid = factors.over(width)
        between = edges(question, valid, known, width)
        for slot in history.slots(between, width, packages_only="zone" not in question.by):
            sums.add(slot, valid, first_bucket(slot.since, width))
    return sums.report(factors)


def first_bucket(since: int, width: int) -> int:
    """Return when the first bucket begins whose middle is not before `since`."""
    return -(-(since - width // 2) // width) * width


def edges(question: Question, factors: Factors, known: Known, width: int) -> list[int]:
    """Return the times between which nothing changes that makes a difference to buckets of this width."""
    since = max(question.since, min(question.until, (known.begin or 0) // width * width))
    found = {since, question.until}
    for by in question.by:
        if by in get_args(Span):
            found.update(calendar.edges(by, since, question.until))  # type: ignore[arg-type]
        elif by == "project":
            found.update(
                int(name.since // QUARTER) * QUARTER
                for names in known.names.values()
                for before, name in pairwise(names)
                if before.labels.get(PROJECT) != name.labels.get(PROJECT)
            )
    for factor in filter(None, (factors.price, factors.grams)):
        buckets = [(start, factor(start)) for start in range(first_bucket(since, width), question.until, width)]
        found.update(start for (_, before), (start, value) in pairwise(buckets) if before != value)
    return sorted(each for each in found if since <= each <= question.until)


class _Sums:
    """Adds up the slots of a report."""

    def __init__(self, question: Question, known: Known) -> None:
        self._question = question
        self._known = known
        self._rows: dict[Key, Amount] = {}
        self._hosts: dict[str, int] = {}
        """What the host used in the time of a row, by that time."""
        self._amounts = {owner: Amount() for owner in (HOST, OTHER, IDLE, "domains")}
        self._zones: dict[str, dict[str, int]] = {}
        self._unpriced: list[tuple[int, int]] = []
        self._ungraded: list[tuple[int, int]] = []

    def add(self, slot: Slot, factors: Factors, bucket: int) -> None:
        """Add a slot, whose first bucket begins at `bucket`, and whose factors are those of that."""
        price = _valid(factors.price, bucket, factors.pue)
        grams = _valid(factors.grams, bucket, factors.pue)
        time, order = self._time(slot.since)
        for (owner, zone), microjoules in slot.energy.items():
            is_domain = owner not in (HOST, OTHER, IDLE)
            whose = "domains" if is_domain else owner
            parts = self._zones.setdefault(zone, dict.fromkeys(self._amounts, 0))
            parts[whose] += microjoules
            if not zone.startswith("package-"):
                continue
            self._amounts[whose].add(microjoules, price, grams)
            if owner == HOST:
                self._hosts[time] = self._hosts.get(time, 0) + microjoules
            elif is_domain and (not self._question.uuids or owner in self._question.uuids):
                key = Key(time, order, self._what(owner, zone, slot.since))
                self._rows.setdefault(key, Amount()).add(microjoules, price, grams)
        if any(owner == HOST for owner, _ in slot.energy):
            if factors.price and price is None:
                _extend(self._unpriced, slot)
            if factors.grams and grams is None:
                _extend(self._ungraded, slot)

    def _time(self, since: int) -> tuple[str, int]:
        for by in self._question.by:
            if by in get_args(Span):
                return calendar.label(by, since), calendar.first(by, since)  # type: ignore[arg-type]
        return "", 0

    def _what(self, owner: str, zone: str, since: int) -> str:
        if "domain" in self._question.by:
            return owner
        if "project" in self._question.by:
            name = name_at(self._known, owner, since + QUARTER)
            return (name and name.labels.get(PROJECT)) or NO_PROJECT
        return zone if "zone" in self._question.by else ""

    def report(self, factors: Factors) -> Report:
        by_energy = sorted(self._rows.items(), key=lambda item: (item[0].order, -item[1].microjoules, item[0].what))
        return Report(
            question=self._question,
            factors=factors,
            known=self._known,
            rows=[self._row(key, amount) for key, amount in by_energy],
            host=self._amounts[HOST],
            domains=self._amounts["domains"],
            other=self._amounts[OTHER],
            idle=self._amounts[IDLE],
            zones=[
                ZoneEnergy(
                    name=zone, counted=parts[HOST], domains=parts["domains"], other=parts[OTHER], idle=parts[IDLE]
                )
                for zone, parts in sorted(self._zones.items())
                if "zone" in self._question.by
            ],
            unpriced=self._unpriced,
            ungraded=self._ungraded,
        )

    def _row(self, key: Key, amount: Amount) -> Row:
        is_domain = "domain" in self._question.by
        what = self._called(key.what) if is_domain else key.what
        parts = [key.time if by in get_args(Span) else "total" if by == "total" else what for by in self._question.by]
        host = self._hosts.get(key.time, 0)
        return Row(
            key=tuple(parts),
            uuid=key.what if is_domain else "",
            amount=amount,
            share=amount.microjoules / host if host else None,
        )

    def _called(self, uuid: str) -> str:
        """Return what a domain was called at the end of the report's time."""
        if uuid == GONE:
            return "(gone)"
        name = name_at(self._known, uuid, self._question.until)
        return name.name if name else uuid


def name_at(known: Known, uuid: str, instant: int) -> Name | None:
    """Return what a domain was called shortly before an instant, or if that is not known, later."""
    names = known.names.get(uuid, [])
    number = bisect_right([name.since for name in names], instant) - 1
    return names[max(0, number)] if names else None


def _mean(factor: Factor, width: int) -> Factor:
    """Return a factor whose value is the mean over `width` seconds from then on; None if it is not known of all."""

    @cache
    def mean(start: int) -> Decimal | None:
        values = [factor(quarter) for quarter in range(start, start + width, QUARTER)]
        known = [value for value in values if value is not None]
        return sum(known, Decimal(0)) / len(known) if len(known) == len(values) else None

    return mean


def _valid(factor: Factor | None, instant: int, pue: Decimal) -> Decimal | None:
    value = factor(instant) if factor else None
    return None if value is None else value * pue


def _extend(times: list[tuple[int, int]], slot: Slot) -> None:
    """Add a slot's time to those before it."""
    if times and times[-1][1] == slot.since:
        times[-1] = (times[-1][0], slot.until)
    else:
        times.append((slot.since, slot.until))
