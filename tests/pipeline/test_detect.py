"""The one step: what is scored, by which model, and what an alert says about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from feeding import PARTITION, Feed, S, batch, metric, reading, stream

from pipeline import detect
from pipeline.detect import LETTERS_PER_S, Detector
from pipeline.ports import Calibrated, Errors, Windows
from pipeline.records import RecordBatch
from pipeline.testing import FakeScorer


class OneModelEach(FakeScorer):
    """Series `m0`, `m1`, ... have model 0, 1, ...; remembers which model judged which level."""

    def __init__(self) -> None:
        super().__init__()
        self.judged: list[tuple[int, float]] = []
        self.asked: list[str] = []

    def assign(self, series: Sequence[str]) -> Calibrated:
        self.asked += series
        model = np.array([int(name[1:]) for name in series], np.int32)
        return replace(super().assign(series), model=model)

    def score(self, windows: Windows) -> Errors:
        self.judged += zip(windows.model.tolist(), windows.anchor[:, 0].tolist(), strict=True)
        return super().score(windows)


def test_the_rest_of_a_batch_is_scored_when_some_records_cannot_be_read() -> None:
    feed = Feed(stream())

    outputs = feed.send(reading("a", 0), b"not json", reading("a", 1), None, reading("a", 2), stamp_s=10)

    assert feed.bins == {"warming": 1, "scored": 2, "dead_lettered": 2}
    assert outputs.scores[0].time_ns.tolist() == [1 * S, 2 * S]
    assert [(letter.offset, letter.value) for letter in outputs.dead_letters] == [(1, b"not json"), (3, None)]


def test_a_batch_of_nothing_readable_is_accounted_for() -> None:
    feed = Feed(stream())

    feed.send(b"", b"{}", None)

    assert feed.bins == {"dead_lettered": 3}
    assert feed.state.next_offset == 3


def test_an_empty_batch_moves_the_position() -> None:
    feed = Feed(stream())
    empty = batch([], first_offset=0)

    feed.take(empty.rows(0, 0, next_offset=7))

    assert feed.state.next_offset == 7
    assert feed.bins == {}


class TestModels:
    def test_each_window_is_scored_by_the_model_of_its_series(self) -> None:
        scorer = OneModelEach()
        feed = Feed(stream(), scorer)

        feed.send(*(reading(f"m{n}", t, float(n)) for t in range(3) for n in (2, 0, 1)))

        assert len(scorer.judged) == 6
        assert all(model == level for model, level in scorer.judged)

    def test_new_series_are_looked_up_once(self) -> None:
        scorer = OneModelEach()
        feed = Feed(stream(), scorer)

        feed.each(*(reading(f"m{t % 2}", t) for t in range(10)))

        assert scorer.asked == ["m0", "m1"]

    def test_a_series_in_the_slot_of_a_forgotten_one_has_a_model_of_its_own(self) -> None:
        scorer = OneModelEach()
        feed = Feed(stream(forget_after="100s"), scorer)

        feed.each(reading("m7", 0, 7.0), reading("m1", 200, 1.0), reading("m3", 201, 3.0))
        feed.send(reading("m3", 202, 3.0))

        assert feed.state.index["m3"] == 0
        assert scorer.judged == [(3, 3.0)]

    def test_cells_closed_by_the_clock_after_a_restart_are_scored_by_their_own_model(self) -> None:
        scorer = OneModelEach()
        feed = Feed(stream(every="10s", late="0s"), scorer)
        feed.send(reading("m5", 0, 5.0), reading("m5", 10, 5.0))
        restored = type(feed.state).unpack(feed.detector.layout, feed.state.pack(whole=True))
        assert restored is not None
        feed.state = restored
        feed.state.adopt(scorer, "bundle-1")

        feed.send(reading("m1", 20))

        assert scorer.judged == [(5, 5.0)]

    def test_another_bundle_restarts_the_moments_from_its_calibration_and_raises_no_alert(self) -> None:
        feed = Feed(stream())
        feed.send(*(reading("a", t) for t in range(20)))
        feed.state.stored()

        feed.scorer = FakeScorer(normal_error=3.0)
        feed.state.adopt(feed.scorer, "bundle-2")
        to_be_stored = feed.state.pack(whole=False).series
        outputs = feed.send(reading("a", 20))

        assert outputs.scores[0].threshold[0] == pytest.approx(3.0 + 4 * 0.3)
        assert feed.alerts == []
        assert feed.state.bundle_id == "bundle-2"
        assert to_be_stored == [b"a"]

    def test_the_same_bundle_adopted_again_keeps_what_the_moments_have_learnt(self) -> None:
        feed = Feed(stream())
        feed.send(*(reading("a", t, 1.2) for t in range(20)))
        before = feed.row("a").tobytes()

        assert feed.scorer is not None
        feed.state.adopt(feed.scorer, "bundle-1")

        assert feed.row("a").tobytes() == before

    def test_windows_filled_before_the_first_bundle_are_scored_at_once_with_it(self) -> None:
        feed = Feed(stream(window=3), scorer=None)
        feed.send(*(reading("a", t) for t in range(5)))

        feed.scorer = FakeScorer()
        feed.state.adopt(feed.scorer, "bundle-1")
        feed.send(reading("a", 5))

        assert feed.bins == {"waiting_model": 5, "scored": 1}


class TestEvidence:
    def alert_of(self, feed: Feed) -> None:
        feed.send(reading("a", 100, 1.0, y=1.0, z=1.0), reading("a", 101, 1.0, y=9.0, z=3.0))

    def test_the_feature_with_the_largest_share_stands_first(self) -> None:
        feed = Feed(stream(features={"x": {}, "y": {"unit": "%"}, "z": {}}))

        self.alert_of(feed)

        [alert] = feed.alerts
        assert [feature.name for feature in alert.features] == ["y", "z", "x"]
        first = alert.features[0]
        assert (first.unit, first.observed, first.expected) == ("%", 9.0, 0.0)
        assert (first.window_observed, first.window_expected) == ([1.0, 9.0], [0.0, 0.0])
        assert sum(feature.contribution for feature in alert.features) == pytest.approx(1.0)

    def test_an_alert_says_what_it_was_held_against_and_where_the_record_stands(self) -> None:
        feed = Feed(stream(features=["x", "y", "z"]))

        self.alert_of(feed)

        [alert] = feed.alerts
        assert (alert.namespace, alert.stream, alert.series, alert.bundle) == (
            "test",
            "machines",
            "a",
            "bundle-1",
        )
        assert (alert.source.topic, alert.source.partition, alert.source.offset) == ("readings", 0, 1)
        error = (((3 / 3) ** 2 + (13 / 3) ** 2) / 2) ** 0.5
        assert alert.error == pytest.approx(error)
        assert alert.threshold == pytest.approx(1.4)
        assert alert.score == alert.peak_score == pytest.approx(error / 1.4)
        assert alert.started_at == alert.at
        assert alert.at.timestamp() == 101

    def test_only_the_first_features_of_many_come_with_their_window(self) -> None:
        names = [f"f{n}" for n in range(12)]
        feed = Feed(stream(features=names))

        feed.send(*({"series": "a", "time": t} | {n: 50.0 + i for i, n in enumerate(names)} for t in (0, 1)))

        [alert] = feed.alerts
        assert [bool(feature.window_observed) for feature in alert.features] == [True] * 8 + [False] * 4

    def test_an_alert_on_the_grid_points_at_the_newest_record_of_its_cell(self) -> None:
        feed = Feed(stream(every="10s", late="0s"))

        feed.send(reading("a", 0), reading("a", 11, 50.0), reading("a", 12, 50.0), reading("b", 20))

        assert [alert.source.offset for alert in feed.alerts] == [2]

    def test_labels_that_were_stored_under_other_settings_stop_nothing(self) -> None:
        feed = Feed(stream(labels=["site"]))
        feed.send(reading("a", 0, site="north"))

        feed.stream = stream(labels=["site", "rack"])
        feed.detector = Detector("test", "machines", feed.stream)
        feed.send(reading("a", 1, 50.0))

        assert [alert.labels for alert in feed.alerts] == [{"site": "north"}]


class TestDeadLetters:
    def bad(self, feed: Feed, second: float, count: int) -> None:
        feed.send(*[b"?"] * count, stamp_s=second)

    def test_beyond_the_rate_of_a_second_a_range_is_counted_instead(self) -> None:
        feed = Feed(stream())

        self.bad(feed, 5, LETTERS_PER_S + 500)

        *kept, counted = feed.dead_letters
        assert len(kept) == LETTERS_PER_S
        assert all(letter.value == b"?" and letter.count == 1 for letter in kept)
        assert (counted.offset, counted.last_offset, counted.count) == (
            LETTERS_PER_S,
            LETTERS_PER_S + 499,
            500,
        )
        assert counted.value is None
        assert counted.reason.startswith(
            "over 1000 dead letters in a second; the first of these: it is not JSON"
        )

    def test_counts_and_ranges_stay_exact_over_batches_and_seconds(self) -> None:
        feed = Feed(stream())

        for second, count in ((5, 900), (5, 900), (6, 100), (6, 1_000)):
            self.bad(feed, second, count)

        assert sum(letter.count for letter in feed.dead_letters) == 2_900 == feed.bins["dead_lettered"]
        covered = [
            offset for letter in feed.dead_letters for offset in range(letter.offset, letter.last_offset + 1)
        ]
        assert covered == list(range(2_900))
        assert [letter.count for letter in feed.dead_letters if letter.value is None] == [800, 100]

    def test_a_second_within_a_batch_starts_anew(self) -> None:
        feed = Feed(stream())
        stamps = [5.0] * (LETTERS_PER_S + 1) + [6.0]

        feed.take(batch([b"?"] * len(stamps), stamps_s=stamps))

        assert [letter.count for letter in feed.dead_letters] == [1] * (LETTERS_PER_S + 2)
        assert [letter.value for letter in feed.dead_letters[-2:]] == [None, b"?"]


class TestRowsForTraining:
    def test_they_are_what_windows_see(self) -> None:
        settings = stream(every="10s", late="0s", window=4, features={"x": {"transform": "diff"}})
        events = [reading("a", 10.0 * t, float(t * t)) for t in (0, 1, 2, 4, 5)] + [reading("b", 100)]
        feed, detector = Feed(settings), Detector("test", "machines", settings)
        state = detector.fresh("topic-1", 0)

        feed.send(*events)
        rows = list(detector.rows(state, batch(events)))

        values = np.concatenate([found.values for found in rows])
        fresh = np.concatenate([found.fresh for found in rows])
        assert fresh.tolist() == [True, False, False, False, False]
        assert values[-4:].tolist() == feed.window("a")
        assert state.next_offset == len(events)

    def test_a_window_never_reaches_over_a_row_marked_fresh(self) -> None:
        settings = stream(gap="5s", window=3)
        detector = Detector("test", "machines", settings)
        state = detector.fresh("topic-1", 0)

        [rows] = detector.rows(state, batch([reading("a", t) for t in (0, 1, 2, 20, 21)]))

        assert rows.fresh.tolist() == [True, False, False, True, False]

    def test_records_that_cannot_be_read_are_counted(self) -> None:
        detector = Detector("test", "machines", stream())
        state = detector.fresh("topic-1", 0)

        list(detector.rows(state, batch([reading("a", 0), b"?"])))

        assert state.counters.named()["dead_lettered"] == 1
        assert state.counters.records_read == 2


class TestMoreThanFitsInOnePiece:
    """Nothing shows where a batch was cut to fit in the scratch space of a step."""

    PIECE = 2_048
    RECORDS = 10 * PIECE + 52

    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(detect, "_PIECE_ITEMS", self.PIECE)

    def test_a_long_batch_comes_to_the_same_as_many_short_ones(self) -> None:
        events = [reading("abc"[t % 3], t, 50.0 if t % 3_000 < 3 else 1.0) for t in range(self.RECORDS)]
        whole, short = Feed(stream(window=3)), Feed(stream(window=3))

        outputs = whole.send(*events)
        for first in range(0, len(events), 1_000):
            short.send(*events[first : first + 1_000])

        assert len(outputs.scores) > 1
        assert whole.bins == short.bins
        assert whole.alerts == short.alerts
        assert len(whole.alerts) > 10

    def test_all_series_may_fall_silent_and_be_forgotten_at_once(self) -> None:
        series = self.PIECE + 100
        feed = Feed(stream(silent_after="10s", forget_after="100s"))
        feed.send(*(metric(f"s{n}", 0, "x") | {"x": 1.0} for n in range(series)))

        feed.send(reading("last", 200))

        assert len(feed.alerts) == 2 * series
        assert list(filter(None, feed.state.names)) == ["last"]

    def test_the_bound_may_be_met_while_the_scratch_space_is_full(self) -> None:
        feed = Feed(stream(max_series=2, forget_after="100s"))
        events = [reading("a", t / 1_000) for t in range(self.RECORDS)]

        feed.send(reading("b", 0), *events, reading("b", 21), reading("c", 21.5), reading("c", 200))
        feed.send(reading("c", 201))

        assert feed.bins == {"warming": 3, "scored": self.RECORDS, "over_limit": 2}


def test_every_record_keeps_its_offset_where_offsets_have_gaps() -> None:
    feed = Feed(stream(labels=["site"], silent_after="10s"))
    made = batch([reading("a", 0, site="north"), reading("b", 50, site="south"), reading("b", 51)])
    gappy = RecordBatch(
        PARTITION,
        made.buffer,
        np.array([3, 10, 11], np.int64),
        made.timestamp_ms,
        made.key_start,
        made.key_length,
        made.value_start,
        made.value_length,
        20,
    )

    feed.take(gappy)

    [alert] = feed.alerts
    assert (alert.source.offset, alert.labels) == (3, {"site": "north"})
    assert feed.state.next_offset == 20
