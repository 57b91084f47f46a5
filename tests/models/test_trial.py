"""What a trial looks at: rows that count, in bounded memory, through the one detect step."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import numpy as np
import pytest
from replaying import EVERY_S, PARTITION, START_S, history, source, stream, times_ns

from models.baselines import EwmaZ
from models.episodes import OPEN_NS, Episode
from models.excerpt import LEAST_SERIES, Excerpt
from models.faults import KINDS
from models.history import Batches
from models.tracks import survey
from models.trial import Alarm, Trial
from pipeline.control import Decisions, Silenced, Standing
from pipeline.detect import Detector
from pipeline.readings import Decoder
from pipeline.records import RecordBatch, TopicPartition
from pipeline.silences import Matchers, Silence
from pipeline.testing import FakeScorer

DETECTOR = Detector("n", "machines", stream())


def noise(rows: int = 400, seed: int = 0, level: float = 0.0) -> np.ndarray:
    return level + np.random.default_rng(seed).uniform(-1, 1, (rows, 2))


def series_in(batches: list[RecordBatch]) -> set[str]:
    return {json.loads(batch.value(row) or b"")["series"] for batch in batches for row in range(len(batch))}


class TestExcerpt:
    """A trial of a large stream looks at some of it, and says how much."""

    MANY: ClassVar = {f"s{n}": noise(20, n) for n in range(200)}

    def read(self, opened: Batches, most: int) -> Excerpt:
        return Excerpt(DETECTOR, opened, most, lambda _: None)

    def test_what_fits_is_kept_as_it_is(self) -> None:
        opened = source(self.MANY)

        found = self.read(opened, 4_000)

        assert [batch.offset.tolist() for batch in found.batches] == [b.offset.tolist() for b in opened()]
        assert (found.of_records, found.of_series) == (4_000, 200)

    def test_of_many_series_some_are_kept_whole(self) -> None:
        found = self.read(source(self.MANY), 1_500)

        kept = series_in(found.batches)
        assert sum(map(len, found.batches)) == 20 * len(kept)
        assert LEAST_SERIES < len(kept) <= 75
        assert (found.of_records, found.of_series) == (4_000, 200)

    def test_which_they_are_does_not_depend_on_the_others(self) -> None:
        half = {name: rows for n, (name, rows) in enumerate(self.MANY.items()) if n % 2}

        of_all = series_in(self.read(source(self.MANY), 1_500).batches)
        of_half = series_in(self.read(source(half), 1_500).batches)

        assert of_all & set(half) <= of_half

    def test_of_few_series_the_newest_records_are_kept(self) -> None:
        few = {name: self.MANY[name] for name in list(self.MANY)[:10]}
        opened = source(few, batch=50)

        found = self.read(opened, 120)

        assert [batch.offset.tolist() for batch in found.batches] == [b.offset.tolist() for b in opened()][
            -2:
        ]
        assert len(series_in(found.batches)) == 10

    def test_records_that_are_left_keep_their_offsets_and_bytes(self) -> None:
        opened = source(self.MANY)
        whole = {
            n: (batch, n - first)
            for batch in opened()
            for n, first in ((o, batch.offset[0]) for o in batch.offset)
        }

        for batch in self.read(opened, 1_500).batches:
            assert batch.next_offset > batch.offset[-1]
            for row, offset in enumerate(batch.offset):
                same, at = whole[offset]
                assert batch.key(row) == same.key(at)
                assert batch.value(row) == same.value(at)
                assert batch.timestamp_ms[row] == same.timestamp_ms[at]

    def test_what_cannot_be_read_is_left_out(self) -> None:
        bad = RecordBatch.of(PARTITION, 0, [(b"a", b"{", 0)] * 30)

        assert self.read(lambda: iter([bad]), 10).batches == []


def anomaly(series: str, first: int, last: int, *, confirmed: bool = True) -> Episode:
    """One that was told of in rows from ``first`` to ``last``."""
    at = times_ns(last + 1)
    return Episode(series, int(at[first]), int(at[last]), critical=False, normal=False, confirmed=confirmed)


class TestTracks:
    """Rows that count have a full window behind them, and nothing known to be wrong near it."""

    def usable(
        self, values: np.ndarray, *, known: tuple[Episode, ...] = (), freezes: tuple[Standing, ...] = ()
    ) -> list[int]:
        [track] = survey(DETECTOR, list(source({"a": values})()), freezes, known)
        missing = np.isnan(values).all(axis=1)
        assert np.array_equal(track.time_ns, times_ns(len(values))[~missing])
        np.testing.assert_allclose(track.values, values[~missing])
        return np.flatnonzero(~track.usable).tolist()

    def test_the_first_window_does_not_count(self) -> None:
        assert self.usable(noise(50)) == list(range(7))

    def test_confirmed_anomalies_do_not_count_nor_what_a_window_can_see_of_them(self) -> None:
        known = (anomaly("a", 40, 42), anomaly("b", 70, 72), anomaly("a", 80, 80, confirmed=False))

        assert self.usable(noise(100), known=known) == [*range(7), *range(33, 50)]

    def test_no_fault_stands_in_an_anomaly_that_was_told_of(self) -> None:
        known = (anomaly("a", 40, 42), anomaly("a", 80, 80, confirmed=False))
        [track] = survey(DETECTOR, list(source({"a": noise(100)})()), (), known)

        assert list(track.runs()) == [(7, 33), (50, 73), (88, 100)]

    def test_an_anomaly_that_is_not_over_lasts_to_the_end(self) -> None:
        known = (Episode("a", int(times_ns(100)[90]), OPEN_NS, critical=False, normal=False, confirmed=True),)

        assert self.usable(noise(100), known=known) == [*range(7), *range(83, 100)]

    def test_frozen_rows_do_not_count(self) -> None:
        start = datetime.fromtimestamp(START_S + 60 * EVERY_S, UTC)
        silence = Silence(
            matchers=Matchers(stream="machines", series="a"),
            mode="freeze",
            start=start,
            end=start + timedelta(minutes=1),
        )
        record = Silenced(stream="machines", at=start, who="ann", why="works", id="0" * 12, silence=silence)

        assert self.usable(noise(100), freezes=(Standing(record),)) == [*range(7), *range(53, 68)]

    def test_behind_a_hole_a_window_must_fill_again(self) -> None:
        values = noise(100)
        values[30:45] = np.nan
        gapped = stream(gap=3 * EVERY_S)
        [track] = survey(Detector("n", "s", gapped), list(source({"a": values})()), (), ())

        assert np.flatnonzero(~track.usable).tolist() == [*range(7), *range(30, 37)]
        assert list(track.runs()) == [(7, 30), (37, 85)]
        assert np.flatnonzero(track.fresh).tolist() == [0, 30]


def spiky(rows: dict[str, list[int]], length: int = 600) -> dict[str, np.ndarray]:
    """Rows at the level 0 that FakeScorer expects, but for spikes."""
    values = {name: noise(length, n) for n, name in enumerate(rows)}
    for name, at in rows.items():
        values[name][at] = 30.0
    return values


# `FakeScorer` errs by the distance from 0: a spike of 30 is far above its line.
class TestAlarms:
    SCORER = FakeScorer(normal_error=0.5)

    def test_false_alarms_are_those_outside_known_anomalies(self) -> None:
        values = spiky({"a": [100, 300], "b": [400]})
        at = times_ns(600)
        known = [anomaly("a", 298, 301), anomaly("b", 399, 401, confirmed=False)]

        trial = Trial(DETECTOR, [source(values)], known=known)
        alarms = trial.alarms(self.SCORER)

        where = {(trial.tracks[alarm.track].series, alarm.at_ns) for alarm in alarms}
        assert where == {("a", at[100]), ("b", at[400])}

    def test_days_count_alarms_and_rows_that_count(self) -> None:
        trial = Trial(DETECTOR, [source(spiky({"a": [], "b": []}, 2_880))])
        day = times_ns(2_880)[1_440]

        counts, days = trial.days([[], [Alarm(1, 0, int(day), 2.0), Alarm(1, 0, int(day) - 1, 2.0)]])

        assert days.tolist() == pytest.approx([1 - 7 / 1_440, 1] * 2)
        assert counts.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]

    def test_raised_lines_leave_out_what_is_below_them(self) -> None:
        values = spiky({"a": [100, 300]})
        values["a"][300] = 300.0
        trial = Trial(DETECTOR, [source(values)])

        low, high = sorted(alarm.peak for alarm in trial.alarms(self.SCORER))
        [left] = trial.alarms(self.SCORER, raised=low * 1.01)

        assert 1 < low < high / 5
        assert left.at_ns == times_ns(600)[300]

    def test_the_lines_that_people_raised_are_raised(self) -> None:
        settings = stream(rules={"raise_by": 1.0, "raise_most": 1.0})
        values = spiky({"a": [100]})
        values["a"][100] = 4.0
        plain = Trial(Detector("n", "s", settings), [source(values)])
        raised = Trial(Detector("n", "s", settings), [source(values)], decisions=Decisions(false_alarms=1))

        assert len(plain.alarms(self.SCORER)) == 1
        assert raised.alarms(self.SCORER) == []

    def test_alerts_about_silence_are_not_the_models(self) -> None:
        values = {"a": noise(600), "b": noise(600, 1)}
        values["a"][200:260] = np.nan
        silent = Detector("n", "s", stream(silent_after=600.0))

        assert Trial(silent, [source(values)]).alarms(FakeScorer(normal_error=100.0)) == []

    def test_two_partitions_are_two_states(self) -> None:
        values = spiky({"a": [100], "b": [400]})
        other = TopicPartition(PARTITION.topic, 1)
        trial = Trial(DETECTOR, [source({"a": values["a"]}), source({"b": values["b"]}, partition=other)])

        found = {(trial.tracks[alarm.track].partition, alarm.at_ns) for alarm in trial.alarms(self.SCORER)}

        assert found == {(PARTITION, times_ns(600)[100]), (other, times_ns(600)[400])}


class TestFound:
    def test_faults_are_found_where_alerts_fire_in_time(self) -> None:
        values = spiky({f"s{n}": [] for n in range(4)}, 1_500)
        trial = Trial(DETECTOR, [source(values)])
        large = [fault for fault in trial.faults if fault.kind == "spike" and abs(fault.push) == 8]

        found = trial.found(FakeScorer(normal_error=0.5))

        assert len(trial.faults) % len(KINDS) == 0
        assert large
        assert all(found[n] for n, fault in enumerate(trial.faults) if fault in large)
        assert not any(
            found[n] for n, fault in enumerate(trial.faults) if fault.kind in {"stuck", "lost phase"}
        )
        assert not trial.found(FakeScorer(normal_error=1e6)).any()

    def test_an_alert_that_never_ends_finds_nothing(self) -> None:
        trial = Trial(DETECTOR, [source(spiky({"a": []}, 1_500))])

        assert not trial.found(FakeScorer(level=50.0, normal_error=0.1)).any()


class TestHeldOut:
    def test_windows_are_of_the_newest_fifth_of_each_series(self) -> None:
        values = {"a": noise(507), "b": noise(1_007, 1)}
        trial = Trial(DETECTOR, [source(values)])

        held_out = trial.held_out()

        assert np.bincount(held_out.of).tolist() == [100, 200]
        newest = np.lib.stride_tricks.sliding_window_view(values["a"], 8, axis=0)[-100:].transpose(0, 2, 1)
        np.testing.assert_allclose(held_out.raw[:100], newest)
        assert np.bincount(held_out.block).tolist() == [10] * 10 + [20] * 10

    def test_errors_are_in_the_rows_units_whatever_a_models_are(self) -> None:
        """A model that takes the spread for ten times as large has no smaller errors."""
        trial = Trial(DETECTOR, [source({"a": noise(500)})])
        held_out = trial.held_out()

        errors = [held_out.errors(FakeScorer(spread=spread)).mean() for spread in (1.0, 10.0)]

        assert errors[0] == errors[1] == pytest.approx(np.sqrt(0.5 / held_out.spread.mean()), rel=0.05)

    def test_without_rows_there_is_nothing_to_compare(self) -> None:
        trial = Trial(DETECTOR, [source({"a": noise(5)})])

        assert trial.tracks == trial.faults == []
        assert len(trial.held_out().errors(FakeScorer())) == 0
        assert trial.days([[]])[1].size == 0


class TestEwmaZ:
    def test_the_error_is_the_distance_in_standard_deviations(self) -> None:
        values = {"a": noise(500, level=10), "b": noise(500, 1, level=-300)}
        scorer = EwmaZ(history(values))
        trial = Trial(DETECTOR, [source(values)])
        windows = trial.held_out().windows(scorer)

        errors = scorer.score(windows)

        model = scorer.assign(["a"] * 99 + ["b"] * 99).model
        assert np.array_equal(windows.model, model)
        last = np.concatenate([values["a"][-99:], values["b"][-99:]])
        mean = np.where(
            model[:, None] == model[0], values["a"][:400].mean(axis=0), values["b"][:400].mean(axis=0)
        )
        deviation = np.where(
            model[:, None] == model[0], values["a"][:400].std(axis=0), values["b"][:400].std(axis=0)
        )
        np.testing.assert_allclose(errors.last, (np.abs(last - mean) / deviation).mean(axis=1), rtol=1e-4)
        assert np.array_equal(errors.window, errors.last)
        assert scorer.explain(windows).contribution.sum(axis=1) == pytest.approx(1)

    def test_it_is_calibrated_on_rows_that_it_was_not_fitted_on(self) -> None:
        values = noise(500)
        values[400:] *= 3

        mean, deviation, last_mean, _, rows = EwmaZ(history({"a": values})).assign(["a"]).calibration[0]

        assert (
            mean == last_mean == pytest.approx(3 * np.abs(values[:400]).mean() / values[:400].std(), rel=0.1)
        )
        assert deviation > 0.05 * mean
        assert rows == 100

    def test_a_series_not_seen_is_judged_by_all_rows(self) -> None:
        scorer = EwmaZ(history({"a": noise(100, level=5), "b": noise(100, 1, level=-5)}))

        assert scorer.assign(["b", "new", "a"]).model.tolist() == [1, 2, 0]


def test_what_is_heard_of_progress_can_end_a_trial() -> None:
    heard: list[int] = []
    trial = Trial(DETECTOR, [source({"a": noise(1_500)})], on_records=heard.append)
    assert sum(heard) == 1_500
    trial.alarms(FakeScorer())
    assert sum(heard) == 3_000

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trial(DETECTOR, [source({"a": noise(1_500)})], on_records=stop)


def test_a_detector_with_another_decoder_makes_rows_of_what_it_reads() -> None:
    class Doubling(Decoder):
        def decode(self, batch, state):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            readings = super().decode(batch, state)
            readings.columns.values[:] *= 2
            return readings

    detector = Detector("n", "s", stream(), Doubling(stream()))
    [batch] = source({"a": noise(100)})()

    [rows] = detector.rows(detector.fresh("", 0), batch)

    np.testing.assert_allclose(rows.values, 2 * noise(100))
