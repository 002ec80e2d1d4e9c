"""Events: where they are recorded, that recording never fails or waits, and how `virt-rapl events` shows them."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from walking import NewGuest, start_enabled, wait_until

from libvirt_rapl import paths
from libvirt_rapl.cli import main
from libvirt_rapl.directories import NotOursError
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.lifecycle import events
from libvirt_rapl.simulator.world import World

UUID = "2b3c4d5e-6f70-4a81-92b3-c4d5e6f70819"

Run = Callable[..., tuple[int, str, str]]


def event(**changes: object) -> events.Event:
    values = {"time": 1.7e9, "domain": "web", "uuid": UUID, "operation": "start", "milliseconds": 12, "result": "ready"}
    return events.Event(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A journal of the test's, which holds what it is sent until it is read."""
    with TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(f"{directory}/socket")
        journal.setblocking(False)
        monkeypatch.setattr(events, "JOURNAL", f"{directory}/socket")
        yield journal


def test_what_is_recorded_is_read_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert list(events.read(run)) == []
    first, second = event(), event(domain="Zürich\n", result="degraded", reason="no helper")
    events.record(run, first)
    events.record(run, second)
    assert list(events.read(run)) == [first, second]
    assert (run / paths.EVENTS).stat().st_mode & 0o777 == 0o600


def test_the_journal_gets_fields(tmp_path: Path, journal: socket.socket) -> None:
    events.record(tmp_path, event(result="degraded", reason="two\nPRIORITY=0"))
    lines = journal.recv(10_000).decode().split("\n")
    assert lines == [
        "MESSAGE=start of web: degraded in 12 ms: two PRIORITY=0",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=virt-rapl",
        "VIRT_RAPL_DOMAIN=web",
        f"VIRT_RAPL_UUID={UUID}",
        "VIRT_RAPL_OPERATION=start",
        "VIRT_RAPL_MILLISECONDS=12",
        "VIRT_RAPL_RESULT=degraded",
        "VIRT_RAPL_REASON=two PRIORITY=0",
        "",
    ]


def test_how_something_ends_is_recorded(tmp_path: Path) -> None:
    with events.recording(tmp_path, "web", UUID, "attach") as has_come_to:
        assert list(events.read(tmp_path)) == []
        has_come_to("active")
    with pytest.raises(VirtRaplError, match="no slot"), events.recording(tmp_path, "web", UUID, "attach"):
        raise VirtRaplError("no slot", "make room")
    with pytest.raises(ZeroDivisionError), events.recording(tmp_path, "web", UUID, "detach"):
        raise ZeroDivisionError
    with contextlib.suppress(VirtRaplError), events.recording(tmp_path, "web", UUID, "live") as has_come_to:
        has_come_to("active")
        raise VirtRaplError("it was undefined meanwhile")
    recorded = [(each.operation, each.result, each.reason) for each in events.read(tmp_path)]
    assert recorded == [
        ("attach", "active", ""),
        ("attach", "failed", "no slot"),
        ("detach", "failed", ""),
        ("live", "active", "it was undefined meanwhile"),
    ]
    assert {(each.domain, each.uuid) for each in events.read(tmp_path)} == {("web", UUID)}


@pytest.mark.parametrize(
    ("result", "priority"),
    [("ready", 5), ("active", 5), ("ended", 5), ("unchanged", 5), ("failed", 4), ("degraded", 4), ("refuse", 4)],
)
def test_trouble_is_a_warning_in_the_journal(
    tmp_path: Path, journal: socket.socket, result: str, priority: int
) -> None:
    events.record(tmp_path, event(result=result))
    assert f"\nPRIORITY={priority}\n" in journal.recv(10_000).decode()


def test_how_long_it_took_is_in_milliseconds() -> None:
    taken = events.Event.since(time.monotonic() - 1.5, domain="", uuid="", operation="start", result="ready")
    assert 1500 <= taken.milliseconds < 5000


