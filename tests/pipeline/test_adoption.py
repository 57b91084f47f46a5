"""What becomes of windows, episodes and alerts where something else comes into force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from feeding import PARTITION, Feed, S, encoded, metric, reading, stream

from pipeline.adoption import adopt, reconcile
from pipeline.alerts import Alert, Transition
from pipeline.config import Stream
from pipeline.control import Decisions
from pipeline.detect import Detector, Outputs
from pipeline.episodes import FIRING, IDLE, PENDING
from pipeline.journal import InForce
from pipeline.partitioning import key_hash
from pipeline.ports import Scorer
from pipeline.records import RecordBatch
from pipeline.testing import FakeScorer

ODD = 50.0
OTHER = FakeScorer(spread=0.2, normal_error=5.0)
"""A model whose errors are five times those of the first."""
MOVES = next(name for name in "abcdef" if key_hash(name.encode()) % 2 == 1)
STAYS = next(name for name in "abcdef" if key_hash(name.encode()) % 2 == 0)
COMES_BACK = next(
    name for name in map(str, range(100)) if [key_hash(name.encode()) % n for n in (2, 3)] == [1, 0]
)
"""Keys of partition 0 while it is the only one, and where they belong when there are two, or three."""


@dataclass
class Work(Feed):
    """A partition under decisions."""

    decided: int = 0
    counts: tuple[int, ...] = (1,)
    bundle: str | None = "bundle-1"
    changes: list[Transition] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.decide()

    def decide(
        self,
        *,
        policy: Stream | None = None,
        model: tuple[str | None, Scorer | None] | None = None,
        counts: tuple[int, ...] | None = None,
        decisions: Decisions | None = None,
    ) -> Outputs:
        """Something comes into force now."""
        if policy is not None:
            self.stream, self.detector = policy, Detector("test", "machines", policy)
        self.bundle, self.scorer = model or (self.bundle, self.scorer)
        self.counts, self.decided = counts or self.counts, self.decided + 1
        change = InForce(
            topic_id="topic-1",
            next_offset=self.state.next_offset,
            control_offset=self.decided,
            bundle_sha=self.bundle,
            policy_sha=self.stream.model_dump_json(),
            decided=self.decided,
            partitions=self.counts,
        )
        self.state, outputs = adopt(
            self.detector,
            self.state,
            PARTITION,
            change,
            self.scorer,
            decisions=decisions or self.state.decisions,
        )
        self.alerts += outputs.alerts
        self.changes += outputs.changes
        assert self.state.in_force == change
        return outputs

    def keyed(self, *events: dict[str, Any]) -> Outputs:
        """Records keyed by their series."""
        records = [
            (event["series"].encode(), encoded(event), round(event["time"] * 1_000)) for event in events
        ]
        return self.take(RecordBatch.of(PARTITION, self.state.next_offset, records))

    @property
    def ended(self) -> list[tuple[str, str, int, str]]:
        """Each alert's revisions: series, kind, revision and reason."""
        return [(each.series, each.kind, each.revision, each.reason) for each in self.alerts]


def bin_sum(work: Work) -> int:
    assert min(work.state.counters.bins) >= 0
    return work.state.counters.records_read


