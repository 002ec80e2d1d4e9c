"""The ledger: totals of energy that outlive the process, the machine's uptime and a kill -9, in an SQLite file.

Beside them it keeps the lowest power of each zone, when each domain ran last, and a digest of it all. Totals are
written as they are, never as differences: writing twice changes nothing, and whoever dies between two writes loses only
what came after the first. The file is opened for each write, so that it may be moved away, and is whole on the disk
when the write is done.

A disk may change a bit, and no total shall be another thereby. What does not match its digest is set aside: when it is
loaded, and before it is written, while its owner still has in memory all that it held. A new file is made under
another name and renamed when it is furnished, so one that is empty has lost what it held. What is no regular file, such
as a link or a FIFO, is set aside unopened.
"""

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from libvirt_rapl.energy.snapshot import Kept, Part, imbalance
from libvirt_rapl.errors import VirtRaplError

TABLES = (
    "CREATE TABLE ledger (since REAL NOT NULL, simulated INTEGER NOT NULL)",
    """CREATE TABLE total (
        owner TEXT NOT NULL, vcpu INTEGER NOT NULL, zone TEXT NOT NULL,
        microjoules INTEGER NOT NULL CHECK (typeof(microjoules) = 'integer' AND microjoules >= 0),
        PRIMARY KEY (owner, vcpu, zone)
    ) WITHOUT ROWID""",
)
TABLES_SINCE_2 = (
    """CREATE TABLE lowest (
        zone TEXT NOT NULL PRIMARY KEY,
        microjoules INTEGER NOT NULL CHECK (typeof(microjoules) = 'integer' AND microjoules >= 0),
        nanoseconds INTEGER NOT NULL CHECK (typeof(nanoseconds) = 'integer' AND nanoseconds > 0)
    ) WITHOUT ROWID""",
    "CREATE TABLE domain (uuid TEXT NOT NULL PRIMARY KEY, last_ran REAL NOT NULL) WITHOUT ROWID",
)
TABLES_SINCE_3 = (
    "ALTER TABLE ledger ADD COLUMN metered REAL NOT NULL DEFAULT 0",
    "ALTER TABLE ledger ADD COLUMN digest TEXT NOT NULL DEFAULT ''",
    "DELETE FROM domain",  # dates by a clock that may have been wrong; ages begin anew
)
STATEMENTS = {0: (*TABLES, *TABLES_SINCE_2, *TABLES_SINCE_3), 1: (*TABLES_SINCE_2, *TABLES_SINCE_3), 2: TABLES_SINCE_3}
"""What makes a file of each older schema one of ours; 0 is a new file."""
SCHEMA = 3

NO_DAMAGE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}
"""Errors that are the fault of the disk, or of who else uses the file. All others are the file's; so is a text that
does not decode, for which Python has no code, or an exception of its own."""
FORMATS = (b"\1\1", b"\2\2")
"""Bytes 18 and 19 of a file that SQLite writes; another makes it read-only for ever."""

SUFFIXES = ("-wal", "-shm", "-journal", "")
"""Of SQLite's files; what it needs to read the ledger goes first."""

BUSY_SECONDS = 1.0
DIRECTORY_MODE, MODE = 0o700, 0o600
"""Who can read a file of SQLite's can hold its locks: the group asks virt-rapld."""

Result = TypeVar("Result")


