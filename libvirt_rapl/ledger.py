"""The ledger: totals of energy that outlive the process, the machine's uptime and a kill -9, in an SQLite file.

Beside them it keeps the lowest power of each zone and when each domain ran last. Totals are written as they are, never
as differences: writing twice changes nothing, and whoever dies between two writes loses only what came after the first.
The file is opened for each write, so that it may be moved away, and is whole on the disk when the write is done.
"""

import contextlib
import sqlite3
import stat
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.totals import Kept, Part

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
STATEMENTS = {0: (*TABLES, *TABLES_SINCE_2), 1: TABLES_SINCE_2}
"""What makes a file of each older schema one of ours; 0 is a new file."""
SCHEMA = 2
# A total never goes back, whoever writes it.
UPSERT = """INSERT INTO total VALUES (?, ?, ?, ?)
    ON CONFLICT (owner, vcpu, zone) DO UPDATE SET microjoules = max(microjoules, excluded.microjoules)"""

DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT}
"""Errors that are the file's fault, not the disk's. ERROR is a table or column that is not there."""

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
        self._written = Kept()
        """What the file has from us; so that only what has changed is written."""
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
        self._written = kept
        self._retired.clear()
        return True

    def _store(self, database: sqlite3.Connection, kept: Kept) -> bool:
        written = self._written
        retired = [(uuid,) for uuid in self._retired]
        database.executemany("DELETE FROM total WHERE owner = ?", retired)
        database.executemany("DELETE FROM domain WHERE uuid = ?", retired)
        rows = (
            (*part, microjoules)
            for part, microjoules in kept.totals.items()
            if written.totals.get(part) != microjoules or part.owner in self._retired
        )
        database.executemany(UPSERT, rows)
        database.executemany(
            "REPLACE INTO lowest VALUES (?, ?, ?)", [(zone, *low) for zone, low in kept.lowest.items()]
        )
        last_ran = (item for item in kept.last_ran.items() if item not in written.last_ran.items())
        database.executemany("REPLACE INTO domain VALUES (?, ?)", last_ran)
        return True

    def _read(self, database: sqlite3.Connection) -> Kept:
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _DamagedError(verdict)
        (self.since,) = database.execute("SELECT since FROM ledger").fetchone()
        totals = database.execute("SELECT owner, vcpu, zone, microjoules FROM total")
        lowest = database.execute("SELECT zone, microjoules, nanoseconds FROM lowest")
        return Kept(
            totals={Part(owner, vcpu, zone): microjoules for owner, vcpu, zone, microjoules in totals},
            lowest={zone: (microjoules, nanoseconds) for zone, microjoules, nanoseconds in lowest},
            last_ran=dict(database.execute("SELECT uuid, last_ran FROM domain")),
        )

    def _attempt(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Return what `work` does in one transaction; None when the file cannot be had now."""
        try:
            try:
                result = self._transact(work)
            except (sqlite3.Error, _DamagedError) as error:
                if not _is_damage(error):
                    raise
                self._set_aside(str(error))
                result = self._transact(work)
        except (OSError, sqlite3.Error, _DamagedError, VirtRaplError) as error:
            if not self._trouble:
                self._tell(f"cannot keep totals in {self._path}: {error}; metering goes on in memory")
            self._trouble = str(error)
            return None
        if self._trouble:
            self._tell(f"totals are kept in {self._path} again")
        self._trouble = ""
        return result

    def _transact(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        self._make_file()
        with contextlib.closing(sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("BEGIN IMMEDIATE")
            self._check(database)
            result = work(database)
            database.execute("COMMIT")
        return result

    def _make_file(self) -> None:
        """Only we may read: fine readings of energy tell what a guest computes.

        A directory that was there before may be somebody else's, too: it keeps its mode.
        """
        self._path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        self._path.touch(mode=MODE)
        found = stat.S_IMODE(self._path.stat().st_mode)
        if found & stat.S_IRWXO:
            self._tell(f"{self._path} was open to everybody (mode {found:o}); now it is not (mode {MODE:o})")
        if found != MODE:
            self._path.chmod(MODE)  # SQLite gives its files beside this one the same mode

    def _check(self, database: sqlite3.Connection) -> None:
        """Furnish a new file, add to an older one; refuse one that is not ours or holds another kind of energy."""
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version in STATEMENTS:
            for statement in STATEMENTS[version]:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA}")
        if version == 0:
            self._written = Kept()
            database.execute("INSERT INTO ledger VALUES (?, ?)", (self.since, self._simulated))
            return
        if version not in (*STATEMENTS, SCHEMA):
            raise _DamagedError(f"it has version {version}, not {SCHEMA}")
        row = database.execute("SELECT simulated FROM ledger").fetchone()
        if row is None:
            raise _DamagedError("it does not tell since when it counts")
        if bool(row[0]) and not self._simulated:
            raise _DamagedError("it holds simulated energy")
        if self._simulated and not row[0]:
            raise VirtRaplError("it holds measured energy, and this is simulated")

    def _set_aside(self, reason: str) -> None:
        stem = f"{self._path.name}.aside-{time.strftime('%Y%m%dT%H%M%S')}"
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(self._path.with_name(stem + suffix))
        self._tell(f"{self._path} cannot be used: {reason}; it is now {stem}, and totals are kept in a new file")


class _DamagedError(Exception):
    """The file is readable, but not what it should be."""


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return isinstance(error, _DamagedError) or code & 0xFF in DAMAGE
