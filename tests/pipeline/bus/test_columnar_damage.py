"""Damaged record batches: what cannot be proved is marked, and never read wrongly, lost or waited for."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pytest
from bus_contract import Follower, numbered, turn_until
from damaged import (
    FIRST_OFFSET,
    HEADER_BYTES,
    PARTS,
    Damaged,
    Found,
    read_all,
    read_by_client,
    stored,
    with_checksum,
)
from disks import Disk, overwrite, places
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kafka.record.legacy_records import LegacyRecordBatchBuilder

from pipeline.bus import columnar
from pipeline.bus.kafka import KafkaBroker
from pipeline.errors import BusError
from pipeline.records import TopicPartition


@dataclass(frozen=True)
class Spoilt:
    """A log of sound batches but for one: ``changes`` are (byte, bit), ``cut`` the bytes cut off its end.

    ``skipped`` records are not read: reading begins behind them. In a compacted log batches prove nothing of
    each other, so that reading begins at a sound batch, by which the place of the next one is known.
    """

    counts: tuple[int, ...]
    codec: int
    which: int
    changes: tuple[tuple[int, int], ...]
    cut: int
    checksum_fits: bool
    room: int
    gapless: bool = False
    skipped: int = 0

    def batches(self) -> tuple[list[bytearray], list[int]]:
        starts = [FIRST_OFFSET + sum(self.counts[:i]) for i in range(len(self.counts))]
        return [stored(b, n, self.codec) for b, n in zip(starts, self.counts, strict=True)], starts

    def spoil(self, batch: bytearray) -> bytearray:
        for byte, bit in self.changes:
            batch[byte % len(batch)] ^= 1 << bit
        if self.cut:
            del batch[max(len(batch) - self.cut, 1) :]
        if self.checksum_fits and len(batch) > HEADER_BYTES:
            if self.cut:
                struct.pack_into(">i", batch, 8, len(batch) - 12)
            with_checksum(batch)
        return batch


@st.composite
def spoilt_logs(draw: st.DrawFn) -> Spoilt:
    counts = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=4)))
    byte = st.one_of(st.integers(0, HEADER_BYTES - 1), st.integers(HEADER_BYTES, 2_000))
    changes = draw(st.lists(st.tuples(byte, st.integers(0, 7)), max_size=3))
    return Spoilt(
        counts,
        draw(st.sampled_from([0, 0, 1, 2, 3, 4])),
        draw(st.integers(0, len(counts) - 1)),
        tuple(changes),
        draw(st.sampled_from([0, 0, 1, 20, 100, 10_000])) if changes else draw(st.integers(1, 300)),
        draw(st.booleans()),
        draw(st.sampled_from([1, 300, 1 << 20])),
        gapless := draw(st.booleans()),
        draw(st.integers(0, sum(counts) - 1)) if gapless else 0,
    )


def one(
    byte: int,
    bit: int,
    *,
    fits: bool,
    which: int = 1,
    codec: int = 0,
    room: int = 1 << 20,
    gapless: bool = False,
) -> Spoilt:
    """Where batches prove each other reading begins within the second one."""
    skipped = 7 if gapless else 0
    return Spoilt((5, 6, 7), codec, which, ((byte, bit),), 0, fits, room, gapless, skipped)


def check(log: Spoilt) -> None:
    batches, starts = log.batches()
    sound = [read_by_client(batch) or [] for batch in batches]
    log.spoil(batches[log.which])
    spoilt = {log.which: log.checksum_fits}
    Damaged(batches, starts, sound, spoilt).check(FIRST_OFFSET + log.skipped, log.room, gapless=log.gapless)


@settings(max_examples=400, deadline=None)
@given(spoilt_logs())
@example(one(24, 6, fits=True))  # the last offset jumps by a quarter of a million
@example(one(23, 6, fits=True, which=2, room=1))
@example(one(9, 4, fits=False))  # a length beyond what was fetched
@example(one(9, 4, fits=False, which=0))
@example(one(8, 7, fits=False, which=0))  # a negative one
@example(one(16, 2, fits=False))  # magic 6
@example(one(16, 1, fits=False))  # magic 0
@example(one(7, 2, fits=False))  # a base offset 4 higher, or lower
@example(one(7, 2, fits=False, which=2, room=1))
@example(one(6, 0, fits=False, which=0))
def test_what_a_damaged_batch_gives_is_right_or_marked(log: Spoilt) -> None:
    check(log)


@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("codec", [0, 4])
def test_every_bit_of_the_header_and_of_the_body(codec: int, which: int, *, fits: bool) -> None:
    size = len(stored(FIRST_OFFSET, 6, codec))

    for byte in range(size):
        for bit in range(8):
            check(one(byte, bit, fits=fits, which=which, codec=codec))
            check(one(byte, bit, fits=fits, which=which, codec=codec, gapless=True))
            if byte < HEADER_BYTES:
                check(one(byte, bit, fits=fits, which=which, codec=codec, room=1))


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [0, 1])
def test_the_old_formats_are_read_by_the_clients_decoder(magic: int, codec: int) -> None:
    builder = LegacyRecordBatchBuilder(magic, codec, 1 << 20)
    for i in range(6):
        builder.append(FIRST_OFFSET + i, 7 * i, PARTS[i % 4], b"%d" % i)
    old = bytearray(builder.build())
    new = stored(FIRST_OFFSET + 6, 5, 0)
    starts, end = [FIRST_OFFSET, FIRST_OFFSET + 6], FIRST_OFFSET + 11
    ahead = 0
    if codec:  # the wrapper has the last offset of what it holds
        struct.pack_into(">q", old, 0, FIRST_OFFSET + 5)
        ahead = 2
    found = read_all([old, new], starts, end, FIRST_OFFSET + ahead, 1 << 20)

    assert not found.corrupt
    assert [row.offset for row in found.rows] == list(range(FIRST_OFFSET + ahead, end))
    assert [row.value for row in found.rows[:4]] == numbered(4, start=ahead)
    stamps = [7 * i for i in range(ahead, ahead + 4)]
    assert [row.timestamp_ms for row in found.rows[:4]] == ([-1] * 4 if magic == 0 else stamps)

    old[-1] ^= 1
    found = read_all([old, new], starts, end, FIRST_OFFSET, 1 << 20)
    damaged = FIRST_OFFSET if codec else FIRST_OFFSET + 5
    assert [(each.offset, each.next_offset) for each in found.corrupt] == [(damaged, FIRST_OFFSET + 6)]
    assert [row.offset for row in found.rows] == [
        *range(FIRST_OFFSET, damaged),
        *range(FIRST_OFFSET + 6, end),
    ]


# Compaction leaves batches without their last records, or without any, and offsets that no batch has.
def test_what_compaction_left_is_no_damage() -> None:
    thinned = with_checksum_of_end(stored(FIRST_OFFSET, 5, 0), 9)
    empty = with_checksum_of_end(stored(FIRST_OFFSET + 10, 0, 0), 4)
    behind = stored(FIRST_OFFSET + 40, 3, 0)
    starts = [FIRST_OFFSET, FIRST_OFFSET + 10, FIRST_OFFSET + 15]

    for room in (1, 1 << 20):
        for start in (FIRST_OFFSET, FIRST_OFFSET + 4, FIRST_OFFSET + 7, FIRST_OFFSET + 12):
            found = read_all([thinned, empty, behind], starts, FIRST_OFFSET + 43, start, room)

            assert not found.corrupt
            expected = [*range(FIRST_OFFSET, FIRST_OFFSET + 5), *range(FIRST_OFFSET + 40, FIRST_OFFSET + 43)]
            assert [row.offset for row in found.rows] == [each for each in expected if each >= start]


def with_checksum_of_end(batch: bytearray, last_delta: int) -> bytearray:
    struct.pack_into(">i", batch, 23, last_delta)
    return with_checksum(batch)


# On a broker's own disk: what it can still find, it gives; what it cannot, it refuses or keeps silent about.
DAMAGE = {
    "body": (80, b"#"),
    "magic 9": (16, b"\x09"),
    "magic 0": (16, b"\x00"),
    "length too long": (8, b"\x00\x10\x00\x95"),
    "length negative": (8, b"\xff\xff\xff\xfb"),
    "length too short": (8, b"\x00\x00\x00\x14"),
    "last offset far away": (23, b"\x00\x10\x00\x00"),
    "last offset negative": (23, b"\xff\xff\xff\xf9"),
    "base offset higher": (0, b"\x00\x00\x00\x00\x00\x00\x04\x00"),
    "base offset lower": (0, b"\x00\x00\x00\x00\x00\x00\x00\x10"),
    "leader epoch": (12, b"\x00\x00\x40\x00"),
}


@contextmanager
def reading(disk: Disk, policy: str, topic: str) -> Iterator[Follower]:
    """A member that reads the topic."""
    name = uuid.uuid4().hex
    with closing(KafkaBroker(f"kafka://{disk.bootstrap}?corrupt={policy}")) as broker:
        yield Follower(broker.bus(group=name, topics=[topic], transactional_id=name))


@pytest.mark.kafka
@pytest.mark.parametrize("start", [0, 20, 25])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_on_a_brokers_disk_is_skipped_with_its_range_told(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, damage: str, start: int
) -> None:
    monkeypatch.setattr(columnar, "SILENT_S", 0.5)
    topic = disk.topic()
    segment = disk.write(topic)
    at = TopicPartition(topic, 0)
    byte, data = DAMAGE[damage]
    batch = max(base for base in places(segment) if base <= 20)
    overwrite(segment, places(segment)[batch] + byte, data)

    with reading(disk, "skip", topic) as member:
        while not (polled := member.bus.poll(10, 0.1)).assigned:
            pass
        member.bus.seek(at, start)
        member.assigned[at] = polled.assigned[0]
        turn_until(lambda: member.next_offsets.get(at) == 80, member)

    found = Found(member.rows[at], member.corrupt)
    assert all(row.value == b"%d" % row.offset for row in found.rows)
    read = [row.offset for row in found.rows]
    assert read == sorted(set(read))
    assert all(offset in read or found.marked(offset) for offset in range(start, 80))
    assert all(start <= each.offset < each.next_offset <= 80 for each in found.corrupt)
    assert bool(found.corrupt) == (damage != "leader epoch")


@pytest.mark.kafka
@pytest.mark.parametrize("damage", ["body", "length too long", "length negative"])
def test_reading_stops_at_damage_until_it_is_mended(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(columnar, "SILENT_S", 0.5)
    topic = disk.topic()
    segment = disk.write(topic)
    byte, data = DAMAGE[damage]
    batch = max(base for base in places(segment) if base <= 20)
    place = places(segment)[batch] + byte
    before = overwrite(segment, place, data)

    with reading(disk, "stop", topic) as member:
        for _ in range(3):
            with pytest.raises(BusError, match=rf"{topic}\[0\].*offset \d+: .*corrupt=skip"):
                turn_until(lambda: False, member)
        assert member.values(topic) == numbered(len(member.values(topic)))
        assert len(member.values(topic)) <= batch
        overwrite(segment, place, before)

        assert member.read(80).values(topic) == numbered(80)
