"""The document of each sample: made once, outside the meter's lock, and given out when its totals are kept."""

import math
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.host import Host

from libvirt_rapl.daemon import publisher
from libvirt_rapl.daemon.document import Document
from libvirt_rapl.daemon.document import Host as Shown
from libvirt_rapl.daemon.kept_meter import KeptMeter
from libvirt_rapl.daemon.publisher import Publisher, Rendered
from libvirt_rapl.domains.inventory import Inventory
from libvirt_rapl.energy.history import Moment
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.meter import Meter
from libvirt_rapl.energy.snapshot import Kept, Snapshot
from libvirt_rapl.host.energy_source import open_source

ASKERS = 20


class CountedLedger(Ledger):
    """A ledger on a disk that can hang, and that counts its writes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, simulated=False, log=pytest.fail)
        self.writes: list[Kept] = []
        self.works = threading.Event()
        self.works.set()

    def write(self, kept: Kept, retired: Collection[str] = (), moment: Moment | None = None) -> bool:
        self._begin(kept)
        return super().write(kept, retired, moment)

    def note(self, kept: Kept, moment: Moment) -> bool:
        self._begin(kept)
        return super().note(kept, moment)

    def _begin(self, kept: Kept) -> None:
        assert self.works.wait(30)
        self.writes.append(kept)


class Bench:
    """A meter of a package, its ledger, and how documents of it are made."""

    def __init__(self, root: Path) -> None:
        self.host = Host(root)
        self.host.zone("intel-rapl:0", "package-0")
        source = open_source("powercap", sys=self.host.sys, dev=self.host.dev, proc=self.host.proc)
        self.ledger = CountedLedger(root / "state/ledger.db")
        meter = Meter(source, sys=self.host.sys, proc=self.host.proc)
        self.meter = KeptMeter(meter, self.ledger, Inventory("", pytest.fail), pytest.fail)
        self.made: list[Snapshot] = []
        self.making: Callable[[], object] = lambda: None
        self.meter.keep_soon().result()
        self.sample(0)
        self.sample(1)
        self.ledger.writes.clear()

    def sample(self, joules: int) -> None:
        self.host.zone("intel-rapl:0", "package-0", joules * 1_000_000)
        assert self.meter.sample()

    def describe(self, figures: Snapshot) -> Document:
        self.made.append(figures)
        self.making()
        shown = Shown(
            source="powercap",
            model=str(figures.zones["package-0"].counted.microjoules),
            since="",
            interval_seconds=1,
            zones=(),
            domains_watts=0,
            other_watts=0,
            idle_watts=0,
        )
        return Document(host=shown, domains=())

    def publisher(self, interval: float = 1.0) -> Publisher:
        return Publisher(self.meter, self.describe, interval)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def ask(publisher: Publisher, many: int = ASKERS) -> set[bytes]:
    with ThreadPoolExecutor(many) as askers:
        return set(askers.map(lambda _: publisher.text(), range(many)))


def test_however_many_ask_a_sample_has_one_document_and_one_write(bench: Bench) -> None:
    published = bench.publisher()
    bench.making = lambda: time.sleep(0.1)
    (first,) = ask(published)
    assert (len(bench.made), len(bench.ledger.writes)) == (1, 1)
    assert ask(published) == {first}
    assert (len(bench.made), len(bench.ledger.writes)) == (1, 1)
    bench.sample(2)
    (second,) = ask(published)
    assert b'"model": "2000000"' in second
    assert (len(bench.made), len(bench.ledger.writes)) == (2, 2)


def test_nobody_asks_and_nothing_is_made(bench: Bench) -> None:
    bench.publisher()
    for joules in range(2, 6):
        bench.sample(joules)
    assert (bench.made, bench.ledger.writes) == ([], [])


def test_samples_go_on_while_a_document_is_made(bench: Bench) -> None:
    published = bench.publisher()
    bench.making = lambda: bench.sample(len(bench.made) + 1)  # which would wait for ever where the lock is held
    assert b'"model": "1000000"' in published.text()  # of the figures that were copied
    bench.making = lambda: None
    assert b'"model": "2000000"' in published.text()


def test_what_is_given_out_is_kept(bench: Bench) -> None:
    published = bench.publisher()
    for joules in range(2, 6):
        bench.sample(joules)
        bench.making = lambda: bench.sample(9) if bench.meter.samples % 2 else None
        published.text()
        kept = Ledger(bench.ledger._path, simulated=False, log=pytest.fail).load().totals
        (counted,) = (part for part in kept if part.owner == "host")
        assert kept[counted] >= bench.made[-1].zones["package-0"].counted.microjoules > 0


def test_what_is_counted_after_the_ledger_was_asked_is_not_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_shown = bench.meter.keep_shown

    def keep_and_sample(figures: Snapshot) -> Future[None]:
        keeping = keep_shown(figures)
        keeping.result(30)
        bench.sample(9)
        return keeping

    monkeypatch.setattr(bench.meter, "keep_shown", keep_and_sample)
    assert b'"model": "1000000"' in bench.publisher().text()


def test_the_first_clients_wait_for_an_interval(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        bench.sample(2)

    monkeypatch.setattr(bench.meter, "has_power", SimpleNamespace(wait=wait, set=lambda: None))
    assert b'"model": "2000000"' in bench.publisher().text()
    assert waited == [publisher.FIRST_SECONDS]


@pytest.mark.parametrize(
    ("interval", "until"),  # how long it is given out if it took 2 seconds to make
    [(0.1, math.inf), (1, math.inf), (1.5, 20), (60, 20)],
)
def test_how_long_a_document_is_given_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, interval: float, until: float
) -> None:
    now = 1000.0

    def take() -> None:
        nonlocal now
        now += 2

    monkeypatch.setattr(publisher, "time", SimpleNamespace(monotonic=lambda: now))
    bench.making = take
    published = bench.publisher(interval)
    first = published.text()
    for later, made in ((0.0, 1), (19.75, 1), (0.25, 2 - (until == math.inf)), (1e6, 3 if until == 20 else 1)):
        now += later
        assert (published.text() is first) == (made == 1)
        assert len(bench.made) == made


def test_a_disk_that_hangs_holds_a_document_up_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "KEPT_SECONDS", 0.5)
    published = bench.publisher()
    bench.ledger.works.clear()
    began = time.monotonic()
    ask(published)
    took = time.monotonic() - began
    assert 0.5 <= took < 5
    bench.sample(2)  # nor does a sample wait
    bench.ledger.works.set()


def test_what_could_not_be_kept_is_kept_with_the_next_document(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where that is of the same sample."""
    published = bench.publisher(interval=60)
    monkeypatch.setattr(Ledger, "note", lambda *_: False)
    published.text()
    monkeypatch.undo()
    time.sleep(0.1)
    assert len(bench.ledger.writes) == 1
    published.text()
    assert len(bench.ledger.writes) == 2
    time.sleep(0.1)
    published.text()
    assert len(bench.ledger.writes) == 2, "it is kept now"


