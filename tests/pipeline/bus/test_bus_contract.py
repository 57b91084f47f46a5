"""What every bus promises, held against each of them."""

from __future__ import annotations

import time
import uuid

import pytest
from bus_contract import Log, Row, numbered, rows, turn_until, wait_until

from pipeline.errors import NotFound, Refused
from pipeline.records import Send, TopicPartition, TopicSpec

# From Kafka's own test of murmur2 (UtilsTest), by key: the partition of 4 and of 16.
PARTITIONS = {
    b"21": (0, 12),
    b"foobar": (2, 14),
    b"a-little-bit-long-string": (0, 0),
    b"a-little-bit-longer-string": (3, 3),
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": (1, 13),
    b"abc": (3, 11),
}


def group() -> str:
    return f"group-{uuid.uuid4().hex}"


def test_records_come_back_as_they_were_sent_in_offset_order(log: Log) -> None:
    topic = log.topic()
    producer = log.broker.producer()
    producer.send(
        [
            Send(topic, b"key", b"value", (("ce_type", b"alert"), ("empty", b"")), 1_700_000_000_000),
            Send(topic, None, b"no key", (), 5),
            Send(topic, b"tombstone", None, (), 4),
            Send(topic, b"", b"", (), 3),
        ]
    )
    producer.flush()

    member = log.member(group(), topic).read(4)

    assert member.rows[TopicPartition(topic, 0)] == [
        Row(0, b"key", b"value", 1_700_000_000_000),
        Row(1, None, b"no key", 5),
        Row(2, b"tombstone", None, 4),
        Row(3, b"", b"", 3),
    ]
    assert member.next_offsets == {TopicPartition(topic, 0): 4}


def test_a_record_without_a_timestamp_takes_the_clock_of_the_bus(log: Log) -> None:
    topic = log.topic()
    before_ms = time.time_ns() // 1_000_000
    producer = log.broker.producer()
    producer.send([Send(topic, None, b"now")])
    producer.flush()

    (row,) = log.contents(topic)

    assert before_ms <= row.timestamp_ms <= time.time_ns() // 1_000_000


def test_a_newly_assigned_partition_yields_nothing_until_seek(log: Log) -> None:
    topic = log.topic()
    log.write(topic, b"waiting")
    bus = log.member(group(), topic).bus
    deadline = time.monotonic() + 60
    while not (polled := bus.poll(10, 0.1)).assigned:
        assert time.monotonic() < deadline

    for _ in range(3):
        assert not bus.poll(10, 0.1).batches

    bus.seek(polled.assigned[0].partition, 0)
    while not (polled := bus.poll(10, 0.1)).batches:
        assert time.monotonic() < deadline
    assert rows(polled.batches[0])[0].value == b"waiting"


def test_what_is_assigned_says_where_it_stands(log: Log) -> None:
    topic = log.topic()
    log.write(topic, *numbered(3))

    (assigned,) = log.member(group(), topic).joined().assigned.values()

    assert assigned.partition == TopicPartition(topic, 0)
    assert (assigned.first_offset, assigned.end_offset, assigned.committed_offset) == (0, 3, None)
    assert assigned.topic_id == log.reader.bounds(topic)[0].topic_id


def test_topics_have_ids_of_their_own(log: Log) -> None:
    reader = log.reader

    ids = [reader.bounds(log.topic())[0].topic_id for _ in range(2)]

    assert all(ids)
    assert ids[0] != ids[1]


@pytest.mark.parametrize("offset", [0, 3, 7])
def test_seek_goes_backwards_and_into_the_middle_of_what_was_sent_at_once(log: Log, offset: int) -> None:
    topic = log.topic()
    log.write(topic, *numbered(10))
    member = log.member(group(), topic).read(10)

    member.rows.clear()
    member.bus.seek(TopicPartition(topic, 0), offset)
    member.read(10 - offset)

    assert member.values(topic) == numbered(10)[offset:]


def test_records_that_come_later_are_read_on(log: Log) -> None:
    topic = log.topic()
    log.write(topic, *numbered(2))
    member = log.member(group(), topic).read(2)

    log.write(topic, *numbered(3, start=2))

    assert member.read(5).values(topic) == numbered(5)


