"""The meter with its ledger: what is written when, what is retired, and what happens only while nothing else does."""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from fakes.host import Host, Thread, write

from libvirt_rapl.daemon.kept_meter import KeptMeter
from libvirt_rapl.domains.inventory import Entry, Inventory
from libvirt_rapl.energy import snapshot
from libvirt_rapl.energy.history import Moment
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.meter import Meter
from libvirt_rapl.energy.snapshot import GONE, GONE_SECONDS, HOST, WHOLE, Kept, Part
from libvirt_rapl.host.energy_source import open_source

A, B = "aaaaaaaa-0000-0000-0000-000000000000", "bbbbbbbb-0000-0000-0000-000000000000"
PACKAGE = Part(HOST, WHOLE, "package-0")


class SlowLedger(Ledger):
    """A ledger whose disk can hang or fail, and that notes what it has written."""

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        super().__init__(path, simulated=False, log=log)
        self.written: list[Kept] = []
        self.noted: list[Kept] = []
        self.fails = False
        """Whether nothing can be written."""
        self.hangs = ""
        """What the disk hangs at: `load`, `write` or `note`."""
        self.hanging, self.works = threading.Event(), threading.Event()

    def load(self) -> Kept:
        self._hang("load")
        return super().load()

    def _hang(self, at: str) -> None:
        if self.hangs == at:
            self.hanging.set()
            assert self.works.wait(30)

    def write(self, kept: Kept, retired: Collection[str] = (), moment: Moment | None = None) -> bool:
        self._hang("write")
        if self.fails or not super().write(kept, retired, moment):
            return False
        self.written.append(kept)
        return True

    def note(self, kept: Kept, moment: Moment) -> bool:
        self._hang("note")
        if self.fails or not super().note(kept, moment):
            return False
        self.noted.append(kept)
        return True


