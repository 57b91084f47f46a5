"""A plant to watch: a topic with readings, workers on it, and what came of their work, all of it real.

Buses and stores in use are the program's own; :class:`SeenBus` and :class:`SeenStore` stand before them,
write down what passes, hold the worker to its rules, and can fail as the real ones do.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis import Redis

from pipeline.adoption import adopt
from pipeline.alerts import Alert, DeadLetter
from pipeline.bus.sqlite import SqliteBroker
from pipeline.config import Config, Stream
from pipeline.control import (
    Champion,
    ControlLog,
    Expired,
    Feedback,
    Policy,
    Record,
    Silenced,
    Verdict,
    policy_sha,
    send,
    settings_of,
)
from pipeline.detect import Detector, Outputs
from pipeline.errors import NotFound, OffbeatError, StoreDown, TooLarge
from pipeline.journal import Entry, JournalLog, fold
from pipeline.loop import Parts, Worker
from pipeline.ports import Broker, Bus, PutResult, Scorer, StateStore
from pipeline.records import (
    Assigned,
    Claim,
    PackedRows,
    Polled,
    RecordBatch,
    Send,
    Token,
    TopicPartition,
    TopicSpec,
)
from pipeline.series import PartitionState
from pipeline.silences import Silence
from pipeline.state.redis import RedisStore
from pipeline.state.snapshots import FolderSnapshots
from pipeline.status import Processed, Status
from pipeline.testing import FakeScorer

STREAM, TOPIC = "pumps", "readings"
AT = TopicPartition(TOPIC, 0)
NORMAL, ODD = 1.0, 9.0
START_S = 1_700_000_000
TURNS = 200
"""Far more than any test needs: a worker that gets nowhere fails its test."""


def settings(**stream: Any) -> Config:  # noqa: ANN401 - whatever YAML holds
    """One stream of one feature; a window of two rows; one odd row is an alert, one normal row its end."""
    made = {
        "topic": TOPIC,
        "events": {"features": ["x"]},
        "model": {"window": 2},
        "threshold": {"policy": "ewma"},
        "alerts": {"recovery": 1},
    }
    return Config.model_validate({"namespace": "test", "streams": {STREAM: {**made, **stream}}})


@dataclass
class Clock:
    """A worker's clock and its pauses: time passes when somebody waits, or says so.

    ``on_wait`` is called at each pause, ``stopping`` is what a pause answers.
    """

    now_s: float = 100.0
    waited: list[float] = field(default_factory=list)
    on_wait: Callable[[], object] = lambda: None
    stopping: bool = False

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> bool:
        assert len(self.waited) < TURNS, "the worker waits for ever"
        self.waited.append(seconds)
        self.now_s += seconds
        self.on_wait()
        return self.stopping


@dataclass
class Shelf:
    """The bundles of a stream, as a registry has them."""

    bundles: dict[str, Scorer] = field(default_factory=dict)

    def scorer(self, bundle_id: str, settings: Stream) -> Scorer:  # noqa: ARG002 - they fit every stream
        if bundle_id not in self.bundles:
            raise NotFound(f"there is no bundle {bundle_id}")
        return self.bundles[bundle_id]


def silence_id(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=6).hexdigest()


class Desk:
    """Where people decide: the control topic of an installation, with the bundles that they choose from."""

    def __init__(self, broker: Broker, config: Config) -> None:
        broker.admin().create([TopicSpec(config.control_topic, 1)])
        self.config, self.shelf = config, Shelf()
        self._producer = broker.producer()
        self.log = ControlLog(broker.reader(), config.control_topic)

    @property
    def champion(self) -> str | None:
        return self.log.refresh().champions.get(STREAM)

    def promote(self, bundle_id: str, scorer: Scorer | None = None, *, missing: bool = False) -> None:
        """Put a bundle on the shelf (unless it is to be missing there) and make it the champion."""
        if not missing:
            self.shelf.bundles[bundle_id] = scorer or FakeScorer()
        self._publish(Champion(**self._said(), bundle=bundle_id, predecessor=self.champion))

    def apply(self, config: Config | None = None) -> str:
        """Put a configuration's section in force."""
        settings = settings_of((config or self.config).stream(STREAM))
        sha, before = policy_sha(settings), self.log.refresh().policies.get(STREAM)
        self._publish(Policy(**self._said(), sha=sha, predecessor=before, settings=settings))
        return sha

    def say(self, verdict: Verdict, series: str, alert: str | None = None) -> None:
        """Feedback about an alert of a series."""
        alert = alert or hashlib.blake2b(series.encode(), digest_size=16).hexdigest()
        self._publish(Feedback(**self._said(), alert=alert, series=series, verdict=verdict))

    def silence(self, name: str, silence: Silence) -> None:
        """A silence, under an id made from ``name``."""
        self._publish(Silenced(**self._said(), id=silence_id(name), silence=silence))

    def expire(self, name: str) -> None:
        """The end of a silence before its time."""
        self._publish(Expired(**self._said(), id=silence_id(name)))

    @staticmethod
    def _said() -> dict[str, Any]:
        return {"stream": STREAM, "at": datetime.now(UTC), "who": "a test", "why": "to see"}

    def _publish(self, record: Record) -> None:
        self._producer.send([send(record, self.config.control_topic)])
        self._producer.flush()


