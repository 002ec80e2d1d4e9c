"""The ledger of totals: what it keeps through kill -9, restarts and damage, and what it says when it cannot."""

import contextlib
import errno
import functools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fakes.host import Host, Thread

from libvirt_rapl.energy import ledger as ledger_file
from libvirt_rapl.energy import ledger_content, snapshot
from libvirt_rapl.energy.history import Moment
from libvirt_rapl.energy.ledger import BUSY_SECONDS, Ledger, summary
from libvirt_rapl.energy.ledger_content import DamagedError
from libvirt_rapl.energy.meter import Meter, Running
from libvirt_rapl.energy.snapshot import GONE, GONE_SECONDS, HOST, WHOLE, Kept, Part
from libvirt_rapl.host.energy_source import Source, open_source
from libvirt_rapl.simulator.world import World

PACKAGE = Part(HOST, WHOLE, "package-0")
DRAM = Part(HOST, WHOLE, "dram-0")
VCPU = Part("aaaaaaaa-0000-0000-0000-000000000000", 3, "package")


class Logged(list[str]):
    """The lines of one ledger."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/ledger.db"


@pytest.fixture
def logged() -> Logged:
    return Logged()


MakeLedger = Callable[..., Ledger]


@pytest.fixture
def make_ledger(path: Path, logged: Logged) -> MakeLedger:
    return lambda simulated=False: Ledger(path, simulated=simulated, log=logged.append)


def test_totals_are_kept_and_never_go_back(make_ledger: MakeLedger, logged: Logged) -> None:
    first = make_ledger()
    assert first.load().totals == {}
    first.write(Kept({PACKAGE: 10, VCPU: 2**62}))
    first.write(Kept({PACKAGE: 30, DRAM: 1}))
    first.write(Kept({PACKAGE: 20}))
    second = make_ledger()
    assert second.load().totals == {PACKAGE: 30, VCPU: 2**62, DRAM: 1}
    assert second.load().totals == {}  # only once: they would count twice
    assert second.since == first.since
    assert logged == []


def test_what_is_noted_is_kept_until_there_are_rows_of_it(make_ledger: MakeLedger, logged: Logged) -> None:
    first = make_ledger()
    assert not first.note(Kept({PACKAGE: 5}), Moment()), "what the file has is not known yet"
    first.load()
    first.write(Kept({PACKAGE: 10, DRAM: 7}, {"package-0": (5, 1000)}, {VCPU.owner: 1}, 10.0))
    whole = Kept({PACKAGE: 30, VCPU: 2**62, DRAM: 6}, {"package-0": (4, 1000)}, {VCPU.owner: 99.5}, 100.5)
    for noted in (Kept({PACKAGE: 20}, metered=20.0), whole):
        assert first.note(noted, Moment())
    assert make_ledger().load() == Kept({**whole.totals, DRAM: 7}, whole.lowest, whole.last_ran, whole.metered)
    assert make_ledger().load().totals == {**whole.totals, DRAM: 7}, "it has become rows"
    first.note(Kept({PACKAGE: 40}), Moment())
    first.write(Kept({PACKAGE: 35}))
    assert make_ledger().load().totals[PACKAGE] == 35, "rows that are written have all of a note"
    assert logged == []


def test_a_note_brings_no_retired_domain_back(make_ledger: MakeLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = make_ledger()
    ledger.load()
    ledger.write(Kept({VCPU: 4}))
    gone = Kept({VCPU._replace(owner=GONE): 4})
    monkeypatch.setattr(ledger_content, "store", lambda *_: errors())
    assert not ledger.write(gone, {VCPU.owner})
    monkeypatch.undo()
    assert not ledger.note(gone, Moment()), "the rows are still there"
    assert ledger.write(gone)
    assert ledger.note(gone, Moment())
    assert make_ledger().load() == gone


def errors() -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_note_that_is_damaged(make_ledger: MakeLedger, path: Path, logged: Logged) -> None:
    ledger = make_ledger()
    ledger.load()
    ledger.note(Kept({PACKAGE: 10}), Moment())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE note SET digest = 'another'")
    assert make_ledger().load() == Kept()
    assert [line for line in logged if "its note does not hold what was written; it is now ledger.db.aside-" in line]


class Watched(sqlite3.Connection):
    """A connection that notes how it is set where a transaction is committed."""

    committed: ClassVar[list[dict[str, object]]] = []

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:  # noqa: ANN401  as sqlite3 has it
        if sql == "COMMIT":
            self.committed.append({name: self.execute(f"PRAGMA {name}").fetchone()[0] for name in SETTINGS})
        return super().execute(sql, *parameters)


SETTINGS = ("synchronous", "journal_mode", "busy_timeout")


def test_each_write_is_forced_to_the_disk(make_ledger: MakeLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the file's first content, before it gets its name, and all that comes after."""
    monkeypatch.setattr(Watched, "committed", [])
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Watched))
    ledger = make_ledger()
    ledger.load()
    ledger.write(Kept({PACKAGE: 1}))
    ledger.note(Kept({PACKAGE: 2}), Moment())
    full, busy = 2, int(BUSY_SECONDS * 1000)
    assert Watched.committed == [
        dict(zip(SETTINGS, (full, mode, busy), strict=True)) for mode in ("delete", "wal", "wal", "wal")
    ]


