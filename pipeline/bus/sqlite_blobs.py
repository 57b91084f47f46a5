"""The byte format of one stored batch: columns behind a checksum, joined by NumPy without a loop per record.

A blob of n records, little-endian: CRC-32 (uint32), format version (uint8), three zero bytes, timestamps
(int64[n], ms), key lengths (int32[n], -1 is null), value lengths (the same), all keys, all values. The
checksum covers everything after itself and, as its seed, where the batch stands, so that neither a flipped
bit nor a blob in the wrong row is ever read as records.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.records import RecordBatch, Send, TopicPartition

FORMAT_VERSION = 1
_HEADER = struct.Struct("<IB3x")
_PLACE = struct.Struct("<qqqqq")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch stands and what it spans; the columns of its SQL row."""

    partition_row: int
    base_offset: int
    record_count: int
    min_timestamp_ms: int
    max_timestamp_ms: int

    @property
    def next_offset(self) -> int:
        """One past the batch's last record."""
        return self.base_offset + self.record_count

    def checksum(self, content: memoryview) -> int:
        """CRC-32 of ``content`` at this place."""
        seed = _PLACE.pack(
            self.partition_row,
            self.base_offset,
            self.record_count,
            self.min_timestamp_ms,
            self.max_timestamp_ms,
        )
        return zlib.crc32(content, zlib.crc32(seed))


def encode(partition_row: int, base_offset: int, sends: Sequence[Send], now_ms: int) -> tuple[Place, bytes]:
    """One batch of ``sends`` (at least one); those without a timestamp get ``now_ms``."""
    keys = [send.key for send in sends]
    values = [send.value for send in sends]
    timestamps = np.array(
        [now_ms if send.timestamp_ms is None else send.timestamp_ms for send in sends], dtype="<i8"
    )
    lengths = [
        np.array([-1 if part is None else len(part) for part in parts], dtype="<i4")
        for parts in (keys, values)
    ]
    place = Place(partition_row, base_offset, len(sends), int(timestamps.min()), int(timestamps.max()))
    blob = bytearray().join(
        (
            _HEADER.pack(0, FORMAT_VERSION),
            timestamps.tobytes(),
            lengths[0].tobytes(),
            lengths[1].tobytes(),
            *filter(None, keys),
            *filter(None, values),
        )
    )
    struct.pack_into("<I", blob, 0, place.checksum(memoryview(blob)[4:]))
    return place, bytes(blob)


def damage(place: Place, blob: bytes) -> str | None:
    """Why ``blob`` cannot be trusted as the batch at ``place``; None when it can."""
    if len(blob) < _HEADER.size + 16 * place.record_count:
        return f"the stored batch is cut short ({len(blob)} bytes)"
    checksum, version = _HEADER.unpack_from(blob)
    if checksum != place.checksum(memoryview(blob)[4:]):
        return "the stored batch fails its checksum"
    if version != FORMAT_VERSION:
        return f"the stored batch has format {version}, this offbeat reads {FORMAT_VERSION}"
    return None


def join(partition: TopicPartition, stored: Sequence[tuple[Place, bytes]]) -> RecordBatch:
    """Undamaged stored batches (at least one, in offset order) as one batch of records."""
    n = sum(place.record_count for place, _ in stored)
    offset, timestamp_ms = np.empty(n, np.int64), np.empty(n, np.int64)
    start = np.empty((2, n), np.int64)  # of keys and of values
    length = np.empty((2, n), np.int32)
    first = buffer_start = 0
    for place, blob in stored:
        count = place.record_count
        rows = slice(first, first + count)
        offset[rows] = np.arange(place.base_offset, place.next_offset)
        timestamp_ms[rows] = np.frombuffer(blob, "<i8", count, _HEADER.size)
        lengths = np.frombuffer(blob, "<i4", 2 * count, _HEADER.size + 8 * count)
        length[:, rows] = lengths.reshape(2, count)
        taken = np.maximum(lengths, 0)  # a null takes no bytes
        ends = np.cumsum(taken, dtype=np.int64)
        ends += buffer_start + _HEADER.size + 16 * count
        ends -= taken
        start[:, rows] = ends.reshape(2, count)
        first += count
        buffer_start += len(blob)
    return RecordBatch(
        partition,
        b"".join([blob for _, blob in stored]),
        offset,
        timestamp_ms,
        start[0],
        length[0],
        start[1],
        length[1],
        stored[-1][0].next_offset,
    )
