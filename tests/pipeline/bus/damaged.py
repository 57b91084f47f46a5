"""Logs of Kafka with damaged batches, read as from a broker, and what must hold of whatever comes of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cramjam
from bus_contract import Row, rows
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import calc_crc32c

from pipeline.bus.columnar import Columns
from pipeline.bus.kafka_codecs import install_codecs
from pipeline.bus.kafka_records import joined
from pipeline.records import Corrupt, TopicPartition

install_codecs()

AT = TopicPartition("topic", 0)
HEADER_BYTES = 61
FIRST_OFFSET = 1_000
CRC = struct.Struct(">I")
LENGTH_AT, CRC_AT, CRC_FROM, ATTRIBUTES_AT = 8, 17, 21, 22
WRITERS = {2: cramjam.snappy.compress_raw, 3: cramjam.lz4.compress}
PARTS = [None, b"", b"x", b"value " * 20]


def stored(base: int, count: int, codec: int) -> bytearray:
    """A batch as a broker keeps it, with records of every shape; the client writes no snappy and no lz4."""
    builder = DefaultRecordBatchBuilder(2, 0 if codec in WRITERS else codec, False, -1, -1, -1, 1 << 20)
    for i in range(count):
        headers = [("name", b"h" * i), ("empty", None)] if i % 3 == 0 else []
        builder.append(i, 5_000 + i * 37 % 11, PARTS[i % 4], PARTS[(i + base) % 4], headers)
    batch = bytearray(builder.build())
    struct.pack_into(">q", batch, 0, base)
    if codec in WRITERS:
        batch[HEADER_BYTES:] = bytes(WRITERS[codec](batch[HEADER_BYTES:]))
        batch[ATTRIBUTES_AT] |= codec
        struct.pack_into(">i", batch, LENGTH_AT, len(batch) - LENGTH_AT - 4)
        with_checksum(batch)
    return batch


def with_checksum(batch: bytearray) -> bytearray:
    """The batch, with a checksum that fits what it holds now."""
    CRC.pack_into(batch, CRC_AT, calc_crc32c(memoryview(batch)[CRC_FROM:]))
    return batch


def has_checksum(batch: bytes) -> bool:
    """Whether the checksum of a batch fits, however the batch came by it."""
    return len(batch) > HEADER_BYTES and DefaultRecordBatch(bytes(batch)).validate_crc()


def read_by_client(batch: bytes) -> list[Row] | None:
    """What the client itself reads of one batch; None where it refuses."""
    try:
        read = DefaultRecordBatch(batch)
        if read.is_control_batch:
            return []
        return [Row(r.offset, r.key, r.value, r.timestamp) for r in read]
    except Exception:  # noqa: BLE001 - whatever it meets
        return None


def has_unreadable_name(batch: bytes) -> bool:
    """Whether the client refuses a batch for the name of a header, which columns leave alone."""
    try:
        list(DefaultRecordBatch(bytes(batch)))
    except CorruptRecordError as error:
        return "UnicodeDecodeError" in str(error)
    except Exception:  # noqa: BLE001 - whatever it meets
        return False
    return False


@dataclass
class Found:
    rows: list[Row]
    corrupt: list[Corrupt]

    def marked(self, offset: int) -> bool:
        return any(each.offset <= offset < each.next_offset for each in self.corrupt)


def read_all(
    log: Sequence[bytes], starts: Sequence[int], end: int, start: int, room: int, *, gapless: bool = False
) -> Found:
    """Read a log from ``start`` to ``end`` under the policy to skip, as from a broker.

    Each fetch brings the batches from the one on that should hold the offset, and ``room`` bytes at least.
    """
    columns = Columns(skip_corrupt=True, gapless=lambda _: gapless)
    found, position = Found([], []), start
    for _ in range(100):
        if position >= end:
            return found
        first = max(i for i, base in enumerate(starts) if base <= position)
        size = max(room, columns.fetch_bytes, len(log[first]))
        fetched = b"".join(bytes(batch) for batch in log[first:])[:size]
        part = columns.records(
            position,
            AT,
            MemoryRecords(fetched),
            end_offset=end,
            isolation_level=IsolationLevel.READ_COMMITTED,
        )
        while part:
            pieces = list(part.take(7))
            batch = joined(AT, pieces, part.next_fetch_offset)
            found.rows += rows(batch)
            found.corrupt += batch.corrupt
        position = part.next_fetch_offset
    raise AssertionError(f"reading stands at {position} of {end}: {found.corrupt}")


@dataclass(frozen=True)
class Damaged:
    """A log without holes of which some batches were damaged.

    Attributes:
        batches: as the broker has them now; ``starts`` is where each begins by its index.
        sound: the rows that each had.
        spoilt: the damaged ones, and whether each was given a checksum that fits.
    """

    batches: Sequence[bytes]
    starts: Sequence[int]
    sound: Sequence[Sequence[Row]]
    spoilt: Mapping[int, bool]

    def check(self, start: int, room: int, *, gapless: bool) -> None:
        """Never a wrong row, never a lost row without a marker, never a stall.

        A batch with a checksum that fits was written wrongly: it is what the client itself reads of it. Where
        it claims offsets of its neighbours nothing says which of them is right, and one of them is marked.
        """
        last = len(self.starts) - 1
        if start >= self.starts[last] and last in self.spoilt:
            return  # nothing ahead is read, and nothing lies behind
        end = self.sound[last][-1].offset + 1

        found = read_all(self.batches, self.starts, end, start, room, gapless=gapless)

        read = {row.offset: row for row in found.rows}
        assert sorted(read) == [row.offset for row in found.rows], "out of order or doubled"
        assert not read or start <= min(read) <= max(read) < end, "outside of what was asked for"
        wrongly = {row.offset: row for number in self._written_wrongly() for row in self._by_client(number)}
        for number, whole in enumerate(self.sound):
            sound = [row for row in whole if row.offset >= start]
            mine = [read[row.offset] for row in sound if row.offset in read]
            if number in self._written_wrongly():
                offsets = {row.offset for row in sound}
                if mine == [row for row in self._by_client(number) if row.offset in offsets]:
                    continue
                assert mine == sound or found.corrupt, f"batch {number} is no batch, and that is not told"
            if self.spoilt.get(number) and has_unreadable_name(self.batches[number]):
                continue
            false = [row for row in mine if row not in sound]
            assert not false or (found.corrupt and all(wrongly.get(row.offset) == row for row in false))
            lost = [row.offset for row in sound if row.offset not in read and not found.marked(row.offset)]
            assert not lost, f"rows of batch {number} are lost without a marker: {lost}"

    def _written_wrongly(self) -> list[int]:
        """Which of the batches are sound by themselves, though not what stood there."""
        return [
            each
            for each, fits in self.spoilt.items()
            if fits and read_by_client(self.batches[each]) is not None
        ]

    def _by_client(self, number: int) -> list[Row]:
        return read_by_client(self.batches[number]) or []
