"""The log in the SQLite file: its topics, and reading them by offset and by time."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline.bus import sqlite_blobs as blobs
from pipeline.errors import NotFound
from pipeline.records import Corrupt, RecordBatch, TopicPartition

READ_BYTES = 64 << 20
"""One read of a partition ends with the batch that passes this."""

FIRST_PAUSE_S = 0.005
LONGEST_PAUSE_S = 0.05

Seen = TypeVar("Seen")


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as stored; ``partition_rows[number]`` is the partition's row in the file."""

    name: str
    topic_id: str
    retention_ms: int
    partition_rows: tuple[int, ...]


def topic_named(connection: sqlite3.Connection, name: str) -> Topic:
    """Look a topic up.

    Raises:
        NotFound: it does not exist.
    """
    found = connection.execute("SELECT topic_id, retention_ms FROM topics WHERE name = ?", (name,)).fetchone()
    if found is None:
        raise NotFound(f"there is no topic {name!r} on this SQLite bus; create it first")
    rows = connection.execute("SELECT partition_row FROM partitions WHERE topic = ? ORDER BY number", (name,))
    topic_id, retention_ms = found
    return Topic(name, topic_id, retention_ms, tuple(row for (row,) in rows))


def bounds(connection: sqlite3.Connection, partition_row: int) -> tuple[int, int]:
    """First retained offset and end offset of a partition."""
    first_offset, end_offset = connection.execute(
        "SELECT first_offset, end_offset FROM partitions WHERE partition_row = ?", (partition_row,)
    ).fetchone()
    return first_offset, end_offset


def partition_row(connection: sqlite3.Connection, partition: TopicPartition) -> int:
    """The partition's row in the file.

    Raises:
        NotFound: it does not exist.
    """
    rows = topic_named(connection, partition.topic).partition_rows
    if not 0 <= partition.partition < len(rows):
        raise NotFound(
            f"topic {partition.topic!r} has no partition {partition.partition}, only 0 to {len(rows) - 1}"
        )
    return rows[partition.partition]


def committed(connection: sqlite3.Connection, group: str, topic: str) -> dict[int, int]:
    """The group's next offsets by partition number, without those never committed."""
    found = connection.execute(
        "SELECT number, next_offset FROM positions JOIN partitions USING (partition_row)"
        " WHERE group_id = ? AND topic = ?",
        (group, topic),
    )
    return dict(found.fetchall())


def read(
    connection: sqlite3.Connection,
    partition: TopicPartition,
    partition_row: int,
    next_offset: int,
    max_records: int,
) -> RecordBatch:
    """Records from ``next_offset`` on: whole stored batches until ``max_records`` are reached or passed.

    A damaged batch becomes a marker of its range and the records behind it go on.
    """
    sound: list[tuple[blobs.Place, bytes]] = []
    corrupt: list[Corrupt] = []
    position, records, size = next_offset, 0, 0
    for batch_row, place in _places(connection, partition_row, next_offset):
        if records >= max_records or size >= READ_BYTES:
            break
        blob, reason = _blob(connection, batch_row, place)
        if blob is None:
            corrupt.append(Corrupt(partition, max(place.base_offset, next_offset), place.next_offset, reason))
        else:
            sound.append((place, blob))
            size += len(blob)
            records += place.next_offset - max(place.base_offset, next_offset)
        position = place.next_offset
    batch = (
        blobs.join(partition, sound).since(next_offset) if sound else RecordBatch.of(partition, position, [])
    )
    return replace(batch, next_offset=position, corrupt=tuple(corrupt))


def offset_at(
    connection: sqlite3.Connection, partition: TopicPartition, partition_row: int, timestamp_ms: int
) -> int:
    """The first offset whose timestamp is at or after ``timestamp_ms``, or the end offset.

    In a damaged batch that spans the time, its first offset.
    """
    found = connection.execute(
        "SELECT base_offset FROM batches WHERE partition_row = ? AND max_timestamp_ms >= ?"
        " ORDER BY base_offset LIMIT 1",
        (partition_row, timestamp_ms),
    ).fetchone()
    if found is None:
        return bounds(connection, partition_row)[1]
    (base_offset,) = found
    batch = read(connection, partition, partition_row, base_offset, 1)
    if not len(batch) or batch.offset[0] != base_offset:
        return int(base_offset)
    return int(batch.offset[(batch.timestamp_ms >= timestamp_ms).argmax()])


def _places(
    connection: sqlite3.Connection, partition_row: int, next_offset: int
) -> Iterator[tuple[int, blobs.Place]]:
    """The stored batches from the one that holds ``next_offset`` on, read from the index alone."""
    found = connection.execute(
        "SELECT batch_row, partition_row, base_offset, record_count, min_timestamp_ms, max_timestamp_ms"
        " FROM batches WHERE partition_row = :row AND base_offset >= coalesce((SELECT max(base_offset)"
        " FROM batches WHERE partition_row = :row AND base_offset <= :next), 0) ORDER BY base_offset",
        {"row": partition_row, "next": next_offset},
    )
    for batch_row, *place in found:
        at = blobs.Place(*place)
        if at.next_offset > next_offset:
            yield batch_row, at


def _blob(connection: sqlite3.Connection, batch_row: int, place: blobs.Place) -> tuple[bytes | None, str]:
    """The batch's bytes, or None and the reason why they cannot be had."""
    try:
        found = connection.execute("SELECT columns FROM batches WHERE batch_row = ?", (batch_row,)).fetchone()
    except sqlite3.DatabaseError as failure:
        if getattr(failure, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return None, f"its page in the file is damaged ({failure})"
    if found is None:
        return None, "its row is gone from the file"
    reason = blobs.damage(place, found[0])
    return (None, reason) if reason else (found[0], "")


def wait_until(found: Callable[[Seen], bool], look: Callable[[], Seen], timeout_s: float) -> Seen:
    """Look again and again, at first every few milliseconds, until there is something or time is up."""
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    while not found(seen := look()) and (left_s := deadline - time.monotonic()) > 0:
        time.sleep(min(pause_s, left_s))
        pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
    return seen
