"""virt-rapl-channel's report: when it is written, and that its reader believes no more than it must."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from libvirt_rapl import paths
from libvirt_rapl.daemon import channel_report
from libvirt_rapl.daemon.channel_report import Report, read
from libvirt_rapl.lifecycle.channel_state import Delivery

UUID, OTHER = "11111111-2222-4333-8444-555555555555", "22222222-2222-4333-8444-555555555555"
GIVEN, STALLED = Delivery(7, "connected"), Delivery(8, "stalled", "slow")


class Clock:
    """The time of the report, which passes when a test says so."""

    def __init__(self) -> None:
        self.now = 5000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.8e9 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(channel_report, "time", clock)
    return clock


def content(directory: Path) -> dict[str, Any]:
    made = json.loads((directory / paths.CHANNEL_REPORT).read_text())
    assert isinstance(made, dict)
    return made


def test_what_is_written_is_read(tmp_path: Path, clock: Clock) -> None:
    Report(tmp_path, print).write({UUID: GIVEN, OTHER: STALLED})
    assert content(tmp_path) == {
        "schema": 1,
        "written": clock.time(),
        "guests": {
            UUID: {"pid": 7, "state": "connected", "reason": ""},
            OTHER: {"pid": 8, "state": "stalled", "reason": "slow"},
        },
    }
    assert read(tmp_path) == {UUID: GIVEN, OTHER: STALLED}
    path = tmp_path / paths.CHANNEL_REPORT
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o644, 0o755)


def test_when_it_is_written(tmp_path: Path, clock: Clock) -> None:
    report, began = Report(tmp_path, print), clock.now
    written = []
    for tenth in range(130):
        clock.now = began + tenth / 10
        report.write({UUID: GIVEN if tenth < 3 or tenth >= 72 else STALLED})
        at = content(tmp_path)["written"]
        if at == clock.time():
            written.append(tenth)
    assert written == [0, 10, 60, 72, 122], "a change after a second, and else every five as a sign of life"


def test_a_report_without_guests_is_one(tmp_path: Path) -> None:
    Report(tmp_path, print).write({})
    assert read(tmp_path) == {}


@pytest.mark.parametrize(("seconds", "known"), [(14.0, True), (16.0, False), (-14.0, True), (-3600.0, False)])
def test_an_old_report_is_none(tmp_path: Path, clock: Clock, seconds: float, known: bool) -> None:
    Report(tmp_path, print).write({UUID: GIVEN})
    clock.now += seconds
    assert (read(tmp_path) is not None) == known


def test_a_report_that_cannot_be_written_is_logged_once(tmp_path: Path, clock: Clock) -> None:
    lines: list[str] = []
    report = Report(tmp_path / "none", lines.append)
    for _ in range(3):
        report.write({UUID: GIVEN})
        clock.now += 10
    assert len(lines) == 1
    assert "none/channel" in lines[0]
    (tmp_path / "none").mkdir()
    for _ in range(2):
        report.write({UUID: GIVEN})
        clock.now += 10
    assert read(tmp_path / "none") == {UUID: GIVEN}
    assert lines[1:] == [f"{tmp_path / 'none' / paths.CHANNEL_REPORT} is written again"]


def test_removing_it_leaves_nothing(tmp_path: Path) -> None:
    report = Report(tmp_path, print)
    report.write({UUID: GIVEN})
    (tmp_path / "channel" / f".report.json.{os.getpid()}.virt-rapl").touch()  # it was being written
    report.remove()
    assert list((tmp_path / "channel").iterdir()) == []
    assert read(tmp_path) is None
    report.remove()


def place(directory: Path, text: str | bytes) -> None:
    path = directory / paths.CHANNEL_REPORT
    path.parent.mkdir()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def report(**changes: object) -> str:
    return json.dumps({"schema": 1, "written": time.time(), "guests": {UUID: GIVEN._asdict()}} | changes)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"text"',
        "[" * 100_000,
        b"\xff\xfe",
        {"schema": 2},
        {"written": None},
        {"written": "now"},
        {"written": float("nan")},
        {"written": float("inf")},
        {"written": 10**400},
        {"guests": None},
        {"guests": []},
        {"padding": "x" * channel_report.LIMIT},
    ],
)
def test_what_cannot_be_a_report_is_none(tmp_path: Path, content: str | bytes | dict[str, object]) -> None:
    place(tmp_path, report(**content) if isinstance(content, dict) else content)
    assert read(tmp_path) is None


@pytest.mark.parametrize(
    "guest",
    [
        None,
        7,
        [],
        "text",
        {},
        GIVEN._asdict() | {"pid": "7"},
        GIVEN._asdict() | {"pid": True},
        GIVEN._asdict() | {"state": "off"},
        GIVEN._asdict() | {"state": "fine"},
        GIVEN._asdict() | {"state": ["connected"]},
        GIVEN._asdict() | {"reason": None},
        GIVEN._asdict() | {"reason": {}},
    ],
)
def test_a_guest_that_cannot_be_right_is_left_out(tmp_path: Path, guest: object) -> None:
    place(tmp_path, report(guests={UUID: guest, OTHER: STALLED._asdict() | {"more": 1}}))
    assert read(tmp_path) == {OTHER: STALLED}


def test_a_reason_is_short_and_safe_for_a_terminal(tmp_path: Path) -> None:
    reason = "\x1b[31mred\n\udcff" + "x" * 1000
    place(tmp_path, report(guests={UUID: Delivery(7, "waiting", reason)._asdict()}))
    found = read(tmp_path)
    assert found
    assert found[UUID].reason.startswith("\\x1b[31mred\\n\\udcffxxx")
    assert found[UUID].reason.isprintable()
    assert len(found[UUID].reason) < 300


def test_no_link_pipe_or_device_is_read_or_waited_for(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(report())
    path = tmp_path / paths.CHANNEL_REPORT
    path.parent.mkdir()
    for target in (tmp_path / "secret", Path("/dev/zero")):
        path.symlink_to(target)
        assert read(tmp_path) is None
        path.unlink()
    os.mkfifo(path)
    assert read(tmp_path) is None
    path.unlink()
    path.mkdir()
    assert read(tmp_path) is None


def test_there_is_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    (tmp_path / paths.CHANNEL).write_text("not a directory")
    assert read(tmp_path) is None
