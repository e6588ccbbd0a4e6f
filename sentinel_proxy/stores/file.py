"""
The file of `EmbeddedStore`: breakers, events and incidents in SQLite. Blocks; for one thread.

What a method has done is on the disk when it returns: it survives `kill -9` and, as far as the
disk keeps its word, a power cut. That costs one `fsync` for each change (`synchronous=FULL`),
which few changes are worth more: whoever reads incidents does so after the worst has happened.

One process at a time has the file (`locking_mode=EXCLUSIVE`). The lock is the kernel's, so it
is free again however the process ended.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, fields
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from sentinel_proxy.model import Frame
from sentinel_proxy.stores.base import News, StoreAway
from sentinel_proxy.stores.records import (
    BreakerRecord,
    Contribution,
    SharedIncident,
    aged,
    joins,
    kept_seconds,
    merged,
)

APPLICATION_ID: Final = 0x53_50_78_79  # "SPxy"; tells our files from other databases

SCHEMA: Final[Sequence[Sequence[str]]] = (
    (
        """
        CREATE TABLE breakers (
            key TEXT PRIMARY KEY,
            told_at REAL NOT NULL,      -- Unix seconds; the durations count from here
            kept_until REAL NOT NULL,
            provider TEXT NOT NULL,
            model TEXT,
            state TEXT NOT NULL,
            orders INTEGER NOT NULL,
            era INTEGER NOT NULL,
            rest_seconds REAL NOT NULL,
            since_seconds REAL NOT NULL,
            level INTEGER NOT NULL,
            reason TEXT NOT NULL,
            replica TEXT NOT NULL
        )
        """,
        """
        CREATE TABLE frames (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL,
            event_type TEXT NOT NULL,
            text TEXT NOT NULL
        )
        """,
        """
        CREATE TABLE incidents (
            number INTEGER PRIMARY KEY,
            key TEXT NOT NULL,
            id TEXT NOT NULL UNIQUE
        )
        """,
        """
        CREATE TABLE contributions (
            number INTEGER PRIMARY KEY,
            incident INTEGER NOT NULL REFERENCES incidents ON DELETE CASCADE,
            replica TEXT NOT NULL,
            id TEXT NOT NULL UNIQUE,
            ongoing INTEGER NOT NULL,
            data BLOB NOT NULL
        )
        """,
        "CREATE INDEX incidents_by_key ON incidents (key)",
        "CREATE INDEX contributions_by_incident ON contributions (incident)",
    ),
)
"""What leads from each version of the file to the next; a step that was released never changes."""

BUSY_SECONDS: Final = 0.5
"""How long to wait for the process before us to let go of the file."""

_PROBLEMS: Final = {
    sqlite3.SQLITE_BUSY: "is in use by another process",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: its directory must exist and be writable",
    sqlite3.SQLITE_CORRUPT: "is damaged: move it away to begin with a new one",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    sqlite3.SQLITE_NOTADB: "is damaged, or no state at all: move it away to begin with a new one",
    sqlite3.SQLITE_PERM: "may not be written to",
    sqlite3.SQLITE_READONLY: "may not be written to",
}

_RECORD: Final = ", ".join(field.name for field in fields(BreakerRecord))

_KEEP: Final = (
    f"INSERT OR REPLACE INTO breakers (key, told_at, kept_until, {_RECORD}) VALUES (?, ?, ?{', ?' * 10})"
)

_TRIM_FRAMES: Final = "DELETE FROM frames WHERE number <= (SELECT max(number) FROM frames) - ?"

_TRIM_INCIDENTS: Final = """
    DELETE FROM incidents WHERE number IN (
        SELECT number FROM incidents
        WHERE number < (SELECT max(number) FROM incidents)
        ORDER BY EXISTS (SELECT * FROM contributions WHERE incident = incidents.number AND ongoing), number
        LIMIT max(0, (SELECT count(*) FROM incidents) - ?)
    )
"""

_INCIDENTS: Final = """
    SELECT incidents.id, key, replica, contributions.id, ongoing, data
    FROM incidents JOIN contributions ON incident = incidents.number