class TestAnotherModel:
    def test_windows_and_episodes_go_on_and_thresholds_start_from_its_calibration(self) -> None:
        work = Work(stream(window=3, rules={"for": 3, "recovery": 2}))
        work.send(*(reading("a", t, 1.0 + t / 4) for t in range(3)), reading("a", 3, ODD))
        before = work.row("a").copy()
        assert (before["episode"], before["run"]) == (PENDING, 1)

        outputs = work.decide(model=("bundle-2", OTHER))

        assert (outputs.alerts, outputs.changes) == ([], [])
        assert work.window("a") == [[1.25], [1.5], [ODD]]
        kept = ["episode", "run", "start_ns", "peak", "pushed", "above_ns", "checksum", "last_ns"]
        assert work.row("a")[kept] == before[kept]
        threshold = work.send(reading("a", 4)).scores[0].threshold[0]
        assert threshold == pytest.approx(5.0 + 4 * 0.5)

    def test_it_raises_no_alert(self) -> None:
        work = Work(stream())
        work.send(*(reading("a", t) for t in range(20)))

        work.decide(model=("bundle-2", OTHER))
        work.send(*(reading("a", t) for t in range(20, 40)))

        assert work.alerts == []
        assert work.bins == {"warming": 1, "scored": 39}

    def test_what_was_pending_and_is_normal_to_it_raises_no_alert(self) -> None:
        work = Work(stream(rules={"for": 3}))
        work.send(reading("a", 0), reading("a", 1, ODD), reading("a", 2, ODD))
        assert work.row("a")["episode"] == PENDING

        work.decide(model=("bundle-2", FakeScorer(level=ODD)))
        work.send(*(reading("a", t, ODD) for t in range(3, 9)))

        assert work.alerts == []
        assert work.row("a")["episode"] == IDLE

    def test_what_was_pending_and_is_odd_to_it_too_fires_as_one_episode(self) -> None:
        work = Work(stream(rules={"for": 3}))
        work.send(reading("a", 0), reading("a", 1, ODD), reading("a", 2, ODD))

        work.decide(model=("bundle-2", OTHER))
        work.send(reading("a", 3, ODD))

        [alert] = work.alerts
        assert (alert.started_at.timestamp(), alert.at.timestamp(), alert.bundle) == (1, 3, "bundle-2")

    def test_an_open_alert_is_resolved_by_it(self) -> None:
        work = Work(stream(rules={"recovery": 2}))
        work.send(reading("a", 0), reading("a", 1, ODD))

        work.decide(model=("bundle-2", OTHER))
        work.send(*(reading("a", t) for t in range(2, 5)))

        fired, resolved = work.alerts
        assert (fired.id, fired.bundle) == (resolved.id, "bundle-1")
        assert (resolved.revision, resolved.reason, resolved.bundle) == (2, "recovered", "bundle-2")

    def test_the_same_model_again_changes_nothing(self) -> None:
        work = Work(stream())
        work.send(*(reading("a", t, 1.2) for t in range(9)))
        work.state.stored()
        before = work.row("a").tobytes()

        outputs = work.decide()

        assert (outputs.alerts, work.row("a").tobytes(), work.state.dirty.any()) == ([], before, False)

    def test_without_a_model_windows_fill_and_a_new_one_scores_at_once(self) -> None:
        work = Work(stream())
        work.send(reading("a", 0), reading("a", 1))

        work.decide(model=(None, None))
        assert work.state.bundle_id is None
        work.send(reading("a", 2))
        work.decide(model=("bundle-1", FakeScorer()))
        work.send(reading("a", 3))

        assert work.bins == {"warming": 1, "waiting_model": 1, "scored": 2}