def test_what_is_made_of_a_document_is_made_once(bench: Bench) -> None:
    published, made = bench.publisher(), 0

    def make(document: Document) -> bytes:
        nonlocal made
        made += 1
        return (document.host.model or "").encode()

    rendered = Rendered(published.document, make)
    bench.making = lambda: time.sleep(0.1)
    ways: list[Callable[[], object]] = [rendered, published.text, published.document]
    with ThreadPoolExecutor(ASKERS) as askers:
        answers = list(askers.map(lambda number: ways[number % 3](), range(ASKERS)))
    assert set(answers[::3]) == {b"1000000"}
    assert (made, len(bench.made)) == (1, 1), "all are of one document"
    bench.sample(2)
    assert (rendered(), rendered(), made) == (b"2000000", b"2000000", 2)


def test_between_samples_that_are_far_apart_documents_are_made_anew(bench: Bench) -> None:
    often, rarely = bench.publisher(interval=1), bench.publisher(interval=60)
    for published, made in ((often, 1), (rarely, 2)):
        bench.made.clear()
        published.text()
        time.sleep(0.2)  # many times as long as it took to make
        published.text()
        assert len(bench.made) == made


def test_a_document_that_cannot_be_made_is_tried_again(bench: Bench) -> None:
    published = bench.publisher()

    def fail() -> None:
        raise RuntimeError("not now")

    bench.making = fail
    for _ in range(2):
        with pytest.raises(RuntimeError):
            published.text()
    bench.making = lambda: None
    assert published.text()