def test_a_commit_writes_sends_and_positions(log: Log) -> None:
    topic, out, name = log.topic(), log.topic(2), group()
    log.write(topic, *numbered(3))
    member = log.member(name, topic).read(3)
    assert log.admin.committed(name, topic) == {}

    member.commit(Send(out, b"k", b"first", partition=0), Send(out, b"k", b"second", partition=1))

    assert [row.value for row in log.contents(out, 0)] == [b"first"]
    assert [row.value for row in log.contents(out, 1)] == [b"second"]
    wait_until(lambda: log.admin.committed(name, topic) == {0: 3})


def test_a_commit_may_carry_positions_or_sends_alone(log: Log) -> None:
    topic, out, name = log.topic(), log.topic(), group()
    log.write(topic, *numbered(3))
    member = log.member(name, topic).read(3)

    member.bus.commit(member.token, {TopicPartition(topic, 0): 2}, [])
    member.bus.commit(member.token, {}, [Send(out, None, b"alone")])

    wait_until(lambda: log.admin.committed(name, topic) == {0: 2})
    assert [row.value for row in log.contents(out)] == [b"alone"]


def test_positions_and_records_survive_reopening(log: Log) -> None:
    topic, name = log.topic(), group()
    log.write(topic, *numbered(5))
    member = log.member(name, topic).read(5)
    member.bus.commit(member.token, {TopicPartition(topic, 0): 2}, [])
    log.leave(member)

    again = log.member(name, topic).read(3)

    assert again.assigned[TopicPartition(topic, 0)].committed_offset == 2
    assert again.values(topic) == numbered(3, start=2)


def test_groups_do_not_know_of_each_other(log: Log) -> None:
    topic = log.topic()
    log.write(topic, *numbered(2))
    first = log.member(group(), topic).read(2)
    first.commit()

    second = log.member(group(), topic).read(2)

    assert second.assigned[TopicPartition(topic, 0)].committed_offset is None
    assert second.values(topic) == numbered(2)


# One partition has one owner, and when that leaves the other goes on from what was committed.
def test_another_member_stands_by_and_takes_over_when_the_owner_leaves(log: Log) -> None:
    topic, name = log.topic(), group()
    log.write(topic, *numbered(4))
    first, second = log.member(name, topic).read(4), log.member(name, topic)
    first.commit()

    for _ in range(5):
        first.turn()
        second.turn()
    turn_until(lambda: len(first.assigned) + len(second.assigned) == 1, first, second)
    owner, other = (first, second) if first.assigned else (second, first)
    log.leave(owner)
    other.joined()

    assert other.assigned[TopicPartition(topic, 0)].committed_offset == 4


def test_a_commit_after_ownership_was_lost_is_refused_and_writes_nothing(impatient_log: Log) -> None:
    log = impatient_log
    topic, out, name = log.topic(2), log.topic(), group()
    log.write(topic, *numbered(3))
    member = log.member(name, topic).joined(2).read(3)
    token, next_offsets = member.token, dict(member.next_offsets)
    newcomer = log.member(name, topic)
    log.oust(member, newcomer)

    with pytest.raises(Refused):
        member.bus.commit(token, next_offsets, [Send(out, None, b"from the dead")])

    assert log.contents(out) == []
    assert log.admin.committed(name, topic) == {}


def test_after_a_refusal_what_is_owned_is_announced_again(impatient_log: Log) -> None:
    log = impatient_log
    topic, out, name = log.topic(2), log.topic(), group()
    log.write(topic, *numbered(3), partition=0)
    log.write(topic, *numbered(2), partition=1)
    member = log.member(name, topic).joined(2).read(5)
    token = member.token
    newcomer = log.member(name, topic)
    log.oust(member, newcomer)
    with pytest.raises(Refused):
        member.commit(Send(out, None, b"refused"), token=token)
    log.leave(newcomer)

    member.joined(2).read(5).commit(Send(out, None, b"accepted"))

    assert [row.value for row in log.contents(out)] == [b"accepted"]
    wait_until(lambda: log.admin.committed(name, topic) == {0: 3, 1: 2})