class TestAnotherPolicy:
    def test_other_rules_hold_for_what_is_open_and_close_nothing(self) -> None:
        work = Work(stream(rules={"recovery": 1}))
        work.send(reading("a", 0), reading("a", 1, ODD))

        outputs = work.decide(policy=stream(rules={"recovery": 3}))
        work.each(*(reading("a", t) for t in range(2, 5)))

        assert outputs.changes == []
        assert work.ended == [
            ("a", "anomaly", 1, "error above its threshold"),
            ("a", "anomaly", 2, "recovered"),
        ]
        assert work.alerts[1].at.timestamp() == 4

    def test_another_line_holds_from_the_next_row_on_and_keeps_what_was_learnt(self) -> None:
        work = Work(stream(threshold={"policy": "ewma", "k": 4}))
        work.send(*(reading("a", t, 1.1) for t in range(30)))
        rows = work.row("a")["rows"]

        work.decide(policy=stream(threshold={"policy": "static", "value": 1.05}))
        work.send(reading("a", 30, 1.1))

        assert work.row("a")["rows"] >= rows
        assert work.alerts[0].threshold == 1.05

    # A quiet series has nothing of its own that would make it notice, in whatever batches the others come.
    @pytest.mark.parametrize("together", [True, False])
    def test_a_shorter_silence_holds_for_series_that_are_quiet(self, *, together: bool) -> None:
        work = Work(stream(silent_after="500s"))
        work.send(reading("a", 0), reading("b", 0))

        work.decide(policy=stream(silent_after="20s"))
        others = [reading("b", 30), reading("a", 31)]
        work.send(*others) if together else work.each(*others)

        assert work.ended == [("a", "silent", 1, "no events"), ("a", "silent", 2, "recovered")]
        assert [alert.at.timestamp() for alert in work.alerts] == [20, 31]

    def test_a_shorter_memory_forgets_series_that_are_idle(self) -> None:
        work = Work(stream())
        work.send(reading("a", 0), reading("a", 1, ODD), reading("b", 0))

        work.decide(policy=stream(forget_after="100s"))
        work.send(reading("b", 150))

        assert work.ended[1:] == [("a", "anomaly", 2, "gone")]
        assert work.state.live == 1

    def test_a_longer_silence_leaves_an_alert_open_until_the_series_is_back(self) -> None:
        work = Work(stream(silent_after="20s"))
        work.send(reading("a", 0), reading("b", 30))

        work.decide(policy=stream())
        work.each(reading("b", 40), reading("a", 41))

        assert work.ended == [("a", "silent", 1, "no events"), ("a", "silent", 2, "recovered")]

    def test_rows_made_otherwise_begin_every_series_anew_and_close_what_is_open(self) -> None:
        work = Work(stream(silent_after="20s", labels=["site"]))
        work.send(
            *(reading(name, t, x, site="north") for name in "ab" for t, x in enumerate([1.0, 1.0, ODD])),
            reading("b", 30, ODD, site="north"),
            b"?",
            stamp_s=30,
        )
        fired = {(each.series, each.kind): each for each in work.alerts}
        assert fired.keys() == {("a", "anomaly"), ("b", "anomaly"), ("a", "silent")}

        outputs = work.decide(policy=stream(window=3, silent_after="20s", labels=["site"]))

        closed = {(each.series, each.kind): each for each in outputs.alerts}
        assert closed.keys() == fired.keys()
        for key, each in closed.items():
            assert (each.id, each.revision, each.state) == (fired[key].id, 2, "resolved")
            assert (each.reason, each.labels, each.bundle) == (
                "policy changed",
                {"site": "north"},
                "bundle-1",
            )
            assert (each.score, each.features, each.started_at) == (None, [], fired[key].started_at)
            assert each.at >= each.started_at
        assert [(each.id, each.state, each.judged) for each in outputs.changes] == [
            (each.id, "resolved", False) for each in outputs.alerts
        ]
        assert (work.state.live, list(work.state.index), work.state.next_offset) == (0, [], 8)
        assert work.state.clock_ns == 30 * S
        assert bin_sum(work) == 8
        work.send(*(reading("a", t, site="south") for t in range(31, 34)))
        assert len(work.alerts) == 2 * len(fired)
        assert (bin_sum(work), work.window("a")) == (11, [[1.0]] * 3)

    def test_what_was_pending_leaves_no_trace_where_rows_are_made_otherwise(self) -> None:
        work = Work(stream(rules={"for": 3}))
        work.send(reading("a", 0), reading("a", 1, ODD), reading("a", 2, ODD))

        work.decide(policy=stream(window=3, rules={"for": 3}))

        assert work.alerts == []

    # They were counted as pending, and will never be part of a row.
    @pytest.mark.parametrize("kind", ["wide", "narrow"])
    def test_records_in_open_cells_are_counted_where_rows_are_made_otherwise(self, kind: str) -> None:
        work = Work(stream(kind=kind, every="10s"))
        made = (reading("a", t) if kind == "wide" else metric("a", t, "x") for t in (0, 1, 11, 12, 21))
        work.send(*made)
        assert work.bins["pending"] == 2

        work.decide(policy=stream(kind=kind, every="5s"))

        assert work.bins == {"merged": 2, "warming": 3}

    def test_the_rate_of_dead_letters_goes_on(self) -> None:
        work = Work(stream())
        work.send(*[b"?"] * 1_000, stamp_s=7)

        work.decide(policy=stream(window=3))
        outputs = work.send(b"?", b"?", stamp_s=7)

        assert [letter.count for letter in outputs.dead_letters] == [2]

    # In the words of the policy that gave them.
    def test_labels_of_alerts_that_close_are_those_that_they_fired_with(self) -> None:
        work = Work(stream(labels=["site"]))
        work.send(reading("a", 0, site="north"), reading("a", 1, ODD, site="north"))

        work.decide(policy=stream(labels=["room", "site"]))

        assert [alert.labels for alert in work.alerts] == [{"site": "north"}] * 2


