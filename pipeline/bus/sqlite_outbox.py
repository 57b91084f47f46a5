"""What is on its way into the SQLite log: partition by key, few large batches, retention as it goes."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator

from kafka.partitioner.default import murmur2

from pipeline.bus import sqlite_blobs as blobs
from pipeline.bus.sqlite_file import Session
from pipeline.bus.sqlite_log import Topic, bounds, topic_named
from pipeline.errors import NotFound, TooLarge
from pipeline.records import Send

BATCH_RECORDS = 5_000
BATCH_BYTES = 16 << 20
"""A stored batch holds at most this much, or one larger record."""

RECORD_BYTES = 64 << 20
KEYS_REMEMBERED = 100_000


class Lanes:
    """What waits to be written to one topic: a list of sends for each partition."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.waiting: list[list[Send]] = [[] for _ in topic.partition_rows]
        self.by_key: dict[bytes | None, list[Send]] = {}
        self._keyless = 0

    def lane(self, send: Send) -> list[Send]:
        """The list that ``send`` belongs in, remembered by its key.

        Raises:
            NotFound: the partition it names does not exist.
        """
        n = len(self.waiting)
        if send.partition is not None:
            if not 0 <= send.partition < n:
                raise NotFound(f"topic {send.topic!r} has no partition {send.partition}, only 0 to {n - 1}")
            return self.waiting[send.partition]
        if len(self.by_key) >= KEYS_REMEMBERED:
            self.by_key.clear()
        number = self._keyless if send.key is None else (murmur2(send.key) & 0x7FFFFFFF) % n
        return self.by_key.setdefault(send.key, self.waiting[number])

    def clear(self) -> None:
        """Forget what waits; records without a key go to the next partition from here on."""
        for lane in self.waiting:
            lane.clear()
        self._keyless = (self._keyless + 1) % len(self.waiting)
        self.by_key.pop(None, None)


class Outbox:
    """Records on their way into the log, grouped so that each partition gets few, large batches."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._topics: dict[str, Lanes] = {}
        self.records = 0
        self.bytes = 0

    @property
    def full(self) -> bool:
        """Whether a whole batch waits."""
        return self.records >= BATCH_RECORDS or self.bytes >= BATCH_BYTES

    def add(self, sends: Iterable[Send], *, until_full: bool = False) -> bool:
        """Take ``sends``, all of them or until the box is full; returns whether it stopped for that.

        Raises:
            NotFound: a topic or partition does not exist; the sends before it are taken.
            TooLarge: a record is larger than the bus takes; the same.
        """
        topics = self._topics
        for send in sends:
            lanes = topics.get(send.topic) or self._look_up(send.topic)
            if (send.partition or 0) >= len(lanes.waiting):  # it may have been added
                lanes = self._look_up(send.topic)
            lane = lanes.by_key.get(send.key) if send.partition is None else None
            if lane is None:
                lane = lanes.lane(send)
            size = send.size
            if size > RECORD_BYTES:
                raise TooLarge(
                    f"a record of {size} bytes for topic {send.topic!r} is larger than {RECORD_BYTES}, "
                    "the most that the SQLite bus takes",
                    send,
                )
            lane.append(send)
            self.records += 1
            self.bytes += size
            if until_full and self.full:
                return True
        return False

    def write(self, connection: sqlite3.Connection) -> None:
        """Append everything within the caller's transaction; the box stays filled, since that may fail."""
        now_ms = time.time_ns() // 1_000_000
        for lanes in self._topics.values():
            for partition_row, lane in zip(lanes.topic.partition_rows, lanes.waiting, strict=True):
                if lane:
                    _append(connection, partition_row, lane, lanes.topic.retention_ms, now_ms)

    def clear(self) -> None:
        """Empty the box."""
        for lanes in self._topics.values():
            lanes.clear()
        self.records = self.bytes = 0

    def _look_up(self, name: str) -> Lanes:
        with self._session.reading() as connection:
            lanes = Lanes(topic_named(connection, name))
        if before := self._topics.get(name):
            lanes.waiting[: len(before.waiting)] = before.waiting
        self._topics[name] = lanes
        return lanes


def _append(
    connection: sqlite3.Connection, partition_row: int, sends: list[Send], retention_ms: int, now_ms: int
) -> None:
    if retention_ms >= 0:
        _expire(connection, partition_row, now_ms - retention_ms)
    _, end_offset = bounds(connection, partition_row)
    for piece in _pieces(sends):
        place, blob = blobs.encode(partition_row, end_offset, piece, now_ms)
        connection.execute(
            "INSERT INTO batches (partition_row, base_offset, record_count, min_timestamp_ms,"
            " max_timestamp_ms, columns) VALUES (?, ?, ?, ?, ?, ?)",
            (
                partition_row,
                place.base_offset,
                place.record_count,
                place.min_timestamp_ms,
                place.max_timestamp_ms,
                blob,
            ),
        )
        end_offset = place.next_offset
    connection.execute(
        "UPDATE partitions SET end_offset = ? WHERE partition_row = ?", (end_offset, partition_row)
    )


def _pieces(sends: list[Send]) -> Iterator[list[Send]]:
    """Cut what one partition gets into batches of bounded count and bytes."""
    first = size = 0
    for row, send in enumerate(sends):
        if row - first >= BATCH_RECORDS or size >= BATCH_BYTES:
            yield sends[first:row]
            first, size = row, 0
        size += len(send.value or b"") + len(send.key or b"")
    yield sends[first:]


def _expire(connection: sqlite3.Connection, partition_row: int, oldest_ms: int) -> None:
    """Drop the leading batches whose newest record is older than ``oldest_ms``."""
    (first_kept,) = connection.execute(
        "SELECT coalesce((SELECT base_offset FROM batches WHERE partition_row = :row"
        " AND max_timestamp_ms >= :oldest ORDER BY base_offset LIMIT 1),"
        " (SELECT end_offset FROM partitions WHERE partition_row = :row))",
        {"row": partition_row, "oldest": oldest_ms},
    ).fetchone()
    changed = connection.execute(
        "UPDATE partitions SET first_offset = ? WHERE partition_row = ? AND first_offset < ?",
        (first_kept, partition_row, first_kept),
    )
    if changed.rowcount:
        connection.execute(
            "DELETE FROM batches WHERE partition_row = ? AND base_offset < ?", (partition_row, first_kept)
        )
