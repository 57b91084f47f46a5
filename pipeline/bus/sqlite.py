"""The embedded bus: one SQLite file (or memory) that keeps the promises of ``pipeline.ports``.

A flush returns when the records survive the end of this process; with ``?durability=full`` in the URL, a
power failure too. Headers of sends are accepted and not kept, since no reader hands them out.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

from pipeline.bus import sqlite_log as log
from pipeline.bus.sqlite_file import Database, Session, SqliteUrl
from pipeline.bus.sqlite_lease import Lease
from pipeline.bus.sqlite_member import SqliteBus
from pipeline.bus.sqlite_outbox import Outbox
from pipeline.errors import ConfigError
from pipeline.records import Bounds, BusInfo, RecordBatch, Send, TopicPartition, TopicSpec

LEASE_S = 10.0


class SqliteBroker:
    """Opens ``sqlite://`` (memory, for this process), ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.

    Its makers may be called from several threads; what it made is used from one thread each. A group has
    one live member; others stand by until that is closed, its process dies, or it neither polled nor
    committed for ``lease_s``.

    Raises:
        ConfigError: the URL is wrong, or the file cannot be used as a bus.
        BusDown, BusFull: the file is locked, or has no room.
    """

    def __init__(self, url: str, *, lease_s: float = LEASE_S) -> None:
        self._database = Database(SqliteUrl.parse(url))
        self._lease_s = lease_s
        self._closing = ExitStack()
        self._closing.callback(self._database.close)

    def bus(self, *, group: str, topics: Sequence[str], transactional_id: str) -> SqliteBus:  # noqa: ARG002 - the lease does here what transactional ids do in Kafka
        """A member of ``group`` over ``topics``.

        Raises:
            NotFound: a topic does not exist.
        """
        made = SqliteBus(self._session(), Lease(group, self._lease_s), group, topics)
        self._closing.callback(made.close)
        return made

    def producer(self) -> SqliteProducer:
        """A plain producer."""
        made = SqliteProducer(self._session())
        self._closing.callback(made.flush)
        return made

    def reader(self) -> SqliteReader:
        """A plain reader."""
        return SqliteReader(self._session())

    def admin(self) -> SqliteAdmin:
        """The administration."""
        return SqliteAdmin(self._session(), self._database.description)

    def close(self) -> None:
        """Write what is queued, leave the groups and end every connection; idempotent."""
        self._closing.close()

    def _session(self) -> Session:
        session = self._database.session()
        self._closing.callback(session.close)
        return session


class SqliteProducer:
    """Plain producing; see :class:`pipeline.ports.Producer`.

    Records are written by the flush, or whenever a whole batch (``sqlite_outbox.BATCH_RECORDS``) waits.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._outbox = Outbox(session)

    def send(self, sends: Iterable[Send]) -> None:
        """See :meth:`pipeline.ports.Producer.send`; what was queued before a failure stays queued."""
        if self._outbox.full:  # an earlier write failed
            self.flush()
        waiting = iter(sends)
        while self._outbox.add(waiting, until_full=True):
            self.flush()

    def flush(self) -> None:
        """See :meth:`pipeline.ports.Producer.flush`; after a failure everything stays queued."""
        if self._outbox.records:
            with self._session.writing() as connection:
                self._outbox.write(connection)
            self._outbox.clear()


class SqliteReader:
    """Plain reading; see :class:`pipeline.ports.Reader`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """See :meth:`pipeline.ports.Reader.bounds`."""
        with self._session.reading() as connection:
            found = log.topic_named(connection, topic)
            return {
                number: Bounds(first_offset, end_offset, found.topic_id, end_offset)
                for number, row in enumerate(found.partition_rows)
                for first_offset, end_offset in [log.bounds(connection, row)]
            }

    def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        """See :meth:`pipeline.ports.Reader.offset_at`.

        Raises:
            NotFound: the partition does not exist.
        """
        with self._session.reading() as connection:
            row = log.partition_row(connection, partition)
            return log.offset_at(connection, partition, row, timestamp_ms)

    def read(
        self, partition: TopicPartition, next_offset: int, max_records: int, timeout_s: float
    ) -> RecordBatch:
        """See :meth:`pipeline.ports.Reader.read`; at most ``max_records`` and one stored batch.

        Raises:
            NotFound: the partition does not exist.
        """

        def look() -> RecordBatch:
            with self._session.reading() as connection:
                row = log.partition_row(connection, partition)
                return log.read(connection, partition, row, next_offset, max_records)

        return log.wait_until(lambda batch: batch.next_offset > next_offset, look, timeout_s)


class SqliteAdmin:
    """Administration; see :class:`pipeline.ports.Admin`."""

    def __init__(self, session: Session, description: str) -> None:
        self._session = session
        self._description = description

    def describe(self) -> BusInfo:
        """See :meth:`pipeline.ports.Admin.describe`."""
        with self._session.reading() as connection:
            topics = dict(connection.execute("SELECT topic, count(*) FROM partitions GROUP BY topic"))
        return BusInfo(self._description, topics, brokers=1)

    def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        """See :meth:`pipeline.ports.Admin.create`; a topic that exists stays as it is.

        Raises:
            ConfigError: a topic without partitions; none was made.
        """
        made = []
        with self._session.writing() as connection:
            for spec in specs:
                if spec.partitions < 1:
                    raise ConfigError(
                        f"topic {spec.name!r} was asked with {spec.partitions} partitions; ask for 1 or more"
                    )
                missing = connection.execute(
                    "INSERT INTO topics VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                    (spec.name, str(uuid.uuid4()), spec.retention_ms),
                ).rowcount
                if missing:
                    connection.executemany(
                        "INSERT INTO partitions (topic, number) VALUES (?, ?)",
                        [(spec.name, number) for number in range(spec.partitions)],
                    )
                    made.append(spec.name)
        return made

    def grow(self, topic: str, partitions: int) -> None:
        """See :meth:`pipeline.ports.Admin.grow`."""
        with self._session.writing() as connection:
            there = len(log.topic_named(connection, topic).partition_rows)
            connection.executemany(
                "INSERT INTO partitions (topic, number) VALUES (?, ?)",
                [(topic, number) for number in range(there, partitions)],
            )

    def delete(self, topics: Sequence[str]) -> None:
        """See :meth:`pipeline.ports.Admin.delete`; the file keeps the room for what comes next."""
        with self._session.writing() as connection:
            for topic in topics:
                rows = [(row,) for row in log.topic_named(connection, topic).partition_rows]
                for table in ("positions", "batches", "partitions"):
                    connection.executemany(f"DELETE FROM {table} WHERE partition_row = ?", rows)  # noqa: S608 - the three names above
                connection.execute("DELETE FROM topics WHERE name = ?", (topic,))

    def committed(self, group: str, topic: str) -> Mapping[int, int]:
        """See :meth:`pipeline.ports.Admin.committed`; empty too where group or topic are unknown."""
        with self._session.reading() as connection:
            return log.committed(connection, group, topic)