def test_an_event_is_one_write_to_a_file_that_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that lines of several hooks do not mix."""
    written, write = [], os.write

    def counted(descriptor: int, line: bytes) -> int:
        written.append((descriptor, line))
        return write(descriptor, line)

    monkeypatch.setattr(os, "write", counted)
    events.record(tmp_path, event())
    ((descriptor, line),) = written
    assert line.endswith(b"}\n")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_where_others_can_write_nothing_is_read(tmp_path: Path) -> None:
    events.record(tmp_path, event())
    tmp_path.chmod(0o777)
    with pytest.raises(NotOursError):
        list(events.read(tmp_path))


def test_a_journal_that_does_not_listen_holds_nobody_up(tmp_path: Path) -> None:
    for _ in range(1000):  # far more than its queue holds: a sender that waits would wait for ever
        events.record(tmp_path, event())
    assert len(list(events.read(tmp_path))) == 1000


def test_without_a_journal_and_a_directory_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "JOURNAL", str(tmp_path / "none"))
    (tmp_path / "file").touch()
    events.record(tmp_path / "file", event())
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_neither_a_link_nor_a_pipe_leads_it_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / paths.EVENTS
    path.symlink_to(tmp_path / "elsewhere")
    events.record(tmp_path, event())
    assert not (tmp_path / "elsewhere").exists()
    path.unlink()
    os.mkfifo(path)
    events.record(tmp_path, event())  # nobody reads there


def test_the_file_does_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LIMIT", 1000)
    for number in range(100):
        events.record(tmp_path, event(milliseconds=number))
    assert {path.name for path in tmp_path.iterdir()} == {paths.EVENTS, f"{paths.EVENTS}.1"}
    assert all(path.stat().st_size < 1400 for path in tmp_path.iterdir())
    numbers = [event.milliseconds for event in events.read(tmp_path)]
    assert numbers == list(range(numbers[0], 100))
    assert len(numbers) > 4


def test_a_full_file_is_set_aside_by_one_process_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LIMIT", 1)
    events.record(tmp_path, event(domain="first"))
    with (tmp_path / paths.EVENTS).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process that is about to
        events.record(tmp_path, event(domain="second"))
        assert not (tmp_path / paths.OLDER_EVENTS).exists()
    lock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        """Let another process set the file aside, and begin a new one, just before we lock it."""
        (tmp_path / paths.EVENTS).rename(tmp_path / paths.OLDER_EVENTS)
        (tmp_path / paths.EVENTS).write_text(json.dumps(event(domain="fourth")._asdict()) + "\n")
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    events.record(tmp_path, event(domain="third"))
    assert [event.domain for event in events.read(tmp_path)] == ["first", "second", "third", "fourth"]


def test_half_a_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / paths.EVENTS).write_text('{"time": 1\n[]\n{"other": 1}\n\xff\n', encoding="latin-1")
    events.record(tmp_path, event())
    assert list(events.read(tmp_path)) == [event()]


@pytest.mark.parametrize(
    "odd",
    [
        {"time": "noon"},
        {"time": float("nan")},
        {"time": 1e300},
        {"milliseconds": None},
        {"domain": 5},
        {"reason": ["x"]},
        {"reason": "\ud800"},
    ],
)
def test_an_odd_line_does_not_end_the_command(tmp_path: Path, run: Run, odd: dict[str, object]) -> None:
    with (tmp_path / paths.EVENTS).open("w") as file:
        file.write("[" * 100_000 + "\n" + json.dumps({**event()._asdict(), **odd}) + "\n")
    events.record(tmp_path, event(domain="good"))
    status, out, err = run()
    assert (status, err) == (0, "")
    assert [line.split()[2] for line in out.splitlines()[1:]] == ["good"]
    assert run("--json", "--since", "1d")[0] == 0


def test_who_may_not_read_is_reported(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, _: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(events, "open", forbidden, raising=False)
    assert run() == (
        1,
        "",
        f"virt-rapl: error: may not read {tmp_path}/{paths.EVENTS}.1\nhint: run as root\n",
    )


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]) -> Run:
    configuration = tmp_path_factory.mktemp("etc") / "virt-rapl.yaml"
    configuration.write_text(f"run_directory: {tmp_path}\n")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["--config", str(configuration), "events", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_they_are_shown(tmp_path: Path, run: Run) -> None:
    assert run() == (0, "no events\n", "")
    now = time.time()
    events.record(tmp_path, event(time=now - 7200, result="degraded", reason="no helper"))
    events.record(tmp_path, event(time=now, domain="db", uuid="u", operation="started"))
    _, out, _ = run()
    head, first, second = out.splitlines()
    assert head.split() == ["TIME", "DOMAIN", "OPERATION", "MS", "RESULT", "REASON"]
    assert first.split()[2:] == ["web", "start", "12", "degraded", "no", "helper"]
    assert second.split()[2:] == ["db", "started", "12", "ready"]

    def domains(*arguments: str) -> list[str]:
        document = json.loads(run("--json", *arguments)[1])
        assert document["schema"] == 1
        return [event["domain"] for event in document["events"]]

    assert domains() == domains("web", "db") == ["web", "db"]
    assert domains(UUID) == ["web"]
    assert domains("--since", "1h") == ["db"]
    assert domains("--since", "2000-01-01") == ["web", "db"]
    assert domains("--since", "9998-01-01T12:00") == []


@pytest.mark.parametrize(
    ("since", "seconds"),
    [
        ("0s", 0),
        ("90s", 90),
        ("10m", 600),
        ("2h", 7200),
        ("1d", 86400),
        ("2001-09-09T01:46:40+00:00", 0),
        ("2001-09-09T01:46:39+00:00", 1),
        ("2001-09-08", None),
    ],
)
def test_since_is_how_long_ago_or_a_time(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, since: str, seconds: int | None
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e9)
    first = datetime(2001, 9, 8).timestamp() if seconds is None else 1e9 - seconds
    for name, when in (("before", first - 0.5), ("then", first), ("later", first + 0.5)):
        events.record(tmp_path, event(domain=name, time=when))
    found = json.loads(run("--json", "--since", since)[1])["events"]
    assert [each["domain"] for each in found] == ["then", "later"]


@pytest.mark.parametrize("when", ["soon", "10", "-1h", "1y", "99999999-01-01", f"{'9' * 400}d", f"{'9' * 5000}d"])
def test_a_time_that_is_none(when: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(f"--since={when}")
    assert caught.value.code == 2
    assert when in capsys.readouterr().err


@pytest.mark.e2e
def test_the_life_of_a_domain_in_events(world: World, new_guest: NewGuest) -> None:
    name = new_guest(0)
    start_enabled(world, name)
    happened = ["virt-rapl", "events", "--json", name]
    wait_until(lambda: '"started"' in world.run(happened).stdout, 20, "libvirt does not wait for `started`")
    world.run(["virsh", "destroy", name])
    document = json.loads(world.run(happened).stdout)
    seen = [(event["operation"], event["result"]) for event in document["events"]]
    assert seen == [("start", "ready"), ("started", "ready"), ("stopped", "ended")]
    assert all(0 < event["milliseconds"] < 20_000 for event in document["events"][:3])
    assert {event["uuid"] for event in document["events"]} == {world.run(["virsh", "domuuid", name]).stdout.strip()}
