"""Where nothing is compacted batches prove each other's place; what a sound broker does is no damage."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

import pytest
from bus_contract import Follower, numbered, turn_until, wait_until
from disks import Disk, overwrite, places
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline.bus.kafka import KafkaBroker
from pipeline.bus.kafka_link import Link, Topics
from pipeline.records import TopicPartition

DAY_MS = 24 * 3600 * 1000


@contextmanager
def reading(disk: Disk, topic: str, start: int, policy: str = "stop") -> Iterator[Follower]:
    """A member that reads the topic from an offset on."""
    name, at = uuid.uuid4().hex, TopicPartition(topic, 0)
    with closing(KafkaBroker(f"kafka://{disk.bootstrap}?corrupt={policy}")) as broker:
        member = Follower(broker.bus(group=name, topics=[topic], transactional_id=name))
        while not (polled := member.bus.poll(10, 0.1)).assigned:
            pass
        member.bus.seek(at, start)
        member.assigned[at] = polled.assigned[0]
        yield member


def reached(member: Follower, topic: str, end: int) -> bool:
    return member.next_offsets.get(TopicPartition(topic, 0)) == end


def end_of(disk: Disk, topic: str) -> int:
    consumer = KafkaConsumer(bootstrap_servers=disk.bootstrap)
    [end] = consumer.end_offsets([KafkaPartition(topic, 0)]).values()
    consumer.close()
    return int(end)


def first_of(disk: Disk, topic: str) -> int:
    consumer = KafkaConsumer(bootstrap_servers=disk.bootstrap)
    [first] = consumer.beginning_offsets([KafkaPartition(topic, 0)]).values()
    consumer.close()
    return int(first)


def rolled(disk: Disk, count: int, **configs: str) -> str:
    """A topic of batches of 10 records, each in a segment of its own."""
    topic = disk.topic(segment_ms="1000", **configs)
    producer = KafkaProducer(  # of batches that are empty the cleaner keeps an idempotent producer's last one
        bootstrap_servers=disk.bootstrap, linger_ms=1_000, enable_idempotence=False
    )
    for batch in range(count):
        for number in range(10 * batch, 10 * batch + 10):
            at_ms = 1_000_000 + 10_000 * batch
            producer.send(
                topic, value=b"%d" % number, key=b"%d" % (number % 7), partition=0, timestamp_ms=at_ms
            )
        producer.flush()
    producer.close()
    return topic


@pytest.mark.kafka
@pytest.mark.parametrize("start", [0, 5, 10, 19, 30, 45])
def test_a_batch_at_the_end_of_its_segment_is_no_damage(disk: Disk, start: int) -> None:
    topic = rolled(disk, 5, retention_ms="-1")
    assert len(disk.segments(topic)) == 5

    with reading(disk, topic, start) as member:
        assert member.read(50 - start).values(topic) == numbered(50 - start, start)


@pytest.mark.kafka
def test_a_batch_that_the_broker_passes_over_is_told(disk: Disk) -> None:
    topic = rolled(disk, 5, retention_ms="-1")
    segment = disk.segments(topic)[2]
    overwrite(segment, places(segment)[20] + 23, b"\xff\xff\xff\xf9")  # its last offset is 13, so it says

    with reading(disk, topic, 25, "skip") as member:
        turn_until(partial(reached, member, topic, 50), member)

    assert member.values(topic) == numbered(20, 30)
    assert [(each.offset, each.next_offset) for each in member.corrupt] == [(25, 30)]


# Retention and DeleteRecords move the beginning of a log under its readers, even into a batch.
@pytest.mark.kafka
@pytest.mark.parametrize("deleted_to", [20, 25, 50])
def test_records_that_were_deleted_are_no_damage(disk: Disk, deleted_to: int) -> None:
    topic = disk.topic()
    disk.write(topic)

    with (
        reading(disk, topic, 0) as member,
        closing(KafkaAdminClient(bootstrap_servers=disk.bootstrap)) as admin,
    ):
        first = member.bus.poll(5, 5.0).batches
        assert [len(batch) for batch in first] == [5]
        admin.delete_records({KafkaPartition(topic, 0): deleted_to})
        wait_until(lambda: first_of(disk, topic) == deleted_to)
        turn_until(partial(reached, member, topic, 80), member)
        assert member.values(topic)[-30:] == numbered(30, 50)
        assert not member.corrupt

    with reading(disk, topic, deleted_to) as member:
        assert member.read(80 - deleted_to).values(topic) == numbered(80 - deleted_to, deleted_to)


@pytest.mark.kafka
def test_retention_under_a_reader_is_no_damage(disk: Disk) -> None:
    topic = rolled(disk, 5, retention_ms=str(DAY_MS))

    with reading(disk, topic, 0) as member:
        wait_until(lambda: first_of(disk, topic) >= 40)
        disk.write(topic, 50)
        turn_until(partial(reached, member, topic, 80), member)

        assert not member.corrupt
        assert member.values(topic)[-30:] == numbered(30, 50)


@pytest.mark.kafka
def test_what_a_broker_compacted_is_no_damage(disk: Disk) -> None:
    compacted = {
        "cleanup_policy": "compact",
        "min_cleanable_dirty_ratio": "0.01",
        "max_compaction_lag_ms": "1",
    }
    topic = rolled(disk, 8, **compacted)

    def compacted_to(batches: int) -> bool:
        try:
            return sum(len(places(segment)) for segment in disk.segments(topic)) < batches
        except FileNotFoundError:  # the broker puts the cleaned segment in its place
            return False

    wait_until(lambda: compacted_to(8))
    wait_until(lambda: end_of(disk, topic) == 80)

    for start in (0, 25, 40):
        with reading(disk, topic, start) as member:
            turn_until(partial(reached, member, topic, 80), member)
        assert not member.corrupt
        assert len(member.values(topic)) < 80 - start
        assert member.values(topic)[-10:] == numbered(10, 70)


@pytest.mark.kafka
def test_whether_a_topic_is_compacted_is_asked_of_the_broker(disk: Disk) -> None:
    link = Link.parse(f"kafka://{disk.bootstrap}")
    with closing(Topics(link)) as topics:
        assert topics.gapless(disk.topic())
        assert topics.gapless(disk.topic(cleanup_policy="delete"))
        assert not topics.gapless(disk.topic(cleanup_policy="compact"))
        assert not topics.gapless(disk.topic(cleanup_policy="compact,delete"))
        assert not topics.gapless("nothing-is-told-of-it")


# A topic that is compacted no more keeps the holes that it has.
@pytest.mark.kafka
def test_what_was_seen_compacted_stays_so(disk: Disk) -> None:
    topic = disk.topic(cleanup_policy="compact")
    with (
        closing(Topics(Link.parse(f"kafka://{disk.bootstrap}"))) as topics,
        closing(KafkaAdminClient(bootstrap_servers=disk.bootstrap)) as admin,
    ):
        assert not topics.gapless(topic)
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": "delete"})])
        with closing(Topics(Link.parse(f"kafka://{disk.bootstrap}"))) as others:
            wait_until(lambda: others.gapless(topic))

        assert not topics.gapless(topic)
