"""The retrainer on a real bus, a real Valkey and real models, under a clock that the tests move."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis
from working import Clock, Desk

from consumers.attempt import KEEP_S, LEASE_S, Parts
from consumers.retrainer import Retrainer, Status, StatusCollector
from models import Registry
from pipeline.bus.sqlite import SqliteBroker
from pipeline.config import Config
from pipeline.control import Begun, Champion, ControlView, Pinned, Record, Refused, send
from pipeline.drift import DRIFTED
from pipeline.errors import BusDown, OffbeatError, StoreDown, TooFewRows
from pipeline.ports import Lease, Leases, Producer, Reader
from pipeline.records import Bounds, RecordBatch, Send, TopicPartition, TopicSpec
from pipeline.state.leases import RedisLeases

STREAM, TOPIC = "pumps", "readings"
START = datetime(2026, 3, 1, tzinfo=UTC)
FIRST_ROWS = 56
"""Seven windows of eight rows."""


PHASES = {"reading", "training", "judging"}
UNLEARNED: dict[str, Any] = {"model": {"window": 8, "code": 1}, "steps": 1}
"""A network that has learned nothing yet."""


def settings(model: dict[str, Any] | None = None, **training: Any) -> Config:  # noqa: ANN401 - as YAML holds
    stream = {
        "topic": TOPIC,
        "events": {"features": ["x"]},
        "model": model or {"window": 8},
        "threshold": {"policy": "ewma"},
        "alerts": {"recovery": 8},
        "training": {"steps": 60, **training},
    }
    return Config.model_validate({"namespace": "test", "streams": {STREAM: stream}})


def coins(values: np.ndarray) -> np.ndarray:
    """Heads or tails: no shape to be learned, while any other value is far from usual."""
    random = np.random.default_rng(round(1e6 * abs(float(values[0]))))
    return random.choice([-1.0, 1.0], len(values)) + random.normal(0, 0.02, len(values))


@dataclass
class Site:
    """A stream's topic, and the retrainers of the stream."""

    config: Config
    broker: SqliteBroker
    registry: Registry
    redis_url: str
    closing: ExitStack
    clock: Clock = field(default_factory=Clock)
    later: timedelta = timedelta()
    rows: int = 0

    def __post_init__(self) -> None:
        self.broker.admin().create([TopicSpec(TOPIC, 1)])
        self.desk = Desk(self.broker, self.config)
        self._producer = self.broker.producer()

    @property
    def view(self) -> ControlView:
        return self.desk.log.refresh()

    @property
    def champion(self) -> str | None:
        return self.view.champions.get(STREAM)

    def now(self) -> datetime:
        """The wall clock goes with the other, and can be set forward."""
        return START + self.later + timedelta(seconds=self.clock.now_s)

    def leases(self) -> RedisLeases:
        made = RedisLeases(self.redis_url, namespace="test")
        self.closing.callback(made.close)
        return made

    def produce(self, rows: int, change: Callable[[np.ndarray], np.ndarray] = lambda values: values) -> None:
        """Rows of four series, a minute apart."""
        at = np.arange(self.rows, self.rows + rows)
        columns = []
        for n in range(4):
            noise = np.random.default_rng([n, self.rows]).normal(0, 0.1, rows)
            columns.append(change(np.sin(at / 9 + n) + noise).tolist())
        for minute, row in zip(at.tolist(), zip(*columns, strict=True), strict=True):
            at_s = START.timestamp() + 60 * minute
            self._producer.send(
                Send(
                    TOPIC,
                    f"p{n}".encode(),
                    json.dumps({"series": f"p{n}", "time": at_s, "x": x}).encode(),
                    timestamp_ms=round(1_000 * at_s),
                )
                for n, x in enumerate(row)
            )
        self._producer.flush()
        self.rows += rows

    def decision(self) -> Champion | Refused:
        """The last one."""
        view = self.view
        both = [*view.promotions.get(STREAM, []), *view.refusals.get(STREAM, [])]
        return max(both, key=lambda each: each.at)

    def decided(self) -> str:
        """The bundle of the last decision."""
        return self.decision().bundle or ""

    def begun(self) -> list[Begun]:
        """Trainings that began, as the control topic has them."""
        topic = TopicPartition(self.config.control_topic, 0)
        reader = self.broker.reader()
        batch = reader.read(topic, 0, 1_000, 0.0)
        values = [batch.value(row) or b"" for row in range(len(batch))]
        return [Begun.model_validate_json(each) for each in values if b'"begun"' in each]

    def publish(self, record: Record) -> None:
        self._producer.send([send(record, self.config.control_topic)])
        self._producer.flush()

    def retrainer(
        self,
        on_status: Callable[[Status], None] = lambda _: None,
        **parts: Any,  # noqa: ANN401
    ) -> Running:
        """``parts`` are fields of Parts."""
        notices, told = list[str](), list[Status]()
        made: dict[str, Any] = {
            "reader": self.broker.reader(),
            "producer": self.broker.producer(),
            "registry": self.registry,
            "leases": self.leases(),
            "who": "a retrainer",
            "notice": notices.append,
            "wait": self.clock.wait,
            "clock": self.clock,
            "now": self.now,
        }
        return Running(
            Retrainer(Parts(self.config, STREAM, **made | parts), both(told.append, on_status)), notices, told
        )


