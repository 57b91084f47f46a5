"""One record batch as Kafka stores it, read into columns and proved on the way.

Nothing of a batch is believed because the batch says so: the checksum covers neither its base offset nor its
length, and a batch that was written wrongly has a checksum that fits. Whatever does not add up is
:class:`Damaged`, with the reason in words.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, cast

import cramjam
import numpy as np
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords
from numpy.typing import NDArray

from pipeline.bus.kafka_records import columns
from pipeline.kernels import kernel
from pipeline.records import RecordBatch, TopicPartition

Bytes = NDArray[np.uint8]
Ints = NDArray[Any]

START = struct.Struct(">qiib")
"""Base offset, length, leader epoch (a checksum in the old formats) and magic."""
LENGTH_FROM = 12
HEADER_BYTES: int = DefaultRecordBatch.HEADER_STRUCT.size
LEGACY_BYTES = 26
RECORD_BYTES = 7
"""The least that a record takes: seven fields of one byte."""
MAGIC = 2
OLD_MAGICS = (0, 1)
GREATEST = 2**62
CODECS = {
    DefaultRecordBatch.CODEC_LZ4: cramjam.lz4.decompress,
    DefaultRecordBatch.CODEC_ZSTD: cramjam.zstd.decompress,
}
"""Those that the client would copy around; the others go through it."""
LAST_MS = 2**63 - 1

FINE, CUT_OFF, FALSE_LENGTH, FALSE_NUMBER, NOT_RISING, BEYOND_LAST, LEFT_OVER = range(7)
REASONS = {
    CUT_OFF: "a record goes beyond its end",
    FALSE_LENGTH: "a record's length is not that of its parts",
    FALSE_NUMBER: "a number in a record is out of range",
    NOT_RISING: "the offsets of its records do not rise",
    BEYOND_LAST: "a record's offset is above the last one of its batch",
    LEFT_OVER: "there are bytes behind its last record",
}


class Damaged(Exception):  # noqa: N818 - as in pipeline.errors, without a suffix
    """A batch that cannot be handed out; the message says why."""


class CutOff(Damaged):
    """By its length it goes beyond what was fetched, as the last of a fetch may, never the first."""


class Stored(DefaultRecordBatch):  # type: ignore[misc] # the client has no types
    """The client's view of a batch, without its copies of what was fetched and of what was uncompressed."""

    def __init__(self, data: memoryview) -> None:
        super().__init__(data[:HEADER_BYTES])
        self._buffer = data

    def body(self) -> tuple[memoryview, int]:
        """The records' bytes, and where the first one begins."""
        packed = self._buffer[HEADER_BYTES:]
        decode = CODECS.get(self.compression_type)
        if decode is not None:
            return memoryview(decode(packed)), 0
        self._maybe_uncompress()
        return memoryview(self._buffer), int(self._pos)


class Batch(NamedTuple):
    """A batch whose checksum and records hold.

    Attributes:
        rows: its records, those of control batches too.
        base_offset: where it begins, as it says.
        claimed_end: one past its last offset, as it says; behind its last record where that was compacted.
        header: the client's view of it; None for the old formats.
    """

    rows: RecordBatch
    base_offset: int
    claimed_end: int
    header: Any


def framed(buffer: memoryview, at: int) -> int:
    """Where the batch at ``at`` ends.

    Raises:
        Damaged: it can be no batch.
        CutOff: not all of it is there.
    """
    if len(buffer) - at < START.size:
        raise CutOff("it has no beginning")
    _, length, _, magic = START.unpack_from(buffer, at)
    if magic != MAGIC and magic not in OLD_MAGICS:
        raise Damaged(f"its format is unknown (magic {magic})")
    if length + LENGTH_FROM < (HEADER_BYTES if magic == MAGIC else LEGACY_BYTES):
        raise Damaged(f"its length of {length} bytes is too short")
    end = at + LENGTH_FROM + int(length)
    if end > len(buffer):
        raise CutOff(f"its length of {length} bytes goes beyond what the broker gave")
    return end


def base_offset(buffer: memoryview, at: int) -> int | None:
    """The base offset that the batch at ``at`` names, None when it is cut off."""
    return int(START.unpack_from(buffer, at)[0]) if len(buffer) - at >= START.size else None


def can_begin(buffer: memoryview, at: int, offset: int) -> bool:
    """Whether the batch at ``at``, of which the start is there, can begin at ``offset``."""
    base, _, _, magic = START.unpack_from(buffer, at)
    # The old formats name their last offset where they are compressed.
    return bool(offset <= base if magic in OLD_MAGICS else offset == base)


def claimed_end(buffer: memoryview, at: int) -> int | None:
    """One past the last offset that a batch names which may be damaged, None when it is cut off."""
    if len(buffer) - at < HEADER_BYTES:
        return None
    return int(DefaultRecordBatch(buffer[at : at + HEADER_BYTES]).next_offset)


def decoded(partition: TopicPartition, data: memoryview) -> Batch:
    """The batch that is exactly ``data``.

    Raises:
        Damaged: its checksum or one of its records does not hold.
    """
    if START.unpack_from(data)[3] in OLD_MAGICS:
        return _old_format(partition, data)
    batch = Stored(data)
    if not batch.validate_crc():
        raise Damaged("its checksum does not fit")
    if not 0 <= batch.base_offset <= GREATEST or batch.last_offset_delta < 0:
        raise Damaged(f"its offsets {batch.base_offset} and {batch.last_offset_delta} behind it are none")
    try:
        body, begin = batch.body()
    except Exception as error:  # each codec raises errors of its own
        raise Damaged(f"its compression does not hold ({error})") from error
    rows = _rows(partition, batch, body, begin)
    if batch.is_control_batch and (len(rows) != 1 or rows.key_length[0] < struct.calcsize(">hh")):
        raise Damaged("it is marked as control but holds something else")
    return Batch(rows, batch.base_offset, batch.next_offset, batch)