def test_a_new_file_gets_its_name_when_it_is_whole_and_is_never_open_to_others(
    make_ledger: MakeLedger, path: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, int]] = []

    def full_disk(*_: object, **__: object) -> None:
        found.extend((each.name, each.stat().st_mode & 0o777) for each in path.parent.iterdir())
        raise OSError(errno.ENOSPC, "No space left on device")

    umask = os.umask(0)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ledger_content, "begin", full_disk)
            ledger = make_ledger()
            assert ledger.load() == Kept()
    finally:
        os.umask(umask)
    assert ("ledger.db.new", 0o600) in found
    assert {mode for _, mode in found} == {0o600}
    assert not path.exists()
    assert ledger.load() == Kept()
    assert ledger.write(Kept({PACKAGE: 1}))
    assert len(logged) == 2, "that it does not work, and that it does again"
    assert [each.name for each in path.parent.iterdir()] == ["ledger.db"]


def test_no_descriptor_is_left_open(make_ledger: MakeLedger, path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    ledger = make_ledger()
    ledger.load()
    for joules in (1, 2):
        path.chmod(0o644)
        ledger.write(Kept({PACKAGE: joules}))
    path.write_text("damaged" * 1000)
    ledger.write(Kept({PACKAGE: 3}))
    assert summary(path)[2] == 0
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_what_is_metered_and_when_domains_ran_go_on(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    ledger.load()
    ledger.write(Kept({PACKAGE: 1}, {"package-0": (5, 1000)}, {VCPU.owner: 10}, 100))
    ledger.write(Kept({PACKAGE: 1}, {"package-0": (4, 1000)}, {VCPU.owner: 90}, 90))
    assert make_ledger().load() == Kept({PACKAGE: 1}, {"package-0": (4, 1000)}, {VCPU.owner: 90}, 100)


def test_nobody_else_may_read_and_so_hold_its_locks(make_ledger: MakeLedger, path: Path) -> None:
    umask = os.umask(0)
    try:
        ledger = make_ledger()
        ledger.load()
        with contextlib.closing(sqlite3.connect(path)) as reader:  # so that SQLite's files beside it stay
            reader.execute("SELECT * FROM total").fetchall()
            ledger.write(Kept({PACKAGE: 1}))
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(umask)
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


SCHEMA_1 = """
CREATE TABLE ledger (since REAL NOT NULL, simulated INTEGER NOT NULL);
CREATE TABLE total (
    owner TEXT NOT NULL, vcpu INTEGER NOT NULL, zone TEXT NOT NULL,
    microjoules INTEGER NOT NULL CHECK (typeof(microjoules) = 'integer' AND microjoules >= 0),
    PRIMARY KEY (owner, vcpu, zone)
) WITHOUT ROWID;
INSERT INTO ledger VALUES (1234567890.5, 0);
INSERT INTO total VALUES ('host', -1, 'package-0', 70), ('idle', -1, 'package', 63),
    ('aaaaaaaa-0000-0000-0000-000000000000', -1, 'package', 7),
    ('aaaaaaaa-0000-0000-0000-000000000000', 3, 'package', 7);
PRAGMA user_version = 1;
"""
"""A file as virt-rapl wrote it before it kept more than totals."""
SCHEMA_2 = (
    SCHEMA_1.replace("user_version = 1", "user_version = 2")
    + """
CREATE TABLE lowest (
    zone TEXT NOT NULL PRIMARY KEY,
    microjoules INTEGER NOT NULL CHECK (typeof(microjoules) = 'integer' AND microjoules >= 0),
    nanoseconds INTEGER NOT NULL CHECK (typeof(nanoseconds) = 'integer' AND nanoseconds > 0)
) WITHOUT ROWID;
CREATE TABLE domain (uuid TEXT NOT NULL PRIMARY KEY, last_ran REAL NOT NULL) WITHOUT ROWID;
INSERT INTO lowest VALUES ('package-0', 5, 1000);
INSERT INTO domain VALUES ('aaaaaaaa-0000-0000-0000-000000000000', 1764240000.5);
"""
)
"""A file as virt-rapl wrote it before there was a digest, when ages went by the host's clock."""


def test_what_was_open_to_everybody_is_logged_and_closed(make_ledger: MakeLedger, path: Path, logged: Logged) -> None:
    make_ledger().load()
    assert logged == []
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.parent.chmod(0o755)
    path.chmod(0o644)
    make_ledger().load()
    assert logged == [f"{path} was open to everybody (mode 644); now it is not (mode 600)"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o755, "the directory may be the system's"


@pytest.mark.parametrize(("schema", "lowest"), [(SCHEMA_1, {}), (SCHEMA_2, {"package-0": (5, 1000)})])
def test_a_file_of_an_older_schema_is_counted_on(
    make_ledger: MakeLedger, path: Path, logged: Logged, schema: str, lowest: dict[str, tuple[int, int]]
) -> None:
    path.parent.mkdir(mode=0o750)
    path.touch(mode=0o640)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(schema)
    ledger = make_ledger()
    whole, idle = VCPU._replace(vcpu=WHOLE), Part("idle", WHOLE, "package")
    assert ledger.load() == Kept({PACKAGE: 70, idle: 63, whole: 7, VCPU: 7}, lowest)  # and ages begin anew
    assert ledger.since == 1234567890.5
    more = Kept({PACKAGE: 80, idle: 72, whole: 8, VCPU: 8}, {"package-0": (4, 1000)}, {VCPU.owner: 99.5}, 100.5)
    ledger.write(more)
    again = make_ledger()
    assert again.load() == more
    assert again.since == 1234567890.5
    assert logged == []


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_from_before_there_were_notes(
    make_ledger: MakeLedger, path: Path, logged: Logged, damaged: bool
) -> None:
    ledger = make_ledger()
    ledger.load()
    kept = Kept(
        {PACKAGE: 7, VCPU._replace(vcpu=WHOLE): 7, VCPU: 7}, {"package-0": (5, 1000)}, {VCPU.owner: 99.5}, 100.5
    )
    ledger.write(kept)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("DROP TABLE note")
        database.execute("PRAGMA user_version = 4")
        ledger_content.seal(database)
        if damaged:
            database.execute("UPDATE lowest SET microjoules = 6")
    again = make_ledger()
    assert again.load() == (Kept() if damaged else kept)
    assert [line for line in logged if "does not hold what was written" in line] == logged
    assert len(logged) == damaged
    assert again.note(kept, Moment())


@pytest.mark.parametrize("change", ["microjoules = 71 WHERE owner = 'host'", "microjoules = 6 WHERE vcpu = 3"])
def test_a_file_of_an_older_schema_whose_totals_do_not_add_up(
    make_ledger: MakeLedger, path: Path, logged: Logged, change: str
) -> None:
    path.parent.mkdir(mode=0o750)
    path.touch(mode=0o640)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"{SCHEMA_2}; UPDATE total SET {change};")
    assert make_ledger().load() == Kept()
    assert len(logged) == 1
    assert len(list(path.parent.glob("ledger.db.aside-*"))) == 1


def test_rows_of_retired_domains_go_when_the_file_can_be_written(
    make_ledger: MakeLedger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libvirt_rapl.energy.ledger.BUSY_SECONDS", 0.01)
    ledger = make_ledger()
    ledger.load()
    ledger.write(Kept({PACKAGE: 10, VCPU: 4}, last_ran={VCPU.owner: 1}))
    gone = Kept({PACKAGE: 10, VCPU._replace(owner=GONE): 4})
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger.write(gone, {VCPU.owner})
        other.execute("ROLLBACK")
    assert make_ledger().load().totals == {PACKAGE: 10, VCPU: 4}
    ledger.write(gone)
    assert make_ledger().load() == gone
    back = Kept({**gone.totals, VCPU: 1}, last_ran={VCPU.owner: 2})  # a domain of that UUID begins anew
    ledger.write(back)
    assert make_ledger().load() == back
    ledger.write(Kept({**gone.totals, VCPU: 0}))
    assert make_ledger().load() == back, "and its total never goes back either"
    ledger.write(Kept({PACKAGE: 11}))
    assert make_ledger().load().totals == {**back.totals, PACKAGE: 11}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def overwrite_pages(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1024] + b"\xff" * 11264)


def other_tables(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE total")


def other_version(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 7")


def no_text(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"package-0", b"package\xff0"))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def another_total(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE total SET microjoules = 11")
        database.commit()


def another_date(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO domain VALUES ('a', 1.0)")
        database.commit()


def another_lowest(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO lowest VALUES ('package-0', 1, 1)")
        database.commit()


def another_age(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE ledger SET metered = 7")
        database.commit()


def another_format(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[18] |= 4  # SQLite only reads such a file
    path.write_bytes(content)


def no_beginning(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("DELETE FROM ledger")
        database.commit()


DAMAGES = [
    cut_short,
    overwrite_pages,
    other_tables,
    other_version,
    no_beginning,
    no_text,
    emptied,
    another_total,
    another_date,
    another_lowest,
    another_age,
    another_format,
    lambda path: path.write_text("no" * 9),
]


def unknown_free_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[39] += 1  # which no total depends on, until they are used
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [*DAMAGES, unknown_free_pages])
def test_a_damaged_file_is_set_aside(
    make_ledger: MakeLedger, path: Path, logged: Logged, damage: Callable[[Path], None]
) -> None:
    ledger = make_ledger()
    ledger.load()
    ledger.write(Kept({PACKAGE: 10}))
    damage(path)
    damaged = path.read_bytes()

    anew = make_ledger()
    assert anew.load().totals == {}
    anew.write(Kept({PACKAGE: 5}))
    (line,) = logged
    assert line.startswith(f"{path} cannot be used: ")
    (aside,) = path.parent.glob("ledger.db.aside-*[0-9]")
    assert aside.name in line
    assert aside.read_bytes() == damaged
    assert make_ledger().load().totals == {PACKAGE: 5}
    assert len(logged) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_summary_changes_nothing(make_ledger: MakeLedger, path: Path, damage: Callable[[Path], None]) -> None:
    """Not even where the file is missing or damaged."""
    path.parent.mkdir()
    with pytest.raises(DamagedError):
        summary(path)
    assert not list(path.parent.iterdir())
    ledger = make_ledger(simulated=True)
    ledger.load()
    ledger.write(Kept({PACKAGE: 10, VCPU: 4, VCPU._replace(vcpu=WHOLE): 4, VCPU._replace(owner=GONE): 1}))
    assert summary(path) == (ledger.since, True, 1)
    damage(path)
    damaged = path.read_bytes()
    with pytest.raises(DamagedError):
        summary(path)
    assert path.read_bytes() == damaged
    assert not list(path.parent.glob("*aside*"))


@pytest.mark.parametrize(
    ("code", "set_aside"),
    [
        (sqlite3.SQLITE_IOERR_READ, False),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, False),
        (sqlite3.SQLITE_READONLY_DIRECTORY, False),
        (sqlite3.SQLITE_CANTOPEN_ISDIR, False),
        *((code, False) for code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM)),
        (sqlite3.SQLITE_CORRUPT, True),
        (sqlite3.SQLITE_CORRUPT_INDEX, True),
        (sqlite3.SQLITE_NOTADB, True),
        (sqlite3.SQLITE_ERROR, True),
    ],
)
def test_errors_of_the_disk_are_no_damage(
    make_ledger: MakeLedger,
    path: Path,
    logged: Logged,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    *,
    set_aside: bool,
) -> None:
    """However SQLite describes them."""
    ledger = make_ledger()
    ledger.load()
    ledger.write(Kept({PACKAGE: 10}))
    failing = make_ledger()

    def fail(_: sqlite3.Connection) -> Kept:
        error = sqlite3.OperationalError("not now")
        error.sqlite_errorcode = code
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ledger_content, "verified", fail)
        assert failing.load() == Kept()
        assert not failing.write(Kept({PACKAGE: 1}))
    assert bool(list(path.parent.glob("*aside*"))) == set_aside
    assert failing.load().totals == ({} if set_aside else {PACKAGE: 10})
    assert "not now" in logged[0]


FULL = Kept(
    {
        Part(owner, vcpu, zone): 12345
        for owner in (HOST, GONE, VCPU.owner)
        for vcpu in range(9)
        for zone in ("a", "package")
    },
    {"package-0": (5, 1000)},
    {VCPU.owner: 99.5},
    100.5,
)


@pytest.mark.parametrize("flips", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_bit_that_flips_changes_no_total_in_silence(
    make_ledger: MakeLedger, path: Path, logged: Logged, flips: int
) -> None:
    ledger = make_ledger()
    ledger.load()
    assert ledger.write(FULL)
    assert ledger.note(FULL, Moment())
    whole = path.read_bytes()
    chance, found = random.Random(15), {"the same": 0, "set aside": 0}
    for _ in range(flips):
        flipped, bit = bytearray(whole), chance.randrange(len(whole) * 8)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        logged.clear()
        again = make_ledger()
        if again.load() == FULL and again.since == ledger.since:
            assert logged == [], bit
            found["the same"] += 1
        else:
            (line,) = logged
            assert line.startswith(f"{path} cannot be used: "), bit
            (aside,) = path.parent.glob("ledger.db.aside-*[0-9]")
            assert aside.read_bytes()[20:] == flipped[20:], bit  # its header shows which program has opened it
            aside.unlink()
            found["set aside"] += 1
    print(found)
    assert min(found.values()) > 0


@pytest.mark.parametrize("length", [1, 19, 99, 100, 4095, 4096, 4097, 8192, -4096, -2048])
def test_a_file_that_was_cut(make_ledger: MakeLedger, path: Path, logged: Logged, length: int) -> None:
    ledger = make_ledger()
    ledger.load()
    ledger.write(FULL)
    ledger.note(FULL, Moment())
    path.write_bytes(path.read_bytes()[:length])
    assert make_ledger().load() == Kept()
    assert len(logged) == 1


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("what", ["link", "dangling", "fifo", "directory"])
def test_what_is_no_file_is_neither_opened_nor_followed(
    make_ledger: MakeLedger, path: Path, logged: Logged, what: str, suffix: str
) -> None:
    ledger = make_ledger()
    ledger.load()
    ledger.write(Kept({PACKAGE: 10}))
    place, target = Path(f"{path}{suffix}"), path.parent.parent / "target"
    place.unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(place)
    elif what == "directory":
        place.mkdir()
    else:
        place.symlink_to(target)
    if what == "link":
        target.write_text("somebody else's")
        target.chmod(0o644)
    assert ledger.write(Kept({PACKAGE: 20}))
    (line,) = logged
    assert place.name in line
    assert make_ledger().load().totals == {PACKAGE: 20}
    assert len(logged) == 1
    if what == "link":
        assert (target.read_text(), target.stat().st_mode & 0o777) == ("somebody else's", 0o644)
    assert target.exists() == (what == "link")


@pytest.mark.parametrize("suffix", ["", ".new"])
def test_a_link_that_is_put_there_at_the_last_moment_is_not_followed(
    make_ledger: MakeLedger, path: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """After it was looked at."""
    target = path.parent.parent / "target"
    target.write_text("somebody else's")
    path.parent.mkdir()

    def put(_: Path) -> None:
        Path(f"{path}{suffix}").symlink_to(target)

    monkeypatch.setattr(ledger_file, "check_files", put)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    assert make_ledger().load() == Kept()
    monkeypatch.undo()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("somebody else's", 0o644)
    assert len(logged) == 1


def test_a_file_that_is_being_made_when_we_are_killed(make_ledger: MakeLedger, path: Path, logged: Logged) -> None:
    path.parent.mkdir(mode=0o750)
    for suffix in (".new", ".new-journal"):
        Path(f"{path}{suffix}").write_text("half")
    assert make_ledger().load() == Kept()
    assert logged == []
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]


def test_a_file_damaged_or_taken_away_meanwhile_is_written_anew(
    make_ledger: MakeLedger, path: Path, logged: Logged
) -> None:
    ledger = make_ledger()
    ledger.load()
    ledger.write(Kept({PACKAGE: 10, VCPU: 5}))
    path.write_text("damaged" * 1000)
    ledger.write(Kept({PACKAGE: 20, VCPU: 5}))
    assert len(logged) == 1
    path.unlink()
    ledger.write(Kept({PACKAGE: 30, VCPU: 5}))
    assert make_ledger().load().totals == {PACKAGE: 30, VCPU: 5}
    assert make_ledger().since < ledger.since + 60


def test_a_place_that_cannot_be_used_is_logged_once_and_tried_again(
    make_ledger: MakeLedger, path: Path, logged: Logged
) -> None:
    before = make_ledger()
    before.load()
    before.write(Kept({PACKAGE: 100}))
    directory = path.parent.rename(path.parent.with_name("away"))
    path.parent.write_text("not a directory")

    ledger = make_ledger()
    counted = {PACKAGE: 7}
    for _ in range(3):
        assert ledger.load().totals == {}
        ledger.write(Kept(counted))
    (line,) = logged
    assert line.startswith(f"cannot keep totals in {path}: ")
    assert line.endswith("metering goes on in memory")

    path.parent.unlink()
    directory.rename(path.parent)
    assert ledger.load().totals == {PACKAGE: 100}
    ledger.write(Kept({PACKAGE: 107}))
    assert make_ledger().load().totals == {PACKAGE: 107}
    assert logged[1:] == [f"totals are kept in {path} again"]


def test_another_program_holds_the_file(
    make_ledger: MakeLedger, path: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libvirt_rapl.energy.ledger.BUSY_SECONDS", 0.01)
    ledger = make_ledger()
    ledger.load()
    later = make_ledger()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not ledger.write(Kept({PACKAGE: 1}))
        assert later.load() == Kept(), "nobody reads what is being changed"
        assert not later.write(Kept({PACKAGE: 100}))
        other.execute("ROLLBACK")
    assert ["locked" in line for line in logged] == [True, True]
    assert ledger.write(Kept({PACKAGE: 2}))
    assert later.load().totals == {PACKAGE: 2}


def test_simulated_and_measured_energy_are_never_mixed(make_ledger: MakeLedger, path: Path, logged: Logged) -> None:
    simulated = make_ledger(simulated=True)
    simulated.load()
    simulated.write(Kept({PACKAGE: 10}))
    measured = make_ledger()
    assert measured.load().totals == {}
    measured.write(Kept({PACKAGE: 3}))
    assert "simulated" in logged[0]
    assert len(list(path.parent.glob("ledger.db.aside-*"))) == 1

    again = make_ledger(simulated=True)
    assert again.load().totals == {}
    again.write(Kept({PACKAGE: 99}))
    assert "it holds measured energy" in logged[1]
    assert make_ledger().load().totals == {PACKAGE: 3}


WRITER = """
import sys
from pathlib import Path
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.snapshot import Kept, Part
ledger = Ledger(Path(sys.argv[1]), simulated=False, log=lambda line: sys.exit(line))
parts = [Part("host", -1, f"zone-{number}") for number in range(200)]
total = ledger.load().totals.get(parts[0], 0)
while True:
    total += 1
    print(total, flush=True)
    ledger.write(Kept(dict.fromkeys(parts, total)))
"""


def test_kill_9_at_any_moment_loses_at_most_one_write(path: Path) -> None:
    chance = random.Random(4711)
    kept = 0
    for _ in range(15):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert int(writer.stdout.readline()) == kept + 1  # it counts on from what was kept, neither more nor less
        time.sleep(chance.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        last = int((["", *writer.stdout.read().split()][-1]) or kept + 1)
        writer.wait()
        writer.stdout.close()
        found = Ledger(path, simulated=False, log=pytest.fail).load().totals
        assert len(set(found.values())) <= 1  # all of a write or nothing of it
        assert last - 1 <= (found or {PACKAGE: 0}).popitem()[1] <= last
        kept = max(kept, *found.values()) if found else kept
    assert kept > 15


FULL_DISK = """
import sys
from pathlib import Path
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.snapshot import Kept, Part
directory = Path("/mnt/full")
def fill():
    with (directory / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(b"x" * 4096): pass
        except OSError: pass
logged = []
def ledger(): return Ledger(directory / "ledger.db", simulated=True, log=logged.append)
def many(n): return {Part("host", -1, f"zone-{number}"): n for number in range(5000)}
fill()
empty = ledger()
assert empty.load().totals == {} and empty.load().totals == {}
assert len(logged) == 1 and "memory" in logged[0], logged
(directory / "filler").unlink()
assert empty.load().totals == {}
assert len(logged) == 2 and "again" in logged[1], logged
empty.write(Kept(many(1)))
fill()
empty.write(Kept({**many(2), **{Part("other", n, "package" * 20): n for n in range(5000)}}))
empty.write(Kept({**many(3), **{Part("other", n, "package" * 20): n for n in range(5000)}}))
assert len(logged) == 3 and "memory" in logged[2], logged
assert set(ledger().load().totals.values()) <= {1}
(directory / "filler").unlink()
empty.write(Kept(many(4)))
assert set(ledger().load().totals.values()) == {4}
print("\\n".join(logged))
"""


@pytest.mark.e2e
def test_a_full_disk(world: World) -> None:
    world.run(["mkdir", "/mnt/full"])
    world.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=750", "full", "/mnt/full"])
    try:
        print(world.run([sys.executable, "-c", FULL_DISK]).stdout)
    finally:
        world.run(["umount", "/mnt/full"])
        world.run(["rmdir", "/mnt/full"])


def source(host: Host) -> Source:
    return open_source("auto", sys=host.sys, dev=host.dev, proc=host.proc)


def test_a_meter_counts_on_from_what_was_kept(tmp_path: Path) -> None:
    uuid = VCPU.owner
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0")
    host.zone("intel-rapl:0:0", "dram")
    seconds = iter(range(1, 100))

    def clock(which: int) -> int:
        return next(seconds) * 10**9 if which == time.CLOCK_BOOTTIME else 0

    def meter() -> Meter:
        return Meter(source(host), sys=host.sys, proc=host.proc, clock=clock)

    def use(seconds: int) -> None:
        host.zone("intel-rapl:0", "package-0", 100_000_000 * seconds)
        host.zone("intel-rapl:0:0", "dram", 5_000_000 * seconds)
        host.process(7, {7: Thread("qemu", 0), 8: Thread("CPU 0/KVM", seconds * 10**9)})

    use(0)
    first = meter()
    first.sample([Running(uuid, 7, {0: 8})])
    use(1)
    first.sample([Running(uuid, 7, {0: 8})])
    kept = snapshot.kept(snapshot.take(first)).totals
    halves = dict.fromkeys((uuid, "idle"), 50000000) | {"other": 0}
    assert kept == {
        PACKAGE: 100_000_000,
        DRAM: 5_000_000,
        **{Part(owner, WHOLE, "package"): half for owner, half in halves.items()},
        **{Part(owner, WHOLE, "package-0"): half for owner, half in halves.items()},
        **{Part(owner, WHOLE, "dram-0"): half // 20 for owner, half in halves.items()},
        Part(uuid, 0, "package"): 50_000_000,
    }

    (host.powercap / "intel-rapl:0:0/energy_uj").unlink()  # a zone that does not come back with the next boot
    second = meter()
    second.sample([Running(uuid, 7, {0: 8})])
    snapshot.add(second, Kept(kept))
    assert snapshot.kept(snapshot.take(second)).totals == kept
    use(2)
    second.sample([Running(uuid, 7, {0: 8})])
    again = snapshot.kept(snapshot.take(second)).totals
    assert again == {part: n if part.zone == "dram-0" else 2 * n for part, n in kept.items()}


A, B = "aaaaaaaa-0000-0000-0000-000000000000", "bbbbbbbb-0000-0000-0000-000000000000"


def test_domains_that_are_gone_for_good_are_kept_together(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0")
    seconds = iter(range(1, 100))
    meter = Meter(source(host), sys=host.sys, proc=host.proc, clock=lambda _: next(seconds) * 10**9)

    def use(joules: int) -> None:
        host.zone("intel-rapl:0", "package-0", joules * 1_000_000)
        for pid in (7, 20):
            threads = {pid: Thread("qemu", 0), pid + 1: Thread("CPU 0/KVM", joules * 10**7)}
            host.process(pid, threads)
        meter.sample([Running(A, 7, {0: 8}), Running(B, 20, {0: 21})])

    def sums() -> tuple[int, int]:
        """Return what the zone counted, and what domains, other and idle make of it."""
        kept = snapshot.kept(snapshot.take(meter)).totals
        parts = [n for part, n in kept.items() if part.zone == "package-0" and part.owner != HOST]
        for uuid, domain in meter.domains.items():
            vcpus = [n for part, n in kept.items() if part.owner == uuid and part.vcpu != WHOLE]
            assert sum(vcpus) == domain.microjoules == domain.zones["package-0"].microjoules
        return kept[PACKAGE], sum(parts)

    def retire(metered: float, known: set[str] | None, running: set[str] | None = None) -> set[str]:
        meter.metered = metered
        return snapshot.retire(meter, running=running or set(), known=known)

    use(0)
    use(40)
    assert sums() == (40_000_000, 40_000_000)
    used = meter.domains[A].microjoules
    assert used > 0
    month = GONE_SECONDS
    assert retire(1000.0, set(), {A, B}) == set()
    assert retire(999.0 + month, set()) == set()  # not so long ago yet
    assert retire(1001.0 + month, None) == set()  # libvirt has not said
    assert retire(1001.0 + month, {A, B}) == set()  # defined, though it does not run
    assert retire(1001.0 + month, {A}, {A}) == {B}
    assert meter.domains.keys() == {A, GONE}
    assert retire(1000.0 + 2 * month, set()) == set()
    assert retire(1002.0 + 2 * month, set()) == {A}
    assert {uuid: domain.microjoules for uuid, domain in meter.domains.items()} == {GONE: 2 * used}
    assert retire(10 * month, set()) == retire(20 * month, set()) == set()
    assert sums() == (40_000_000, 40_000_000)
    use(60)
    assert sums() == (60_000_000, 60_000_000)
    assert meter.domains[GONE].watts == 0


def test_ages_go_by_the_time_that_was_metered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the host's clock was at any time: here it is never asked."""
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0")
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the host's clock"))
    now = 0

    def meter() -> Meter:
        return Meter(source(host), sys=host.sys, proc=host.proc, clock=lambda _: now * 10**9)

    def live(meter: Meter, seconds: int, *running: str) -> set[str]:
        nonlocal now
        now += seconds
        host.process(7, {7: Thread("qemu", now * 10**9)})
        meter.sample([Running(uuid, 7, {}) for uuid in running])
        return snapshot.retire(meter, running=set(running), known=set())

    first = meter()
    for _ in range(3):
        assert live(first, 10, A) == set()
    kept = snapshot.kept(snapshot.take(first))
    assert (kept.metered, kept.last_ran) == (20, {A: 20})
    second = meter()  # its ledger can be read only after a while
    assert live(second, 10) == set()
    assert live(second, 86400) == set()
    snapshot.add(second, kept)
    assert second.metered == 86420
    assert live(second, int(GONE_SECONDS) - 86400) == set()
    assert live(second, 1) == {A}


def test_the_lowest_power_is_kept(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0")
    seconds = 0

    def clock(which: int) -> int:
        nonlocal seconds
        if which == time.CLOCK_BOOTTIME:  # the first that a sample asks for
            seconds += 1
            host.up(seconds * 100)  # nothing but the domain runs
        return seconds * 10**9

    def meter() -> Meter:
        return Meter(source(host), sys=host.sys, proc=host.proc, model="baseline", clock=clock)

    def use(meter: Meter, joules: int, ran: int) -> None:
        host.zone("intel-rapl:0", "package-0", joules * 1_000_000)
        host.process(7, {7: Thread("qemu", 0), 8: Thread("CPU 0/KVM", ran * 10**9)})
        meter.sample([Running(A, 7, {0: 8})])

    first = meter()
    use(first, 0, 0)
    use(first, 20, 0)
    kept = snapshot.kept(snapshot.take(first))
    assert kept.lowest == {"package-0": (20_000_000, 10**9)}

    second = meter()
    snapshot.add(second, kept)
    use(second, 100, 0)
    use(second, 160, 1)  # the host was never quiet since the restart
    assert (second.domains[A].joules, second.idle.watts) == (40, 20)
    use(second, 170, 1)
    assert snapshot.kept(snapshot.take(second)).lowest == {"package-0": (10_000_000, 10**9)}
    snapshot.add(second, kept)  # a ledger that can be read only now
    assert snapshot.kept(snapshot.take(second)).lowest == {"package-0": (10_000_000, 10**9)}