"""


class File:
    """
    Breakers, events and incidents in a file of SQLite.

    Every method may raise `StoreAway`, and then has changed nothing.

    Args:
        incidents: How many are kept.
        events: How many are kept.
        tell: Hears what was changed, once it is on the disk, in that order.
    """

    def __init__(
        self, path: Path, incidents: int, events: int, tell: Callable[[Sequence[News]], None]
    ) -> None:
        self._path = path
        self._room_for_incidents = incidents
        self._room_for_events = events
        self._tell = tell
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Take the file for this process, make it if there is none, and look whether it is sound."""
        if self._connection is not None:
            return
        with self._problems_named():
            # Transactions begin and end where we say so, not where the library does.
            connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                self._take(connection)
            except BaseException:
                connection.close()
                raise
        self._connection = connection

    def _take(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        version = self._version(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for step in SCHEMA[version:]:
                for statement in step:
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(SCHEMA)}")
            self._trim(connection)  # the configuration may have become smaller

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return which steps of the schema the file has seen; refuse it if it is not ours, or not sound."""
        (check,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if check != "ok":
            raise self._away(_PROBLEMS[sqlite3.SQLITE_CORRUPT])
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application_id != APPLICATION_ID:
            raise self._away("is a database of another program; name another file")
        if version > len(SCHEMA):
            raise self._away(
                f"was written by a newer version of Sentinel Proxy (it has schema {version}, this version"
                f" knows {len(SCHEMA)}): run that version, or move the file away"
            )
        return int(version)

    def close(self) -> None:
        """Let go of the file; never raises `StoreAway`."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def ping(self) -> None:
        """Return if the file can be written to: one that can only be read is of no use."""
        with self._transaction() as connection:
            connection.execute(f"PRAGMA user_version = {len(SCHEMA)}")

    # Breakers.

    def merge_breaker(self, record: BreakerRecord, now: float) -> BreakerRecord:
        """Do what `Store.merge_breaker` does, at *now* in Unix seconds."""
        with self._transaction() as connection:
            stood = next(iter(_breakers(connection, now, record.key)), None)
            stands = record if stood is None else merged(stood, record)
            if stands == stood:
                return stands
            connection.execute("DELETE FROM breakers WHERE kept_until <= ?", (now,))
            connection.execute(_KEEP, (record.key, now, now + kept_seconds(stands), *astuple(stands)))
        self._tell([stands])
        return stands

    def breakers(self, now: float) -> Sequence[BreakerRecord]:
        """Do what `Store.breakers` does, at *now* in Unix seconds."""
        with self._transaction() as connection:
            return list(_breakers(connection, now))

    # Events.

    def append(self, frames: Sequence[Frame]) -> None:
        """Do what `Store.append` does."""
        with self._transaction() as connection:
            rows = ((frame.id, frame.event_type, frame.text) for frame in frames)
            connection.executemany("INSERT INTO frames (id, event_type, text) VALUES (?, ?, ?)", rows)
            self._trim(connection)
        self._tell(frames)

    def frames(self) -> Sequence[Frame]:
        """Do what `Store.frames` does."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT id, event_type, text FROM frames ORDER BY number")
            return [Frame(*row) for row in rows]

    # Incidents.

    def contribute(self, contribution: Contribution, alive: frozenset[str]) -> SharedIncident:
        """Do what `Store.contribute` does."""
        with self._transaction() as connection:
            number = _replaced(connection, contribution)
            if number is None:
                number = _joined(connection, contribution, alive) or _begun(connection, contribution)
                connection.execute(
                    "INSERT INTO contributions (incident, replica, id, ongoing, data) VALUES (?, ?, ?, ?, ?)",
                    (number, contribution.replica, contribution.id, contribution.ongoing, contribution.data),
                )
                self._trim(connection)
            return _incident(connection, number)

    def incidents(self) -> Sequence[SharedIncident]:
        """Do what `Store.incidents` does."""
        with self._transaction() as connection:
            rows = connection.execute(f"{_INCIDENTS} ORDER BY incidents.number DESC, contributions.number")
            return list(_shared(rows))

    # What they all need.

    def _trim(self, connection: sqlite3.Connection) -> None:
        connection.execute(_TRIM_FRAMES, (self._room_for_events,))
        connection.execute(_TRIM_INCIDENTS, (self._room_for_incidents,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit what is done within, on every way out but by an exception."""
        if self._connection is None:
            raise self._away("is not open")
        with self._problems_named(), self._connection as connection:
            connection.execute("BEGIN")
            yield connection

    @contextmanager
    def _problems_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # without its details
            raise self._away(_PROBLEMS.get(code, f"cannot be used: {error}")) from error

    def _away(self, problem: str) -> StoreAway:
        return StoreAway(f"the state file {self._path} {problem}")


def _breakers(connection: sqlite3.Connection, now: float, key: str | None = None) -> Iterator[BreakerRecord]:
    """Yield the breakers that are kept, or the one of *key*, aged to *now*."""
    rows = connection.execute(
        f"SELECT told_at, {_RECORD} FROM breakers WHERE kept_until > ? AND key = ifnull(?, key)", (now, key)
    )
    for told_at, *columns in rows:
        yield aged(BreakerRecord(*columns), now - told_at)


def _replaced(connection: sqlite3.Connection, contribution: Contribution) -> int | None:
    """Put *contribution* in the place of an older one of its id; return the number of its incident."""
    row = connection.execute("SELECT incident FROM contributions WHERE id = ?", (contribution.id,)).fetchone()
    if row is None:
        return None
    connection.execute(
        "UPDATE contributions SET ongoing = ?, data = ? WHERE id = ?",
        (contribution.ongoing, contribution.data, contribution.id),
    )
    return int(row[0])


def _joined(connection: sqlite3.Connection, contribution: Contribution, alive: frozenset[str]) -> int | None:
    """Return the number of the incident that *contribution* is to join."""
    latest = "SELECT max(number) FROM incidents WHERE key = ?"
    (number,) = connection.execute(latest, (contribution.key,)).fetchone()
    if number is None or not joins(contribution, _incident(connection, number), alive):
        return None
    return int(number)


def _begun(connection: sqlite3.Connection, contribution: Contribution) -> int:
    """Begin an incident; return its number."""
    values = (contribution.key, contribution.id)
    connection.execute("INSERT INTO incidents (key, id) VALUES (?, ?)", values)
    (number,) = connection.execute("SELECT max(number) FROM incidents").fetchone()
    return int(number)


def _incident(connection: sqlite3.Connection, number: int) -> SharedIncident:
    rows = connection.execute(
        f"{_INCIDENTS} WHERE incidents.number = ? ORDER BY contributions.number", (number,)
    )
    return next(_shared(rows))


def _shared(rows: Iterable[Sequence[Any]]) -> Iterator[SharedIncident]:
    """Make incidents of rows of which those of one incident stand together."""
    for id, group in groupby(rows, key=lambda row: str(row[0])):
        yield SharedIncident(
            id,
            [
                Contribution(key, replica, its, bool(ongoing), data)
                for _, key, replica, its, ongoing, data in group
            ],
        )
