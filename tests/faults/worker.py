"""A worker as its own process that cuts its own life at a named point: ``python -m faults.worker ORDERS``.

The parts are the program's own. What stands before them here only looks on, ticks the clock, and sends this
process the signal. The naive variant is made here too: plain produces, positions by themselves, no reading
again.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from kafka import TopicPartition as KafkaPartition
from kafka.protocol.producer import EndTxnRequest
from kafka.structs import OffsetAndMetadata

from consumers import detector
from offbeat import app
from offbeat.cli.stopping import stopping
from pipeline import config
from pipeline.bus.kafka_group import KafkaBus
from pipeline.bus.sqlite_lease import Lease
from pipeline.bus.sqlite_member import SqliteBus
from pipeline.errors import OffbeatError
from pipeline.keeping import CHECKPOINT_S
from pipeline.loop import Parts
from pipeline.ports import Bus, Producer, PutResult, StateStore
from pipeline.records import Claim, PackedRows, Polled, Send, Token, TopicPartition
from pipeline.status import Status

from .words import Became, Claimed, Committed, Noticed, Orders, Point, Reached, Said, Waits, Worked

STREAM = "machines"
MAX_RECORDS = 200
LEASE_S = 2.5
"""Longer than a call to a store that hangs: a worker that waits for one stays the owner."""
TICK_S = 1.3
"""A poll takes so long on the worker's clock: four to a checkpoint, and some twenty to a snapshot."""
IDLE_POLLS = 4


def say(word: Said) -> None:
    """Tell whoever started this process, at once."""
    sys.stdout.write(msgspec.json.encode(word).decode() + "\n")
    sys.stdout.flush()


@dataclass
class Clock:
    """Time as the worker counts it: polls, so that every machine makes the same checkpoints."""

    tick_s: float
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Trap:
    """The signal that waits for this process at a point.

    Attributes:
        point: None once it has gone off.
        left: commits with records that come before it is set.
        outputs: whether the commit under way holds alerts; those without are not worth a kill.
    """

    point: Point | None
    left: int
    number: signal.Signals
    outputs: bool = False

    def reach(self, point: Point) -> None:
        """Here is ``point``."""
        if point is self.point and self.left <= 0:
            self.point = None
            say(Reached())
            os.kill(os.getpid(), self.number)

    def reach_with_outputs(self, point: Point) -> None:
        """Here is ``point`` of a commit."""
        if self.outputs:
            self.reach(point)


@dataclass
class Doings:
    """Tells what the worker is doing, where that changes."""

    told: Became | None = None

    def __call__(self, status: Status) -> None:
        became = Became(status.doing, status.message)
        if became != self.told:
            self.told = became
            say(became)


@dataclass
class WatchedBus:
    """Before the member of the group: every poll is a tick, every commit is told."""

    bus: Bus
    alerts_topic: str
    journal_topic: str
    clock: Clock
    trap: Trap
    positions: dict[int, int] = field(default_factory=dict)

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        self.clock.now_s += self.clock.tick_s
        return self.bus.poll(max_records, timeout_s)

    def seek(self, partition: TopicPartition, next_offset: int) -> None:
        self.bus.seek(partition, next_offset)

    def commit(self, token: Token, next_offsets: Mapping[TopicPartition, int], sends: Sequence[Send]) -> None:
        trap = self.trap
        trap.outputs = sum(send.topic == self.alerts_topic for send in sends) > 1
        trap.reach_with_outputs(Point.SCORED)
        self.bus.commit(token, next_offsets, sends)
        trap.reach_with_outputs(Point.COMMITTED)
        positions = {partition.partition: offset for partition, offset in next_offsets.items()}
        say(Committed(positions, time.monotonic()))
        if any(send.topic == self.journal_topic and b'"in_force"' in (send.value or b"") for send in sends):
            trap.reach(Point.CONTROL)
        if self.positions and any(offset > self.positions.get(p, offset) for p, offset in positions.items()):
            trap.left -= 1
        self.positions.update(positions)