@dataclass
class Counting:
    """A reader that counts records, and fails its first calls as it is told to."""

    reader: Reader
    failing: int = 0
    records: int = 0

    def bounds(self, topic: str) -> Mapping[int, Bounds]:
        if self.failing:
            self.failing -= 1
            raise BusDown("the bus is down")
        return self.reader.bounds(topic)

    def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        return self.reader.offset_at(partition, timestamp_ms)

    def read(
        self, partition: TopicPartition, next_offset: int, max_records: int, timeout_s: float
    ) -> RecordBatch:
        batch = self.reader.read(partition, next_offset, max_records, timeout_s)
        self.records += len(batch) if partition.topic == TOPIC else 0
        return batch


@dataclass
class Counted:
    """Leases that count how often they were kept, and fail when they are down."""

    leases: Leases
    kept: int = 0
    down: bool = False

    def take(self, work: str, length_s: float) -> Lease | None:
        return self.leases.take(work, length_s)

    def keep(self, lease: Lease, length_s: float) -> bool:
        if self.down:
            raise StoreDown("Redis is down")
        self.kept += 1
        return self.leases.keep(lease, length_s)

    def give(self, lease: Lease) -> None:
        self.leases.give(lease)


@dataclass
class Short(Counted):
    """Holds that are over at once, as those of a process that was stopped for long."""

    def take(self, work: str, length_s: float) -> Lease | None:  # noqa: ARG002 - it is stopped
        return self.leases.take(work, 0)

    def keep(self, lease: Lease, length_s: float) -> bool:  # noqa: ARG002 - as above
        return self.leases.keep(lease, 0)


@dataclass
class Preceded(Counted):
    """Somebody else is quicker."""

    before: Callable[[], object] = lambda: None

    def take(self, work: str, length_s: float) -> Lease | None:
        self.before()
        return self.leases.take(work, length_s)


@dataclass
class Preceding:
    """A producer before whose records of some kind something happens."""

    producer: Producer
    kind: bytes
    before: Callable[[], object]

    def send(self, sends: Iterable[Send]) -> None:
        made = list(sends)
        if any(self.kind in (each.value or b"") for each in made):
            self.before()
        self.producer.send(made)

    def flush(self) -> None:
        self.producer.flush()


def once_in(doing: str, happens: Callable[[], object]) -> Callable[[Status], None]:
    """Something that happens at the first step of some work."""
    left = [happens]

    def on_status(status: Status) -> None:
        if left and status.doing == doing:
            left.pop()()

    return on_status


def both(*callbacks: Callable[[Status], None]) -> Callable[[Status], None]:
    def on_status(status: Status) -> None:
        for each in callbacks:
            each(status)

    return on_status


@dataclass
class Running:
    """A retrainer and what it said."""

    retrainer: Retrainer
    notices: list[str]
    told: list[Status]

    @property
    def status(self) -> Status:
        return self.retrainer.status

    def turn(self, times: int = 1) -> Running:
        for _ in range(times):
            self.retrainer.turn()
        return self

    def did(self) -> list[str]:
        """What it was doing, in order."""
        doing = [each.doing for each in self.told]
        return [each for n, each in enumerate(doing) if n == 0 or each != doing[n - 1]]


