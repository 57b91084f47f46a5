"""The traps of the Kafka client, each shown on a real broker: what breaks exactly-once in silence."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from bus_contract import DEADLINE_S, Follower, Log, numbered, turn_until, wait_until
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import MemberToRemove
from kafka.errors import KafkaTimeoutError
from kafka.record.memory_records import MemoryRecords
from kafka.structs import ConsumerGroupMetadata, MemberState, OffsetAndMetadata

from pipeline.bus.kafka import KafkaBroker
from pipeline.bus.kafka_group import KafkaBus
from pipeline.bus.kafka_link import Link, Topics
from pipeline.bus.kafka_transactions import CLOSE_S, Watchdog
from pipeline.errors import BusDown, BusError, NotFound, Refused, TooLarge
from pipeline.journal import JournalLog
from pipeline.ports import Admin
from pipeline.records import Polled, Send, Token, TopicPartition

pytestmark = pytest.mark.kafka

TOO_LARGE = b"x" * 2_000_000


@pytest.fixture
def log(kafka_bootstrap: str) -> Iterator[Log]:
    brokers: list[KafkaBroker] = []

    def opened() -> KafkaBroker:
        brokers.append(KafkaBroker(f"kafka://{kafka_bootstrap}"))
        return brokers[-1]

    yield Log(opened(), opened, rebalances=True)
    for broker in brokers:
        broker.close()


@dataclass
class Watcher(Follower):
    """A follower that counts what it is told to be lost."""

    lost: int = 0

    def turn(self, max_records: int = 10_000, timeout_s: float = 0.05) -> Polled:
        polled = super().turn(max_records, timeout_s)
        self.lost += len(polled.revoked)
        return polled


def member_of(log: Log, name: str, topic: str) -> Watcher:
    return Watcher(log.member(name, topic).bus)


def kafka_bus(member: Follower) -> KafkaBus:
    assert isinstance(member.bus, KafkaBus)
    return member.bus


def group() -> str:
    return f"group-{uuid.uuid4().hex}"


class Pending:
    """Somebody else's transaction that has written and not ended yet."""

    def __init__(self, bootstrap: str, timeout_ms: int = 60_000) -> None:
        self.producer = KafkaProducer(
            bootstrap_servers=bootstrap,
            transactional_id=f"pending-{uuid.uuid4().hex}",
            transaction_timeout_ms=timeout_ms,
        )
        self.producer.init_transactions()
        self.producer.begin_transaction()

    def commits(self, name: str, positions: Mapping[TopicPartition, int]) -> Pending:
        offsets = {KafkaPartition(*p): OffsetAndMetadata(o, "", -1) for p, o in positions.items()}
        self.producer.send_offsets_to_transaction(offsets, ConsumerGroupMetadata(name))
        return self

    def writes(self, topic: str, *values: bytes) -> Pending:
        for value in values:
            self.producer.send(topic, value=value, partition=0)
        self.producer.flush()
        return self

    def end(self, *, commit: bool) -> None:
        if commit:
            self.producer.commit_transaction()
        else:
            self.producer.abort_transaction()
        self.producer.close()


def watched_bus(bootstrap: str, topic: str, watchdog: Watchdog) -> KafkaBus:
    """A member with a watchdog of its own."""
    link = Link.parse(f"kafka://{bootstrap}")
    return KafkaBus(
        link,
        Topics(link),
        group=group(),
        subscribe=[topic],
        transactional_id=uuid.uuid4().hex,
        watchdog=watchdog,
    )