@dataclass
class WatchedStore:
    """Before the state store: every claim is told."""

    store: StateStore

    def claim(self, partition: TopicPartition, *, reset: bool = False) -> Claim:
        claim = self.store.claim(partition, reset=reset)
        say(Claimed(partition.partition, claim.next_offset))
        return claim

    def put(self, claim: Claim, base: int, offset: int, rows: PackedRows, *, whole: bool) -> PutResult:
        return self.store.put(claim, base, offset, rows, whole=whole)


@dataclass
class Before:
    """A real object with something before some of its methods."""

    real: Any
    trap: Trap

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the real object has
        return getattr(self.real, name)


class WatchedConnection(Before):
    """Before the SQLite connection of the member."""

    positions = False

    def executemany(self, statement: str, rows: Sequence[Any]) -> Any:  # noqa: ANN401 - a cursor
        if not statement.startswith("INSERT INTO positions"):
            return self.real.executemany(statement, rows)
        self.trap.reach_with_outputs(Point.SENT)
        cursor = self.real.executemany(statement, rows)
        self.trap.reach_with_outputs(Point.OFFSETS)
        self.positions = True
        return cursor

    def execute(self, statement: str, *values: Any) -> Any:  # noqa: ANN401 - a cursor
        cursor = self.real.execute(statement, *values)
        if statement == "COMMIT" and self.positions:
            self.positions = False
            self.trap.reach_with_outputs(Point.ASKED)
        return cursor


class WatchedProducer(Before):
    """Before the producer of Kafka's transactions."""

    def send_offsets_to_transaction(self, *arguments: Any) -> None:  # noqa: ANN401 - the client has no types
        self.trap.reach_with_outputs(Point.SENT)
        self.real.send_offsets_to_transaction(*arguments)

    def commit_transaction(self) -> None:
        self.trap.reach_with_outputs(Point.OFFSETS)
        if self.trap.point is Point.ASKED and self.trap.outputs:
            self._reach_once_asked()
        self.real.commit_transaction()

    def _reach_once_asked(self) -> None:
        """The point is where the bytes of the request have been handed to the kernel."""
        client = self.real._sender._client
        send = client.send

        def sent(node_id: Any, request: Any, **options: Any) -> Any:  # noqa: ANN401 - the client has no types
            future = send(node_id, request, **options)
            if isinstance(request, EndTxnRequest):
                transport = client._manager._conns[node_id].transport
                write = transport._sock_send

                def written() -> Any:  # noqa: ANN401 - the client has no types
                    result = write()
                    self.trap.reach(Point.ASKED)
                    return result

                transport._sock_send = written
            return future

        client.send = sent


def watch(transactions: Any, trap: Trap) -> None:  # noqa: ANN401 - its producer has no types
    """Stand before every producer that it will have; a failed transaction costs it one."""
    start = transactions.start

    def started() -> None:
        start()
        if not isinstance(transactions._producer, WatchedProducer):
            transactions._producer = WatchedProducer(transactions._producer, trap)

    transactions.start = started
    started()


class WatchedScript(Before):
    """Before the script that writes a checkpoint."""

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401 - the script's own
        self.trap.reach(Point.SCRIPT)
        result = self.real(*arguments)
        self.trap.reach(Point.WRITTEN)
        return result