def find(buffer: memoryview, at: int, position: int, limit: int) -> tuple[int, int] | None:
    """The first batch from ``at`` on with offsets from ``position`` to ``limit``: its place and base offset.

    It is proved by its checksum, so that a false length ahead of it does no harm.
    """
    data = np.frombuffer(buffer, np.uint8)
    ahead = len(data) - HEADER_BYTES + 1
    begins = (data[START.size - 1 :][at:ahead] == MAGIC) & (data[at:ahead] == 0) if at < ahead else data[:0]
    for place in (np.flatnonzero(begins) + at).tolist():
        base, length, _, _ = START.unpack_from(buffer, place)
        end = place + LENGTH_FROM + length
        if 0 <= base < limit and place + HEADER_BYTES <= end <= len(buffer):
            batch = Stored(buffer[place:end])
            if batch.next_offset > position and batch.validate_crc():
                return int(place), int(base)
    return None


def _old_format(partition: TopicPartition, data: memoryview) -> Batch:
    """Magic 0 and 1, which brokers have not written since 2017, by the client's own decoder."""
    try:
        batch = MemoryRecords(data).next_batch()
        sound, records = batch.validate_crc(), list(batch)
        sound = sound and all(record.validate_crc() for record in records)
        rows = columns(partition, records, records[-1].offset + 1)
    except Exception as error:  # the decoder was not made for damaged records
        raise Damaged(f"its records cannot be read ({error})") from error
    if not sound or rows.offset[0] < 0 or (np.diff(rows.offset) <= 0).any():
        raise Damaged("its checksum or its offsets do not hold")
    return Batch(rows, int(rows.offset[0]), rows.next_offset, None)


def _rows(partition: TopicPartition, batch: Stored, body: memoryview, begin: int) -> RecordBatch:
    count = batch.records_count
    if not 0 <= count <= len(body) // RECORD_BYTES:
        raise Damaged(f"it cannot hold the {count} records that it names")
    longs = np.empty((4, count), np.int64)
    lengths = np.empty((2, count), np.int32)
    found = _read(
        np.frombuffer(body.toreadonly(), np.uint8),  # whatever holds it: the loop is compiled for one kind
        begin,
        batch.base_offset,
        batch.last_offset_delta,
        batch.first_timestamp,
        longs,
        lengths,
    )
    if found != FINE:
        raise Damaged(REASONS[found])
    offset, timestamp, key_start, value_start = longs
    if batch.timestamp_type == batch.LOG_APPEND_TIME:
        timestamp[:] = batch.max_timestamp
    return RecordBatch(
        partition,
        cast("bytes", body),  # a view, of which joining makes bytes
        offset,
        timestamp,
        key_start,
        lengths[0],
        value_start,
        lengths[1],
        batch.next_offset,
    )


@kernel
def _varint(body: Bytes, at: int, end: int, most: int) -> tuple[int, int]:
    """A zigzag number of at most ``most`` bits and where it ends; -1 beyond ``end``, -2 out of range."""
    value, shift = np.uint64(0), 0
    while at < end:
        byte = np.uint64(body[at])
        at += 1
        bits = byte & np.uint64(0x7F)
        if shift + 7 > most and bits >> np.uint64(most - shift):
            return 0, -2
        value |= bits << np.uint64(shift)
        if byte < np.uint64(0x80):
            return int(np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1))), at
        shift += 7
        if shift >= most:
            return 0, -2
    return 0, -1


@kernel
def _read(body: Bytes, at: int, base: int, last_delta: int, first_ms: int, longs: Ints, lengths: Ints) -> int:
    """Records, one behind the other, into columns: offset, timestamp, key and value start; their lengths."""
    previous = -1
    for row in range(longs.shape[1]):
        size, at = _varint(body, at, len(body), 32)
        if at < 0 or size < 0 or size > len(body) - at:
            return FALSE_NUMBER if at == -2 else CUT_OFF
        end = at + size
        if at >= end or body[at] >= 0x80:  # the attributes, of which none is defined
            return FALSE_NUMBER
        since_ms, at = _varint(body, at + 1, end, 64)
        if at < 0:
            return FALSE_LENGTH if at == -1 else FALSE_NUMBER
        # Before it is added: the compiler may take it for granted that a sum does not overflow.
        if (since_ms > 0 and first_ms > LAST_MS - since_ms) or (
            since_ms < 0 and first_ms < ~LAST_MS - since_ms
        ):
            return FALSE_NUMBER
        delta, at = _varint(body, at, end, 32)
        if at < 0:
            return FALSE_LENGTH if at == -1 else FALSE_NUMBER
        if delta <= previous:
            return NOT_RISING
        if delta > last_delta:
            return BEYOND_LAST
        previous = delta
        longs[0, row], longs[1, row] = base + delta, first_ms + since_ms
        for part in range(2):
            size, at = _varint(body, at, end, 32)
            if at < 0 or size > end - at:
                return FALSE_NUMBER if at == -2 else FALSE_LENGTH
            longs[2 + part, row], lengths[part, row] = at, max(size, -1)
            at += max(size, 0)
        headers, at = _varint(body, at, end, 32)
        if at < 0 or headers < 0:
            return FALSE_NUMBER if at != -1 else FALSE_LENGTH
        for part in range(2 * headers):
            size, at = _varint(body, at, end, 32)
            if at < 0 or size > end - at or (size < 0 and part % 2 == 0):
                return FALSE_NUMBER if at == -2 else FALSE_LENGTH
            at += max(size, 0)
        if at != end:
            return FALSE_LENGTH
    return FINE if at == len(body) else LEFT_OVER