class Ledger:
    """Totals in a file. What goes wrong with it is told, once, and never raised: its owner counts on in memory."""

    def __init__(self, path: Path, *, simulated: bool, tell: Callable[[str], None]) -> None:
        """Take the file's path; `simulated`: whether the energy is, for it is kept apart; `tell` takes one line."""
        self.since = time.time()
        """When counting began, in seconds since the epoch: the file's word once it has been read."""
        self._path = path
        self._simulated = simulated
        self._tell = tell
        self._loaded = False
        self._retired: set[str] = set()
        """Domains whose rows are still to be taken out."""
        self._trouble = ""

    def load(self) -> Kept:
        """Return what earlier owners have kept, once. Empty before it can be read, and at every call after that."""
        if self._loaded:
            return Kept()
        kept = self._attempt(self._read)
        self._loaded = kept is not None
        return kept or Kept()

    def write(self, kept: Kept, retired: Collection[str] = ()) -> bool:
        """Keep this, all or nothing, and take out the rows of `retired` domains, whose energy it has as `gone`.

        Nothing happens before the file has been read: what is kept must include its totals. Tells whether it is kept.
        """
        self._retired.update(retired)
        if not self._loaded or not self._attempt(lambda database: self._store(database, kept)):
            return False
        self._retired.clear()
        return True

    def _store(self, database: sqlite3.Connection, kept: Kept) -> bool:
        filed = _verified(database)
        retired = [(uuid,) for uuid in self._retired]
        database.executemany("DELETE FROM total WHERE owner = ?", retired)
        database.executemany("DELETE FROM domain WHERE uuid = ?", retired)
        # A total never goes back, whoever has written it. Only what has changed is written.
        rows = (
            (*part, microjoules)
            for part, microjoules in kept.totals.items()
            if microjoules > filed.totals.get(part, -1) or part.owner in self._retired
        )
        database.executemany("REPLACE INTO total VALUES (?, ?, ?, ?)", rows)
        lowest = ((zone, *low) for zone, low in kept.lowest.items() if low != filed.lowest.get(zone))
        database.executemany("REPLACE INTO lowest VALUES (?, ?, ?)", lowest)
        last_ran = (item for item in kept.last_ran.items() if item not in filed.last_ran.items())
        database.executemany("REPLACE INTO domain VALUES (?, ?)", last_ran)
        database.execute("UPDATE ledger SET metered = max(metered, ?)", (kept.metered,))
        seal(database)
        return True

    def _read(self, database: sqlite3.Connection) -> Kept:
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise DamagedError(verdict)
        kept = _verified(database)
        (self.since,) = database.execute("SELECT since FROM ledger").fetchone()
        return kept

    def _attempt(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Return what `work` does in one transaction; None when the file cannot be had now."""
        try:
            try:
                result = self._transact(work)
            except (sqlite3.Error, UnicodeDecodeError, DamagedError) as error:
                if not _is_damage(error):
                    raise
                self._set_aside(str(error))
                result = self._transact(work)
        except (OSError, sqlite3.Error, UnicodeDecodeError, DamagedError, VirtRaplError) as error:
            if not self._trouble:
                self._tell(f"cannot keep totals in {self._path}: {error}; metering goes on in memory")
            self._trouble = str(error)
            return None
        if self._trouble:
            self._tell(f"totals are kept in {self._path} again")
        self._trouble = ""
        return result

    def _transact(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        self._path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        check_files(self._path)
        if not self._path.exists():
            self._make_file()
        self._close_to_others()
        with contextlib.closing(_connect(self._path)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("BEGIN IMMEDIATE")
            self._check(database)
            result = work(database)
            database.execute("COMMIT")
        return result

    def _make_file(self) -> None:
        """Make a new file that is furnished when it gets its name."""
        aside = self._path.with_name(f"{self._path.name}.new")
        for path in (self._path, aside):  # what is left there, of a file that has gone, or of us when we were killed
            for suffix in SUFFIXES:
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE))
        with contextlib.closing(_connect(aside)) as database:
            database.execute("BEGIN")
            _furnish(database, 0)
            database.execute("INSERT INTO ledger VALUES (?, ?, 0, '')", (self.since, self._simulated))
            seal(database)
            database.execute("COMMIT")
        aside.rename(self._path)

    def _close_to_others(self) -> None:
        """Only we may read: fine readings of energy tell what a guest computes.

        The directory, which may have been there before, is somebody else's, too: it keeps its mode.
        """
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if found & stat.S_IRWXO:
                self._tell(f"{self._path} was open to everybody (mode {found:o}); now it is not (mode {MODE:o})")
            if found != MODE:
                os.fchmod(descriptor, MODE)  # SQLite gives its files beside this one the same mode
        finally:
            os.close(descriptor)

    def _check(self, database: sqlite3.Connection) -> None:
        """Add to a file of an older schema; refuse one that is not ours or holds another kind of energy."""
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA:
            if version not in STATEMENTS or not version:
                raise DamagedError(f"it has version {version}, not {SCHEMA}" if version else "it is empty")
            _furnish(database, version)
            if difference := imbalance(_content(database)[0].totals):  # there is no digest yet
                raise DamagedError(difference)
            seal(database)
        row = database.execute("SELECT simulated FROM ledger").fetchone()
        if row is None:
            raise DamagedError("it does not tell since when it counts")
        if bool(row[0]) != self._simulated:
            _verified(database)
            if self._simulated:
                raise VirtRaplError("it holds measured energy, and this is simulated")
            raise DamagedError("it holds simulated energy")

    def _set_aside(self, reason: str) -> None:
        stem = f"{self._path.name}.aside-{time.strftime('%Y%m%dT%H%M%S')}"
        for suffix in SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(self._path.with_name(stem + suffix))
        self._tell(f"{self._path} cannot be used: {reason}; it is now {stem}, and totals are kept in a new file")


class DamagedError(Exception):
    """The file is readable, but not what it should be."""


def check_files(path: Path) -> None:
    """Raise DamagedError where a ledger's file, or one of SQLite's beside it, is none that may be opened."""
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(f"{path}{suffix}")
            if not stat.S_ISREG(found.st_mode):
                raise DamagedError(f"{path.name}{suffix} is {_kind(found.st_mode)}")
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        header = file.read(20)
        if not header:
            raise DamagedError("it is empty")
        if header[18:] not in FORMATS:
            raise DamagedError("it is not of SQLite's format")


def _kind(mode: int) -> str:
    return "a link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "no regular file"


def summary(path: Path) -> tuple[float, bool, int]:
    """Return since when a ledger counts, in seconds since the epoch, whether its energy is simulated, and how many
    domains it has. Raises DamagedError, UnicodeDecodeError, sqlite3.Error or OSError when it cannot be read.
    """
    check_files(path)
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        database.execute("BEGIN")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == SCHEMA:
            _verified(database)
        elif version not in STATEMENTS or not version:
            raise DamagedError(f"it has version {version}, not {SCHEMA}")
        since, simulated = database.execute("SELECT since, simulated FROM ledger").fetchone() or (0.0, 0)
        (domains,) = database.execute(
            "SELECT count(DISTINCT owner) FROM total WHERE owner NOT IN ('host', 'other', 'idle', 'gone')"
        ).fetchone()
        return float(since), bool(simulated), int(domains)


def seal(database: sqlite3.Connection) -> None:
    """Write the digest of what the ledger holds."""
    database.execute("UPDATE ledger SET digest = ?", (_content(database)[1],))


def _verified(database: sqlite3.Connection) -> Kept:
    """Return what the ledger holds. Raises DamagedError, or sqlite3.Error, where that is not what was written."""
    (written,) = database.execute("SELECT digest FROM ledger").fetchone() or ("",)
    kept, digest = _content(database)
    if digest != written:
        raise DamagedError("it does not hold what was written")
    return kept


def _content(database: sqlite3.Connection) -> tuple[Kept, str]:
    """Return what the ledger holds, and a digest of all that is in the file and has a meaning."""
    _, own, totals, lowest, last_ran = everything = [
        database.execute(query).fetchall()
        for query in (
            "SELECT type, name, sql FROM sqlite_schema ORDER BY name",
            "SELECT since, simulated, metered FROM ledger",
            "SELECT owner, vcpu, zone, microjoules FROM total ORDER BY owner, vcpu, zone",
            "SELECT zone, microjoules, nanoseconds FROM lowest ORDER BY zone",
            "SELECT uuid, last_ran FROM domain ORDER BY uuid",
        )
    ]
    kept = Kept(
        totals={Part(owner, vcpu, zone): microjoules for owner, vcpu, zone, microjoules in totals},
        lowest={zone: (microjoules, nanoseconds) for zone, microjoules, nanoseconds in lowest},
        last_ran=dict(last_ran),
        metered=own[0][2] if own else 0.0,
    )
    return kept, hashlib.sha256(repr(everything).encode(errors="surrogatepass")).hexdigest()


def _furnish(database: sqlite3.Connection, version: int) -> None:
    for statement in STATEMENTS[version]:
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {SCHEMA}")


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)


def _is_damage(error: Exception) -> bool:
    return isinstance(error, DamagedError) or getattr(error, "sqlite_errorcode", -1) & 0xFF not in NO_DAMAGE
