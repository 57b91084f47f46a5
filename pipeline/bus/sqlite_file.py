"""The file under the SQLite bus: its URL, its schema, its connections, and SQLite's errors as offbeat's."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BusDown, BusError, BusFull, ConfigError, OffbeatError

APPLICATION_ID = 0x0FFBEA7
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 5.0

SCHEMA = """
CREATE TABLE topics (
    name TEXT PRIMARY KEY,
    topic_id TEXT NOT NULL,
    retention_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE partitions (
    partition_row INTEGER PRIMARY KEY,
    topic TEXT NOT NULL REFERENCES topics (name),
    number INTEGER NOT NULL,
    first_offset INTEGER NOT NULL DEFAULT 0,
    end_offset INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, number)
);
CREATE TABLE batches (
    batch_row INTEGER PRIMARY KEY,
    partition_row INTEGER NOT NULL REFERENCES partitions (partition_row),
    base_offset INTEGER NOT NULL,
    record_count INTEGER NOT NULL,
    min_timestamp_ms INTEGER NOT NULL,
    max_timestamp_ms INTEGER NOT NULL,
    columns BLOB NOT NULL
);
-- Everything but the blob, so that finding batches touches no blob's page.
CREATE UNIQUE INDEX batches_by_offset ON batches
    (partition_row, base_offset, record_count, min_timestamp_ms, max_timestamp_ms);
CREATE TABLE positions (
    group_id TEXT NOT NULL,
    partition_row INTEGER NOT NULL REFERENCES partitions (partition_row),
    next_offset INTEGER NOT NULL,
    PRIMARY KEY (group_id, partition_row)
) WITHOUT ROWID;
CREATE TABLE members (
    group_id TEXT PRIMARY KEY,
    member TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    lease_ends_ms INTEGER NOT NULL,
    process TEXT NOT NULL
) WITHOUT ROWID;
"""

# SQLite's locks and its shared memory are not to be trusted over these, by SQLite's own documentation.
NETWORK_FILE_SYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "davfs",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
        "virtiofs",
    }
)


@dataclass(frozen=True, slots=True)
class SqliteUrl:
    """A parsed bus URL: ``path`` is None for a log in memory; ``full`` syncs the disk at every commit."""

    path: Path | None
    full: bool

    @classmethod
    def parse(cls, url: str) -> SqliteUrl:
        """Read ``sqlite://``, ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.

        Raises:
            ConfigError: another form, or an unknown option.
        """
        location, _, query = url.removeprefix("sqlite://").partition("?")
        if query not in {"", "durability=normal", "durability=full"}:
            raise ConfigError(
                f"the bus URL {url} has the option {query!r}; the one option is durability=normal or full"
            )
        if not url.startswith("sqlite://") or (location and not location.removeprefix("/")):
            raise ConfigError(f"the bus URL {url} names no file; write sqlite:///offbeat.db")
        if location and not location.startswith("/"):
            raise ConfigError(f"the bus URL {url} names a host; write three slashes: sqlite:///{location}")
        return cls(Path(location[1:]).absolute() if location else None, query == "durability=full")


class Session:
    """The transactions on one connection; ``lock`` keeps those apart that share it."""

    def __init__(
        self, connection: sqlite3.Connection, lock: threading.RLock, where: str, *, shared: bool
    ) -> None:
        self._connection = connection
        self._lock = lock
        self._shared = shared
        self._where = where
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One unchanging view of the file; rolled back, since a damaged page met on the way fails a commit.

        Raises:
            BusDown: the file cannot be read now.
        """
        with self._transaction("BEGIN", "ROLLBACK", BusDown) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One atomic step: all of it is written when the block ends, none of it when the block raises.

        Raises:
            BusFull: no room, or the disk failed.
            BusDown: others kept the file locked for longer than BUSY_TIMEOUT_S.
        """
        with self._transaction("BEGIN IMMEDIATE", "COMMIT", BusFull) as connection:
            yield connection

    @contextmanager
    def _transaction(
        self, begin: str, end: str, when_disk_fails: type[BusError]
    ) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._closed:
                raise BusError(f"{self._where} was used after it was closed; open the bus again")
            try:
                self._connection.execute(begin)
                yield self._connection
                self._connection.execute(end)
            except sqlite3.Error as failure:
                raise self._translated(failure, when_disk_fails) from failure
            finally:
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):  # the first error is the one to be told
                        self._connection.execute("ROLLBACK")

    def _translated(self, failure: sqlite3.Error, when_disk_fails: type[BusError]) -> BusError:
        code = _primary_code(failure)
        if code == sqlite3.SQLITE_FULL:
            return BusFull(f"{self._where}: the disk is full; nothing was written; free some room")
        if code == sqlite3.SQLITE_IOERR:
            return when_disk_fails(f"{self._where}: the disk failed ({failure}); nothing was written")
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return BusDown(
                f"{self._where}: another process kept it locked for {BUSY_TIMEOUT_S:g} s; try again"
            )
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return BusError(f"{self._where} is damaged ({failure}); put back a copy or start a new file")
        return BusDown(f"{self._where}: {failure}")

    def close(self) -> None:
        """End the session, and the connection unless others share it; a transaction under way ends first."""
        with self._lock:
            self._closed = True
            if not self._shared:
                self._connection.close()


class Database:
    """The opened file (or memory), which makes the sessions on it.

    Raises:
        ConfigError: the file cannot be used as a bus, and why.
    """

    def __init__(self, url: SqliteUrl) -> None:
        self._url = url
        self.description = f"SQLite {sqlite3.sqlite_version} " + (
            f"file {url.path}" if url.path else "in memory"
        )
        if url.path is not None:
            _refuse_unusable_folder(url.path)
        self._first = self._connect()
        self._lock = threading.RLock()
        try:
            _prepare(self._first, url.path)
        except BaseException:
            self._first.close()
            raise

    def session(self) -> Session:
        """A connection of its own for one user; in memory all share the only connection there can be."""
        if self._url.path is None:
            return Session(self._first, self._lock, self.description, shared=True)
        return Session(self._connect(), threading.RLock(), self.description, shared=False)

    def close(self) -> None:
        """End the database's own connection; in memory this forgets everything."""
        with self._lock:
            self._first.close()

    def _connect(self) -> sqlite3.Connection:
        path = self._url.path
        try:
            connection = sqlite3.connect(
                ":memory:" if path is None else path,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,  # a session's lock does that
            )
        except sqlite3.Error as failure:
            raise _explained(failure, path) from failure
        try:
            connection.execute(f"PRAGMA synchronous={'FULL' if self._url.full else 'NORMAL'}")
        except sqlite3.Error as failure:
            connection.close()
            raise _explained(failure, path) from failure
        return connection


