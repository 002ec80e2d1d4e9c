"""The ledger's history: nothing is lost or counted twice, whatever happens to clock, domains, zones and process."""

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libvirt_rapl.choices import KeepHistory
from libvirt_rapl.energy import ledger_content as content
from libvirt_rapl.energy.extract import Gap, Known, Lost, Name, Slot, open_ledger
from libvirt_rapl.energy.history import DAY, HOUR, QUARTER, Identity, Moment
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.ledger_content import DamagedError
from libvirt_rapl.energy.snapshot import GONE, HOST, IDLE, OTHER, WHOLE, Kept, Part

A, B = "aaaaaaaa-0000-0000-0000-000000000000", "bbbbbbbb-0000-0000-0000-000000000000"
NOON = 1_793_620_800
"""2026-11-02T12:00:00 UTC."""
FEW_DAYS = KeepHistory(quarter_hours=1, hours=3)


class Bench:
    """A ledger, and the meter that writes it, in a machine whose clock the test sets."""

    def __init__(self, directory: Path, keep: KeepHistory = FEW_DAYS) -> None:
        self.path = directory / "ledger.db"
        self.keep = keep
        self.now = float(NOON)
        self.totals: defaultdict[Part, int] = defaultdict(int)
        self.metered = 0.0
        self.start()

    def start(self) -> None:
        """A daemon starts: what it knows is what the ledger has."""
        self.ledger = Ledger(self.path, simulated=False, log=pytest.fail, history=self.keep)
        kept = self.ledger.load()
        self.totals = defaultdict(int, kept.totals)
        self.metered = kept.metered
        self.first = True
        self.retired: set[str] = set()

    def use(self, seconds: float, energies: dict[tuple[str, str], int]) -> None:
        """Meter this energy of domains, other and idle in so many seconds."""
        self.now += seconds
        self.metered += seconds
        for (owner, zone), microjoules in energies.items():
            for whose in (owner, HOST):
                self.totals[Part(whose, WHOLE, zone)] += microjoules
            if zone.startswith("package-"):
                self.totals[Part(owner, WHOLE, "package")] += microjoules

    def retire(self, uuid: str) -> None:
        for part in [part for part in self.totals if part.owner == uuid]:
            self.totals[part._replace(owner=GONE)] += self.totals.pop(part)
            self.retired.add(uuid)

    def note(self, **circumstances: Any) -> None:  # noqa: ANN401  of a Moment
        known = Moment(now=self.now, first=self.first, **circumstances)
        assert self.ledger.note(Kept(dict(self.totals), metered=self.metered), known)

    def write(self, **circumstances: Any) -> None:  # noqa: ANN401  of a Moment
        known = Moment(now=self.now, first=self.first, **circumstances)
        assert self.ledger.write(Kept(dict(self.totals), metered=self.metered), self.retired, known)
        self.first, self.retired = False, set()

    def rows(self) -> list[tuple[int, int, str, str, int]]:
        """All buckets: seconds, start, owner, zone, energy."""
        return self.query(
            "SELECT seconds, start, owner, zone, microjoules FROM history JOIN part ON part = id ORDER BY 1, 2, 3, 4"
        )

    def query(self, sql: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            return database.execute(sql).fetchall()

    def check(self) -> None:
        """Opening + history = total, for each part; in each bucket the host has what the others have together."""
        sums: defaultdict[tuple[str, str], int] = defaultdict(int)
        for owner, zone, opening in self.query("SELECT owner, zone, opening FROM part"):
            sums[str(owner), str(zone)] += int(opening)
        balance: defaultdict[tuple[int, int, str], int] = defaultdict(int)
        for seconds, start, owner, zone, microjoules in self.rows():
            sums[owner, zone] += microjoules
            balance[seconds, start, zone] += microjoules if owner == HOST else -microjoules
            assert start % seconds == 0
        totals = self.query("SELECT owner, zone, microjoules FROM total WHERE vcpu = -1 AND zone <> 'package'")
        assert {key: value for key, value in sums.items() if value} == {
            (str(owner), str(zone)): value for owner, zone, value in totals if value
        }
        assert set(balance.values()) <= {0}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


ENERGIES = st.dictionaries(
    st.tuples(st.sampled_from([A, B, OTHER, IDLE]), st.sampled_from(["package-0", "package-1", "dram-0"])),
    st.integers(1, 10**12),
    min_size=1,
    max_size=6,
)
EVENTS = st.one_of(
    st.none(),
    st.tuples(st.just("clock is set"), st.sampled_from([-DAY, -HOUR, -7, 7, HOUR, DAY])),
    st.tuples(st.just("is suspended or off"), st.floats(0, 10 * DAY)),
    st.tuples(st.just("is killed")),
    st.tuples(st.just("retires"), st.sampled_from([A, B])),
    st.tuples(st.just("keeps"), st.sampled_from([KeepHistory(on=False), FEW_DAYS, KeepHistory(quarter_hours=0)])),
)
SECONDS = st.sampled_from([0.0, 0.5, 10.0, 600.0, 4000.0])
STEPS = st.lists(st.tuples(SECONDS, ENERGIES, EVENTS, st.booleans()), min_size=4, max_size=12)
"""How long each takes, what is used in it, what happens then, and whether it ends with a note or with rows."""


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_openings_and_history_are_the_totals(steps: list[tuple[float, Any, Any, bool]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        bench.write()
        for seconds, energies, event, noted in steps:
            kept = dict(bench.totals)
            bench.use(seconds, energies)
            match event:
                case (("clock is set" | "is suspended or off"), time_passes):
                    bench.now += time_passes
                case ("is killed",):
                    bench.start()
                    assert bench.totals == kept, "what was written or noted before this step"
                    bench.check()
                case "retires", uuid:
                    bench.retire(uuid)
                case "keeps", keep:
                    bench.keep = keep
                    bench.write()
                    bench.start()
            if noted and not (bench.first or bench.retired):
                bench.note()
            else:
                bench.write()
            bench.check()


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (NOON, NOON + 10, {NOON: 10_000}),
        (NOON, NOON + QUARTER, {NOON: 10_000}),
        (NOON - 5, NOON + 5, {NOON - QUARTER: 5_000, NOON: 5_000}),
        (NOON - 2, NOON + 6, {NOON - QUARTER: 2_500, NOON: 7_500}),
        (NOON - QUARTER, NOON + QUARTER, {NOON - QUARTER: 5_000, NOON: 5_000}),
        (NOON - 1, NOON + 1899, {NOON - QUARTER: 5, NOON: 4_737, NOON + QUARTER: 4_736, NOON + 1800: 522}),
        (NOON, NOON, {NOON: 10_000}),
    ],
)
def test_energy_is_divided_by_time(bench: Bench, begin: float, end: float, expected: dict[int, int]) -> None:
    bench.now = begin
    bench.write()
    bench.use(end - begin, {(A, "package-0"): 10_000})
    bench.write()
    found = {start: microjoules for _, start, owner, _, microjoules in bench.rows() if owner == A}
    assert found == expected
    bench.check()


def test_history_begins_with_the_first_write(bench: Bench) -> None:
    bench.use(1, {(A, "package-0"): 7, (IDLE, "package-0"): 3})
    bench.write()
    assert [row[2:] for row in bench.rows()] == [
        (A, "package-0", 7),
        (HOST, "package-0", 10),
        (IDLE, "package-0", 3),
    ]
    bench.check()


def test_what_an_older_ledger_had_is_the_opening(bench: Bench) -> None:
    bench.path.unlink()
    bench.path.touch(mode=0o600)
    with contextlib.closing(sqlite3.connect(bench.path)) as database:
        for statement in [*content.TABLES, *content.TABLES_SINCE_2, *content.TABLES_SINCE_3]:
            database.execute(statement)
        database.execute("INSERT INTO ledger VALUES (5, 0, 9, '')")
        rows = [(owner, zone, 7) for owner, zone in ((HOST, "package-0"), (A, "package-0"), (A, "package"))]
        database.executemany("INSERT INTO total VALUES (?, -1, ?, ?)", rows)
        database.execute("PRAGMA user_version = 3")
        database.execute("UPDATE ledger SET digest = ?", (content._content(database, 3)[1],))
        database.commit()
    bench.start()
    assert bench.totals[Part(A, WHOLE, "package")] == 7
    bench.use(1, {(A, "package-0"): 2})
    bench.write()
    bench.check()
    assert [row[2:] for row in bench.rows()] == [(A, "package-0", 2), (HOST, "package-0", 2)]


def test_history_begins_anew_where_a_damaged_ledger_is_set_aside(bench: Bench) -> None:
    logged: list[str] = []
    bench.ledger = Ledger(bench.path, simulated=False, log=logged.append)
    bench.ledger.load()
    bench.use(HOUR, {(A, "package-0"): 7})
    bench.write()
    bench.path.write_bytes(b"no" * 50)
    bench.use(HOUR, {(A, "package-0"): 2})
    bench.write()
    bench.check()
    assert len(logged) == 1
    assert bench.rows() == []
    bench.use(1, {(A, "package-0"): 1})
    bench.write()
    bench.check()
    assert [row[2:] for row in bench.rows()] == [(A, "package-0", 1), (HOST, "package-0", 1)]


@pytest.mark.parametrize("keep", [FEW_DAYS, KeepHistory(on=False)])
def test_a_total_that_goes_back_changes_nothing(bench: Bench, keep: KeepHistory) -> None:
    bench.use(10, {(A, "package-0"): 1000})
    bench.keep = keep
    bench.write()
    bench.start()
    before = bench.rows()
    bench.totals[Part(A, WHOLE, "package-0")] -= 400
    bench.write()
    bench.check()
    assert bench.rows() == before


def hours(rows: Iterable[tuple[int, int, str, str, int]]) -> dict[tuple[int, int], int]:
    return {(seconds, start): energy for seconds, start, owner, _, energy in rows if owner == HOST}


def test_older_history_is_by_the_hour_and_then_by_the_day(bench: Bench) -> None:
    bench.write()
    bench.use(5 * DAY, {(A, "package-0"): 10**6, (B, "dram-0"): 10**5})
    for _ in range(10):
        bench.write()
        bench.check()
        bench.use(QUARTER, {(B, "package-0"): 1})
    found = hours(bench.rows())
    ages = {seconds: {(bench.now - start) / DAY for each, start in found if each == seconds} for seconds, _ in found}
    assert max(ages[QUARTER]) <= 1 + HOUR / DAY
    assert min(ages[HOUR]) >= 1
    assert max(ages[HOUR]) <= 3 + 1
    assert min(ages[DAY]) >= 3 - 1


def test_compaction_takes_a_day_at_most_at_a_time(bench: Bench) -> None:
    bench.write()
    for _ in range(12):
        bench.use(6 * HOUR, {(A, "package-0"): 1000})
        bench.write()
    bench.now += 100 * DAY
    before = hours(bench.rows())
    bench.use(1, {(A, "package-0"): 1})
    bench.write()
    changed = before.keys() - hours(bench.rows()).keys()
    assert changed
    for seconds in (QUARTER, HOUR):
        starts = [start for each, start in changed if each == seconds]
        assert not starts or max(starts) - min(starts) < DAY
    bench.check()


def known(bench: Bench, since: float = 0, until: float = 2 * NOON) -> Known:
    with open_ledger(bench.path) as found:
        return found.known(int(since), int(until))


@pytest.mark.parametrize(
    ("restarted", "booted", "reason"), [(True, 0, "daemon"), (True, NOON + 90, "host"), (False, 0, "clock")]
)
def test_a_time_in_which_nothing_was_metered_is_a_gap(
    bench: Bench, *, restarted: bool, booted: float, reason: str
) -> None:
    bench.write()
    bench.now += 100
    if restarted:
        bench.start()
    for _ in range(2):
        bench.use(5, {(A, "package-0"): 1})
        bench.write(booted=booted)
    assert known(bench).gaps == [Gap(NOON, NOON + 100, reason)]  # type: ignore[arg-type]
    assert known(bench, NOON + 100).gaps == []
    assert known(bench, 0, NOON).gaps == []


def test_a_restart_of_a_few_seconds_is_no_gap(bench: Bench) -> None:
    bench.write()
    bench.now += 3
    bench.start()
    bench.use(1, {})
    bench.write()
    assert known(bench).gaps == []


def test_a_time_without_history_is_a_gap(bench: Bench) -> None:
    bench.write()
    bench.keep = KeepHistory(on=False)
    bench.start()
    for _ in range(3):
        bench.use(10, {(A, "package-0"): 1})
        bench.write()
    bench.keep = FEW_DAYS
    bench.start()
    bench.use(10, {(A, "package-0"): 1})
    bench.write()
    assert known(bench).gaps == [Gap(NOON, NOON + 30, "off")]
    assert [(row[1], row[-1]) for row in bench.rows() if row[2] == A] == [(NOON, 1)]
    bench.check()


def test_what_domains_were_called_and_when_it_changed(bench: Bench) -> None:
    web, shop = Identity("web", "Shop", {"project": "x"}), Identity("shop")
    bench.write(domains={A: web, B: Identity("db")})
    bench.now += 5
    bench.write(domains={A: web})
    bench.now += 5
    bench.write(domains={A: shop})
    bench.now += 5
    bench.write(domains={A: web})
    names = [Name(NOON, *web), Name(NOON + 10, *shop), Name(NOON + 15, *web)]
    assert known(bench).names == {A: names, B: [Name(NOON, "db", "", {})]}
    bench.now = NOON + 7  # the clock is set back
    bench.write(domains={A: shop})
    bench.write(domains={A: shop})
    assert known(bench).names[A] == [Name(NOON, *web), Name(NOON + 7, *shop)]


def test_how_energy_was_metered_and_when_that_changed(bench: Bench) -> None:
    for model in ("capacity", "capacity", "active", "capacity"):
        bench.write(model=model, source="msr")
        bench.now += DAY
    assert [(each.since, each.model) for each in known(bench).metering] == [
        (NOON, "capacity"),
        (NOON + 2 * DAY, "active"),
        (NOON + 3 * DAY, "capacity"),
    ]
    assert len(known(bench, 0, NOON + DAY).metering) == 1


def test_what_was_noted_is_history_of_its_own_time(bench: Bench) -> None:
    """Its writer was killed, and the next one comes an hour later, with another model."""
    bench.write(model="active", source="msr")
    bench.use(100, {(A, "package-0"): 7})
    bench.note(model="active", source="msr", lost={"package-0": 2}, domains={A: Identity("web")})
    bench.use(100, {(A, "package-0"): 8})
    bench.note(model="active", source="msr", lost={"package-0": 3})
    bench.now += HOUR
    bench.start()
    bench.write(model="capacity", source="powercap", domains={A: Identity("web")})
    bench.check()
    assert [(start, energy) for _, start, owner, _, energy in bench.rows() if owner == A] == [(NOON, 15)]
    assert bench.query("SELECT start, intervals FROM lost") == [(NOON, 3)]
    assert [row[1:] for row in bench.query("SELECT * FROM metering")] == [("active", "msr"), ("capacity", "powercap")]
    assert bench.query("SELECT name FROM identity") == [("web",)]


def test_lost_intervals_are_counted(bench: Bench) -> None:
    bench.write()
    for lost in ({"package-0": 2}, {"package-0": 0}, {"package-0": 1, "dram-0": 1}):
        bench.write(lost=lost)
    assert set(known(bench).lost) == {Lost(NOON, "package-0", 3), Lost(NOON, "dram-0", 1)}


def test_an_extract_is_of_slots_of_buckets(bench: Bench) -> None:
    bench.write()
    for _ in range(4):
        bench.use(QUARTER, {(A, "package-0"): 100, (IDLE, "package-0"): 7, (A, "dram-0"): 5})
        bench.write()
    edges = [NOON - DAY, NOON, NOON + 2 * QUARTER, NOON + 3 * QUARTER, NOON + DAY]
    with open_ledger(bench.path) as found:
        slots = list(found.slots(edges, QUARTER, packages_only=True))
        every_zone = next(found.slots([NOON, NOON + QUARTER], QUARTER, packages_only=False)).energy

    def energy(times: int) -> dict[tuple[str, str], int]:
        energies = {(A, "package-0"): 100, (IDLE, "package-0"): 7, (HOST, "package-0"): 107}
        return {part: times * each for part, each in energies.items()} if times else {}

    assert slots == [
        Slot(begin, end, energy(times)) for begin, end, times in zip(edges, edges[1:], [0, 2, 1, 1], strict=False)
    ]
    assert every_zone == energy(1) | {(A, "dram-0"): 5, (HOST, "dram-0"): 5}


def test_what_is_known_travels_as_json(bench: Bench) -> None:
    bench.write()
    bench.write(domains={A: Identity("web", "", {"project": "x"})}, lost={"package-0": 1}, model="active", source="msr")
    bench.now += 100
    bench.use(1, {(A, "package-0"): 1})
    bench.write()
    found = known(bench)
    assert (found.begin, found.widths, found.simulated) == (NOON, [QUARTER], False)
    assert found.gaps
    assert found.lost
    assert Known.from_json(json.loads(found.to_json())) == found


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE history SET microjoules = microjoules + 64 WHERE part = 1",
        "UPDATE history SET start = start - 900 WHERE part = 1",
        "DELETE FROM part WHERE id = 1",
        "PRAGMA user_version = 9",
        "PRAGMA user_version = 3",
        "DELETE FROM ledger",
        *(
            f"UPDATE identity SET labels = {labels}"
            for labels in ("'not json'", "'[1]'", """'{"a": 1}'""", "'null'", "''", "x'00'", f"'{'[' * 100_000}'")
        ),
    ],
)
def test_a_damaged_history_is_not_reported(bench: Bench, damage: str) -> None:
    bench.write(domains={A: Identity("web", "", {"project": "x"})})
    bench.use(QUARTER, {(A, "package-0"): 100, (IDLE, "package-0"): 7})
    bench.write()
    with contextlib.closing(sqlite3.connect(bench.path)) as database:
        assert database.execute(damage).rowcount
        database.commit()

    def read() -> None:
        with open_ledger(bench.path) as found:
            found.known(NOON, NOON + DAY)
            list(found.slots([NOON, NOON + QUARTER], QUARTER, packages_only=True))

    with pytest.raises(DamagedError):
        read()


