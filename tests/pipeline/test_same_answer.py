"""The same records and the same decisions give one answer, in whatever batches and through whosever hands.

Owners here take over, read again and adopt with the program's own parts on a real store, bus and folder; the
answer they are held to is one pass over the records, in one batch between any two decisions.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feeding import COMPILED, PARTITION
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from test_bins import Record, by_series, bytes_by_series, rows_by_series, scenarios
from working import NORMAL, ODD, START_S, STREAM, TOPIC, Answer, Desk, Plant, Running, plant_at
from working import settings as configured

from pipeline import journal
from pipeline.adoption import adopt, reconcile
from pipeline.alerts import Alert
from pipeline.bus.sqlite import SqliteBroker
from pipeline.config import Config, Stream
from pipeline.control import ControlLog, ControlView, Verdict, policy_sha, settings_of
from pipeline.detect import Detector, Outputs
from pipeline.errors import BusFull, Refused
from pipeline.journal import InForce, JournalLog
from pipeline.ownership import Owned, Shelf, Takeover, checkpoint
from pipeline.ports import PutResult, Scorer
from pipeline.records import Assigned, RecordBatch, TopicPartition, TopicSpec
from pipeline.series import PartitionState
from pipeline.silences import Matchers, Silence
from pipeline.state.redis import RedisStore
from pipeline.state.snapshots import FolderSnapshots
from pipeline.testing import FakeScorer

MODELS: dict[str, Scorer] = {
    "bundle-1": FakeScorer(),
    "bundle-2": FakeScorer(level=1.0, spread=0.5, normal_error=2.0),
}
_SERIES = re.compile(rb'"series": "(\w)"')


@dataclass(frozen=True)
class Decision:
    """What comes into force before a row; of what people said, the first ``said`` are taken in."""

    row: int
    policy: int
    bundle: str | None
    partitions: tuple[int, ...]
    said: int


@dataclass(frozen=True)
class Story:
    """Records, each with a key, and what was decided between them."""

    policies: list[Stream]
    records: list[tuple[bytes | None, Record]]
    decisions: list[Decision]
    said: list[Spoken]

    def view(self) -> ControlView:
        """The control topic of :class:`Line`."""
        with closing(SqliteBroker("sqlite://")) as broker:
            return self.desk(broker).log.refresh()

    def desk(self, broker: SqliteBroker) -> Desk:
        """All policies, and behind them all that people said."""
        desk = Desk(broker, self.configs[0])
        desk.shelf.bundles.update(MODELS)
        for config in self.configs:
            desk.apply(config)
        for number, speak in enumerate(self.said):
            speak(desk, number)
        return desk

    @property
    def configs(self) -> list[Config]:
        return [
            Config.model_validate({"namespace": "test", "streams": {STREAM: settings_of(policy)}})
            for policy in self.policies
        ]

    def batch(self) -> RecordBatch:
        """All records; offsets are rows times two."""
        stamped = [(key, value, round(stamp * 1_000)) for key, (value, stamp) in self.records]
        made = RecordBatch.of(PARTITION, 0, stamped)
        return replace(made, offset=made.offset * 2, next_offset=made.next_offset * 2)

    def in_force(self, decision: Decision, number: int) -> InForce:
        return InForce(
            topic_id="topic-1",
            next_offset=2 * decision.row,
            control_offset=number,
            bundle_sha=decision.bundle,
            policy_sha=policy_sha(settings_of(self.policies[decision.policy])),
            decided=decision.said and len(self.policies) + decision.said,
            partitions=decision.partitions,
        )


Spoken = Callable[[Desk, int], None]


def says(verdict: Verdict, series: str) -> Spoken:
    return lambda desk, _: desk.say(verdict, series)


def freezes(series: str, start_s: float, length_s: float) -> Spoken:
    start, end = (datetime.fromtimestamp(at, UTC) for at in (start_s, start_s + length_s))
    silence = Silence(matchers=Matchers(series=series), mode="freeze", start=start, end=end)
    return lambda desk, number: desk.silence(f"{number}", silence)


def spoken(first_s: float) -> st.SearchStrategy[Spoken]:
    """What people say; freezes are about event times from ``first_s`` on."""
    verdicts = st.sampled_from(["accept", "false alarm", "false alarm", "confirm"])
    starts = st.floats(first_s, first_s + 300)
    return st.one_of(
        st.builds(says, verdicts, st.sampled_from("ab")),
        st.builds(freezes, st.sampled_from(["a", "b", "*"]), starts, st.floats(0.5, 200)),
    )


@st.composite
def other_settings(draw: st.DrawFn, policy: Stream) -> Stream:
    """Settings in which some thresholds, rules, durations or limits are others, or even what a row is."""
    made = settings_of(policy)
    made["alerts"] |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "for": st.integers(1, 3),
                "recovery": st.integers(1, 3),
                "recovery_line": st.sampled_from([0.5, 1.0]),
                "recovery_for": st.sampled_from([0, 3]),
                "min_deviation": st.sampled_from([0.0, 1.5]),
                "direction": st.sampled_from(["both", "above", "below"]),
                "critical": st.sampled_from([1.0, 2.0, 4.0]),
                "raise_by": st.sampled_from([0.05, 1.0]),
            },
        )
    )
    made["threshold"] = draw(
        st.sampled_from(
            [
                made["threshold"],
                {"policy": "static", "value": 1.7},
                {"policy": "ewma", "k": 9},
                {"policy": "quantile", "q": 0.9},
                {"policy": "joint", "line": 0.5, "shapes": draw(st.booleans())},
            ]
        )
    )
    made["events"] |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "silent_after": st.sampled_from([None, 6, 15, 50]),
                "forget_after": st.sampled_from([55, 80, 300]),
                "max_series": st.sampled_from([1, 3, 100]),
                "missing": st.sampled_from(["hold", "reject"]),
                "gap": st.sampled_from([None, 30]),
            },
        )
    )
    if draw(st.booleans()):
        made["model"]["window"] = draw(st.integers(2, 4))
    return Stream.model_validate(made)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    policy, records, _ = draw(scenarios())
    policies = [policy, *draw(st.lists(other_settings(policy), max_size=2))]
    named = [_SERIES.search(value or b"") for value, _ in records] if draw(st.booleans()) else []
    keys = [found[1] if found else None for found in named] or [None] * len(records)
    rows = draw(st.lists(st.integers(0, len(records)), max_size=3))
    counts, decisions, heard = (1,), list[Decision](), 0
    said = draw(st.lists(spoken(1_000.0), max_size=6))
    for row in sorted([0, *rows]):
        for _ in range(draw(st.integers(1, 2))):  # perhaps there and back, before the next record
            if draw(st.integers(0, 4)) == 0:
                counts = (*counts, counts[-1] + 1)
            bundle = draw(st.sampled_from([*MODELS, *MODELS, None]))
            policy_number = draw(st.integers(0, len(policies) - 1))
            heard += draw(st.integers(0, len(said) - heard))
            decisions.append(Decision(row, policy_number, bundle, counts, heard))
    return Story(policies, list(zip(keys, records, strict=True)), decisions, said)


def uninterrupted(story: Story) -> Answer:
    """One pass, in one batch between any two decisions."""
    detectors = [Detector("test", STREAM, policy) for policy in story.policies]
    answer = Answer(detectors[story.decisions[0].policy].fresh("topic-1", 0))
    records, view = story.batch(), story.view()
    for number, decision in enumerate(story.decisions):
        detector, scorer = detectors[decision.policy], MODELS.get(decision.bundle or "")
        change = story.in_force(decision, number)
        decisions = view.decisions(STREAM, change.decided)
        answer.state, outputs = adopt(detector, answer.state, PARTITION, change, scorer, decisions=decisions)
        answer.take(outputs)
        later = story.decisions[number + 1 : number + 2]
        end = 2 * later[0].row if later else records.next_offset
        if end > answer.state.next_offset:
            answer.take(detector.step(answer.state, records.before(end), scorer))
            records = records.since(end)
    return answer


class Line:
    """One partition through the hands of owners that come and go."""

    def __init__(self, story: Story, broker: SqliteBroker, valkey_url: str, draw: st.DataObject) -> None:
        self.story, self.draw, self.records, self.committed = story, draw, story.batch(), 0
        self.url, self.store = valkey_url, RedisStore(valkey_url, namespace="test", stream=STREAM)
        config = story.configs[0]
        broker.admin().create([TopicSpec(config.journal_topic(STREAM), 1)])
        desk = story.desk(broker)
        self.snapshots = FolderSnapshots(f"memory://{uuid.uuid4()}", namespace="test", stream=STREAM)
        self.producer, reader = broker.producer(), broker.reader()
        self.log = JournalLog(reader, config.journal_topic(STREAM))
        control = ControlLog(reader, config.control_topic)
        shelf = Shelf("test", STREAM, control, desk.shelf)
        self.notices: list[str] = []
        self.takeover = Takeover(
            STREAM, "earliest", self.store, self.snapshots, control, self.log, shelf, self.notices.append
        )
        self.owned = self.take()
        self.answer = Answer(self.owned.state)

    def take(self) -> Owned:
        """Somebody takes over, and reads again what is committed."""
        committed = self.committed or None
        owned = self.takeover.take(
            Assigned(PARTITION, 0, self.records.next_offset, committed, "topic-1"), 0.0
        )
        while owned.rereading:
            ahead = 2 * self.draw.draw(st.integers(0, 12))
            self.takeover.reread(owned, self.cut(owned, owned.state.next_offset + ahead))
        self.takeover.settle(owned)
        if owned.anew:
            published = self.log.past(0, "topic-1", owned.live_from).open
            lost = reconcile(owned.detector, owned.state, PARTITION, published)
            assert lost.alerts == []
        assert owned.rebuilt_from is None
        owned.live, owned.anew = True, False
        return owned

    def cut(self, owned: Owned, end: int) -> RecordBatch:
        return self.records.since(owned.state.next_offset).before(end)

    def work(self, end: int) -> None:
        """Records up to ``end``, in batches of any size, and whatever happens in between."""
        while self.owned.state.next_offset < end:
            batch = self.cut(self.owned, min(end, self.owned.state.next_offset + 2 * self.some(12) + 2))
            self.commit(self.owned.detector.step(self.owned.state, batch, self.owned.scorer))
            self.incident()

    def decide(self, change: InForce) -> None:
        self.commit(self.takeover.bring(self.owned, change), change)
        self.owned.stored_offset = None
        if self.draw.draw(st.booleans()):
            assert checkpoint(self.store, self.owned, 0.0) is PutResult.OK
        self.incident()

    def commit(self, outputs: Outputs, *said: InForce) -> None:
        position = self.owned.state.next_offset
        entries = [*journal.transitions(position, outputs.changes), *said]
        self.producer.send(journal.sends(self.log.topic, 0, entries))
        self.producer.flush()
        self.answer.take(outputs)
        self.committed = position

    def incident(self) -> None:
        happens = self.some(9)
        if happens in {1, 2, 3} and self.owned.state.next_offset != self.owned.stored_offset:
            if happens == 3:  # else the next owner reads more of the journal
                self.owned.state.journal_offset = self.log.end_offsets()[0]
            assert checkpoint(self.store, self.owned, 0.0) is PutResult.OK
        elif happens in {4, 5}:
            self.owned.state.journal_offset = self.log.end_offsets()[0]
            state = self.owned.state
            packed = state.pack(whole=True)
            self.snapshots.save(PARTITION, "topic-1", state.next_offset, state.clock_ns, packed)
        elif happens in {6, 7}:
            self.owned = self.take()
        elif happens == 8:
            with Redis.from_url(self.url) as client:
                client.flushall()
            self.owned = self.take()

    def some(self, most: int) -> int:
        return self.draw.draw(st.integers(0, most))

    def end(self) -> Answer:
        self.store.close()
        self.answer.state = self.owned.state
        return self.answer


def known(state: PartitionState) -> tuple[Any, ...]:
    """All that is known at the end; when a series is looked at next may be sooner than it must."""
    state.rows["due_ns"] = 0
    header = state.bundle_id, state.clock_ns, state.live, state.next_offset
    counters = state.counters.named(), state.counters.attributes.tolist()
    return (*header, *counters, rows_by_series(state), bytes_by_series(state))


kept_short = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@settings(kept_short, max_examples=100 if COMPILED else 10)
@given(story=stories(), draw=st.data())
def test_any_batches_owners_losses_and_decisions_give_the_answer_of_one_uninterrupted_pass(
    valkey_url: str, story: Story, draw: st.DataObject
) -> None:
    expected = uninterrupted(story)

    with closing(SqliteBroker("sqlite://")) as broker, Redis.from_url(valkey_url) as client:
        client.flushall()
        line = Line(story, broker, valkey_url, draw)
        for number, decision in enumerate(story.decisions):
            line.work(2 * decision.row)
            line.decide(story.in_force(decision, number))
        line.work(line.records.next_offset)
        answer = line.end()

    assert by_series(answer.alerts) == by_series(expected.alerts)
    assert answer.letters == expected.letters
    assert known(answer.state) == known(expected.state)


POLICIES = [
    configured(),
    configured(alerts={"for": 2, "recovery": 2}),
    configured(threshold={"k": 9}, alerts={"recovery": 3, "refractory": "5s"}),
    configured(events={"features": ["x"], "silent_after": "15s"}),
    configured(events={"features": ["x"], "silent_after": "40s", "forget_after": "90s"}),
    configured(events={"features": ["x"], "every": "3s"}),
    configured(model={"window": 3}),
]
SCORERS = {f"bundle-{n}": FakeScorer(level=level) for n, level in enumerate((0.0, 0.5, ODD))}
BUNDLES = st.sampled_from([*sorted(SCORERS), *sorted(SCORERS), "bundle-of-nobody"])
BATCHES = st.tuples(
    st.lists(st.sampled_from([NORMAL, NORMAL, NORMAL, ODD, ODD, b"not JSON"]), min_size=1, max_size=6),
    st.sampled_from("aabc"),
    st.sampled_from([0, 0, 1, 2]),
    st.booleans(),
)


class Workers(RuleBasedStateMachine):
    """Workers that come and go, one at a time, and all that people and machines do to them."""

    def __init__(self, valkey_url: str) -> None:
        super().__init__()
        self.closing = ExitStack()
        self.plant: Plant = self.closing.enter_context(plant_at(valkey_url, partitions=2, champion=None))
        self.partitions, self.was_set_back, self.said = 2, set[int](), 0
        self.running = self.plant.worker(max_records=3)

    @initialize(bundle=st.sampled_from(sorted(SCORERS)), policy=st.sampled_from(POLICIES))
    def begin(self, bundle: str, policy: Config) -> None:
        self.plant.desk.apply(policy)
        self.plant.desk.promote(bundle, SCORERS[bundle])
        self.running.turn()

    @rule(batches=st.lists(BATCHES, min_size=1, max_size=3), turns=st.integers(0, 3))
    def produce(self, batches: list[tuple[list[float | bytes], str, int, bool]], turns: int) -> None:
        for values, series, where, keyed in batches:
            key = series.encode() if keyed else None
            self.plant.produce(*values, series=series, partition=where % self.partitions, key=key)
        self.running.turn(turns)

    @rule(seconds=st.sampled_from([5, 20, 60, 1_000]))
    def nothing_is_produced_for_a_while(self, seconds: int) -> None:
        self.plant.sent += seconds

    @rule(seconds=st.sampled_from([1.0, 5.0, 31.0]), turns=st.integers(0, 2))
    def time_passes(self, seconds: float, turns: int) -> None:
        self.running.later(seconds).turn(turns)

    @rule(bundles=st.lists(BUNDLES, min_size=1, max_size=2), at_once=st.booleans())
    def promote(self, bundles: list[str], *, at_once: bool) -> None:
        for bundle in bundles:
            self.plant.desk.promote(bundle, SCORERS.get(bundle), missing=bundle not in SCORERS)
            self.running.later(1.0 if at_once else 0.1)

    @rule(said=st.lists(spoken(START_S), min_size=1, max_size=3), at_once=st.booleans())
    def people_say(self, said: list[Spoken], *, at_once: bool) -> None:
        for speak in said:
            speak(self.plant.desk, self.said)
            self.said += 1
            self.running.later(1.0 if at_once else 0.1)

    @rule(policies=st.lists(st.sampled_from(POLICIES), min_size=1, max_size=2), at_once=st.booleans())
    def apply(self, policies: list[Config], *, at_once: bool) -> None:
        for policy in policies:
            self.plant.desk.apply(policy)
            self.running.later(1.0 if at_once else 0.1)

    @precondition(lambda self: self.partitions < 3)
    @rule()
    def add_a_partition(self) -> None:
        self.partitions += 1
        self.plant.broker.admin().grow(TOPIC, self.partitions)

    @rule(
        goes=st.sampled_from(["killed", "killed", "killed before a commit", "refused", "stopped"]),
        lost=st.sampled_from(["nothing", "nothing", "store", "store and snapshots"]),
        max_records=st.integers(1, 7),
    )
    def another_takes_over(self, goes: str, lost: str, max_records: int) -> None:
        if goes == "refused":
            self.running.bus.failing = [Refused("another one took over")]
            self.running.turn()
        elif goes == "killed before a commit":
            self.running.bus.failing = [BusFull("no room")]
            self.running.clock.stopping = True
            self.running.turn()
        self.running.stop() if goes == "stopped" else self.running.leave()
        if lost != "nothing":
            self.plant.flush_store()
        if lost == "store and snapshots" and not self.snapshots.is_file():
            shutil.rmtree(self.snapshots, ignore_errors=True)
        self.running = self.plant.worker(max_records=max_records)

    @rule()
    def the_store_goes_away_or_comes_back(self) -> None:
        self.running.store.down ^= {0, 1, 2}

    @rule(reply=st.booleans())
    def a_call_fails_once(self, *, reply: bool) -> None:
        if reply:
            self.running.store.losing_replies = 1
        else:
            self.running.bus.failing = [BusFull("the disk is full")]

    @rule()
    def the_snapshots_cannot_be_written_or_can_again(self) -> None:
        if self.snapshots.is_file():
            self.snapshots.unlink()
        else:
            shutil.rmtree(self.snapshots, ignore_errors=True)
            self.snapshots.write_bytes(b"")

    @precondition(lambda self: self.running.bus.commits)
    @rule(commit=st.integers(0, 100), number=st.integers(0, 2))
    def the_group_is_set_back_to_where_it_stood_after_a_commit(self, commit: int, number: int) -> None:
        commits = self.running.bus.commits
        positions, _ = commits[commit % len(commits)]
        self.running.leave()
        operator = self.plant.worker().turn()
        if number in positions:
            token = operator.member.poll(1, 0).token
            operator.member.commit(token, {TopicPartition(TOPIC, number): positions[number]}, [])
            self.was_set_back.add(number)
        operator.leave()
        self.running = self.plant.worker(max_records=3)

    @property
    def snapshots(self) -> Path:
        return self.plant.folder / "snapshots"

    def teardown(self) -> None:
        with self.closing:
            self.compare(self.settled())

    def settled(self) -> Running:
        """All is read, and what is decided has come into force."""
        running = self.running
        running.store.down.clear()
        if self.snapshots.is_file():
            self.snapshots.unlink()
        running.clock.now_s += 10
        return running.read_all().later(1).turn()

    def compare(self, running: Running) -> None:
        published, letters = self.plant.alerts(), self.plant.letters()
        for number in range(self.partitions):
            at = TopicPartition(TOPIC, number)
            assert all(each.rebuilt_from is None for each in self.in_force(number))
            expected = self.plant.as_journaled(number)
            assert known(running.worker._owned[at].state) == known(expected.state)
            if number in self.was_set_back:  # some of it was published before, and perhaps otherwise
                continue
            assert by_id(each for each in published if each.source.partition == number) == by_id(
                expected.alerts
            )
            assert [each for each in letters if each.partition == at] == expected.letters

    def in_force(self, number: int) -> list[InForce]:
        return [each for each in self.plant.journal(number) if isinstance(each, InForce)]


def by_id(alerts: Iterable[Alert]) -> list[Alert]:
    return sorted(alerts, key=lambda each: (each.id, each.revision))


def test_whatever_happens_to_workers_their_answer_is_that_of_one_pass_as_the_journal_says(
    valkey_url: str,
) -> None:
    run_state_machine_as_test(
        lambda: Workers(valkey_url),
        settings=settings(kept_short, max_examples=60 if COMPILED else 10, stateful_step_count=30),
    )
