"""Columnar fetch: equal to the client's own decoding on a real broker, and never a wrong or a lost row."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from unittest.mock import patch

import kafka
import pytest
from bus_contract import Log, Row, numbered, rows
from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.consumer.fetcher import Fetcher

from pipeline.bus import columnar, kafka_link
from pipeline.bus.columnar import Columns
from pipeline.bus.kafka import KafkaBroker
from pipeline.bus.kafka_records import joined
from pipeline.errors import ConfigError
from pipeline.records import RecordBatch, TopicPartition

AT = TopicPartition("topic", 0)
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
PARTS = [None, b"", b"x", b"value " * 40]


@pytest.fixture
def log(kafka_bootstrap: str) -> Iterator[Log]:
    brokers: list[KafkaBroker] = []

    def opened() -> KafkaBroker:
        brokers.append(KafkaBroker(f"kafka://{kafka_bootstrap}"))
        return brokers[-1]

    yield Log(opened(), opened, rebalances=True)
    for broker in brokers:
        broker.close()


def group() -> str:
    return f"group-{uuid.uuid4().hex}"


def stock(bootstrap: str, topic: str, start: int = 0) -> list[Row]:
    """What the client itself reads of a partition, record by record, from ``start`` to the end."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed")
    at = KafkaPartition(topic, 0)
    consumer.assign([at])
    [end] = consumer.end_offsets([at]).values()
    consumer.seek(at, start)
    found = []
    while consumer.position(at) < end:
        for records in consumer.poll(timeout_ms=1_000).values():
            found += [Row(r.offset, r.key, r.value, r.timestamp) for r in records]
    consumer.close()
    return found


def columnar_rows(
    bootstrap: str,
    topic: str,
    start: int = 0,
    *,
    fetch_bytes: int = kafka_link.FETCH_BYTES,
    **options: object,
) -> list[Row]:
    """The same by columns, with settings of the consumer."""
    with patch.object(kafka_link, "FETCH_BYTES", fetch_bytes):
        consumer = kafka_link.Link.parse(f"kafka://{bootstrap}").consumer(group_id=None, **options)
    columns = Columns(skip_corrupt=False, gapless=lambda _: True).attach(consumer)
    assert columns.in_use
    at = KafkaPartition(topic, 0)
    consumer.assign([at])
    [end] = consumer.end_offsets([at]).values()
    consumer.seek(at, start)
    found: list[Row] = []
    while consumer.position(at) < end:
        fetched = consumer.poll(timeout_ms=1_000).get(at, [])
        assert all(isinstance(piece, RecordBatch) for piece in fetched)
        found += rows(joined(TopicPartition(*at), fetched, consumer.position(at)))
    consumer.close()
    return found


