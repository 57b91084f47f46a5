"""A stretch of a partition is read to its end, or it is said why not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from pipeline.bus.sqlite import SqliteBroker
from pipeline.errors import BusDown, NotFound
from pipeline.reading import STALLED_S, stretch
from pipeline.records import RecordBatch, Send, TopicPartition, TopicSpec

AT = TopicPartition("events", 0)


@pytest.fixture
def broker() -> Iterator[SqliteBroker]:
    """Four stored batches of three records."""
    with closing(SqliteBroker("sqlite://")) as made:
        made.admin().create([TopicSpec(AT.topic, 1)])
        producer = made.producer()
        for n in range(4):
            producer.send(Send(AT.topic, None, b"%d" % (3 * n + m), timestamp_ms=0) for m in range(3))
            producer.flush()
        yield made


def values(batches: Iterator[RecordBatch]) -> list[int]:
    return [int(batch.value(row) or b"") for batch in batches for row in range(len(batch))]


@pytest.mark.parametrize("records", [1, 3, 4, 1_000])
@pytest.mark.parametrize(("first", "end"), [(0, 12), (1, 11), (4, 5), (6, 6), (9, 12)])
def test_a_stretch_is_all_of_its_records_and_no_other(
    broker: SqliteBroker, first: int, end: int, records: int
) -> None:
    assert values(stretch(broker.reader(), AT, first, end, records)) == list(range(first, end))


def test_the_last_batch_ends_where_the_stretch_does(broker: SqliteBroker) -> None:
    assert [batch.next_offset for batch in stretch(broker.reader(), AT, 1, 8, 1)] == [3, 6, 8]


def test_a_partition_that_is_not_there_is_said(broker: SqliteBroker) -> None:
    with pytest.raises(NotFound, match="no partition 7"):
        list(stretch(broker.reader(), TopicPartition(AT.topic, 7), 0, 1))


class Slow:
    """A reader that has nothing at hand for a while; each look takes a second of the clock."""

    def __init__(self, broker: SqliteBroker, empty: int) -> None:
        self.reader, self.empty, self.now_s = broker.reader(), empty, 0.0

    def read(
        self, partition: TopicPartition, next_offset: int, max_records: int, timeout_s: float
    ) -> RecordBatch:
        self.now_s += timeout_s
        if self.empty:
            self.empty -= 1
            return RecordBatch.of(partition, next_offset, [])
        return self.reader.read(partition, next_offset, max_records, 0.0)


def test_what_is_slow_to_come_is_waited_for(broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(broker, empty=round(STALLED_S))
    monkeypatch.setattr(time, "monotonic", lambda: slow.now_s)

    assert values(stretch(slow, AT, 0, 12)) == list(range(12))


def test_where_nothing_comes_the_bus_is_down_and_it_is_said_where(
    broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(broker, empty=10**9)
    monkeypatch.setattr(time, "monotonic", lambda: slow.now_s)

    with pytest.raises(BusDown, match=r"events\[0\]: nothing came from offset 5 on for 30 s.* ends at 12"):
        list(stretch(slow, AT, 5, 12))

    assert slow.now_s == STALLED_S + 1


# A stretch may take hours: what counts is the time since something came.
def test_the_patience_begins_anew_with_every_batch(
    broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(broker, empty=0)
    monkeypatch.setattr(time, "monotonic", lambda: slow.now_s)

    found = []
    for batch in stretch(slow, AT, 0, 12, 1):
        found += values(iter([batch]))
        slow.empty = round(STALLED_S)

    assert found == list(range(12))


def test_positions_without_records_move_on(broker: SqliteBroker) -> None:
    class Markers:
        """One offset in three holds a record: transactions end at the others."""

        def read(self, partition: TopicPartition, next_offset: int, *_: object) -> RecordBatch:
            batch = broker.reader().read(partition, next_offset, 1, 0.0)
            return batch.rows(0, int(next_offset % 3 == 0), next_offset=next_offset + 1)

    assert values(stretch(Markers(), AT, 0, 12)) == [0, 3, 6, 9]