@pytest.mark.parametrize(("partitions", "column"), [(4, 0), (16, 1)])
def test_a_key_goes_to_the_partition_that_kafka_gives_it(log: Log, partitions: int, column: int) -> None:
    topic = log.topic(partitions)
    producer = log.broker.producer()
    producer.send(Send(topic, key, b"") for key in PARTITIONS)
    producer.flush()

    found = {row.key: number for number in range(partitions) for row in log.contents(topic, number)}

    assert found == {key: both[column] for key, both in PARTITIONS.items()}


def test_records_without_a_key_may_name_their_partition(log: Log) -> None:
    topic = log.topic(3)

    log.write(topic, b"x", partition=2)

    assert [len(log.contents(topic, number)) for number in range(3)] == [0, 0, 1]


def test_a_reader_tells_bounds_and_reads_by_position(log: Log) -> None:
    topic = log.topic(2)
    log.write(topic, *numbered(5), partition=1)
    reader = log.reader

    bounds = reader.bounds(topic)
    batch = reader.read(TopicPartition(topic, 1), 2, 100, 5.0)

    assert {n: (b.first_offset, b.end_offset) for n, b in bounds.items()} == {0: (0, 0), 1: (0, 5)}
    assert [row.value for row in rows(batch)] == numbered(3, start=2)
    assert batch.next_offset == 5


def test_a_reader_at_the_end_gets_an_empty_batch_in_time(log: Log) -> None:
    topic = log.topic()
    log.write(topic, b"x")

    batch = log.reader.read(TopicPartition(topic, 0), 1, 100, 0.1)

    assert len(batch) == 0
    assert batch.next_offset == 1


def test_a_reader_finds_the_first_record_at_or_after_a_time(log: Log) -> None:
    topic = log.topic()
    log.write(topic, *numbered(5), timestamp_ms=1_000)
    log.write(topic, *numbered(5), timestamp_ms=2_000)
    reader, at = log.reader, TopicPartition(topic, 0)

    found = [reader.offset_at(at, timestamp_ms) for timestamp_ms in (0, 1_002, 1_005, 2_004, 2_005)]

    assert found == [0, 2, 5, 9, 10]


def test_creating_topics_makes_those_that_are_missing(log: Log) -> None:
    admin = log.admin
    first, second = (f"topic-{uuid.uuid4().hex}" for _ in range(2))
    assert admin.create([TopicSpec(first, 2, -1, 1)]) == [first]
    topic_id = log.reader.bounds(first)[0].topic_id

    assert admin.create([TopicSpec(first, 2, -1, 1), TopicSpec(second, 3, -1, 1)]) == [second]

    assert log.reader.bounds(first)[0].topic_id == topic_id
    topics = admin.describe().topics
    assert (topics[first], topics[second]) == (2, 3)


def test_the_bus_says_what_it_is(log: Log) -> None:
    info = log.admin.describe()

    assert "SQLite 3." in info.server or "Kafka" in info.server
    assert info.brokers == 1


def test_sending_to_or_reading_from_an_unknown_topic_says_so(log: Log) -> None:
    with pytest.raises(NotFound, match="no-such-topic"):
        log.broker.producer().send([Send("no-such-topic", None, b"x")])
    with pytest.raises(NotFound, match="no-such-topic"):
        log.reader.bounds("no-such-topic")


def test_polls_tell_the_end_of_what_is_owned(log: Log) -> None:
    topic = log.topic(2)
    log.write(topic, *numbered(3), partition=0)
    member = log.member(group(), topic).joined(2).read(3)

    log.write(topic, *numbered(4), partition=0)
    member.read(7)

    assert member.ends[TopicPartition(topic, 0)] == 7