def produce(bootstrap: str, topic: str, count: int, **options: object) -> None:
    """Records of every shape, by another client."""
    producer = pytest.importorskip("confluent_kafka").Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 20, "batch.num.messages": 64, **options}
    )
    for i in range(count):
        key, value = PARTS[i % 4], PARTS[i // 4 % 4] if i % 3 else b"%d " % i * 30
        headers = [("name", b"v" * (i % 5)), ("empty", None)] if i % 7 == 0 else None
        producer.produce(topic, value, key, partition=0, headers=headers, timestamp=1_000 + 7 * i % 90)
    producer.flush()


@pytest.mark.kafka
@pytest.mark.parametrize("codec", CODECS)
def test_columns_equal_the_clients_own_records(log: Log, kafka_bootstrap: str, codec: str) -> None:
    topic = log.topic()
    produce(kafka_bootstrap, topic, 600, **{"compression.type": codec})
    expected = stock(kafka_bootstrap, topic)

    assert len(expected) == 600
    assert columnar_rows(kafka_bootstrap, topic) == expected
    assert log.member(group(), topic).read(600).rows[TopicPartition(topic, 0)] == expected
    for start in (1, 63, 64, 65, 311, 599):
        assert columnar_rows(kafka_bootstrap, topic, start) == expected[start:]


@pytest.mark.kafka
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_fetches_smaller_than_a_batch_lose_nothing(log: Log, kafka_bootstrap: str, codec: str) -> None:
    topic = log.topic()
    produce(kafka_bootstrap, topic, 400, **{"compression.type": codec})
    expected = stock(kafka_bootstrap, topic)

    for size in (1, 100, 5_000, 9_999):
        assert columnar_rows(kafka_bootstrap, topic, fetch_bytes=size) == expected
    assert columnar_rows(kafka_bootstrap, topic, max_poll_records=7) == expected


@pytest.mark.kafka
def test_the_brokers_clock_is_taken_where_the_topic_says_so(log: Log, kafka_bootstrap: str) -> None:
    topic = f"topic-{uuid.uuid4().hex}"
    log.broker._topics.client.create_topics(  # type: ignore[attr-defined]
        {
            topic: {
                "num_partitions": 1,
                "replication_factor": 1,
                "configs": {"message.timestamp.type": "LogAppendTime"},
            }
        }
    )
    produce(kafka_bootstrap, topic, 100)
    expected = stock(kafka_bootstrap, topic)

    assert min(row.timestamp_ms for row in expected) > 1_000_000
    assert columnar_rows(kafka_bootstrap, topic) == expected


# Producers whose transactions interleave, abort and go on under the same id, in one fetch and in many.
@pytest.mark.kafka
def test_aborted_transactions_and_markers_are_left_out(log: Log, kafka_bootstrap: str) -> None:
    topic = log.topic()
    producers = [
        KafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id=f"t-{uuid.uuid4().hex}")
        for _ in range(2)
    ]
    for producer in producers:
        producer.init_transactions()
    plain = KafkaProducer(bootstrap_servers=kafka_bootstrap)
    for turn in range(8):
        for number, producer in enumerate(producers):
            producer.begin_transaction()
            for i in range(3):
                producer.send(topic, value=b"%d.%d.%d" % (turn, number, i), partition=0)
            producer.flush()
        plain.send(topic, value=b"plain %d" % turn, partition=0)
        plain.flush()
        for number, producer in enumerate(producers):
            if (turn >> number) & 1:
                producer.abort_transaction()
            else:
                producer.commit_transaction()
    for producer in [*producers, plain]:
        producer.close()
    expected = stock(kafka_bootstrap, topic)

    assert len(expected) == 8 + 8 * 3
    assert columnar_rows(kafka_bootstrap, topic) == expected
    for start in range(0, expected[-1].offset + 1, 3):
        assert columnar_rows(kafka_bootstrap, topic, start) == [
            row for row in expected if row.offset >= start
        ]
    assert columnar_rows(kafka_bootstrap, topic, fetch_bytes=100) == expected
    assert columnar_rows(kafka_bootstrap, topic, max_poll_records=1) == expected


@pytest.mark.kafka
def test_a_poll_brings_no_more_than_asked_and_every_partition_has_its_turn(log: Log) -> None:
    topic = log.topic(3)
    for partition in range(3):
        for start in range(0, 5_000, 1_000):
            log.write(topic, *numbered(1_000, start), partition=partition)
    member = log.member(group(), topic).joined(3)

    sizes, served = [], []
    while sum(sizes) < 15_000:
        polled = member.turn(max_records=700)
        sizes.append(sum(map(len, polled.batches)))
        served += [batch.partition.partition for batch in polled.batches if len(batch)]

    assert max(sizes) <= 700
    assert all(member.values(topic, partition) == numbered(5_000) for partition in range(3))
    assert set(served[: len(served) * 3 // 4]) == {0, 1, 2}


@pytest.mark.kafka
def test_a_client_of_another_version_is_read_record_by_record_with_one_warning(
    log: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    topic = log.topic()
    log.write(topic, *numbered(5))
    monkeypatch.setattr(columnar, "_warned", set())
    monkeypatch.setattr(kafka, "__version__", "3.0.13")

    with caplog.at_level(logging.WARNING, columnar.__name__):
        member = log.member(group(), topic).read(5)
        assert log.contents(topic) == member.rows[TopicPartition(topic, 0)]

    assert member.values(topic) == numbered(5)
    assert not member.turn().columnar
    assert [r.getMessage() for r in caplog.records if "3.0.13" in r.getMessage()] != []
    assert len([r for r in caplog.records if r.name == columnar.__name__]) == 1
    monkeypatch.setattr(kafka, "__version__", columnar.PROVED_VERSION)
    assert log.member(group(), topic).turn().columnar


@pytest.mark.kafka
def test_a_client_of_another_shape_is_read_record_by_record(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = log.topic()
    log.write(topic, *numbered(5))

    class Other(Fetcher.PartitionRecords):  # type: ignore[misc]
        def __init__(self, *args: object, fetch_size: int = 1, **more: object) -> None:
            self.fetch_size = fetch_size
            super().__init__(*args, **more)

    monkeypatch.setattr(Fetcher, "PartitionRecords", Other)
    member = log.member(group(), topic).read(5)

    assert member.values(topic) == numbered(5)
    assert not member.turn().columnar


def test_the_policy_for_damage_is_stop_unless_the_url_says_skip() -> None:
    assert not kafka_link.Link.parse("kafka://host").skip_corrupt
    assert kafka_link.Link.parse("kafka://host?corrupt=skip").skip_corrupt
    with pytest.raises(ConfigError, match="stop or skip"):
        kafka_link.Link.parse("kafka://host?corrupt=ignore")
