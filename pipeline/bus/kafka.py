"""The Kafka bus: ``kafka://host:9092`` opened as the seams of :mod:`pipeline.ports`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import kafka.errors as kafka_errors
from kafka import OffsetSpec
from kafka import TopicPartition as KafkaPartition

from pipeline.bus.columnar import Columns
from pipeline.bus.kafka_group import KafkaBus
from pipeline.bus.kafka_link import TOO_LARGE, Link, Topics, enqueue, flush, oversized
from pipeline.bus.kafka_records import joined
from pipeline.bus.kafka_transactions import Watchdog
from pipeline.errors import NotFound
from pipeline.records import Bounds, BusInfo, RecordBatch, Send, TopicPartition, TopicSpec

LINGER_MS = 5
FLUSH_S = 30.0
CLOSE_S = 5.0
COORDINATOR_S = 20.0
"""A broker's death is found after 9 s, and its groups move then."""
GROWN_S = 10.0


class KafkaBroker:
    """A Kafka cluster; see :class:`pipeline.ports.Broker`.

    Args:
        url: as :meth:`Link.parse` reads it.

    Raises:
        ConfigError: the URL is wrong. Nothing is connected yet.
    """

    def __init__(self, url: str) -> None:
        self._link = Link.parse(url)
        self._topics = Topics(self._link)
        self._made: list[KafkaBus | PlainProducer | PlainReader] = []

    def bus(self, *, group: str, topics: Sequence[str], transactional_id: str) -> KafkaBus:
        """A member of ``group``; no two live processes may share a ``transactional_id``."""
        bus = KafkaBus(
            self._link,
            self._topics,
            group=group,
            subscribe=topics,
            transactional_id=transactional_id,
            watchdog=Watchdog(self._link.timing.deadline / 1_000, os._exit),
        )
        self._made.append(bus)
        return bus

    def producer(self) -> PlainProducer:
        """A plain producer."""
        producer = PlainProducer(self._link, self._topics)
        self._made.append(producer)
        return producer

    def reader(self) -> PlainReader:
        """A plain reader of committed records."""
        reader = PlainReader(self._link, self._topics)
        self._made.append(reader)
        return reader

    def admin(self) -> KafkaAdmin:
        """The administration; it shares this broker's connection."""
        return KafkaAdmin(self._link, self._topics)

    def close(self) -> None:
        """Leave the groups and end every connection; idempotent."""
        while self._made:
            self._made.pop().close()
        self._topics.close()


class PlainProducer:
    """Idempotent producing outside transactions; see :class:`pipeline.ports.Producer`.

    A record that Kafka can never accept raises TooLarge, which names its topic and size.
    """

    def __init__(self, link: Link, topics: Topics) -> None:
        self._link = link
        self._topics = topics
        self._failures: list[tuple[Send, BaseException]] = []
        self._producer = link.producer(linger_ms=LINGER_MS)

    def send(self, sends: Iterable[Send]) -> None:
        """Queue records; a failure of earlier ones is raised here or by ``flush``, whichever comes first."""
        for send in sends:
            self._topics.require(send.topic)
            self._raise_failure()
            with self._link.talking(f"producing to {send.topic}"):
                future = enqueue(self._producer, send)
            future.add_errback(lambda error, send=send: self._failures.append((send, error)))

    def flush(self) -> None:
        """Return when everything queued is durable."""
        with self._link.talking("flushing"):
            flush(self._producer, FLUSH_S)
        self._raise_failure()

    def close(self) -> None:
        """Write what is queued if that is quick, and end the connection."""
        with suppress(kafka_errors.KafkaError):
            self._producer.close(timeout=CLOSE_S)

    def _raise_failure(self) -> None:
        if self._failures:
            send, error = self._failures[0]
            self._failures.clear()
            if isinstance(error, TOO_LARGE):
                raise oversized(send) from error
            raise self._link.translated(error, f"producing to {send.topic}") from error