def network_file_system(path: Path, mounts: str) -> str | None:
    """The type of the network file system that ``path`` (absolute, resolved) lies on, by /proc/mounts."""
    best, found = -1, ""
    for line in mounts.splitlines():
        _, mount_point, file_system, *_ = line.split(" ")
        mounted = Path(mount_point.encode().decode("unicode_escape"))  # blanks stand there as \040
        if path.is_relative_to(mounted) and len(mounted.parts) >= best:  # the later mount hides the earlier
            best, found = len(mounted.parts), file_system
    return found if found in NETWORK_FILE_SYSTEMS else None


def _refuse_unusable_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(
            f"the folder {path.parent} of the bus file {path.name} does not exist; make it first"
        )
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it, such as sqlite:///{path / 'offbeat.db'}")
    mounts = Path("/proc/mounts")
    file_system = network_file_system(path.resolve(), mounts.read_text()) if mounts.exists() else None
    if file_system:
        raise ConfigError(
            f"{path} lies on a network file system ({file_system}), where SQLite's locks cannot be trusted; "
            "use a local disk, or Kafka for several machines"
        )


def _prepare(connection: sqlite3.Connection, path: Path | None) -> None:
    """Make the schema in a new file, check it in an old one."""
    try:
        if not _is_ours(connection, path):
            connection.execute("PRAGMA page_size=16384")
        if path is not None:
            _use_write_ahead_log(connection, path)
        connection.execute("BEGIN IMMEDIATE")
        if not _is_ours(connection, path):  # asked again: another process may have made it meanwhile
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except sqlite3.Error as failure:
        raise _explained(failure, path) from failure


def _explained(failure: sqlite3.Error, path: Path | None) -> OffbeatError:
    """Why the file could not be opened."""
    code = _primary_code(failure)
    if code == sqlite3.SQLITE_FULL:
        return BusFull(f"{path}: the disk is full; free some room")
    if code == sqlite3.SQLITE_BUSY:
        return BusDown(f"{path}: another process keeps it locked; try again")
    if code == sqlite3.SQLITE_NOTADB:
        return ConfigError(f"{path} is not a SQLite database; name another file")
    return ConfigError(
        f"{path} cannot be opened or made ({failure}); name a file in a folder you may write to"
    )


def _is_ours(connection: sqlite3.Connection, path: Path | None) -> bool:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables == 0:
        return False
    if application_id != APPLICATION_ID:
        raise ConfigError(f"{path} is a SQLite database of another program; name a new file")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path} was written by a later offbeat (schema {version}, this one knows {SCHEMA_VERSION}); "
            "upgrade offbeat or name another file"
        )
    return True


def _use_write_ahead_log(connection: sqlite3.Connection, path: Path) -> None:
    """Switch to WAL; SQLite's own busy handler does not wait here when several processes start at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as failure:
            if _primary_code(failure) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            break
    if mode != "wal":
        raise ConfigError(f"{path}: its file system cannot hold a write-ahead log; use a local disk")


def _primary_code(failure: sqlite3.Error) -> int | None:
    code = getattr(failure, "sqlite_errorcode", None)  # absent on errors of the module itself
    return None if code is None else code & 0xFF