class TestMorePartitions:
    def fired(self, *names: str, **events: Any) -> Work:  # noqa: ANN401
        work = Work(stream(**events))
        for name in names:
            work.keyed(reading(name, 0), reading(name, 1, ODD))
        return work

    def test_series_whose_key_goes_elsewhere_now_end_and_the_others_go_on(self) -> None:
        work = self.fired(MOVES, STAYS)

        outputs = work.decide(counts=(1, 2))

        assert [(each.series, each.revision, each.reason) for each in outputs.alerts] == [(MOVES, 2, "moved")]
        assert outputs.alerts[0].id == work.alerts[0].id
        assert (list(work.state.index), work.state.live) == ([STAYS], 1)
        work.keyed(reading(STAYS, 2), *(reading(STAYS, t) for t in range(3, 36)))
        assert work.ended[3:] == [(STAYS, "anomaly", 2, "recovered")]

    def test_what_moves_is_never_silent_afterwards(self) -> None:
        work = self.fired(MOVES, STAYS, silent_after="20s")

        work.decide(counts=(1, 2))
        # Of a producer that does not know of the new partitions yet.
        work.keyed(reading(MOVES, 5))
        work.send(reading("other", 100))

        assert [each for each in work.ended if each[1] == "silent"] == [(STAYS, "silent", 1, "no events")]
        assert work.state.live == 3

    def test_a_silent_alert_of_what_moves_ends_too(self) -> None:
        work = self.fired(MOVES, STAYS, silent_after="20s")
        work.keyed(reading(STAYS, 2), reading(STAYS, 100))

        outputs = work.decide(counts=(1, 2))

        assert sorted((each.series, each.kind, each.reason) for each in outputs.alerts) == [
            (MOVES, "anomaly", "moved"),
            (MOVES, "silent", "moved"),
        ]
        assert all(each.at >= each.started_at for each in outputs.alerts)

    def test_series_without_keys_stay(self) -> None:
        work = Work(stream())
        work.send(*(reading(name, 0) for name in "abcdefgh"))

        outputs = work.decide(counts=(1, 2))

        assert (outputs.alerts, work.state.live) == ([], 8)

    # Its keys were never where Kafka's own partitioner would have put them.
    def test_series_of_a_producer_with_a_partitioner_of_its_own_stay(self) -> None:
        work = Work(stream(silent_after="20s"), counts=(2,))
        work.keyed(*(reading(MOVES, t) for t in range(3)))

        work.decide(counts=(2, 4))
        work.send(reading("other", 100))

        assert work.ended == [(MOVES, "silent", 1, "no events")]

    # It came here by a producer that knew nothing, and comes here rightly since there are three.
    def test_what_comes_back_with_still_more_partitions_can_fall_silent_again(self) -> None:
        work = Work(stream(silent_after="20s"))
        work.decide(counts=(1, 2))
        work.keyed(reading(COMES_BACK, 0))
        work.send(reading("other", 100))
        assert work.ended == []

        work.decide(counts=(1, 2, 3))
        work.send(reading("other", 101))

        assert work.ended == [(COMES_BACK, "silent", 1, "no events")]

    @pytest.mark.parametrize("every", [None, "10s"])
    def test_the_bins_sum_to_the_records_read(self, every: str | None) -> None:
        work = Work(stream(every=every))
        work.keyed(*(reading(name, t) for t in range(15) for name in (MOVES, STAYS)))

        work.decide(counts=(1, 2))

        assert bin_sum(work) == 30
        assert work.bins.get("pending", 0) == (2 if every else 0)

    def test_the_next_checkpoint_takes_what_moved_from_the_store(self) -> None:
        work = self.fired(MOVES, STAYS)
        work.state.stored()

        work.decide(counts=(1, 2))

        assert [name for _, name in work.state.pack(whole=False).removed] == [MOVES.encode()]

    def test_more_partitions_and_rows_made_otherwise_at_once_close_each_alert_once(self) -> None:
        work = self.fired(MOVES, STAYS)

        work.decide(policy=stream(window=3), counts=(1, 2))

        assert sorted(work.ended[2:]) == sorted(
            (name, "anomaly", 2, "policy changed") for name in (MOVES, STAYS)
        )


