"""Records as columns: what a bus hands out and what it takes.

A :class:`RecordBatch` is one buffer of bytes and NumPy columns that point into it, so that reading a
million events makes no Python object per event. Only what goes out (:class:`Send`) is an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


@dataclass(frozen=True, slots=True, eq=False)
class RecordBatch:
    """Records of one partition, in offset order.

    Attributes:
        partition: where they come from.
        buffer: the bytes that ``*_start`` point into.
        offset: int64[n], strictly rising, gaps allowed (compaction, control batches).
        timestamp_ms: int64[n], the record's own timestamp.
        key_start, key_length: int64[n] and int32[n]; a length of -1 is a null key.
        value_start, value_length: the same for values.
        next_offset: the offset to read after this batch; above every offset in it.
        corrupt: damaged ranges below ``next_offset`` that no record of this batch lies in.
    """

    partition: TopicPartition
    buffer: bytes
    offset: Int64s
    timestamp_ms: Int64s
    key_start: Int64s
    key_length: Int32s
    value_start: Int64s
    value_length: Int32s
    next_offset: int
    corrupt: tuple[Corrupt, ...] = ()

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def damaged(self) -> int:
        """How many offsets the damaged ranges span."""
        return sum(each.next_offset - each.offset for each in self.corrupt)

    def key(self, row: int) -> bytes | None:
        """The key of one record, or None where it is null."""
        return self._bytes(self.key_start[row], self.key_length[row])

    def value(self, row: int) -> bytes | None:
        """The value of one record, or None where it is null."""
        return self._bytes(self.value_start[row], self.value_length[row])

    def _bytes(self, start: np.int64, length: np.int32) -> bytes | None:
        return None if length < 0 else self.buffer[start : start + length]

    def rows(self, first: int, end: int, *, next_offset: int) -> RecordBatch:
        """The records ``[first, end)`` as a batch that shares this one's buffer; damage up to its end."""
        cut = slice(first, end)
        return RecordBatch(
            self.partition,
            self.buffer,
            self.offset[cut],
            self.timestamp_ms[cut],
            self.key_start[cut],
            self.key_length[cut],
            self.value_start[cut],
            self.value_length[cut],
            next_offset,
            self.corrupt
            and tuple(each.cut(0, next_offset) for each in self.corrupt if each.offset < next_offset),
        )

    def before(self, offset: int) -> RecordBatch:
        """What is below ``offset``."""
        end = int(np.searchsorted(self.offset, offset))
        return self.rows(0, end, next_offset=min(self.next_offset, offset))

    def since(self, offset: int) -> RecordBatch:
        """What is at or above ``offset``."""
        first, end = int(np.searchsorted(self.offset, offset)), self.next_offset
        if not self.corrupt:
            return self.rows(first, len(self), next_offset=end)
        left = tuple(each.cut(offset, end) for each in self.corrupt if each.next_offset > offset)
        return replace(self.rows(first, len(self), next_offset=end), corrupt=left)

    @classmethod
    def of(
        cls,
        partition: TopicPartition,
        base_offset: int,
        records: Sequence[tuple[bytes | None, bytes | None, int]],
    ) -> RecordBatch:
        """A batch of ``(key, value, timestamp_ms)`` with consecutive offsets from ``base_offset``."""
        n = len(records)
        parts = [part or b"" for key, value, _ in records for part in (key, value)]
        lengths = np.fromiter(map(len, parts), np.int64, 2 * n)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])[:-1]
        null = np.fromiter((part is None for key, value, _ in records for part in (key, value)), bool, 2 * n)
        lengths[null] = -1
        return cls(
            partition,
            b"".join(parts),
            np.arange(base_offset, base_offset + n, dtype=np.int64),
            np.fromiter((timestamp for _, _, timestamp in records), np.int64, n),
            starts[0::2],
            lengths[0::2].astype(np.int32),
            starts[1::2],
            lengths[1::2].astype(np.int32),
            base_offset + n,
        )