@dataclass
class SeenBus:
    """A bus that notes every commit, and fails those it is told to fail, as the seam allows.

    Attributes:
        commits: positions of our one topic by partition, and how many outputs; without those that only say
            what came into force.
        failing: raised by the next commits, one each, before anything is written.
        failing_polls: the same for polls.
        before_commit: called once, before the next commit.
        announcing: what the next poll announces besides.
        most: bytes of a record, by topic, as brokers have it.
    """

    bus: Bus
    commits: list[tuple[dict[int, int], int]] = field(default_factory=list)
    failing: list[OffbeatError] = field(default_factory=list)
    failing_polls: list[OffbeatError] = field(default_factory=list)
    before_commit: Callable[[], object] | None = None
    announcing: tuple[Assigned, ...] = ()
    most: dict[str, int] = field(default_factory=dict)

    def poll(self, max_records: int, timeout_s: float) -> Polled:  # noqa: ARG002 - nobody waits in a test
        if self.failing_polls:
            raise self.failing_polls.pop(0)
        polled = self.bus.poll(max_records, 0.0)
        announced, self.announcing = self.announcing, ()
        return replace(polled, assigned=polled.assigned + announced)

    def seek(self, partition: TopicPartition, next_offset: int) -> None:
        self.bus.seek(partition, next_offset)

    def commit(self, token: Token, next_offsets: Mapping[TopicPartition, int], sends: Sequence[Send]) -> None:
        if self.failing:
            raise self.failing.pop(0)
        if self.before_commit:
            hook, self.before_commit = self.before_commit, None
            hook()
        for each in sends:
            if each.size > self.most.get(each.topic, each.size):
                raise TooLarge(f"a record of {each.size} bytes for {each.topic} is too large", each)
        self.bus.commit(token, next_offsets, sends)
        outputs = [send for send in sends if not send.topic.endswith(".journal")]
        if outputs or not sends:
            self.commits.append(({at.partition: offset for at, offset in next_offsets.items()}, len(outputs)))


@dataclass
class SeenStore:
    """A store that notes every write and claim, and sees that what is written is committed.

    Attributes:
        puts: partition, offset, whether whole, and what became of it.
        rows: the rows of these writes, counted.
        claims: the partitions claimed.
        tries: calls that failed.
        down: partitions whose calls fail.
        losing_replies: the next writes are taken, and their replies lost.
        takes_s: so long a write takes.
    """

    store: StateStore
    committed: Callable[[int], int | None]
    clock: Clock
    puts: list[tuple[int, int, bool, PutResult]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    claims: list[int] = field(default_factory=list)
    tries: int = 0
    down: set[int] = field(default_factory=set)
    losing_replies: int = 0
    takes_s: float = 0.0

    def claim(self, partition: TopicPartition, *, reset: bool = False) -> Claim:
        self._fail(partition)
        self.claims.append(partition.partition)
        return self.store.claim(partition, reset=reset)

    def put(self, claim: Claim, base: int, offset: int, rows: PackedRows, *, whole: bool) -> PutResult:
        self.clock.now_s += self.takes_s
        self._fail(claim.partition)
        assert offset == self.committed(claim.partition.partition), "a checkpoint that is not committed"
        result = self.store.put(claim, base, offset, rows, whole=whole)
        self.puts.append((claim.partition.partition, offset, whole, result))
        self.rows.append(len(rows.series))
        if self.losing_replies:
            self.losing_replies -= 1
            raise StoreDown("the reply was lost")
        return result

    def _fail(self, partition: TopicPartition) -> None:
        if partition.partition in self.down:
            self.tries += 1
            raise StoreDown("Redis is down")


@dataclass
class Answer:
    """All that came of a partition."""

    state: PartitionState
    alerts: list[Alert] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)

    def take(self, outputs: Outputs) -> None:
        self.alerts += outputs.alerts
        self.letters += outputs.dead_letters