@pytest.fixture
def new_site(valkey_url: str, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    with ExitStack() as opened:

        def make(**training: Any) -> Site:  # noqa: ANN401
            with Redis.from_url(valkey_url) as redis:
                redis.flushall()
            broker = opened.enter_context(closing(SqliteBroker("sqlite://")))
            return Site(settings(**training), broker, Registry(tmp_path), valkey_url, opened)

        yield make


@pytest.fixture
def site(new_site: Callable[..., Site]) -> Site:
    return new_site()


class TestTheFirstModel:
    def test_it_comes_unasked_as_soon_as_there_are_enough_rows(self, site: Site) -> None:
        site.produce(10)
        running = site.retrainer().turn()
        assert (running.status.doing, site.champion) == ("waiting for rows", None)
        assert running.status.message == "40 of 56 rows at best; no rate yet"

        site.produce(200)
        running.turn()

        [made] = site.view.promotions[STREAM]
        assert running.did() == ["waiting for rows", "reading", "training", "judging"]
        assert (made.who, made.at, made.predecessor) == ("a retrainer", site.now(), None)
        assert made.why.startswith("promoted as the first model: ")
        assert site.registry.load(STREAM, made.bundle).manifest.models == 5

    def test_the_report_in_the_bundle_says_how_it_was_judged(self, site: Site) -> None:
        site.produce(200)
        site.retrainer().turn()

        report = json.loads(site.registry.file(STREAM, site.champion or "", "report.json"))

        assert report["gate"]["sentence"] == site.view.promotions[STREAM][0].why
        assert set(report["gate"]["contenders"]) == {"challenger", "pca", "ewma-z"}

    # Rows are not known before all is read; a topic of frozen or damaged rows must not be read all the time.
    def test_a_topic_that_was_read_in_vain_is_read_again_when_it_has_grown(self, site: Site) -> None:
        reader = Counting(site.broker.reader())
        site.produce(FIRST_ROWS, lambda values: np.where(np.arange(len(values)) % 9, np.nan, values))
        running = site.retrainer(reader=reader).turn()
        assert "rows" in running.notices[-1]
        reads = reader.records

        running.turn(5)
        assert reader.records == reads
        assert running.status.doing == "waiting for rows"

        site.produce(4 * FIRST_ROWS)
        running.turn()

        assert site.champion

    # A stream without a model is watched by nobody, so it does not wait a day where it soon knows more.
    def test_after_a_refusal_it_trains_again_when_the_topic_has_doubled(
        self, new_site: Callable[..., Site]
    ) -> None:
        site = new_site(**UNLEARNED)
        site.produce(1_500, coins)
        running = site.retrainer().turn()
        assert len(site.view.refusals[STREAM]) == 1

        running.turn()
        assert running.status.doing == "waiting"
        assert running.status.message.endswith(", or at 12,000 records, of which there are 6,000")
        site.produce(1_500, coins)
        running.turn()

        assert len(site.view.refusals[STREAM]) == 2
        begun = [each for each in site.begun() if "twice as many records" in each.why]
        assert len(begun) == 1

    # What a retrainer knows stands on the control topic: one that was started since waits for as many.
    def test_so_does_a_retrainer_that_was_not_there_when_it_was_refused(
        self, new_site: Callable[..., Site]
    ) -> None:
        site = new_site(**UNLEARNED)
        site.produce(1_500, coins)
        site.later = timedelta(minutes=1_498)  # it takes less than two
        site.retrainer().turn()
        site.produce(1_499, coins)

        running = site.retrainer().turn()
        assert running.status.message.endswith(", or at 12,000 records, of which there are 11,996")
        site.produce(1, coins)
        running.turn()

        assert len(site.view.refusals[STREAM]) == 2


class TestPcaInstead:
    """A first model that learned nothing: PCA, which needs no steps, is better, and watches the stream."""

    @pytest.fixture
    def site(self, new_site: Callable[..., Site]) -> Site:
        site = new_site(**UNLEARNED)
        site.produce(1_500)
        return site

    def kind(self, site: Site) -> str:
        return site.registry.load(STREAM, site.champion or "").manifest.spec.kind

    def test_pca_serves_where_the_first_model_is_worse(self, site: Site) -> None:
        running = site.retrainer().turn()

        view = site.view
        [refused], [made] = view.refusals[STREAM], view.promotions[STREAM]
        assert refused.why.startswith("refused: ")
        assert " of 120 faults found, pca " in refused.why
        assert refused.why.endswith("; pca passed in its stead")
        assert refused.bundle
        assert made.why.startswith(
            "pca serves until a model of kind undercomplete is no worse "
            f"({refused.bundle[:12]} was refused); promoted as the first model: "
        )
        assert self.kind(site) == "pca"
        assert made.predecessor is None
        assert [each.split(" ", 2)[1] for each in running.notices] == [refused.bundle[:12], made.bundle[:12]]
        assert (running.status.promoted, running.status.refused) == (1, 1)

    # Both are bundles like any other, each with the numbers of its own ruling.
    def test_both_rulings_are_kept_with_their_numbers(self, site: Site) -> None:
        site.retrainer().turn()

        gates = {}
        for bundle in (site.view.refusals[STREAM][0].bundle or "", site.champion or ""):
            report = json.loads(site.registry.file(STREAM, bundle, "report.json"))
            gates[report["kind"]] = report["gate"]
        assert set(gates["undercomplete"]["contenders"]) == {"challenger", "pca", "ewma-z"}
        assert not gates["undercomplete"]["promoted"]
        assert set(gates["pca"]["contenders"]) == {"challenger", "ewma-z"}
        assert gates["pca"]["promoted"]

    # The value alone is no model: where it does better than any, the stream has none.
    def test_pca_that_is_worse_than_the_value_alone_does_not_serve(
        self, new_site: Callable[..., Site]
    ) -> None:
        site = new_site(**UNLEARNED)
        site.produce(1_500, coins)

        site.retrainer().turn()

        [refused] = site.view.refusals[STREAM]
        assert site.champion is None
        assert " of 120 faults found, pca " in refused.why
        assert "; pca in its stead: refused: " in refused.why
        assert site.registry.bundles(STREAM) == [refused.bundle]

    # The first model is refused for the value alone: PCA, which is no better, is not asked.
    def test_pca_is_asked_only_where_it_is_better(self, new_site: Callable[..., Site]) -> None:
        site = new_site(**UNLEARNED | {"steps": 300})
        site.produce(1_500, coins)

        site.retrainer().turn()

        [refused] = site.view.refusals[STREAM]
        assert " faults found, ewma-z " in refused.why
        assert "pca" not in refused.why

    def test_the_next_models_contend_with_it_and_take_over(self, site: Site) -> None:
        running = site.retrainer().turn()
        pca = site.champion
        running.turn()
        assert running.status.doing == "waiting"
        assert running.status.drift is not None
        assert running.status.drift < DRIFTED

        outcome = site.retrainer().retrainer.once("still too few steps")
        assert not outcome.promoted
        assert outcome.gate["contenders"].keys() == {"challenger", "champion"}
        assert site.champion == pca

        site.desk.apply(settings({"window": 8, "code": 2}, steps=600))
        site.later = timedelta(days=1)
        site.retrainer().turn()

        report = json.loads(site.registry.file(STREAM, site.decided(), "report.json"))
        assert {each["measure"] for each in report["gate"]["comparisons"]} == {"false alarms", "faults found"}
        assert site.view.promotions[STREAM][-1].predecessor == pca
        assert self.kind(site) == "undercomplete"

    def test_who_forces_the_first_model_gets_it(self, site: Site) -> None:
        outcome = site.retrainer().retrainer.once("to see", force="the faults are no faults of ours")

        assert outcome.promoted
        assert self.kind(site) == "undercomplete"
        assert " whatever the gate says: refused: " in outcome.why
        assert STREAM not in site.view.refusals


class TestEvery:
    @pytest.fixture
    def trained(self, new_site: Callable[..., Site]) -> Site:
        site = new_site(every="1d")
        site.produce(200)
        site.retrainer().turn()
        assert site.champion
        return site

    def test_it_waits_until_the_next_training_is_due(self, trained: Site) -> None:
        running = trained.retrainer()
        trained.later = timedelta(hours=23)

        running.turn()

        assert running.status.doing == "waiting"
        assert running.status.message == "drift 0.00, next training 2026-03-02 00:01 UTC, in 60 min"
        assert running.status.next_at == trained.view.promotions[STREAM][0].at + timedelta(days=1)
        assert running.status.bundle_id == trained.champion
        assert trained.view.refusals == {}

    # A retrainer knows nothing but what the control topic says: which one trained before does not matter.
    def test_it_trains_when_it_is_due_and_a_refusal_puts_off_the_next_one(self, trained: Site) -> None:
        first = trained.champion
        trained.later = timedelta(days=1)
        running = trained.retrainer().turn()

        [refused] = trained.view.refusals[STREAM]
        assert trained.champion == first
        assert refused.why.startswith("the champion stays, there is too little data to tell: ")
        assert refused.bundle in trained.registry.bundles(STREAM)
        assert refused.at == trained.now()
        assert (running.status.promoted, running.status.refused) == (0, 1)

        running.turn()
        assert running.status.doing == "waiting"
        trained.later = timedelta(days=2)
        running.turn()
        assert len(trained.view.refusals[STREAM]) == 2

    def test_nothing_is_due_where_every_is_zero(self, new_site: Callable[..., Site]) -> None:
        site = new_site(every=0)
        site.produce(200)
        running = site.retrainer().turn()
        site.later = timedelta(days=1_000)

        running.turn()

        assert (running.status.doing, running.status.message) == (
            "waiting",
            "drift 0.00, trains when it is asked to",
        )
        assert running.status.next_at is None

    def test_settings_in_force_count_and_not_those_in_the_file(self, trained: Site) -> None:
        trained.desk.apply(settings(every="2h"))
        trained.later = timedelta(hours=3)

        trained.retrainer().turn()

        assert len(trained.view.refusals[STREAM]) == 1


class TestDrift:
    """What the champion was calibrated on is not what comes now."""

    @pytest.fixture
    def site(self, new_site: Callable[..., Site]) -> Site:
        site = new_site(every="1d", drift_every="1m", steps=300)
        site.produce(400)
        site.retrainer().turn()
        assert site.champion
        return site

    def test_a_stream_whose_regime_changes_trains_before_it_is_due(self, site: Site) -> None:
        site.later = timedelta(hours=6)
        running = site.retrainer().turn()
        before = running.status.drift
        assert before is not None
        assert before < DRIFTED
        site.produce(400, lambda values: 4 * values + 8)
        running.turn()
        assert running.status.drift == before

        site.clock.now_s += 60
        running.turn()

        assert site.begun()[-1].why.startswith("the stream has drifted: ")
        assert len(site.view.promotions[STREAM] + site.view.refusals[STREAM]) == 2
        running.turn()
        assert running.status.drift is not None
        assert running.status.message.startswith(f"drift {running.status.drift:.2f}, ")

    # A drift does not end with a refusal: it would train without end.
    def test_it_leaves_time_after_a_decision(self, site: Site) -> None:
        site.produce(400, lambda values: 4 * values + 8)

        site.later = timedelta(hours=5, minutes=59)
        running = site.retrainer().turn()
        assert running.status.drift is not None
        assert running.status.drift >= DRIFTED
        assert len(site.begun()) == 1

        site.later = timedelta(hours=6)
        running.turn()
        assert len(site.begun()) == 2

    def test_nobody_looks_where_drift_every_is_zero(self, new_site: Callable[..., Site]) -> None:
        site = new_site(drift_every=0)
        site.produce(200)
        site.retrainer().turn()
        site.produce(400, lambda values: 4 * values + 8)
        site.later = timedelta(hours=12)

        running = site.retrainer().turn()

        assert (running.status.doing, running.status.drift) == ("waiting", None)


class TestTheGate:
    def test_a_model_of_polluted_rows_does_not_become_the_champion(
        self, new_site: Callable[..., Site]
    ) -> None:
        site = new_site(steps=600)
        site.produce(1_500)
        site.retrainer().turn()
        first = site.champion
        assert first
        random = np.random.default_rng(5)
        site.produce(600, lambda values: values + 6 * random.normal(size=len(values)))
        site.later = timedelta(days=1)

        running = site.retrainer().turn()

        assert site.champion == first
        assert "was not promoted: " in running.notices[-1]
        assert site.view.refusals[STREAM][0].why in running.notices[-1]

    @pytest.mark.parametrize("pinned", [True, False])
    def test_rows_that_left_a_pinned_reference_make_no_champion(
        self, new_site: Callable[..., Site], *, pinned: bool
    ) -> None:
        site = new_site(replay="4h")
        site.produce(400)
        site.retrainer().turn()
        said = {"stream": STREAM, "at": site.now(), "who": "ann", "why": "a good week"}
        first = site.champion
        site.publish(Pinned(**said, bundle=first))
        if not pinned:
            site.publish(Pinned(**said, bundle=None))
        site.produce(400, lambda values: values + 2)
        site.later = timedelta(days=1)

        site.retrainer().turn()

        assert site.decided() != first
        told = "of 4 series have drifted from the pinned reference" in site.decision().why
        assert told == pinned
        assert not (pinned and isinstance(site.decision(), Champion))

    def test_a_damaged_reference_is_said_and_stands_in_nobodys_way(self, site: Site) -> None:
        site.produce(200)
        site.retrainer().turn()
        said = {"stream": STREAM, "at": site.now(), "who": "ann", "why": "a good week"}
        site.publish(Pinned(**said, bundle="0" * 64))

        outcome = site.retrainer().retrainer.once("to see")

        assert outcome.why.startswith("the pinned reference cannot be compared with (")

    def test_it_replays_the_last_days_alone(self, new_site: Callable[..., Site]) -> None:
        site = new_site(replay="2h")
        site.produce(400)
        site.retrainer().turn()

        report = json.loads(site.registry.file(STREAM, site.decided(), "report.json"))

        assert report["gate"]["extent"]["records"] == 4 * 121
        assert site.registry.load(STREAM, site.decided()).manifest.models == 5
        assert report["counts"]["rows"] == 1_600

    def test_who_forces_it_is_on_record_with_the_reason_and_the_ruling(self, site: Site) -> None:
        site.produce(200)
        site.retrainer().turn()
        first = site.champion

        outcome = site.retrainer(who="ann").retrainer.once("hotter pumps", force="hotter pumps")

        assert outcome.promoted
        assert (outcome.predecessor, outcome.bundle_id) == (first, site.champion)
        made = site.view.promotions[STREAM][-1]
        assert made.who == "ann"
        assert made.why.startswith("forced (hotter pumps), whatever the gate says: the champion stays, ")
        assert outcome.why == made.why

    # A champion that nobody can load judges nothing: what takes its place has nothing to contend with.
    def test_a_damaged_champion_stands_in_nobodys_way(self, site: Site) -> None:
        site.produce(200)
        site.retrainer().turn()
        lost = site.champion or ""
        site.registry.delete(STREAM, lost)

        outcome = site.retrainer().retrainer.once("it is damaged")

        assert outcome.promoted
        assert site.champion == outcome.bundle_id
        assert outcome.why.startswith("the champion cannot be compared with (")

    def test_too_few_rows_for_a_training_that_was_asked_for_is_said(self, site: Site) -> None:
        site.produce(5)

        with pytest.raises(TooFewRows):
            site.retrainer().retrainer.once("somebody asked")

        assert site.champion is None


class TestShadow:
    """Champion and challenger judge the live stream for a while, and nobody is told."""

    @pytest.fixture
    def site(self, new_site: Callable[..., Site]) -> Site:
        site = new_site(shadow="30m", steps=300)
        site.produce(400)
        site.retrainer().turn()
        assert site.champion
        site.later = timedelta(days=1)
        return site

    def test_both_judge_what_comes_after_training_until_event_time_is_so_much_further(
        self, site: Site
    ) -> None:
        def live(status: Status) -> None:
            if status.doing == "shadowing":
                site.produce(20, lambda values: np.where(np.arange(20) == 15, 50.0, values))

        before = site.rows
        running = site.retrainer(on_status=live).turn()

        report = json.loads(site.registry.file(STREAM, site.decided(), "report.json"))
        told = report["shadow"]
        assert (told["last_ns"] - told["first_ns"]) / 60e9 == pytest.approx(40, abs=10)
        assert told["first_ns"] / 1e9 == START.timestamp() + 60 * (before + 7)  # a window of eight rows
        for each in told["contenders"].values():
            assert each["rows"] == 4 * (site.rows - before - 20 - 7)
            assert each["alerts"] > 0
            assert set(each["errors"]) == {"p0", "p1", "p2", "p3"}
            for median, high, highest in each["errors"].values():
                assert 0.01 < median < high <= highest
            assert set(each["scores"]) == set(each["errors"])
            for name, (median, _, highest) in each["scores"].items():
                assert median < 1 < highest  # the line, which the spikes passed
                assert [median, highest] != each["errors"][name][::2]
        assert "shadowing" in running.did()
        assert site.decision().why.startswith("alerts in ")
        # The gate has seen these rows as well.
        assert report["gate"]["extent"]["last_ns"] / 1e9 == START.timestamp() + 60 * (site.rows - 1)
        assert site.config.alerts_topic not in site.broker.admin().describe().topics

    def test_it_waits_for_a_stream_that_stands_still_until_it_is_asked_to_stop(self, site: Site) -> None:
        running = site.retrainer(should_stop=lambda: len(site.clock.waited) > 5).turn()

        assert running.did()[-1] == "shadowing"
        assert site.view.refusals == {}

    def test_a_first_model_has_no_shadow(self, site: Site) -> None:
        report = json.loads(site.registry.file(STREAM, site.champion or "", "report.json"))
        assert report["shadow"] is None


class TestOneAtATime:
    def test_of_two_retrainers_one_trains(self, site: Site) -> None:
        site.produce(200)
        other = site.retrainer()

        site.retrainer(on_status=once_in("training", other.turn)).turn()

        assert other.did() == ["standing by"]
        assert len(site.view.promotions[STREAM]) == 1
        assert other.turn().status.doing == "waiting"

    # What the other one decided between a look and the lease is seen before anything is done.
    def test_who_comes_just_after_another_does_not_train_again(self, site: Site) -> None:
        site.produce(200)
        late = site.retrainer(leases=Preceded(site.leases(), before=lambda: site.retrainer().turn()))

        late.turn()

        assert len(site.view.promotions[STREAM]) == 1
        assert "reading" not in late.did()

    # It was stopped for so long that another took over: its next step asks, and hears so.
    def test_who_lost_its_lease_drops_its_work(self, site: Site) -> None:
        site.produce(200)

        def lose() -> None:
            assert site.leases().take("pumps:training", LEASE_S)
            site.clock.now_s += KEEP_S

        running = site.retrainer(leases=Short(site.leases()), on_status=once_in("training", lose)).turn()

        assert site.champion is None
        assert site.registry.bundles(STREAM) == []
        assert running.notices == [
            "the lease ended: another program may train the stream by now; what was made is dropped"
        ]

    # It had asked, and was stopped before it wrote: the control topic itself refuses what comes too late.
    @pytest.mark.parametrize("decided", [True, False])
    def test_who_is_stopped_before_it_writes_cannot_promote(self, site: Site, *, decided: bool) -> None:
        site.produce(200)

        def overtake() -> None:
            lease = site.leases().take("pumps:training", LEASE_S)
            assert lease
            begun = {"stream": STREAM, "at": site.now(), "who": "another", "why": "due", "fence": lease.token}
            site.publish(Begun(**begun))
            if decided:
                site.publish(Champion(**begun, bundle="b-other", predecessor=None))

        producer = Preceding(site.broker.producer(), b'"champion"', overtake)
        running = site.retrainer(leases=Short(site.leases()), producer=producer).turn()

        assert site.champion == ("b-other" if decided else None)
        assert len(site.view.promotions.get(STREAM, [])) == decided
        assert "is void: it was made under the fence" in running.notices[-2]
        assert "was not promoted" in running.notices[-1]

    # `offbeat models gc --keep 0` takes a bundle that is not the champion yet for one that nothing needs.
    def test_a_challenger_that_is_removed_before_it_is_promoted_is_no_champion(self, site: Site) -> None:
        site.produce(200)
        site.retrainer().turn()
        before = site.champion
        assert before

        def sweep() -> None:
            for each in site.registry.bundles(STREAM):
                if each != before:
                    site.registry.delete(STREAM, each)

        site.produce(200)
        producer = Preceding(site.broker.producer(), b'"champion"', sweep)
        with pytest.raises(OffbeatError, match="was removed from the registry before it was promoted"):
            site.retrainer(producer=producer).retrainer.once("to see", force="whatever it is")

        assert site.champion == before
        assert site.view.promotions[STREAM][-1].why.endswith("before it was promoted")

    # The gate compared with the champion of then; what a person chose since is not overruled.
    def test_a_champion_that_was_chosen_meanwhile_stays(self, site: Site) -> None:
        site.produce(200)

        running = site.retrainer(
            on_status=once_in("judging", lambda: site.desk.promote("by-hand", missing=True))
        ).turn()

        assert site.champion == "by-hand"
        assert "was not promoted" in running.notices[-1]

    def test_progress_keeps_the_lease(self, site: Site) -> None:
        site.produce(200)
        leases = Counted(site.leases())

        def pass_time(_: Status) -> None:
            site.clock.now_s += KEEP_S

        running = site.retrainer(leases=leases, on_status=pass_time).turn()

        assert leases.kept == len([each for each in running.told if each.doing in PHASES]) + 1
        assert site.champion

    # A store that is down for a moment ends no training; one that is down for as long as the lease does.
    @pytest.mark.parametrize(("down_s", "promoted"), [(LEASE_S / 2, True), (LEASE_S, False)])
    def test_a_store_that_is_down_ends_the_work_with_the_lease(
        self, site: Site, down_s: float, *, promoted: bool
    ) -> None:
        site.produce(200)
        leases = Counted(site.leases())

        def fall() -> None:
            leases.down = True
            site.clock.now_s += down_s

        def rise() -> None:
            leases.down = False

        running = site.retrainer(
            leases=leases, on_status=both(once_in("training", fall), once_in("judging", rise))
        ).turn()

        assert bool(site.champion) == promoted
        assert running.notices[-1].startswith("bundle" if promoted else "the lease ended")


class TestWork:
    def test_reading_is_bounded(self, new_site: Callable[..., Site]) -> None:
        site = new_site(read_rate=10)
        site.produce(200)
        began = site.clock.now_s

        site.retrainer().turn()

        # Training and the gate both read 800 records.
        assert site.clock.now_s - began == pytest.approx(160, abs=0.1)
        assert max(site.clock.waited) <= KEEP_S

    def test_it_ends_within_its_work_when_it_is_asked_to(self, site: Site) -> None:
        site.produce(200)
        asked = list[bool]()

        running = site.retrainer(
            should_stop=lambda: bool(asked), on_status=once_in("training", lambda: asked.append(True))
        ).turn()

        assert running.did()[-1] == "training"
        assert site.champion is None
        asked.clear()
        site.retrainer().turn()
        assert site.champion

    def test_a_training_that_was_asked_for_and_ended_says_so(self, site: Site) -> None:
        site.produce(200)

        with pytest.raises(OffbeatError, match="the training was ended; nothing was changed"):
            site.retrainer(should_stop=lambda: True).retrainer.once("somebody asked")

    def test_a_bus_that_is_down_is_said_once_and_waited_for(self, site: Site) -> None:
        site.produce(200)
        reader = Counting(site.broker.reader(), failing=3)
        running = site.retrainer(reader=reader).turn(3)

        assert running.notices == ["the bus is down"]
        assert running.status.doing == "waiting for a server"

        running.turn()
        assert site.champion

    # What cannot be trained is not tried again and again.
    def test_settings_that_make_no_model_are_said_and_put_off(self, site: Site) -> None:
        site.produce(200)
        site.retrainer().turn()
        site.desk.apply(settings(every=60, model={"window": 8, "hidden": [2], "code": 8}))
        site.later = timedelta(minutes=2)

        running = site.retrainer().turn()

        assert "the stream cannot be trained: model.code is 8" in running.notices[-1]
        assert site.view.refusals[STREAM][0].bundle is None
        assert running.turn().status.doing == "waiting"

    def test_status_lines_have_figures(self, new_site: Callable[..., Site]) -> None:
        site = new_site(steps=300)

        def work(status: Status) -> None:
            if status.doing == "training":
                site.clock.now_s += 10

        site.produce(200)
        running = site.retrainer(on_status=work).turn()

        training = [each for each in running.told if each.doing == "training"]
        assert training[-1].fraction == 1
        assert "on rows held out 0." in training[-1].message
        # Nothing is known of the rate before two steps.
        assert " left" not in training[0].message
        first, second = (each.fraction or 0.0 for each in training[:2])
        assert training[1].message.endswith(f", about {10 / (second - first) * (1 - second):.0f} s left")
        assert " left" not in training[-1].message
        judging = [each.fraction for each in running.told if each.doing == "judging" and each.fraction]
        assert judging == sorted(judging)
        assert judging[-1] > 0.8


def test_what_is_scraped_is_the_status() -> None:
    status = Status("training", fraction=0.5, model_age_s=7, next_at=START, promoted=2, refused=3)

    found = {
        family.name: [(sample.labels, sample.value) for sample in family.samples]
        for family in StatusCollector(STREAM, lambda: status).collect()
    }

    of = {"stream": STREAM}
    assert found == {
        "offbeat_training_doing": [({**of, "doing": "training"}, 1)],
        "offbeat_training_done": [(of, 0.5)],
        "offbeat_training_promoted": [(of, 2)],
        "offbeat_training_refused": [(of, 3)],
        "offbeat_model_drift": [],
        "offbeat_training_next_timestamp_seconds": [(of, START.timestamp())],
        "offbeat_model_age_seconds": [(of, 7)],
    }