# ``max_records`` is about what a poll brings: whole stored batches, at most one more than asked.
def test_much_is_read_in_polls_of_about_the_size_asked_for(log: Log) -> None:
    topic = log.topic(2)
    for start in range(0, 20_000, 500):
        log.write(topic, *numbered(500, start), partition=start // 500 % 2)
    member = log.member(group(), topic)

    sizes: list[int] = []
    deadline = time.monotonic() + 60
    while sum(sizes) < 20_000:
        sizes.append(sum(map(len, member.turn(max_records=2_000).batches)))
        assert time.monotonic() < deadline

    assert max(sizes) <= 2_500
    assert sorted(int(v) for n in (0, 1) for v in member.values(topic, n)) == list(range(20_000))


def test_closing_twice_is_closing_once(log: Log) -> None:
    broker = log.reopen()

    broker.close()
    broker.close()


def test_a_member_hears_how_many_partitions_its_topics_have(log: Log) -> None:
    topic = log.topic(3)
    member = log.member(group(), topic)

    turn_until(lambda: (topic, 3) in member.turn().partitions, member)


def test_a_topic_that_grows_keeps_what_it_has_and_takes_more(log: Log) -> None:
    topic = log.topic(1)
    log.write(topic, b"old")

    log.admin.grow(topic, 3)
    log.admin.grow(topic, 2)

    assert sorted(log.reader.bounds(topic)) == [0, 1, 2]
    log.write(topic, b"new", partition=2)
    assert [row.value for row in log.contents(topic, 0) + log.contents(topic, 2)] == [b"old", b"new"]
    with pytest.raises(NotFound, match="no-such-topic"):
        log.admin.grow("no-such-topic", 2)


# What was made again is another topic, and a group begins anew in it.
def test_a_deleted_topic_is_gone_with_its_records_and_positions(log: Log) -> None:
    topic, kept, members = log.topic(2), log.topic(1), group()
    log.write(topic, *numbered(3))
    log.write(kept, b"kept")
    member = log.member(members, topic).read(3)
    member.bus.commit(member.token, {TopicPartition(topic, 0): 3}, [])
    log.leave(member)

    log.admin.delete([topic])

    wait_until(lambda: topic not in log.admin.describe().topics)
    wait_until(lambda: log.admin.committed(members, topic) == {})
    assert [row.value for row in log.contents(kept)] == [b"kept"]
    with pytest.raises(NotFound, match=topic):
        log.admin.delete([topic])


# A worker's journal grows with its input.
def test_a_commit_reaches_partitions_that_were_added_after_the_last(log: Log) -> None:
    topic, journal = log.topic(1), log.topic(1)
    log.write(topic, *numbered(2))
    member = log.member(group(), topic).read(2)
    at = TopicPartition(topic, 0)
    member.bus.commit(member.token, {at: 1}, [Send(journal, None, b"first", partition=0)])

    log.admin.grow(journal, 2)
    member.turn()
    member.bus.commit(member.token, {at: 2}, [Send(journal, None, b"second", partition=1)])

    assert [row.value for row in log.contents(journal, 1)] == [b"second"]


def test_partitions_that_are_added_are_assigned(log: Log) -> None:
    topic = log.topic(1)
    member = log.member(group(), topic).joined()

    log.admin.grow(topic, 2)
    log.write(topic, b"new", partition=1)
    turn_until(lambda: TopicPartition(topic, 1) in member.rows, member)

    assert [row.value for row in member.rows[TopicPartition(topic, 1)]] == [b"new"]
    assert (topic, 2) in member.turn().partitions


def test_what_is_new_is_read_without_waiting_for_it(log: Log) -> None:
    topic = log.topic()
    at = TopicPartition(topic, 0)
    assert len(log.reader.read(at, 0, 10, 0.0)) == 0

    log.write(topic, b"new")
    wait_until(lambda: len(log.reader.read(at, 0, 10, 0.0)) == 1)


def test_what_is_settled_is_all_that_was_written(log: Log) -> None:
    topic, output = log.topic(), log.topic()
    log.write(topic, *numbered(2))
    member = log.member(group(), topic).read(2)
    member.bus.commit(member.token, {TopicPartition(topic, 0): 2}, [Send(output, None, b"x")])

    wait_until(lambda: log.reader.bounds(output)[0].end_offset >= 1)
    bounds = log.reader.bounds(output)[0]

    assert bounds.written_offset == bounds.end_offset