class WatchedFiles(Before):
    """Before the files of the snapshots."""

    def pipe_file(self, path: str, value: bytes) -> None:
        if self.trap.point is Point.HALF and self.trap.left <= 0:
            self.real.pipe_file(path, value[: len(value) // 2])
            self.trap.reach(Point.HALF)
        self.real.pipe_file(path, value)

    def mv(self, draft: str, path: str) -> None:
        self.trap.reach(Point.DRAFT)
        self.real.mv(draft, path)


@dataclass
class NaiveBus:
    """A member that sends, flushes, and then commits positions by themselves."""

    bus: Bus
    producer: Producer
    trap: Trap

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        return self.bus.poll(max_records, timeout_s)

    def seek(self, partition: TopicPartition, next_offset: int) -> None:
        self.bus.seek(partition, next_offset)

    def commit(self, token: Token, next_offsets: Mapping[TopicPartition, int], sends: Sequence[Send]) -> None:
        self.producer.send(sends)
        self.producer.flush()
        self.trap.reach_with_outputs(Point.SENT)
        if isinstance(self.bus, KafkaBus):
            offsets = {KafkaPartition(*p): OffsetAndMetadata(o, "", -1) for p, o in next_offsets.items()}
            self.bus._consumer.commit(offsets)
        else:
            self.bus.commit(token, next_offsets, [])


@dataclass
class NaiveStore:
    """A store whose state passes for that of the committed position, whatever it is valid at."""

    store: StateStore
    committed: Callable[[], Mapping[int, int]]

    def claim(self, partition: TopicPartition, *, reset: bool = False) -> Claim:
        claim = self.store.claim(partition, reset=reset)
        if claim.rows is None:
            return claim
        next_offset = self.committed()[partition.partition]
        header = msgspec.json.encode(msgspec.json.decode(claim.rows.header) | {"next_offset": next_offset})
        return replace(claim, next_offset=next_offset, rows=replace(claim.rows, header=header))

    def put(self, claim: Claim, base: int, offset: int, rows: PackedRows, *, whole: bool) -> PutResult:
        return self.store.put(claim, base, offset, rows, whole=whole)


def set_up(parts: Parts, trap: Trap, orders: Orders) -> Clock:
    """Put what looks on before the parts."""
    bus: Any = parts.bus
    store: Any = parts.store
    snapshots: Any = parts.snapshots
    if isinstance(bus, SqliteBus):
        if orders.wall_clock is None:
            bus._lease = Lease(bus._group, LEASE_S)
        bus._session._connection = WatchedConnection(bus._session._connection, trap)
    else:
        watch(bus._transactions, trap)
    store._put_script = WatchedScript(store._put_script, trap)
    snapshots._files = WatchedFiles(snapshots._files, trap)
    clock = Clock(TICK_S)
    parts.max_records, parts.store = MAX_RECORDS, WatchedStore(store)
    if orders.steady:
        parts.observe = lambda processed: say(Worked(processed.partition.partition, time.monotonic()))
    else:
        parts.clock = clock
    alerts_topic, journal_topic = parts.config.alerts_topic, parts.config.journal_topic(STREAM)
    parts.bus = WatchedBus(bus, alerts_topic, journal_topic, clock, trap)
    return clock


def make_naive(parts: Parts, producer: Producer, trap: Trap) -> None:
    """Take away what makes the parts exact; the state is written after every commit."""
    group, topic, admin = parts.config.group(STREAM), parts.config.stream(STREAM).topic, parts.admin
    watched: Any = parts.bus
    watched.bus, watched.clock.tick_s = NaiveBus(watched.bus, producer, trap), CHECKPOINT_S
    parts.store = NaiveStore(parts.store, lambda: admin.committed(group, topic))


def main(text: str) -> int:
    """Work until everything is read, until told to end, or until the point."""
    orders = msgspec.json.decode(text, type=Orders)
    settings = config.load(Path(orders.config))
    trap = Trap(orders.point, orders.after, signal.SIGSTOP if orders.stop else signal.SIGKILL)
    try:
        with ExitStack() as opened:
            stop = opened.enter_context(stopping())
            parts = opened.enter_context(
                app.open_parts(
                    settings,
                    STREAM,
                    orders.slot,
                    notice=lambda text: say(Noticed(text)),
                    wait=lambda wait_s: (say(Waits(wait_s)), stop.wait(wait_s))[1],
                )
            )
            clock = set_up(parts, trap, orders)
            if orders.naive:
                make_naive(parts, opened.enter_context(app.open_bus(settings.bus)).producer(), trap)
            idle_s = None if orders.steady or orders.stays else IDLE_POLLS * clock.tick_s
            detector.run(parts, should_stop=stop, on_status=Doings(), until_idle_s=idle_s)
    except OffbeatError as error:
        say(Noticed(str(error)))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
