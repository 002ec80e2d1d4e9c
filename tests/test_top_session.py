"""What `virt-rapl top` shows while documents come, at which pace, and what it writes into a CSV file."""

import csv
import os
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
from fakes.documents import document, domain, shut_off, uuid
from walking import wait_until

from libvirt_rapl.daemon.document import Document
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.top import session
from libvirt_rapl.top.background import Background
from libvirt_rapl.top.csv_file import CsvFile
from libvirt_rapl.top.figures import Today
from libvirt_rapl.top.pace import EARLY_SECONDS, Pace
from libvirt_rapl.top.session import Session


def of(second: int) -> Document:
    return document([domain(1, "web", second)])


class Source:
    """Documents that come when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = SimpleNamespace(now=100.0)
        monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: self.clock.now))
        self._queue: SimpleQueue[Document | Exception | str | None] = SimpleQueue()
        self.recorded: list[tuple[float, Today]] = []
        self.session = Session(of(0), self._documents(), [TODAY], today=Today(), is_own=False, record=self._record)
        assert self.recorded == [(0, Today())]
        self.advance()

    def _record(self, shown: Document, today: Today) -> None:
        self.recorded.append((shown.domains[0].power_watts, today))

    def _documents(self) -> Iterator[Document | None]:
        while (item := self._queue.get()) != "end":
            if isinstance(item, Exception):
                raise item
            assert not isinstance(item, str)
            yield item

    def advance(
        self, *items: Document | Exception | None, interval: float = 0.0, is_paused: bool = False
    ) -> tuple[bool, float]:
        """Let this come; return whether there is something new to show, and the power that is shown."""
        for item in items:
            self._queue.put(item)
        wait_until(lambda: self.session._documents._come.qsize() == len(items), 20, "it has come")
        is_new = self.session.advance(interval, is_paused=is_paused)
        return is_new, self.session.figures().document.domains[0].power_watts

    def end(self) -> None:
        self._queue.put("end")


TODAY = Today(kwh={uuid(1): 1.25}, price=Decimal("0.5"), currency="EUR")


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    source = Source(monkeypatch)
    yield source
    source.end()


def test_each_document_is_shown(source: Source) -> None:
    wait_until(lambda: source.advance() and source.session.figures().today == TODAY, 20, "today comes")
    assert source.advance() == (False, 0)
    source.clock.now += 1
    assert source.advance(of(1)) == (True, 1)
    assert source.recorded[1:] == [(1, TODAY)]
    assert source.session.frames == 2
    source.clock.now += 1
    assert source.advance(of(2), of(3)) == (True, 3), "the newest"
    assert source.session.frames == 4
    assert source.session.figures().trends.of(uuid(1), 1) == [1.5]


def test_one_in_so_many_seconds(source: Source) -> None:
    shown = []
    for second in range(1, 12):
        source.clock.now += 1.01 if second % 2 else 0.99
        _, watts = source.advance(of(second), interval=5)
        shown.append(watts)
    assert shown == [0, 0, 0, 0, 5, 5, 5, 5, 5, 10, 10]
    assert [watts for watts, _ in source.recorded] == [0, 5, 10]


def test_a_pause_stops_the_screen_only(source: Source) -> None:
    for second in (1, 2):
        source.clock.now += 1
        assert source.advance(of(second), is_paused=True) == (False, 0)
    assert [watts for watts, _ in source.recorded] == [0, 1, 2]
    assert source.advance() == (True, 2)


def test_virt_rapld_goes_and_comes_back(source: Source) -> None:
    source.clock.now += 1
    assert source.advance(None) == (True, 0)
    assert source.session.figures().is_away
    source.clock.now += 6
    assert source.advance(None) == (False, 0)
    assert source.session.figures().silent_seconds == 7
    assert source.advance(of(1)) == (True, 1)
    assert not source.session.figures().is_away
    assert source.session.figures().silent_seconds == 0


def test_what_fails_in_the_background_fails_here(source: Source) -> None:
    with pytest.raises(VirtRaplError, match="as many as it will"):
        source.advance(VirtRaplError("it serves 8 clients, as many as it will"))


def test_nobody_waits_for_the_background() -> None:
    go_on = threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        assert go_on.wait(20)
        yield 2

    background = Background(slow())
    come: list[int] = []
    wait_until(lambda: come.extend(background.come()) or come == [1], 20, "the first comes")  # type: ignore[func-returns-value]
    assert list(background.come()) == []
    go_on.set()
    wait_until(lambda: come.extend(background.come()) or come == [1, 2], 20, "the second comes")  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("interval", "times", "due"),
    [
        (0, [0, 0.1, 0.2], [True, True, True]),
        (1, [0, 0.5, 1, 2, 3], [True, False, True, True, True]),
        (5, [0, 4.7, 4.9, 9.6, 9.71], [True, False, True, False, True]),
    ],
)
def test_a_pace(interval: float, times: list[float], due: list[bool]) -> None:
    assert EARLY_SECONDS == 0.2
    pace = Pace()
    assert [pace.is_due(now, interval) for now in times] == due


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "energy.csv"
    path.write_text("old, and much longer than what comes\n" * 100)
    file = CsvFile(path)
    assert read(path) == []
    web = domain(1, '=web"\n', 10, 70, vrapl="active", cpu_percent=12.5)
    file.add(document([web, domain(2, "x", 3, unread=True), shut_off(3, "off")]), TODAY)
    file.add(document([web], source="simulated", sampled_at=None), Today())
    first, second, third, fourth = read(path)
    assert first == {
        "time": "2026-01-02T03:04:05.000+00:00",
        "domain": "'=web\"\\n",
        "uuid": uuid(1),
        "state": "running",
        "meter": "active",
        "vcpus": "2",
        "cpu_percent": "12.5",
        "power_watts": "10",
        "energy_joules": "70",
        "kwh_today": "1.25",
        "cost_per_hour": "0.005",
        "currency": "EUR",
        "simulated": "0",
    }
    assert (second["domain"], second["state"], second["kwh_today"], second["power_watts"]) == (
        "off",
        "shut off",
        "0.0",
        "0.0",
    )
    assert (third["domain"], third["power_watts"], third["cpu_percent"], third["cost_per_hour"]) == ("x", "", "", "")
    assert (fourth["time"], fourth["kwh_today"], fourth["cost_per_hour"], fourth["currency"]) == ("", "", "", "")
    assert fourth["simulated"] == "1"


def test_a_new_csv_file_is_for_its_owner(tmp_path: Path) -> None:
    CsvFile(tmp_path / "energy.csv")
    assert (tmp_path / "energy.csv").stat().st_mode & 0o777 == 0o600


def test_no_frame_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "energy.csv"
    file = CsvFile(path)
    file.add(of(1), Today())
    before = path.read_bytes()
    write, room = os.write, [30, 20]

    def full(descriptor: int, data: bytes) -> int:
        if not room:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: room.pop()])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(VirtRaplError, match=r"cannot write .*energy.csv: No space left"):
        file.add(of(2), Today())
    assert path.read_bytes() == before
    monkeypatch.undo()
    file.add(of(3), Today())
    assert [row["power_watts"] for row in read(path)] == ["1", "3"]


@pytest.mark.parametrize("name", ["missing/energy.csv", ".", "/dev/full"])
def test_no_csv_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(VirtRaplError, match="cannot write"):
        CsvFile(tmp_path / name)