@dataclass(frozen=True, slots=True)
class Send:
    """One record to be written.

    Attributes:
        topic: the topic, with its namespace prefix already applied.
        key: chooses the partition (murmur2, as Kafka's default) unless ``partition`` is given.
        value: the bytes; None is a tombstone.
        headers: names and bytes.
        timestamp_ms: the record's timestamp; None takes the bus's clock.
        partition: an explicit partition.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int | None = None
    partition: int | None = None

    @property
    def size(self) -> int:
        """Bytes of key and value."""
        return len(self.key or b"") + len(self.value or b"")


@dataclass(frozen=True, slots=True)
class Assigned:
    """A partition that this member owns from now on; it yields nothing until ``seek``.

    Attributes:
        partition: the partition.
        first_offset: the first offset still retained.
        end_offset: one past the last record at the time of the assignment.
        committed_offset: the group's next offset, None when it has committed none.
        topic_id: changes when a topic of the same name is made again.
    """

    partition: TopicPartition
    first_offset: int
    end_offset: int
    committed_offset: int | None
    topic_id: str


@dataclass(frozen=True, slots=True)
class Corrupt:
    """A damaged range ``[offset, next_offset)`` that the bus could not hand out."""

    partition: TopicPartition
    offset: int
    next_offset: int
    reason: str

    def cut(self, first_offset: int, end_offset: int) -> Corrupt:
        """What of it lies in ``[first_offset, end_offset)``."""
        first, end = max(self.offset, first_offset), min(self.next_offset, end_offset)
        return Corrupt(self.partition, first, end, self.reason)


@dataclass(frozen=True, slots=True)
class Token:
    """Proof of ownership at the time of a poll; opaque to everyone but the bus that made it."""

    value: object


@dataclass(frozen=True, slots=True)
class Polled:
    """What one poll brought.

    Attributes:
        token: hand it to ``commit`` together with what came of these records.
        batches: records, and damage that was met; several batches of one partition stand in offset order.
        assigned: partitions newly owned; call ``seek`` before anything comes of them.
        revoked: partitions no longer owned; drop their state without writing it.
        end_offsets: one past the last readable record of each owned partition, as far as known.
        partitions: how many partitions each topic of the group has, as far as known.
        columnar: records come as columns, and not by way of one object each, which takes ten times as long.
    """

    token: Token
    batches: tuple[RecordBatch, ...] = ()
    assigned: tuple[Assigned, ...] = ()
    revoked: tuple[TopicPartition, ...] = ()
    end_offsets: tuple[tuple[TopicPartition, int], ...] = ()
    partitions: tuple[tuple[str, int], ...] = ()
    columnar: bool = True


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a partition holds: offsets ``[first_offset, end_offset)`` of the topic ``topic_id``.

    ``written_offset`` is above ``end_offset`` while commits are not settled yet, whose records nobody reads.
    """

    first_offset: int
    end_offset: int
    topic_id: str
    written_offset: int


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic to be made.

    ``retention_ms`` of -1 keeps records for ever. ``broker_time``: Kafka stamps the records, which it refuses
    where a client stamps them more than an hour ahead.
    """

    name: str
    partitions: int
    retention_ms: int = -1
    replication: int = -1
    broker_time: bool = False


@dataclass(frozen=True, slots=True)
class BusInfo:
    """What answers at the other end of a bus URL.

    Attributes:
        server: product and version, as a person would say it.
        topics: name to number of partitions.
        brokers: how many servers.
    """

    server: str
    topics: dict[str, int]
    brokers: int


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """Rows of a partition's state as bytes, ready for the store.

    Attributes:
        header: the partition's own state (position, counters, versions); opaque to the store.
        slots: int32[n]; slot // BUCKET_ROWS is the bucket of a row, for its whole life.
        series: n series keys.
        rows: uint8[n, row_bytes].
        removed: slots and keys that are no more.
        whole_buckets: buckets of which every live row is in ``rows``; they replace what was stored.
    """

    header: bytes
    slots: Int32s
    series: list[bytes]
    rows: NDArray[np.uint8]
    removed: tuple[tuple[int, bytes], ...] = ()
    whole_buckets: frozenset[int] = frozenset()


BUCKET_ROWS = 2_000
"""Rows in one bucket of the store, and in one delta script: Lua's unpack fails near 4,000 arguments."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A partition's state as claimed from the store.

    Attributes:
        partition: the partition.
        epoch: this owner's number; a later claim makes it stale.
        next_offset: the state holds every record below it; None when nothing is stored.
        rows: what was stored, with its header; None when nothing is stored.
    """

    partition: TopicPartition
    epoch: int
    next_offset: int | None
    rows: PackedRows | None
