"""What the contract suite needs to speak of any bus: a log under test, its members, and a worker's habits."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from pipeline.errors import Refused
from pipeline.ports import Admin, Broker, Bus, Producer, Reader
from pipeline.records import Assigned, Corrupt, Polled, RecordBatch, Send, Token, TopicPartition, TopicSpec

DEADLINE_S = 60.0


class Row(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


def rows(batch: RecordBatch) -> list[Row]:
    return [
        Row(int(batch.offset[i]), batch.key(i), batch.value(i), int(batch.timestamp_ms[i]))
        for i in range(len(batch))
    ]


@dataclass
class Log:
    """One log under test.

    ``reopen`` gives another broker over the same log (in memory the same one, since there is no other);
    ``leave`` ends a member as its process would; ``rebalances`` tells whether a member that polls shares
    with a newcomer (Kafka) or keeps the group for as long as it polls (SQLite).
    """

    broker: Broker
    reopen: Callable[[], Broker]
    rebalances: bool = False
    _closers: dict[int, Callable[[], None]] = field(default_factory=dict)

    @cached_property
    def producer(self) -> Producer:
        return self.broker.producer()

    @cached_property
    def reader(self) -> Reader:
        return self.broker.reader()

    @cached_property
    def admin(self) -> Admin:
        return self.broker.admin()

    def topic(self, partitions: int = 1, retention_ms: int = -1) -> str:
        name = f"topic-{uuid.uuid4().hex}"
        assert self.admin.create([TopicSpec(name, partitions, retention_ms, 1)]) == [name]
        return name

    def write(self, topic: str, *values: bytes | None, partition: int = 0, timestamp_ms: int = 1_000) -> None:
        """Write values so that record i of the call has the timestamp ``timestamp_ms + i``."""
        self.producer.send(
            Send(topic, None, value, timestamp_ms=timestamp_ms + i, partition=partition)
            for i, value in enumerate(values)
        )
        self.producer.flush()

    def contents(self, topic: str, partition: int = 0) -> list[Row]:
        """Every readable record of a partition, by a plain reader."""
        reader, at = self.reader, TopicPartition(topic, partition)
        found: list[Row] = []
        bounds = reader.bounds(topic)[partition]
        next_offset = bounds.first_offset
        deadline = time.monotonic() + DEADLINE_S
        while next_offset < bounds.end_offset:
            batch = reader.read(at, next_offset, 10_000, 1.0)
            found += rows(batch)
            next_offset = batch.next_offset
            assert time.monotonic() < deadline, f"{at} stopped at {next_offset} of {bounds}"
        return found

    def member(self, group: str, *topics: str) -> Follower:
        broker = self.reopen()
        bus = broker.bus(group=group, topics=topics, transactional_id=f"{group}-{uuid.uuid4().hex}")
        # In memory the broker is everybody's, so the member leaves alone.
        self._closers[id(bus)] = bus.close if broker is self.broker else broker.close  # type: ignore[attr-defined]
        return Follower(bus)

    def leave(self, member: Follower) -> None:
        self._closers.pop(id(member.bus))()

    def oust(self, member: Follower, newcomer: Follower) -> None:
        """Let ``member`` lose something that it owns to a newcomer."""
        turn_until(lambda: newcomer.assigned, newcomer, *([member] if self.rebalances else []))


@dataclass
class Follower:
    """A member with a worker's habits: it seeks what it is given, forgets what it loses, gathers rows."""

    bus: Bus
    assigned: dict[TopicPartition, Assigned] = field(default_factory=dict)
    rows: dict[TopicPartition, list[Row]] = field(default_factory=lambda: defaultdict(list))
    corrupt: list[Corrupt] = field(default_factory=list)
    ends: dict[TopicPartition, int] = field(default_factory=dict)
    next_offsets: dict[TopicPartition, int] = field(default_factory=dict)
    token: Token = field(default_factory=lambda: Token(None))

    def turn(self, max_records: int = 10_000, timeout_s: float = 0.05) -> Polled:
        polled = self.bus.poll(max_records, timeout_s)
        self.token = polled.token
        for partition in polled.revoked:
            self.assigned.pop(partition, None)
            self.rows.pop(partition, None)
            self.next_offsets.pop(partition, None)
        for assigned in polled.assigned:
            assert assigned.partition not in self.assigned, "assigned twice without being lost in between"
            self.assigned[assigned.partition] = assigned
            known = assigned.committed_offset
            self.bus.seek(assigned.partition, assigned.first_offset if known is None else known)
        for batch in polled.batches:
            self.rows[batch.partition] += rows(batch)
            self.corrupt += batch.corrupt
            self.next_offsets[batch.partition] = batch.next_offset
        self.ends |= dict(polled.end_offsets)
        return polled

    def joined(self, partitions: int = 1) -> Follower:
        turn_until(lambda: len(self.assigned) == partitions, self)
        return self

    def read(self, count: int) -> Follower:
        turn_until(lambda: sum(map(len, self.rows.values())) >= count, self)
        return self

    def values(self, topic: str, partition: int = 0) -> list[bytes | None]:
        return [row.value for row in self.rows[TopicPartition(topic, partition)]]

    def commit(self, *sends: Send, token: Token | None = None) -> None:
        try:
            self.bus.commit(token or self.token, dict(self.next_offsets), sends)
        except Refused:
            for held in (self.assigned, self.rows, self.next_offsets):
                held.clear()
            raise


def turn_until(holds: Callable[[], object], *members: Follower) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "the members did not get there in time"
        for member in members:
            member.turn()


def wait_until(holds: Callable[[], object]) -> None:
    """For what comes about by itself: a transaction's positions show a moment after its commit."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "did not come about in time"
        time.sleep(0.01)


def numbered(count: int, start: int = 0) -> Sequence[bytes]:
    return [b"%d" % i for i in range(start, start + count)]