@dataclass
class Running:
    """A worker, what it was made of, and what it said."""

    worker: Worker
    member: Any
    bus: SeenBus
    store: SeenStore
    clock: Clock
    notices: list[str]
    processed: list[Processed]

    @property
    def status(self) -> Status:
        return self.worker.status()

    @property
    def bins(self) -> dict[str, int]:
        """The bins that are not empty."""
        return {name: count for name, count in self.status.bins.items() if count}

    def turn(self, times: int = 1) -> Running:
        for _ in range(times):
            self.worker.turn()
        return self

    def until(self, holds: Callable[[Status], object]) -> Running:
        for _ in range(TURNS):
            if holds(self.status):
                return self
            self.worker.turn()
        raise AssertionError(f"it did not come true: {self.status}, {self.notices}")

    def read_all(self) -> Running:
        """Read to the end; what was read may not be committed yet."""
        return self.turn().until(lambda status: status.partitions and not status.lag)

    def later(self, seconds: float) -> Running:
        """Let time pass, and then a turn."""
        self.clock.now_s += seconds
        return self.turn()

    def leave(self) -> None:
        """Go without goodbye: nothing is committed or stored any more."""
        self.member.close()

    def stop(self) -> None:
        """Go in order."""
        self.worker.stop()
        self.member.close()


class Plant:
    """A topic, and the workers on it."""

    def __init__(
        self,
        broker: SqliteBroker,
        valkey_url: str,
        config: Config,
        folder: Path,
        *,
        partitions: int = 1,
        champion: str | None = "bundle-1",
    ) -> None:
        self.config, self.broker, self.url, self.folder = config, broker, valkey_url, folder
        outputs = [TopicSpec(topic, 1) for topic in (config.alerts_topic, config.dead_letters_topic)]
        journal = TopicSpec(config.journal_topic(STREAM), partitions)
        broker.admin().create([TopicSpec(TOPIC, partitions), journal, *outputs])
        self.desk = Desk(broker, config)
        self.desk.apply()
        if champion is not None:
            self.desk.promote(champion)
        self._admin, self._reader = broker.admin(), broker.reader()
        self.new_producer()
        self._closing = ExitStack()
        self._peeking = self.new_store()
        self.sent = 0

    def new_store(self, url: str | None = None, clock: Clock | None = None) -> RedisStore:
        store = RedisStore(url or self.url, namespace="test", stream=STREAM, clock=clock or Clock())
        self._closing.callback(store.close)
        return store

    def close(self) -> None:
        self._closing.close()

    def new_producer(self) -> None:
        """One that knows no topic yet."""
        self._producer = self.broker.producer()

    def produce(
        self, *values: float | bytes, series: str = "a", partition: int = 0, key: bytes | None = None
    ) -> None:
        """One stored batch, a record a second; bytes are sent as they are."""
        self._producer.send(
            Send(
                TOPIC,
                key,
                self._event(value, series, self.sent + n),
                timestamp_ms=1_000 * (START_S + self.sent + n),
                partition=partition,
            )
            for n, value in enumerate(values)
        )
        self._producer.flush()
        self.sent += len(values)

    @staticmethod
    def _event(value: float | bytes, series: str, second: int) -> bytes:
        if isinstance(value, bytes):
            return value
        return json.dumps({"series": series, "time": START_S + second, "x": value}).encode()

    def worker(
        self,
        *,
        broker: SqliteBroker | None = None,
        url: str | None = None,
        **parts: Any,  # noqa: ANN401
    ) -> Running:
        """A worker of the stream's group; ``parts`` are fields of Parts."""
        clock, notices, processed = Clock(), [], []
        member = (broker or self.broker).bus(
            group=self.config.group(STREAM), topics=[TOPIC], transactional_id="t"
        )
        bus = SeenBus(member)
        store = SeenStore(self.new_store(url, clock), self.committed, clock)
        made = {"max_records": 1_000, "observe": processed.append, "notice": notices.append}
        made |= {"wait": clock.wait, "clock": clock}
        seams = [bus, self.broker.reader(), self.broker.admin(), store, self.snapshots(), self.desk.shelf]
        worker = Worker(Parts(self.config, STREAM, *seams, **{**made, **parts}))
        return Running(worker, member, bus, store, clock, notices, processed)

    def snapshots(self) -> FolderSnapshots:
        return FolderSnapshots(str(self.folder / "snapshots"), namespace="test", stream=STREAM)

    def journal(self, partition: int = 0) -> list[Entry]:
        """What the journal holds."""
        return JournalLog(self._reader, self.config.journal_topic(STREAM)).entries(partition)[0]

    def committed(self, partition: int = 0) -> int | None:
        return self._admin.committed(self.config.group(STREAM), TOPIC).get(partition)

    def stored(self, partition: int = 0) -> PartitionState | None:
        """The state as anybody can read it."""
        claim = self._peeking.peek(TopicPartition(TOPIC, partition))
        if claim is None or claim.rows is None:
            return None
        state = PartitionState.unpack(self.detector().layout, claim.rows)
        assert state is not None
        assert state.next_offset == claim.next_offset
        return state

    def detector(self) -> Detector:
        return Detector("test", STREAM, self.config.stream(STREAM))

    def batches(self, topic: str, partition: int = 0) -> Iterator[RecordBatch]:
        bounds = self._reader.bounds(topic)[partition]
        offset = bounds.first_offset
        while offset < bounds.end_offset:
            batch = self._reader.read(TopicPartition(topic, partition), offset, 10_000, 1.0)
            offset = batch.next_offset
            yield batch

    def published(self, topic: str) -> list[bytes]:
        return [batch.value(row) or b"" for batch in self.batches(topic) for row in range(len(batch))]

    def alerts(self) -> list[Alert]:
        return [Alert.model_validate_json(value) for value in self.published(self.config.alerts_topic)]

    def letters(self) -> list[DeadLetter]:
        return [
            DeadLetter.model_validate_json(value) for value in self.published(self.config.dead_letters_topic)
        ]

    def uninterrupted(self, partition: int = 0) -> tuple[list[Alert], list[DeadLetter], PartitionState]:
        """What one detect step over a whole partition gives."""
        bundle_id, alerts, letters = self.desk.champion, [], []
        detector = self.detector()
        topic_id = self._reader.bounds(TOPIC)[partition].topic_id
        state = detector.fresh(topic_id, 0)
        scorer = None if bundle_id is None else self.desk.shelf.bundles[bundle_id]
        if scorer is not None and bundle_id is not None:
            state.adopt(scorer, bundle_id)
        for batch in self.batches(TOPIC, partition):
            outputs = detector.step(state, batch, scorer)
            alerts += outputs.alerts
            letters += outputs.dead_letters
        return alerts, letters, state

    def as_journaled(self, partition: int = 0) -> Answer:
        """What one pass gives, in one batch between any two changes of what is in force: it cannot differ."""
        at, bounds = TopicPartition(TOPIC, partition), self._reader.bounds(TOPIC)[partition]
        past = fold(self.journal(partition), bounds.topic_id, bounds.end_offset)
        policies = self.desk.log.refresh().settings
        answer = Answer(
            Detector("test", STREAM, policies[past.changes[0].policy_sha]).fresh(bounds.topic_id, 0)
        )
        for n, change in enumerate(past.changes):
            detector = Detector("test", STREAM, policies[change.policy_sha])
            scorer = None if change.bundle_sha is None else self.desk.shelf.bundles[change.bundle_sha]
            decisions = self.desk.log.view.decisions(STREAM, change.decided)
            answer.state, outputs = adopt(detector, answer.state, at, change, scorer, decisions=decisions)
            answer.take(outputs)
            later = past.changes[n + 1 : n + 2]
            end = later[0].next_offset if later else bounds.end_offset
            if end > answer.state.next_offset:
                batch = self._reader.read(at, answer.state.next_offset, end, 1.0).before(end)
                answer.take(detector.step(answer.state, batch, scorer))
        return answer

    def flush_store(self) -> None:
        """Redis loses everything."""
        with Redis.from_url(self.url) as client:
            client.flushall()


