"""A consumer group's member on the SQLite bus: records in, and one transaction out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from sqlite3 import Connection

from pipeline.bus import sqlite_log as log
from pipeline.bus.sqlite_file import Session
from pipeline.bus.sqlite_lease import Lease
from pipeline.bus.sqlite_outbox import Outbox
from pipeline.errors import Refused
from pipeline.records import Assigned, Polled, RecordBatch, Send, Token, TopicPartition


class SqliteBus:
    """A group's member; see :class:`pipeline.ports.Bus`.

    A poll brings whole stored batches: at most ``max_records`` and one stored batch (up to
    ``sqlite_outbox.BATCH_RECORDS``) more. A commit that raises wrote nothing, and unless it raised
    ``Refused`` ownership stands.
    """

    def __init__(self, session: Session, lease: Lease, group: str, topics: Sequence[str]) -> None:
        self._session = session
        self._lease = lease
        self._group = group
        self._outbox = Outbox(session)
        with session.reading() as connection:
            self._topics = [log.topic_named(connection, name) for name in topics]
        self._rows = self._partition_rows()
        self._longest_waiting = list(self._rows)
        self._positions: dict[TopicPartition, int] = {}
        self._owner = False
        self._refused = False

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        """See :meth:`pipeline.ports.Bus.poll`; partitions that wait longest are served first."""
        return log.wait_until(
            lambda polled: bool(polled.batches or polled.assigned or polled.revoked),
            lambda: self._look(max_records),
            timeout_s,
        )

    def seek(self, partition: TopicPartition, next_offset: int) -> None:
        """See :meth:`pipeline.ports.Bus.seek`."""
        if not self._owner or partition not in self._rows:
            raise ValueError(f"{partition} is not owned by this member of group {self._group}")
        self._positions[partition] = next_offset

    def commit(self, token: Token, next_offsets: Mapping[TopicPartition, int], sends: Sequence[Send]) -> None:
        """See :meth:`pipeline.ports.Bus.commit`.

        Raises:
            Refused: ownership was lost since the poll that gave ``token``.
            NotFound: a topic of ``sends`` does not exist.
            BusFull: no room.
            BusDown: another process kept the file locked.
        """
        try:
            self._outbox.add(sends)
            with self._session.writing() as connection:
                self._prove(connection, token, next_offsets)
                self._outbox.write(connection)
                connection.executemany(
                    "INSERT INTO positions VALUES (?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset",
                    [
                        (self._group, self._rows[partition], offset)
                        for partition, offset in next_offsets.items()
                    ],
                )
                self._lease.renew(connection)
        except Refused:
            self._refused = True
            raise
        finally:
            self._outbox.clear()

    def close(self) -> None:
        """Leave the group, so that another member can take over at once."""
        with self._session.writing() as connection:
            self._lease.release(connection)
        self._owner = False
        self._positions.clear()

    def _prove(self, connection: Connection, token: Token, next_offsets: Iterable[TopicPartition]) -> None:
        owned = self._owner and not self._refused and token.value == self._lease.epoch
        if not owned or not self._lease.holds(connection):
            raise Refused(
                f"group {self._group}: another member took over since the poll; nothing was written"
            )
        foreign = set(next_offsets) - self._rows.keys()
        if foreign:
            raise Refused(f"group {self._group} does not own {min(foreign)}; nothing was written")

    def _look(self, max_records: int) -> Polled:
        if not self._owner:
            return self._try_to_take()
        if self._lease.renewal_due:
            with self._session.writing() as connection:
                self._lease.renew(connection)
        with self._session.reading() as connection:
            held = self._lease.holds(connection) and not self._refused
            ends = self._end_offsets(connection) if held else {}
            assigned = self._added(connection, ends)
            found = self._read(connection, ends, max_records)
        if not held:
            self._owner = self._refused = False
            self._positions.clear()
            return Polled(Token(None), revoked=tuple(self._rows))
        for batch in found:
            self._positions[batch.partition] = batch.next_offset
            self._longest_waiting.remove(batch.partition)
            self._longest_waiting.append(batch.partition)
        return Polled(
            Token(self._lease.epoch),
            batches=tuple(batch for batch in found if len(batch) or batch.corrupt),
            assigned=assigned,
            end_offsets=tuple(ends.items()),
            partitions=self._counts(),
        )

    def _read(
        self, connection: Connection, ends: Mapping[TopicPartition, int], max_records: int
    ) -> list[RecordBatch]:
        behind = [
            partition
            for partition in self._longest_waiting
            if partition in ends and self._positions.get(partition, ends[partition]) < ends[partition]
        ]
        batches: list[RecordBatch] = []
        left = max_records
        for served, partition in enumerate(behind):
            if left <= 0:
                break
            share = -(-left // (len(behind) - served))
            batch = log.read(connection, partition, self._rows[partition], self._positions[partition], share)
            batches.append(batch)
            left -= len(batch)
        return batches

    def _end_offsets(self, connection: Connection) -> dict[TopicPartition, int]:
        return {
            TopicPartition(topic.name, number): end_offset
            for topic in self._topics
            for number, end_offset in connection.execute(
                "SELECT number, end_offset FROM partitions WHERE topic = ?", (topic.name,)
            )
        }

    def _partition_rows(self) -> dict[TopicPartition, int]:
        return {
            TopicPartition(topic.name, number): row
            for topic in self._topics
            for number, row in enumerate(topic.partition_rows)
        }

    def _counts(self) -> tuple[tuple[str, int], ...]:
        return tuple((topic.name, len(topic.partition_rows)) for topic in self._topics)

    def _added(self, connection: Connection, ends: Iterable[TopicPartition]) -> tuple[Assigned, ...]:
        """Announce partitions that topics have been given meanwhile."""
        added = set(ends) - self._rows.keys()
        if not added:
            return ()
        self._topics = [log.topic_named(connection, topic.name) for topic in self._topics]
        self._rows = self._partition_rows()
        self._longest_waiting += sorted(added)
        return tuple(each for each in self._assignments(connection) if each.partition in added)

    def _try_to_take(self) -> Polled:
        with self._session.reading() as connection:
            free = self._lease.can_take(connection)
        if not free:
            return Polled(Token(None))
        with self._session.writing() as connection:
            taken = self._lease.take(connection)
            assigned = tuple(self._assignments(connection)) if taken else ()
        self._owner = taken
        token = Token(self._lease.epoch if taken else None)
        return Polled(token, assigned=assigned, partitions=self._counts())

    def _assignments(self, connection: Connection) -> Iterable[Assigned]:
        for topic in self._topics:
            committed = log.committed(connection, self._group, topic.name)
            for number, row in enumerate(topic.partition_rows):
                yield Assigned(
                    TopicPartition(topic.name, number),
                    *log.bounds(connection, row),
                    committed.get(number),
                    topic.topic_id,
                )
