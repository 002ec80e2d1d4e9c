"""The content of a ledger: its tables, in this schema and older ones, and the digest of it all.

Beside totals there are their history (libvirt_rapl.energy.history), the lowest power of each zone, and when each domain
ran last. Totals are written as they are, never as differences: writing twice changes nothing.

A note is the same in one piece, which is much cheaper to write than the rows. It waits in the ledger until rows are
stored that have it all, or, if its writer was killed before that, until the next one takes it in.
"""

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Collection

from libvirt_rapl.choices import KeepHistory
from libvirt_rapl.energy import history
from libvirt_rapl.energy.history import Moment
from libvirt_rapl.energy.snapshot import Kept, Part, imbalance

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
TABLES_SINCE_5 = (
    """CREATE TABLE note (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        content BLOB NOT NULL CHECK (typeof(content) = 'blob'), digest TEXT NOT NULL
    )""",
)
STEPS = (TABLES, TABLES_SINCE_2, TABLES_SINCE_3, history.TABLES, TABLES_SINCE_5)
"""Each turns a file of one schema into one of the next; 0 is a new file."""
SCHEMA = len(STEPS)
DIGEST_SINCE = 3

OWN_SINCE_4 = "SELECT since, simulated, metered, written FROM ledger"
OWN = {3: "SELECT since, simulated, metered FROM ledger", 4: OWN_SINCE_4, 5: OWN_SINCE_4}
"""What the ledger says of itself, by schema."""
COMPRESSION = 1
"""The fastest of zlib's, which makes a note a quarter as long."""


class DamagedError(Exception):
    """The file is readable, but not what it should be."""


def furnish(database: sqlite3.Connection, version: int = 0) -> None:
    """Make the tables; for an older version, those that it lacks."""
    for step in STEPS[version:]:
        for statement in step:
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {SCHEMA}")


def upgrade(database: sqlite3.Connection) -> None:
    """Turn an older schema into ours. Raises DamagedError if its schema is unknown, or its totals are inconsistent."""
    if (version := check_version(database)) != SCHEMA:
        if version >= DIGEST_SINCE:
            verified(database, version)
        furnish(database, version)
        if difference := imbalance(_content(database)[0].totals):  # the oldest have no digest
            raise DamagedError(difference)
        seal(database)


def check_version(database: sqlite3.Connection) -> int:
    """Return its schema. Raises DamagedError if that is none of ours."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if not version:
        raise DamagedError("it is empty")
    if not 0 < version <= SCHEMA:
        raise DamagedError(f"it has version {version}, not {SCHEMA}")
    return int(version)


def begin(database: sqlite3.Connection, since: float, *, simulated: bool) -> None:
    """Write into a new ledger since when it counts, in seconds since the epoch, and which kind of energy."""
    database.execute("INSERT INTO ledger VALUES (?, ?, 0, '', 0)", (since, simulated))
    seal(database)


def origin(database: sqlite3.Connection) -> tuple[float, bool]:
    """Return since when it counts, in seconds since the epoch, and whether its energy is simulated.

    Raises DamagedError if it does not say.
    """
    row = database.execute("SELECT since, simulated FROM ledger").fetchone()
    if row is None:
        raise DamagedError("it does not say since when it counts")
    return float(row[0]), bool(row[1])


def domains(database: sqlite3.Connection) -> int:
    """Return the number of domains in it."""
    (count,) = database.execute(
        "SELECT count(DISTINCT owner) FROM total WHERE owner NOT IN ('host', 'other', 'idle', 'gone')"
    ).fetchone()
    return int(count)


def store(
    database: sqlite3.Connection, kept: Kept, retired: Collection[str], moment: Moment, keep: KeepHistory
) -> None:
    """Write this with its history, and delete the rows of `retired` domains. Raises DamagedError."""
    filed = verified(database)
    history.record(database, filed.totals, kept.totals, retired, kept.metered - filed.metered, moment, keep)
    gone = [(uuid,) for uuid in retired]
    database.executemany("DELETE FROM total WHERE owner = ?", gone)
    database.executemany("DELETE FROM domain WHERE uuid = ?", gone)
    # A total never goes back, whatever has written it. Only changes are written.
    rows = (
        (*part, microjoules)
        for part, microjoules in kept.totals.items()
        if microjoules > filed.totals.get(part, -1) or part.owner in retired
    )
    database.executemany("REPLACE INTO total VALUES (?, ?, ?, ?)", rows)
    lowest = ((zone, *low) for zone, low in kept.lowest.items() if low != filed.lowest.get(zone))
    database.executemany("REPLACE INTO lowest VALUES (?, ?, ?)", lowest)
    last_ran = (item for item in kept.last_ran.items() if item not in filed.last_ran.items())
    database.executemany("REPLACE INTO domain VALUES (?, ?)", last_ran)
    database.execute("UPDATE ledger SET metered = max(metered, ?)", (kept.metered,))
    database.execute("DELETE FROM note")
    seal(database)


def note(database: sqlite3.Connection, kept: Kept, moment: Moment) -> None:
    """Write this in one piece, in place of an older note; what domains are called is left to store().

    Another field of Kept or Moment takes another schema, which says what an older note has in its place.
    """
    of_moment = {**vars(moment), "domains": {}}
    of_kept = {**vars(kept), "totals": list(kept.totals.items())}
    content = zlib.compress(json.dumps({"kept": of_kept, "moment": of_moment}).encode(), COMPRESSION)
    database.execute("REPLACE INTO note VALUES (1, ?, ?)", (content, hashlib.sha256(content).hexdigest()))


def take_in(database: sqlite3.Connection, keep: KeepHistory) -> None:
    """Store what was noted since rows were stored, if anything was. Raises DamagedError."""
    for content, digest in database.execute("SELECT content, digest FROM note").fetchall():
        if hashlib.sha256(content).hexdigest() != digest:
            raise DamagedError("its note does not hold what was written")
        noted = json.loads(zlib.decompress(content))
        noted["kept"]["totals"] = {Part(*part): microjoules for part, microjoules in noted["kept"]["totals"]}
        store(database, Kept(**noted["kept"]), (), Moment(**noted["moment"]), keep)


def seal(database: sqlite3.Connection) -> None:
    """Write the digest of what the ledger holds."""
    database.execute("UPDATE ledger SET digest = ?", (_content(database)[1],))


def verified(database: sqlite3.Connection, version: int = SCHEMA) -> Kept:
    """Return what the ledger holds. Raises DamagedError, or sqlite3.Error, if that is not what was written."""
    (written,) = database.execute("SELECT digest FROM ledger").fetchone() or ("",)
    kept, digest = _content(database, version)
    if digest != written:
        raise DamagedError("it does not hold what was written")
    return kept


def _content(database: sqlite3.Connection, version: int = SCHEMA) -> tuple[Kept, str]:
    """Return what the ledger holds but its history, and a digest of that.

    History is too long to be read at each write; libvirt_rapl.energy.extract checks it when it is read.
    """
    _, own, totals, lowest, last_ran = everything = [
        database.execute(query).fetchall()
        for query in (
            "SELECT type, name, sql FROM sqlite_schema ORDER BY name",
            OWN[version],
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