def revisions(alerts: Sequence[Alert]) -> Counter[tuple[str, int]]:
    """Alerts as they are compared: what was published, and how often."""
    return Counter((alert.id, alert.revision) for alert in alerts)


def assert_exactly_once(plant: Plant, partitions: int = 1) -> None:
    """What was published is what uninterrupted runs give."""
    alerts: list[Alert] = []
    letters: list[DeadLetter] = []
    for partition in range(partitions):
        more, buried, _ = plant.uninterrupted(partition)
        alerts += more
        letters += buried
    assert revisions(plant.alerts()) == revisions(alerts)
    assert Counter(letter.offset for letter in plant.letters()) == Counter(
        letter.offset for letter in letters
    )


@contextmanager
def plant_at(
    valkey_url: str,
    bus_url: str = "sqlite://",
    *,
    partitions: int = 1,
    lease_s: float = 10.0,
    champion: str | None = "bundle-1",
    **stream: Any,  # noqa: ANN401
) -> Iterator[Plant]:
    """A plant of its own, on a Valkey that is empty."""
    with TemporaryDirectory() as folder, closing(SqliteBroker(bus_url, lease_s=lease_s)) as broker:
        config = settings(**stream)
        plant = Plant(broker, valkey_url, config, Path(folder), partitions=partitions, champion=champion)
        with closing(plant):
            plant.flush_store()
            yield plant