def published(alerts: Sequence[Alert]) -> dict[str, Transition]:
    """Alerts as the journal has them."""
    return {
        each.id: Transition(
            id=each.id,
            revision=each.revision,
            alert=each.kind,
            state=each.state,
            series=each.series,
            labels=each.labels,
            started_ns=round(each.started_at.timestamp() * S),
            at_ns=round(each.at.timestamp() * S),
            offset=each.source.offset,
            judged=each.kind == "anomaly",
        )
        for each in alerts
    }


class TestAStateThatWasRebuilt:
    def test_open_alerts_of_which_it_knows_nothing_close_as_state_lost(self) -> None:
        before = Work(stream(labels=["site"], silent_after="20s"))
        before.send(
            reading("a", 0, site="north"), reading("a", 1, ODD, site="north"), reading("b", 30, site="south")
        )
        fired = {each.kind: each for each in before.alerts}
        rebuilt = Work(stream(labels=["site"]))
        rebuilt.send(reading("b", 30, site="south"))

        outputs = reconcile(rebuilt.detector, rebuilt.state, PARTITION, published(before.alerts))

        assert {each.kind for each in outputs.alerts} == {"anomaly", "silent"}
        for each in outputs.alerts:
            assert (each.id, each.revision) == (fired[each.kind].id, 2)
            assert (each.state, each.reason, each.labels) == ("resolved", "state lost", {"site": "north"})
            assert each.source == fired[each.kind].source
        assert [(each.id, each.state, each.judged) for each in outputs.changes] == [
            (each.id, "resolved", False) for each in outputs.alerts
        ]

    def test_open_alerts_that_it_knows_go_on(self) -> None:
        work = Work(stream(silent_after="20s", rules={"recovery": 8}))
        work.send(reading("a", 0), reading("a", 1, ODD), reading("b", 30))

        outputs = reconcile(work.detector, work.state, PARTITION, published(work.alerts))

        assert (outputs.alerts, outputs.changes) == ([], [])
        work.send(*(reading("a", t) for t in range(31, 42)))
        assert sorted(each[1:] for each in work.ended[2:]) == [
            ("anomaly", 2, "recovered"),
            ("silent", 2, "recovered"),
        ]

    def test_episodes_that_only_it_knows_are_forgotten_in_silence(self) -> None:
        work = Work(stream(rules={"recovery": 1}))
        work.send(reading("a", 0), reading("a", 1, ODD))
        work.state.stored()
        assert work.row("a")["episode"] == FIRING

        outputs = reconcile(work.detector, work.state, PARTITION, {})
        work.send(reading("a", 2), reading("a", 3))

        assert (outputs.alerts, len(work.alerts), work.row("a")["episode"]) == ([], 1, IDLE)
        assert work.state.pack(whole=False).series == [b"a"]

    def test_the_next_anomaly_of_such_a_series_is_an_alert_of_its_own(self) -> None:
        work = Work(stream(rules={"recovery": 1}))
        work.send(reading("a", 0), reading("a", 1, ODD))

        reconcile(work.detector, work.state, PARTITION, {})
        work.send(reading("a", 2), reading("a", 3), reading("a", 4, ODD))

        assert [(each.revision, each.at.timestamp()) for each in work.alerts] == [(1, 1), (1, 4)]

    def test_series_without_an_open_alert_are_left_alone(self) -> None:
        work = Work(stream(rules={"for": 2}))
        work.send(reading("a", 0), reading("a", 1, ODD))
        before = work.row("a").tobytes()

        reconcile(work.detector, work.state, PARTITION, {})

        assert work.row("a").tobytes() == before
