"""The ledger: totals of energy that outlive the process, the machine's uptime and a kill -9, in an SQLite file.

libvirt_rapl.energy.ledger_content defines its content; this module takes care of the file. It is opened for each write,
so that it may be moved away, and is whole on the disk when the write is done: a process that dies between two writes
loses only what came after the first.

A disk may flip a bit, and that must not change a total. A file that does not match its digest is set aside: when it is
loaded, and before it is written, while its owner still has in memory all that it held. A new file is made under
another name and renamed when it has its tables, so an empty one has lost its content. Anything but a regular file, such
as a link or a FIFO, is set aside unopened.
"""

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from libvirt_rapl.choices import KEEP_HISTORY, KeepHistory
from libvirt_rapl.energy import ledger_content as content
from libvirt_rapl.energy.history import Moment
from libvirt_rapl.energy.ledger_content import SCHEMA, DamagedError
from libvirt_rapl.energy.snapshot import Kept
from libvirt_rapl.errors import VirtRaplError

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
"""Errors of the disk, or of another user of the file. All others mean a damaged file; so does a text that cannot be
decoded, for which Python has no code or exception of its own."""
FORMATS = (b"\1\1", b"\2\2")
"""Bytes 18 and 19 of a file that SQLite writes; other values make it read-only for ever."""

SUFFIXES = ("-wal", "-shm", "-journal", "")
"""Of SQLite's files; the ledger itself is the last to be renamed."""

BUSY_SECONDS = 1.0
DIRECTORY_MODE, MODE = 0o700, 0o600
"""A user who can read a file of SQLite's can hold its locks: members of the group ask virt-rapld instead."""

Result = TypeVar("Result")


class Ledger:
    """Totals in a file. Its errors are logged, once, and never raised: its owner continues to count in memory."""

    def __init__(
        self, path: Path, *, simulated: bool, log: Callable[[str], None], history: KeepHistory = KEEP_HISTORY
    ) -> None:
        """Take the file's path; `simulated`: whether the energy is, because that is kept apart; `log` takes a line.

        `history`: how much of it is kept.
        """
        self.since = time.time()
        """When counting began, in seconds since the epoch; from the file once it has been read."""
        self._path = path
        self._simulated = simulated
        self._log = log
        self._history = history
        self._loaded = False
        self._retired: set[str] = set()
        """Domains whose rows are still to be deleted."""
        self._trouble = ""

    def load(self) -> Kept:
        """Return what earlier owners have kept, once. Empty until it can be read, and at every later call."""
        if self._loaded:
            return Kept()
        kept = self._attempt(self._read)
        self._loaded = kept is not None
        return kept or Kept()

    def write(self, kept: Kept, retired: Collection[str] = (), moment: Moment | None = None) -> bool:
        """Keep this, all or nothing, and delete the rows of `retired` domains, whose energy it has as `gone`.

        What totals have grown by becomes history of that `moment` (default: now).

        Does nothing before the file has been read: what is kept must include its totals. Returns whether it is kept.
        """
        self._retired.update(retired)
        now = moment or Moment()
        if not self._do(lambda database: content.store(database, kept, self._retired, now, self._history)):
            return False
        self._retired.clear()
        return True

    def note(self, kept: Kept, moment: Moment) -> bool:
        """Keep this as write() does, for a fraction of the cost; write() is still due some time.

        It must not be older than what was written last, whose `retired` domains would be there again. Returns whether
        it is kept.
        """
        return not self._retired and self._do(lambda database: content.note(database, kept, moment))

    def _do(self, work: Callable[[sqlite3.Connection], None]) -> bool:
        """Do some work once the file has been read; return whether it is done."""

        def done(database: sqlite3.Connection) -> bool:
            work(database)
            return True

        return self._loaded and bool(self._attempt(done))

    def _read(self, database: sqlite3.Connection) -> Kept:
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise DamagedError(verdict)
        content.take_in(database, self._history)
        kept = content.verified(database)
        self.since, _ = content.origin(database)
        return kept

    def _attempt(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Return the result of `work` in one transaction; None when the file cannot be used now."""
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
                self._log(f"cannot keep totals in {self._path}: {error}; metering goes on in memory")
            self._trouble = str(error)
            return None
        if self._trouble:
            self._log(f"totals are kept in {self._path} again")
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
            content.furnish(database)
            content.begin(database, self.since, simulated=self._simulated)
            database.execute("COMMIT")
        aside.rename(self._path)

    def _close_to_others(self) -> None:
        """Only we may read: fine readings of energy show what a guest computes.

        The directory, which may have been there before, is somebody else's, too: it keeps its mode.
        """
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if found & stat.S_IRWXO:
                self._log(f"{self._path} was open to everybody (mode {found:o}); now it is not (mode {MODE:o})")
            if found != MODE:
                os.fchmod(descriptor, MODE)  # SQLite gives its files beside this one the same mode
        finally:
            os.close(descriptor)

    def _check(self, database: sqlite3.Connection) -> None:
        """Upgrade a file of an older schema; refuse one that is not ours or holds another kind of energy."""
        content.upgrade(database)
        if content.origin(database)[1] != self._simulated:
            content.verified(database)
            if self._simulated:
                raise VirtRaplError("it holds measured energy, and this is simulated")
            raise DamagedError("it holds simulated energy")

    def _set_aside(self, reason: str) -> None:
        stem = f"{self._path.name}.aside-{time.strftime('%Y%m%dT%H%M%S')}"
        for suffix in SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(self._path.with_name(stem + suffix))
        self._log(f"{self._path} cannot be used: {reason}; it is now {stem}, and totals are kept in a new file")


def check_files(path: Path) -> None:
    """Raise DamagedError if a ledger's file, or one of SQLite's beside it, must not be opened."""
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
            raise DamagedError("it is not in SQLite's format")


def _kind(mode: int) -> str:
    return "a link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "no regular file"


def summary(path: Path) -> tuple[float, bool, int]:
    """Return since when a ledger counts, in seconds since the epoch, whether its energy is simulated, and how many
    domains it has. Raises DamagedError when it cannot be read, or OSError.
    """
    check_files(path)
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            database.execute("BEGIN")
            if content.check_version(database) == SCHEMA:
                content.verified(database)
            return *content.origin(database), content.domains(database)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise DamagedError(str(error)) from error


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)


def _is_damage(error: Exception) -> bool:
    return isinstance(error, DamagedError) or getattr(error, "sqlite_errorcode", -1) & 0xFF not in NO_DAMAGE