WRITER = """
import random, sys, time
from pathlib import Path
from libvirt_rapl.choices import KeepHistory
from libvirt_rapl.energy.history import Moment
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.snapshot import Kept, Part
ledger = Ledger(Path(sys.argv[1]), simulated=False, log=lambda line: sys.exit(line), history=KeepHistory(True, 1, 3))
kept, first = ledger.load(), True
zones = [f"package-{number}" for number in range(40)]
while True:
    kept.metered += 7200
    for zone in zones:
        for owner, vcpu, name in (("host", -1, zone), ("idle", -1, zone), ("idle", -1, "package")):
            part = Part(owner, vcpu, name)
            kept.totals[part] = kept.totals.get(part, 0) + 1000
    moment = Moment(now=1e9 + kept.metered, first=first)
    if first or random.random() < 0.3:
        ledger.write(kept, (), moment)
    else:
        ledger.note(kept, moment)
    first = False
    print(flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_costs_totals_and_history_the_same(tmp_path: Path) -> None:
    chance = random.Random(4711)
    bench = Bench(tmp_path)
    for _ in range(50):
        command = [sys.executable, "-c", WRITER, str(bench.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(chance.uniform(0, 0.1))
            writer.kill()
        bench.start()
        bench.check()
    assert bench.totals[Part(IDLE, WHOLE, "package-0")] >= 50_000
    assert {row[0] for row in bench.rows()} == {QUARTER, HOUR, DAY}


def test_a_longer_bucket_is_in_the_slot_of_its_middle(bench: Bench) -> None:
    bench.use(1, {(A, "package-0"): 100})
    bench.write()
    with contextlib.closing(sqlite3.connect(bench.path)) as database:
        database.execute("UPDATE history SET seconds = ?", (HOUR,))
        database.commit()
    with open_ledger(bench.path) as found:
        assert found.known(NOON, NOON + DAY).widths == [HOUR]
        edges = [NOON - HOUR, NOON + HOUR // 2, NOON + 2 * HOUR]
        energies = [slot.energy.get((A, "package-0")) for slot in found.slots(edges, HOUR, packages_only=True)]
    assert energies == [None, 100]