def evict(bootstrap: str, name: str) -> None:
    """Throw every member out of a group, as a missed session would."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    members = [m["member_id"] for m in admin.describe_groups([name])[name]["members"]]
    admin.remove_group_members(name, [MemberToRemove(member_id) for member_id in members])
    admin.close()


# T1: the client keeps the positions of a refused transaction and adds them to its next one.
def test_positions_of_a_refused_commit_are_not_committed_by_the_next(log: Log, kafka_bootstrap: str) -> None:
    topic, name = log.topic(2), group()
    log.write(topic, *numbered(3), partition=0)
    log.write(topic, *numbered(3), partition=1)
    member = member_of(log, name, topic)
    member.joined(2).read(6)
    coordinator = kafka_bus(member)._consumer._coordinator
    evict(kafka_bootstrap, name)

    with pytest.raises(Refused, match="nothing was written"):
        member.commit()
    wait_until(lambda: coordinator.group_metadata().generation_id < 0)
    member.turn()
    member.joined(2)
    member.bus.commit(member.token, {TopicPartition(topic, 1): 1}, [])

    wait_until(lambda: log.admin.committed(name, topic) == {1: 1})


# T2: once evicted the client's metadata say generation -1, and the broker accepts a commit with them.
def test_an_evicted_member_drops_its_batch_and_cannot_commit(log: Log, kafka_bootstrap: str) -> None:
    topic, out, name = log.topic(), log.topic(), group()
    log.write(topic, *numbered(3))
    member = member_of(log, name, topic)
    member.read(3)
    token = member.token
    consumer = kafka_bus(member)._consumer
    log.write(topic, *numbered(3, start=3))
    evict(kafka_bootstrap, name)
    wait_until(lambda: consumer.group_metadata().generation_id < 0)

    polled = member.turn(timeout_s=0)
    assert (polled.batches, polled.revoked) == ((), (TopicPartition(topic, 0),))
    assert polled.token == Token(None)
    with pytest.raises(Refused):
        member.commit(Send(out, None, b"late"), token=token)

    assert log.contents(out) == []
    assert log.admin.committed(name, topic) == {}
    assert member.read(6).values(topic) == numbered(6)


# T2: the token is that of the poll: what the client says at the commit may be no membership at all.
def test_an_evicted_member_that_has_not_polled_yet_cannot_commit(log: Log, kafka_bootstrap: str) -> None:
    topic, out, name = log.topic(), log.topic(), group()
    log.write(topic, *numbered(3))
    member = member_of(log, name, topic)
    member.read(3)
    consumer = kafka_bus(member)._consumer
    evict(kafka_bootstrap, name)
    wait_until(lambda: consumer.group_metadata().generation_id < 0)

    with pytest.raises(Refused):
        member.commit(Send(out, None, b"late"))

    assert log.contents(out) == []
    assert log.admin.committed(name, topic) == {}


# T2: a poll without membership gives no token.
def test_a_token_without_membership_is_refused(log: Log) -> None:
    topic, out = log.topic(), log.topic()
    member = member_of(log, group(), topic)
    token = member.bus.poll(10, 0.0).token

    with pytest.raises(Refused):
        member.bus.commit(token, {}, [Send(out, None, b"x")])

    assert log.contents(out) == []


# T3: a process with the same transactional id fences this one, whose client then fences that one.
def test_a_fenced_member_recovers_cleanly_and_is_told_again_what_it_owns(
    log: Log, kafka_bootstrap: str
) -> None:
    topic, out, name = log.topic(), log.topic(), group()
    log.write(topic, *numbered(3))
    member = member_of(log, name, topic)
    member.read(3)
    member.commit()
    usurper = KafkaProducer(
        bootstrap_servers=kafka_bootstrap,
        transactional_id=kafka_bus(member)._transactions._transactional_id,
    )
    usurper.init_transactions()

    with pytest.raises(Refused, match="nothing was written"):
        member.commit(Send(out, None, b"fenced"))
    member.joined()

    assert member.assigned[TopicPartition(topic, 0)].committed_offset == 3
    member.bus.commit(member.token, {TopicPartition(topic, 0): 3}, [Send(out, None, b"again")])
    assert [row.value for row in log.contents(out)] == [b"again"]
    usurper.close()


# T3: a client that lives on after its failure would raise its epoch and fence its successor.
def test_the_producer_of_a_failed_transaction_is_dead_before_the_next_starts(log: Log) -> None:
    topic, out = log.topic(), log.topic()
    log.write(topic, b"x")
    member = member_of(log, group(), topic)
    member.read(1)
    failed = kafka_bus(member)._transactions._producer

    with pytest.raises(BusError):
        member.commit(Send(out, None, TOO_LARGE))

    assert not failed._sender.is_alive()
    member.commit(Send(out, None, b"fine"))
    assert [row.value for row in log.contents(out)] == [b"fine"]


# T3: closing a client gives up on a thread that hangs, and such a one would go on later.
def test_a_producer_that_hangs_is_waited_for_until_it_is_dead(log: Log) -> None:
    topic = log.topic()
    log.write(topic, b"x")
    member = member_of(log, group(), topic)
    member.read(1)
    transactions = kafka_bus(member)._transactions
    producer = transactions._producer
    producer.partitions_for(topic)
    lived_on: list[bool] = []

    def close() -> None:
        transactions.close()
        lived_on.append(producer._sender.is_alive())

    closing = threading.Thread(target=close)
    with producer._transaction_manager._lock:  # the sender, which has a record to send, hangs in it
        producer.begin_transaction()
        producer.send(topic, b"y")
        closing.start()
        closing.join(2 * CLOSE_S + 1)  # the client gives up twice: to flush, and to end its thread
    closing.join()

    assert lived_on == [False]


# T4: the calls that end a transaction take no time-out.
def test_a_transaction_that_hangs_ends_the_process(kafka_bootstrap: str, log: Log, caplog) -> None:  # noqa: ANN001
    topic = log.topic()
    log.write(topic, b"x")
    ended: list[int] = []
    bitten = threading.Event()

    def end_process(code: int) -> None:
        ended.append(code)
        bitten.set()

    member = Follower(watched_bus(kafka_bootstrap, topic, Watchdog(0.2, end_process))).read(1)
    producer = kafka_bus(member)._transactions._producer
    with caplog.at_level(logging.CRITICAL), producer._transaction_manager._lock:  # the answer cannot be taken
        hung = threading.Thread(target=member.commit)
        hung.start()

        assert bitten.wait(10)

    hung.join()
    assert ended[0] == 75
    assert "hung" in caplog.text
    kafka_bus(member).close()


def test_a_transaction_in_time_does_not_end_the_process(kafka_bootstrap: str, log: Log) -> None:
    topic = log.topic()
    log.write(topic, b"x")
    ended: list[int] = []
    member = Follower(watched_bus(kafka_bootstrap, topic, Watchdog(5, ended.append))).read(1)

    member.commit()
    kafka_bus(member).close()

    assert not ended
    assert not [
        t for t in threading.enumerate() if isinstance(t, threading.Timer) and not t.finished.is_set()
    ]


# T5: without the topic's metadata the first join can wedge, with short polls most of all.
def test_members_join_with_very_short_polls(log: Log) -> None:
    topic = log.topic(4)
    name = group()
    members = [member_of(log, name, topic) for _ in range(2)]
    deadline = time.monotonic() + DEADLINE_S

    while sorted(len(member.assigned) for member in members) != [2, 2]:
        assert time.monotonic() < deadline
        for member in members:
            member.turn(timeout_s=0.02)


# T5: metadata that come while the first join is under way can wedge it, so they come before.
def test_the_topics_are_known_before_the_first_poll(log: Log) -> None:
    topic = log.topic(4)

    member = member_of(log, group(), topic)

    assert kafka_bus(member)._consumer._cluster.partitions_for_topic(topic) == {0, 1, 2, 3}


# T5: a join that ends between two polls counts; the client would begin it anew, and ask all others to join.
def test_a_join_that_ends_between_two_polls_counts(log: Log) -> None:
    topic, name = log.topic(), group()
    member = member_of(log, name, topic)
    client = log.broker._topics.client  # type: ignore[attr-defined]
    assert log.admin.committed(name, topic) == {}  # there is a coordinator

    def stable() -> bool:
        member.turn(timeout_s=0)
        state: str = client.describe_groups([name])[name]["group_state"]
        return state == "Stable"

    wait_until(stable)
    member.joined()

    assert member.token.value.generation_id == 1  # type: ignore[attr-defined]


def test_a_wedged_join_is_ended(log: Log) -> None:
    topic = log.topic()
    member = member_of(log, group(), topic)
    member.joined()
    for _ in range(3):
        member.turn()
    coordinator = kafka_bus(member)._consumer._coordinator
    generation = member.token.value.generation_id  # type: ignore[attr-defined]
    coordinator.state, coordinator.rejoin_needed = MemberState.REBALANCING, False

    turn_until(lambda: member.token.value.generation_id > generation, member)  # type: ignore[attr-defined]

    assert member.assigned


# T6: with a pending transaction on one partition the client's own poll waits for all of them.
def test_a_pending_transaction_holds_back_its_partition_alone(log: Log, kafka_bootstrap: str) -> None:
    topic, name = log.topic(2), group()
    log.write(topic, *numbered(3), partition=0)
    log.write(topic, *numbered(3), partition=1)
    pending = Pending(kafka_bootstrap).commits(name, {TopicPartition(topic, 0): 2})
    member = member_of(log, name, topic)

    turn_until(lambda: member.assigned, member)
    assert list(member.assigned) == [TopicPartition(topic, 1)]
    started = time.monotonic()
    while len(member.rows[TopicPartition(topic, 1)]) < 3:
        member.turn(timeout_s=5)
    assert time.monotonic() - started < 3
    pending.end(commit=True)
    member.joined(2).read(4)

    # T7: and the position is the one that the transaction committed.
    assert member.assigned[TopicPartition(topic, 0)].committed_offset == 2
    assert member.values(topic, 0) == [b"2"]


# An answer that comes after its time-out stays in the client, and would be that to whoever asks next.
def test_a_position_that_was_told_too_late_is_asked_for_again(log: Log) -> None:
    topic, name = log.topic(), group()
    log.write(topic, *numbered(2))
    member = member_of(log, name, topic).read(2)
    member.commit()
    wait_until(lambda: log.admin.committed(name, topic) == {0: 2})
    bus, at = member.bus, TopicPartition(topic, 0)
    assert isinstance(bus, KafkaBus)
    with pytest.raises(KafkaTimeoutError):
        bus._consumer.committed(KafkaPartition(*at), timeout_ms=0)
    [late] = bus._consumer._coordinator._offset_fetch_futures.values()
    wait_until(lambda: late.is_done)
    log.write(topic, b"more")
    member.read(3).commit()
    wait_until(lambda: log.admin.committed(name, topic) == {0: 3})

    assert bus._committed(at) == 3


# T8: an oversize record fails in the client, and its transaction could still be committed without it.
def test_an_oversize_record_is_named_and_leaves_nothing_behind(log: Log) -> None:
    topic, out, name = log.topic(), log.topic(), group()
    log.write(topic, *numbered(3))
    member = member_of(log, name, topic)
    member.read(3)

    with pytest.raises(TooLarge, match=f"2000001 bytes for {out}") as error:
        member.commit(Send(out, None, b"before"), Send(out, b"k", TOO_LARGE))

    assert error.value.send.value == TOO_LARGE
    assert log.contents(out) == []
    assert log.admin.committed(name, topic) == {}
    member.commit(Send(out, None, b"instead"))
    wait_until(lambda: [row.value for row in log.contents(out)] == [b"instead"])


# T8: the broker's own limit is told only in the answer, and must not look like a lost partition.
def test_a_record_that_the_broker_refuses_for_its_size_is_named_too(log: Log) -> None:
    topic, out, name = log.topic(), log.topic(), group()
    small = f"small-{uuid.uuid4().hex}"
    log.broker._topics.client.create_topics(  # type: ignore[attr-defined]
        {small: {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "1000"}}}
    )
    log.write(topic, b"x")
    member = member_of(log, name, topic)
    member.read(1)
    fits, too_large = (
        [Send(small, None, b"".join(uuid.uuid4().bytes for _ in range(n)), partition=0) for n in sizes]
        for sizes in ((10, 20, 10), (200, 80))
    )

    others = [Send(out, None, b"x" * n) for n in range(1, 5)]

    with pytest.raises(TooLarge, match=f"of (3200|1280) bytes for {small}") as error:
        member.commit(*others[:2], fits[0], too_large[0], fits[1], too_large[1], fits[2], *others[2:])
    with pytest.raises(TooLarge, match=f"of 3200 bytes for {small}"):  # refused before the last is queued
        member.commit(too_large[0], *others * 10_000)

    assert error.value.send in too_large
    assert log.admin.committed(name, topic) == {}
    assert log.contents(small) == log.contents(out) == []
    member.commit(*fits)
    wait_until(lambda: [row.value for row in log.contents(small)] == [send.value for send in fits])
    wait_until(lambda: log.admin.committed(name, topic) == {0: 1})

    # What does not fit together is halved by the client, whose flush ends before the halves are written.
    halves = [Send(small, None, os.urandom(600), partition=0) for _ in range(20)]
    member.commit(*halves)
    values = [send.value for send in [*fits, *halves]]
    wait_until(lambda: [row.value for row in log.contents(small)] == values)


# T8: a record that is refused while the offsets are asked for leaves the client waiting without end for their
# answer; the watchdog would end the worker, which would meet the same record again.
def test_offsets_are_asked_for_when_every_record_is_answered(log: Log) -> None:
    topic, out, name = log.topic(), log.topic(), group()
    log.write(topic, b"x")
    member = member_of(log, name, topic)
    member.read(1)
    producer = kafka_bus(member)._transactions._producer
    ask, incomplete = producer.send_offsets_to_transaction, []

    def asked(*arguments: object) -> None:
        incomplete.append(producer._accumulator.has_incomplete)
        ask(*arguments)

    producer.send_offsets_to_transaction = asked
    member.commit(*(Send(out, None, b"x" * n) for n in range(100)))

    assert incomplete == [False]
    wait_until(lambda: len(log.contents(out)) == 100)


# A partition's batches go out one after the other, each with its own wait for the broker.
def test_the_alerts_of_a_commit_go_out_in_one_batch(
    log: Log, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, out, name = log.topic(), log.topic(), group()
    log.write(topic, b"x")
    member = member_of(log, name, topic)
    member.read(1)
    member.commit(*(Send(out, b"k", os.urandom(2_500), partition=0) for _ in range(20)))

    batches, next_batch = [], MemoryRecords.next_batch

    def counted(records: MemoryRecords, *arguments: object) -> object:
        batches.append(next_batch(records, *arguments))
        return batches[-1]

    monkeypatch.setattr(MemoryRecords, "next_batch", counted)
    consumer = KafkaConsumer(bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest")
    consumer.assign([KafkaPartition(out, 0)])
    found: list[object] = []

    def read() -> bool:
        for records in consumer.poll(timeout_ms=50).values():
            found.extend(records)
        return len(found) == 20

    wait_until(read)
    consumer.close()

    assert [batch.is_control_batch for batch in batches if batch is not None] == [False, True]


def test_an_output_topic_that_does_not_exist_is_named_and_not_created(log: Log) -> None:
    topic, name = log.topic(), group()
    log.write(topic, b"x")
    member = member_of(log, name, topic)
    member.read(1)

    with pytest.raises(NotFound, match="offbeat topics create"):
        member.commit(Send("no-such-output", None, b"x"))

    assert "no-such-output" not in log.admin.describe().topics
    member.commit()
    wait_until(lambda: log.admin.committed(name, topic) == {0: 1})


# Control records move the position where no record is, and that has to be committed too.
def test_markers_and_aborted_records_move_the_position(log: Log, kafka_bootstrap: str) -> None:
    topic, name = log.topic(), group()
    at = TopicPartition(topic, 0)
    Pending(kafka_bootstrap).writes(topic, b"kept").end(commit=True)
    member = member_of(log, name, topic)
    turn_until(lambda: member.next_offsets.get(at) == 2, member)

    Pending(kafka_bootstrap).writes(topic, b"dropped", b"dropped").end(commit=False)
    turn_until(lambda: member.next_offsets.get(at) == 5, member)
    member.commit()

    assert member.values(topic) == [b"kept"]
    wait_until(lambda: log.admin.committed(name, topic) == {0: 5})
    assert member.ends[at] == log.reader.bounds(topic)[0].end_offset == 5
    batch = log.reader.read(at, 2, 10, 1.0)
    assert (len(batch), batch.next_offset) == (0, 5)


# Records of a transaction that is still open are not there yet.
def test_records_of_a_pending_transaction_are_not_read(log: Log, kafka_bootstrap: str) -> None:
    topic, name = log.topic(), group()
    log.write(topic, b"before")
    pending = Pending(kafka_bootstrap).writes(topic, b"pending")
    member = member_of(log, name, topic)
    member.read(1)

    for _ in range(3):
        member.turn()
    assert member.values(topic) == [b"before"]

    pending.end(commit=True)
    assert member.read(2).values(topic) == [b"before", b"pending"]


# The markers that end a transaction reach its partitions one after the other: positions may show it before
# the journal does, and a new owner that read the journal then would miss what it says.
def test_a_journal_with_a_pending_transaction_is_waited_for(log: Log, kafka_bootstrap: str) -> None:
    topic = log.topic()
    pending = Pending(kafka_bootstrap).writes(topic, b"an entry")
    bounds = log.reader.bounds(topic)[0]
    assert (bounds.end_offset, bounds.written_offset) == (0, 1)

    with pytest.raises(BusDown, match="not settled yet"):
        JournalLog(log.reader, topic).entries(0)

    pending.end(commit=False)
    wait_until(lambda: log.reader.bounds(topic)[0].end_offset == 2)
    assert JournalLog(log.reader, topic).entries(0) == ([], 2)


# The start of a slot's next process ends what the last one left open, long before its time-out.
def test_a_restart_in_a_slot_frees_its_pending_transaction(log: Log, kafka_bootstrap: str) -> None:
    topic, name, slot = log.topic(), group(), uuid.uuid4().hex
    log.write(topic, *numbered(3))
    killed = KafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id=slot)
    killed.init_transactions()
    killed.begin_transaction()
    killed.send_offsets_to_transaction(
        {KafkaPartition(topic, 0): OffsetAndMetadata(3, "", -1)}, ConsumerGroupMetadata(name)
    )

    started = time.monotonic()
    member = Follower(log.broker.bus(group=name, topics=[topic], transactional_id=slot)).read(3)

    assert time.monotonic() - started < 5
    assert member.assigned[TopicPartition(topic, 0)].committed_offset is None
    killed._sender.force_close()


# In a generation that a member missed others may have owned what the client says it kept.
def test_what_is_kept_across_a_missed_generation_is_announced_again(log: Log, kafka_bootstrap: str) -> None:
    topic, name = log.topic(2), group()
    log.write(topic, *numbered(4), partition=0)
    member = member_of(log, name, topic)
    member.joined(2).read(4)
    Pending(kafka_bootstrap).commits(name, {TopicPartition(topic, 0): 2}).end(commit=True)
    bus = kafka_bus(member)
    assert bus._membership is not None
    bus._membership = bus._membership._replace(generation_id=bus._membership.generation_id - 1)

    bus._consumer._coordinator.request_rejoin()
    turn_until(lambda: member.lost == 2 and len(member.assigned) == 2, member)

    assert member.assigned[TopicPartition(topic, 0)].committed_offset == 2
    member.read(2)
    assert member.values(topic, 0) == [b"2", b"3"]


# A rebalance that takes nothing away costs nothing: state and position of what stays are kept. A member that
# missed a generation, as a slow machine may make it, is told again of all that it has: that one begins anew.
def test_partitions_that_stay_are_not_announced_again(log: Log) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not _stays_in_every_generation(log):
        assert time.monotonic() < deadline, "a generation was missed each time"


def _stays_in_every_generation(log: Log) -> bool:
    """Let a second member join; False where the first one missed a generation meanwhile."""
    topic, name = log.topic(4), group()
    for partition in range(4):
        log.write(topic, *numbered(2), partition=partition)
    first = member_of(log, name, topic)
    first.joined(4).read(8)
    first.commit()
    missed, took_part = [], kafka_bus(first)._took_part_in_all

    def watched(joined: Sequence[int], membership: ConsumerGroupMetadata) -> bool:
        missed.append(not took_part(joined, membership))
        return not missed[-1]

    kafka_bus(first)._took_part_in_all = watched  # type: ignore[method-assign]
    second = member_of(log, name, topic)
    turn_until(lambda: len(first.assigned) == len(second.assigned) == 2, first, second)
    if any(missed):
        return False

    assert missed
    assert first.lost == 2
    assert not set(first.assigned) & set(second.assigned)
    for partition in range(4):
        log.write(topic, *numbered(2, start=2), partition=partition)
    turn_until(lambda: sum(len(m.rows[p]) for m in (first, second) for p in m.assigned) == 12, first, second)
    assert all(first.values(*p) == numbered(4) for p in first.assigned)
    assert all(second.values(*p) == numbered(2, start=2) for p in second.assigned)
    return True


# T8: the listener only notes what was lost, and the next poll says so, also where it came back meanwhile.
def test_a_partition_that_was_lost_and_given_back_is_announced_again(log: Log) -> None:
    topic = log.topic(2)
    member = member_of(log, group(), topic)
    member.joined(2)
    member.assigned.clear()

    kafka_bus(member)._notes.on_partitions_revoked([KafkaPartition(topic, 0)])
    turn_until(lambda: member.assigned, member)

    assert (member.lost, list(member.assigned)) == (1, [TopicPartition(topic, 0)])


# Retention may overtake a slow member; going on from a gap in silence would be loss in silence.
def test_a_position_below_the_first_record_is_announced_again(log: Log) -> None:
    topic, name = log.topic(), group()
    log.write(topic, *numbered(5))
    member = member_of(log, name, topic)
    member.read(5)
    member.commit()
    admin = log.broker._topics.client  # type: ignore[attr-defined]
    log.write(topic, *numbered(5, start=5))
    admin.delete_records({KafkaPartition(topic, 0): 8})
    member.bus.seek(TopicPartition(topic, 0), 6)

    turn_until(lambda: member.lost == 1 and member.assigned, member)

    assigned = member.assigned[TopicPartition(topic, 0)]
    assert (assigned.first_offset, assigned.end_offset, assigned.committed_offset) == (8, 10, 5)
    member.bus.seek(TopicPartition(topic, 0), assigned.first_offset)
    assert member.read(2).values(topic) == numbered(2, start=8)


# A topic made again under its name is another topic.
def test_a_topic_made_again_is_announced_again_under_its_new_id(log: Log) -> None:
    topic, name = log.topic(), group()
    log.write(topic, *numbered(3))
    member = member_of(log, name, topic)
    member.read(3)
    before = member.assigned[TopicPartition(topic, 0)].topic_id
    admin = log.broker._topics.client  # type: ignore[attr-defined]
    admin.delete_topics([topic])
    wait_until(lambda: topic not in log.admin.describe().topics)
    for _ in range(10):
        member.turn()
    assert topic not in log.admin.describe().topics, "asking for a topic has made it again"

    admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    log.write(topic, *numbered(4, start=10))
    turn_until(
        lambda: member.assigned and member.assigned[TopicPartition(topic, 0)].topic_id != before, member
    )

    assert member.lost


# It may come back before anyone noticed that it was gone.
def test_another_topic_id_is_enough_to_be_announced_again(log: Log) -> None:
    topic = log.topic()
    member = member_of(log, group(), topic)
    member.joined()
    kafka_bus(member)._owned[TopicPartition(topic, 0)].topic_id = "before"

    turn_until(lambda: member.lost == 1 and member.assigned, member)


# What the client knows of a topic is up to ten seconds old: a new topic's records would be the old one's.
def test_a_topic_is_announced_under_the_id_that_it_has_now(log: Log) -> None:
    topic = log.topic()
    member = member_of(log, group(), topic)
    member.joined()
    partition, bus, stale = TopicPartition(topic, 0), kafka_bus(member), uuid.uuid4()
    real = member.assigned.pop(partition).topic_id
    bus._consumer._cluster._topic_ids[topic] = stale
    bus._owned[partition].topic_id = str(stale)
    bus._start_again()

    turn_until(lambda: member.assigned, member)

    assert member.assigned[partition].topic_id == real


# A poll that fails after the client moved on must not skip what was dropped with it.
def test_records_behind_a_failing_poll_come_again(log: Log) -> None:
    topic, name = log.topic(), group()
    log.write(topic, *numbered(5))
    member = member_of(log, name, topic)
    member.joined()
    consumer = kafka_bus(member)._consumer
    poll, failures = consumer.poll, []

    def failing_poll(**options: object) -> Mapping[object, object]:
        fetched = poll(**options)
        if fetched and not failures:
            failures.append(fetched)
            raise KeyboardInterrupt
        return fetched

    consumer.poll = failing_poll
    with pytest.raises(KeyboardInterrupt):
        member.read(5)

    assert member.read(5).values(topic) == numbered(5)


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_records_of_other_clients_are_read_whatever_their_compression(
    log: Log, kafka_bootstrap: str, codec: str
) -> None:
    producing = pytest.importorskip("confluent_kafka").Producer(
        {"bootstrap.servers": kafka_bootstrap, "compression.type": codec, "linger.ms": 50}
    )
    topic = log.topic()
    sent = [b"%d " % i * 50 for i in range(300)]
    for i, value in enumerate(sent):
        producing.produce(topic, value, b"%d" % i)
    producing.flush()

    found = log.contents(topic)

    assert [(row.key, row.value) for row in found] == [(b"%d" % i, value) for i, value in enumerate(sent)]


def test_a_record_may_have_neither_key_nor_value(log: Log) -> None:
    topic = log.topic()
    log.producer.send([Send(topic, None, None, timestamp_ms=7)])
    log.producer.flush()

    [row] = log.contents(topic)

    assert (row.key, row.value, row.timestamp_ms) == (None, None, 7)


def test_other_clients_read_the_headers(log: Log, kafka_bootstrap: str) -> None:
    topic = log.topic()
    log.producer.send([Send(topic, b"k", b"v", (("ce_type", b"alert"), ("ce_id", b"")))])
    log.producer.flush()

    consumer = KafkaConsumer(bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest")
    consumer.assign([KafkaPartition(topic, 0)])
    [[record]] = consumer.poll(timeout_ms=10_000).values()
    consumer.close()

    assert record.headers == [("ce_type", b"alert"), ("ce_id", b"")]


# The client of a reader knows the partitions of a topic from its last look, up to 10 s ago.
def test_a_reader_finds_partitions_that_were_added_since_it_looked(log: Log) -> None:
    topic = log.topic()
    log.write(topic, b"x")
    assert log.reader.read(TopicPartition(topic, 0), 0, 10, 1.0).next_offset == 1

    log.admin.grow(topic, 2)

    assert log.reader.bounds(topic)[1].end_offset == 0
    log.write(topic, b"y", partition=1)
    batch = log.reader.read(TopicPartition(topic, 1), 0, 10, 5.0)
    assert [batch.value(row) for row in range(len(batch))] == [b"y"]


# Two workers find new partitions at the same time, and both see to the journal.
def test_a_topic_that_another_one_makes_grow_is_as_good(log: Log) -> None:
    topic = log.topic()
    admins = [log.reopen().admin() for _ in range(8)]
    together = threading.Barrier(len(admins))

    def grow(admin: Admin) -> None:
        together.wait()
        admin.grow(topic, 3)

    with ThreadPoolExecutor(len(admins)) as pool:
        list(pool.map(grow, admins))

    assert sorted(log.reader.bounds(topic)) == [0, 1, 2]


# Static membership: who comes again within the session is no newcomer, and nobody else is asked to give.
def test_a_static_member_that_comes_again_keeps_its_partitions(log: Log, kafka_bootstrap: str) -> None:
    topic, name, slots = log.topic(4), group(), [uuid.uuid4().hex for _ in range(2)]
    brokers = [KafkaBroker(f"kafka://{kafka_bootstrap}?static_membership=true") for _ in range(3)]
    first, second = (
        Watcher(broker.bus(group=name, topics=[topic], transactional_id=slot))
        for broker, slot in zip(brokers, slots, strict=False)
    )
    turn_until(lambda: len(first.assigned) == len(second.assigned) == 2, first, second)
    kept, lost = set(second.assigned), second.lost
    generation = second.token.value.generation_id  # type: ignore[attr-defined]

    brokers[0].close()
    again = Watcher(brokers[2].bus(group=name, topics=[topic], transactional_id=slots[0]))
    turn_until(lambda: len(again.assigned) == 2, again, second)

    assert set(again.assigned) == set(first.assigned)
    assert (set(second.assigned), second.lost) == (kept, lost)
    assert second.token.value.generation_id == generation  # type: ignore[attr-defined]
    for broker in brokers:
        broker.close()