class PlainReader:
    """Reading committed records by position; see :class:`pipeline.ports.Reader`.

    Every partition read so far stays assigned and paused, so that reading several in turns keeps what was
    fetched ahead.
    """

    def __init__(self, link: Link, topics: Topics) -> None:
        self._link = link
        self._topics = topics
        self._consumer = link.consumer(group_id=None)
        columns = Columns(skip_corrupt=link.skip_corrupt, gapless=topics.gapless)
        self._columns = columns.attach(self._consumer)

    def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """What each partition of ``topic`` holds, up to the first pending transaction."""
        found = self._topics.describe(topic)
        asked = [KafkaPartition(topic, p["partition_index"]) for p in found["partitions"]]
        topic_id = str(found["topic_id"])
        self._look_again(topic, len(asked))
        with self._link.talking(f"asking for the bounds of {topic}"):
            first = self._consumer.beginning_offsets(asked)
            written = self._topics.client.list_partition_offsets(dict.fromkeys(asked, OffsetSpec.LATEST))
            end = self._consumer.end_offsets(asked)  # after it: what was pending may have settled
        return {
            p.partition: Bounds(first[p], end[p], topic_id, max(written[p].offset, end[p])) for p in asked
        }

    def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        """The first offset whose record timestamp is at or after ``timestamp_ms``, or the end offset."""
        kafka_partition = self._known(partition)
        with self._link.talking(f"looking for a time in {partition}"):
            [found] = self._consumer.offsets_for_times({kafka_partition: max(0, timestamp_ms)}).values()
            [end] = self._consumer.end_offsets([kafka_partition]).values()
        return int(end if found is None else found.offset)

    def read(
        self, partition: TopicPartition, next_offset: int, max_records: int, timeout_s: float
    ) -> RecordBatch:
        """Records from ``next_offset`` on; from the first retained offset where that is above it.

        An offset beyond the end gives an empty batch that says to read there next.
        """
        kafka_partition = self._turn_to(partition, next_offset)
        with self._link.talking(f"reading {partition}"):
            try:
                fetched = self._consumer.poll(timeout_ms=round(timeout_s * 1_000), max_records=max_records)
            except kafka_errors.OffsetOutOfRangeError:
                [first] = self._consumer.beginning_offsets([kafka_partition]).values()
                return joined(partition, (), max(first, next_offset))
        position = self._consumer.position(kafka_partition, timeout_ms=0)
        return joined(partition, fetched.get(kafka_partition, ()), position)

    def close(self) -> None:
        """End the connection."""
        self._consumer.close()

    def _known(self, partition: TopicPartition) -> KafkaPartition:
        self._topics.require(partition.topic)
        self._look_again(partition.topic, partition.partition + 1)
        if partition.partition not in self._consumer.partitions_for_topic(partition.topic):
            raise NotFound(f"topic {partition.topic!r} has no partition {partition.partition}")
        return KafkaPartition(*partition)

    def _look_again(self, topic: str, partitions: int) -> None:
        """Have the client ask for the cluster's topics: it knows nothing of partitions added since it did."""
        with self._link.talking(f"looking for the partitions of {topic}"):
            if len(self._consumer.partitions_for_topic(topic)) < partitions:
                self._consumer.topics()

    def _turn_to(self, partition: TopicPartition, next_offset: int) -> Any:  # noqa: ANN401 - no types
        wanted = KafkaPartition(*partition)
        assigned = self._consumer.assignment()
        if wanted not in assigned:
            self._known(partition)
            self._consumer.assign([*assigned, wanted])
            self._seek(wanted, next_offset)
        self._consumer.pause(*(self._consumer.assignment() - {wanted}))
        self._consumer.resume(wanted)
        if self._consumer.position(wanted, timeout_ms=0) != next_offset:
            self._seek(wanted, next_offset)
        return wanted

    def _seek(self, partition: KafkaPartition, next_offset: int) -> None:
        self._columns.forget(TopicPartition(*partition))
        self._consumer.seek(partition, next_offset)


class KafkaAdmin:
    """What operators ask; see :class:`pipeline.ports.Admin`."""

    def __init__(self, link: Link, topics: Topics) -> None:
        self._link = link
        self._topics = topics

    def describe(self) -> BusInfo:
        """Server and topics, without those of Kafka itself; the version is what its protocol tells."""
        self._link.must_answer()
        client = self._topics.client
        with self._link.talking("describing the cluster"):
            brokers = client.describe_cluster()["brokers"]
            topics = client.describe_topics()
        version = ".".join(map(str, client._manager.broker_version))  # noqa: SLF001 - no public way
        return BusInfo(
            f"Apache Kafka {version}",
            {t["name"]: len(t["partitions"]) for t in topics if not t["is_internal"]},
            len(brokers),
        )

    def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Make the topics that are missing, wait until they can be used, return the names of those made."""
        self._link.must_answer()
        client = self._topics.client
        made = []
        with self._link.talking("creating topics"):
            there = set(client.list_topics())
            for spec in specs:
                if spec.name in there:
                    continue
                settings = {
                    "num_partitions": spec.partitions,
                    "replication_factor": spec.replication,
                    "configs": {
                        "retention.ms": str(spec.retention_ms),
                        "message.timestamp.type": "LogAppendTime" if spec.broker_time else "CreateTime",
                    },
                }
                try:
                    client.create_topics({spec.name: settings})
                except kafka_errors.TopicAlreadyExistsError:
                    continue
                made.append(spec.name)
            client.wait_for_topics(made)
        return made

    def grow(self, topic: str, partitions: int) -> None:
        """Give a topic the partitions that it lacks to have so many, and wait until they can be used."""
        if self._partitions(topic) >= partitions:
            return
        with self._link.talking(f"adding partitions to {topic}"):
            with suppress(kafka_errors.InvalidPartitionsError):  # another worker was faster
                self._topics.client.create_partitions({topic: partitions})
            deadline = time.monotonic() + GROWN_S
            while self._partitions(topic) < partitions:  # some broker may not know of them yet
                if time.monotonic() > deadline:
                    raise kafka_errors.KafkaTimeoutError(f"{topic} does not get {partitions} partitions")
                time.sleep(0.05)
            self._topics.client.wait_for_topics([topic])

    def _partitions(self, topic: str) -> int:
        return len(self._topics.describe(topic)["partitions"])

    def delete(self, topics: Sequence[str]) -> None:
        """Remove topics; the broker forgets groups' positions in them by itself."""
        for topic in topics:
            self._topics.describe(topic)
        if topics:
            with self._link.talking("deleting topics"):
                self._topics.client.delete_topics(list(topics))
            self._topics.forget(topics)

    def committed(self, group: str, topic: str) -> Mapping[int, int]:
        """The group's next offsets by partition, without those never committed."""
        self._link.must_answer()
        deadline = time.monotonic() + COORDINATOR_S
        with self._link.talking(f"asking for the positions of {group}"):
            while True:
                try:
                    offsets = self._topics.client.list_group_offsets({group: None})[group]
                    break
                except kafka_errors.RetriableError:
                    if time.monotonic() > deadline:  # a cluster that starts has none for a while
                        raise
                    # The client would ask a coordinator that is none any more for ever.
                    self._topics.client._manager.cluster._coordinators.clear()  # noqa: SLF001 - no public way
                    time.sleep(0.1)
        return {p.partition: o.offset for p, o in offsets.items() if p.topic == topic and o.offset >= 0}