class Bench:
    """A kept meter on a host of files, whose domains a test names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = Host(root)
        self.lines: list[str] = []
        self.joules(0)
        source = open_source("powercap", sys=self.host.sys, dev=self.host.dev, proc=self.host.proc)
        self.meter = Meter(source, sys=self.host.sys, proc=self.host.proc)
        self.meter.since = 5.0
        self.ledger = SlowLedger(root / "state/ledger.db", self.lines.append)
        self.inventory = Inventory("", pytest.fail)
        self.kept = KeptMeter(self.meter, self.ledger, self.inventory, self.lines.append)

    def joules(self, joules: int) -> None:
        self.host.zone("intel-rapl:0", "package-0", joules * 1_000_000)

    def domains(self, **pids: int | None) -> None:
        self.inventory.listed = True
        self.inventory.entries = {
            uuid: Entry(name=uuid, uuid=uuid, id=1, state="", pid=pid, mark=None)
            for uuid, pid in ((globals()[name], pid) for name, pid in pids.items())
        }

    def keep(self) -> None:
        self.kept.keep_soon().result(30)

    def count(self, joules: int) -> None:
        self.joules(joules)
        assert self.kept.sample()

    def show(self) -> None:
        self.kept.keep_shown(self.kept.snapshot()).result(30)

    def on_disk(self) -> Kept:
        return Ledger(self.ledger._path, simulated=False, log=pytest.fail).load()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_totals_kept_before_are_added_once_and_the_beginning_is_theirs(bench: Bench) -> None:
    before = Ledger(bench.ledger._path, simulated=False, log=pytest.fail)
    before.since = 1.0
    before.load()
    before.write(Kept({PACKAGE: 100}, metered=50.0))
    for _ in range(3):
        bench.kept.sample()
        bench.keep()
    figures = bench.kept.snapshot()
    assert (figures.zones["package-0"].counted.microjoules, figures.since) == (100, 1.0)
    assert figures.metered >= 50.0


def test_a_ledger_that_can_be_read_only_later_loses_nothing(bench: Bench) -> None:
    before = Ledger(bench.ledger._path, simulated=False, log=pytest.fail)
    before.load()
    before.write(Kept({PACKAGE: 100}))
    away = bench.ledger._path.parent.rename(bench.root / "away")
    bench.ledger._path.parent.write_text("not a directory")
    bench.kept.sample()
    bench.joules(1)
    bench.kept.sample()
    bench.keep()
    assert bench.kept.snapshot().zones["package-0"].counted.microjoules == 1_000_000
    bench.ledger._path.parent.unlink()
    away.rename(bench.ledger._path.parent)
    bench.keep()
    assert bench.on_disk().totals[PACKAGE] == 1_000_100


def test_only_what_a_sample_has_changed_is_written(bench: Bench) -> None:
    bench.kept.sample()
    for _ in range(3):
        bench.keep()
    assert len(bench.ledger.written) == 1
    bench.kept.sample()
    bench.ledger.fails = True
    bench.keep()
    bench.ledger.fails = False
    for _ in range(2):
        bench.keep()
    assert len(bench.ledger.written) == 2, "what could not be written is tried again"


def test_while_a_write_takes_long_one_more_is_requested_and_has_all(bench: Bench) -> None:
    bench.kept.sample()
    bench.ledger.hangs = "write"
    first = bench.kept.keep_soon()
    assert bench.ledger.hanging.wait(30)
    bench.joules(7)
    bench.kept.sample()
    requested = [bench.kept.keep_soon() for _ in range(20)]
    assert len({id(each) for each in requested}) == 1
    assert requested[0] is not first
    bench.joules(9)
    bench.kept.sample()
    bench.ledger.works.set()
    requested[0].result(30)
    assert [kept.totals[PACKAGE] for kept in bench.ledger.written] == [0, 9_000_000]


def test_what_is_shown_is_noted_once_and_still_written_when_that_is_due(bench: Bench) -> None:
    bench.count(0)
    bench.keep()
    bench.count(1)
    for _ in range(3):
        bench.show()
    assert [kept.totals[PACKAGE] for kept in bench.ledger.noted] == [1_000_000]
    assert len(bench.ledger.written) == 1
    assert bench.on_disk().totals[PACKAGE] == 1_000_000
    bench.keep()
    assert len(bench.ledger.written) == 2
    bench.show()
    assert len(bench.ledger.noted) == 1, "the rows have it"


def test_a_note_that_fails_is_tried_again(bench: Bench) -> None:
    bench.count(0)
    bench.keep()
    bench.count(1)
    bench.ledger.fails = True
    bench.show()
    bench.ledger.fails = False
    bench.show()
    assert len(bench.ledger.noted) == 1


@pytest.mark.parametrize("before", [False, True])
def test_rows_that_could_not_be_written_are_written_first(bench: Bench, before: bool) -> None:
    """A note would not have what they lack, such as that a domain was retired."""
    bench.count(0)
    if before:
        bench.keep()
    bench.count(1)
    bench.ledger.fails = True
    bench.keep()
    bench.ledger.fails = False
    bench.show()
    assert (len(bench.ledger.written), bench.ledger.noted) == (1 + before, [])
    assert bench.on_disk().totals[PACKAGE] == 1_000_000


def test_figures_that_are_older_than_the_rows_are_not_noted(bench: Bench) -> None:
    """They may have a domain that was retired meanwhile."""
    bench.count(0)
    bench.keep()
    bench.count(1)
    old = bench.kept.snapshot()
    bench.count(2)
    bench.keep()
    bench.kept.keep_shown(old).result(30)
    assert bench.ledger.noted == []


def test_while_the_disk_hangs_the_newest_figures_wait_to_be_noted(bench: Bench) -> None:
    bench.count(0)
    bench.keep()
    bench.count(1)
    bench.ledger.hangs = "note"
    first = bench.kept.keep_shown(bench.kept.snapshot())
    assert bench.ledger.hanging.wait(30)
    requested = []
    for joules in range(2, 22):
        bench.count(joules)
        requested.append(bench.kept.keep_shown(bench.kept.snapshot()))
    assert len({id(each) for each in requested}) == 1
    assert requested[0] is not first
    bench.ledger.works.set()
    requested[0].result(30)
    assert [kept.totals[PACKAGE] for kept in bench.ledger.noted] == [1_000_000, 21_000_000]


def test_a_note_knows_its_circumstances(bench: Bench) -> None:
    bench.count(0)
    bench.meter._counters["package-0"].lost += 5
    bench.keep()
    bench.count(1)
    bench.meter._counters["package-0"].lost += 2
    bench.show()
    del bench.kept  # as kill -9 does
    bench.on_disk()
    with contextlib.closing(sqlite3.connect(bench.ledger._path)) as database:
        assert database.execute("SELECT intervals FROM lost").fetchall() == [(5 + 2,)]
        assert database.execute("SELECT source FROM metering").fetchall() == [("powercap",)]
        assert database.execute("SELECT count(*) FROM gap").fetchall() == [(0,)]
        assert database.execute(
            "SELECT sum(microjoules) FROM history JOIN part ON part = id WHERE owner = 'host'"
        ).fetchall() == [(1_000_000,)]


@pytest.mark.parametrize("at", ["load", "write"])
def test_a_disk_that_hangs_delays_neither_samples_nor_copies(bench: Bench, at: str) -> None:
    bench.kept.sample()
    bench.ledger.hangs = at
    keeping = bench.kept.keep_soon()
    assert bench.ledger.hanging.wait(30)
    bench.joules(1)
    assert bench.kept.sample()
    assert bench.kept.snapshot().zones["package-0"].counted.joules == 1
    assert not keeping.done()
    bench.ledger.works.set()
    keeping.result(30)


def test_the_meter_changes_and_is_copied_only_under_its_lock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[str, bool] = {}

    def watch(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: object, **options: object) -> object:
            held[name] = bench.kept._lock.locked()
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    for name in ("add", "retire", "take"):
        watch(snapshot, name)
    watch(bench.ledger, "write")
    watch(bench.meter, "sample")
    bench.kept.sample()
    bench.kept.snapshot()
    assert held.pop("take")
    bench.keep()
    assert held == {"sample": True, "add": True, "retire": True, "take": True, "write": False}
    assert not bench.kept._lock.locked()


@pytest.mark.parametrize("garbage", ["cpu0 garbage\n", None])
def test_a_host_that_cannot_be_read_is_logged_once_and_costs_nothing_else(bench: Bench, garbage: str | None) -> None:
    stat = bench.host.proc / "stat"
    good = stat.read_text()
    assert bench.kept.sample()
    assert not bench.kept.has_power.is_set()
    bench.keep()
    for _ in range(2):
        if garbage:
            write(stat, garbage)
        else:
            stat.unlink()
        for _ in range(3):
            assert not bench.kept.sample()
            if not garbage:
                bench.keep()
        bench.joules(5)
        write(stat, good)
        assert bench.kept.sample()
    assert bench.kept.samples == 9
    assert bench.kept.has_power.is_set()
    assert ["cannot meter" in line for line in bench.lines] == [True, True]
    assert len(bench.ledger.written) == (1 if garbage else 2), "a sample that failed is nothing to be written"
    assert bench.kept.snapshot().zones["package-0"].counted.joules == 5


def test_who_is_retired(bench: Bench) -> None:
    """Domains that have not run for long, when libvirt has listed all, and does not know them."""
    bench.host.process(7, {7: Thread("qemu", 0)})
    bench.meter.metered = 2 * GONE_SECONDS
    for uuid in (A, B):
        bench.meter.domains[uuid].last_ran = 0
    bench.kept.sample()
    bench.keep()
    assert bench.on_disk().last_ran == {A: 0, B: 0}, "libvirt has not listed its domains"
    bench.domains(A=7)
    bench.kept.sample()
    bench.keep()
    assert bench.meter.domains.keys() == {A, GONE}
    bench.domains(A=None)
    bench.kept.sample()
    bench.keep()
    assert bench.on_disk().last_ran.keys() == {A, GONE}
    assert bench.on_disk().last_ran[A] >= 2 * GONE_SECONDS, "it ran until now"


def test_domains_that_run_are_metered(bench: Bench) -> None:
    for pid in (7, 20):
        bench.host.process(pid, {pid: Thread("qemu", 0)})
    bench.domains(A=7, B=None)
    bench.kept.sample()
    for pid in (7, 20):
        bench.host.process(pid, {pid: Thread("qemu", 10**15)})
    bench.joules(10)
    bench.kept.sample()
    assert {uuid: domain.whole.joules for uuid, domain in bench.kept.snapshot().domains.items()} == {A: 10}
