"""The joined score: the recipe of docs/quality.md, row for row, and what becomes of its state."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from feeding import COMPILED, Feed, reading, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.alerts import Alert
from pipeline.companions import PROTOTYPES, SETTLING_ROWS, Companions, Parts, Scratch, Seeds, go_over, weights
from pipeline.config import Stream
from pipeline.episodes import FIRING, accept
from pipeline.ports import Calibrated
from pipeline.series import Layout, PartitionState
from pipeline.testing import FakeScorer

ROWS = 2_500 if COMPILED else 500
Values = NDArray[np.float64]


def joint(features: int = 1, window: int = 8, rules: object = None, **threshold: object) -> Stream:
    """Every companion, a line that nothing reaches and no memory but rows, unless told otherwise."""
    given = {"policy": "joint", "line": 50.0, "memory": "0s", "shapes": True, **threshold}
    names = [f"x{f}" for f in range(features)]
    return stream(window=window, threshold=given, features=names, rules=rules)


def events(values: Values, series: str = "a", first: int = 0) -> list[dict[str, Any]]:
    return [
        {"series": series, "time": first + t, **{f"x{f}": x for f, x in enumerate(row)}}
        for t, row in enumerate(values.tolist())
    ]


def exact(values: Values) -> Values:
    """Values whose differences float32 holds: a window is kept relative to its first row."""
    return np.round(values * 256) / 256


def noise(rows: int, features: int = 1, seed: int = 0) -> Values:
    return exact(np.random.default_rng(seed).normal(size=(rows, features)))


def machine(rows: int, features: int = 1, seed: int = 1) -> Values:
    """What series look like: a daily swing, noise, a drift, spikes, a stuck stretch and a new level."""
    random, t = np.random.default_rng(seed), np.arange(rows)[:, None]
    values = np.sin(t / 40 + np.arange(features)) + 0.2 * random.normal(size=(rows, features)) + t / rows
    values[random.choice(rows, 5)] += 12
    values[rows // 2 : rows // 2 + 60] = values[rows // 2]
    values[3 * rows // 4 :] += 4
    return exact(values)


# The recipe in plain Python, written from its description and not from the program.


@dataclass
class Rolling:
    """Mean and variance: a running average first, then a half-life."""

    mean: float
    variance: float
    rows: float
    half_life: float
    run: int = 0
    patience: int = 25

    def learn(self, value: float, z: float) -> None:
        self.run = self.run + 1 if z > 2 else 0
        weight = max(1 - 0.5 ** (1 / self.half_life), 1 / (self.rows + 1))
        if self.run >= self.patience:
            weight = max(weight, 0.05)
        apart = value - self.mean
        self.mean += weight * apart
        self.variance = (1 - weight) * (self.variance + weight * apart**2)
        self.rows += 1

    def z(self, value: float) -> float:
        return (value - self.mean) / (max(self.variance**0.5, 0.05 * self.mean) + 1e-9)


@dataclass
class Recipe:
    """One series from nothing: calibrated errors of 1 give or take 0.1, levels of 0 give or take 1."""

    features: int
    slow: int = 2_000
    level_slow: int = 1_000
    prototypes: list[NDArray[np.float32]] = field(default_factory=list)
    uses: list[int] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.error = Rolling(1.0, 0.01, 1_000, self.slow, patience=64)
        self.last = Rolling(1.0, 0.01, 1_000, self.slow, patience=64)
        self.levels = [Rolling(0.0, 1.0, 32, self.level_slow) for _ in range(self.features)]
        self.shape = Rolling(0.0, 0.0, 0, self.slow)
        self.settling, self.nearness, self.seen = SETTLING_ROWS, 0.0, 0
        self.roots = deque([0.0] * 8, 8)
        self.rare = deque([0.003] * 10, 10)
        self.rows = max(1, 8 // self.features)

    def row(self, window: Values) -> tuple[float, float]:
        """The joined scores of a window and of its last row's own error."""
        row = window[-1]
        each_row = np.abs(window).mean(axis=1)  # the scorer's error, and no part of the recipe
        error, last = float(np.sqrt((each_row**2).mean())), float(each_row[-1])
        level_z = [
            abs(x - each.mean) / max(each.variance**0.5, 0.05)
            for x, each in zip(row, self.levels, strict=True)
        ]
        level = float(np.mean(sorted(level_z)[-3:])) / (1 if self.features == 1 else 2)

        shape = window[-self.rows :].ravel().astype(np.float32)
        distance, nearest = 0.0, -1
        if self.prototypes:
            squares = np.zeros(len(self.prototypes), np.float32)
            for j, x in enumerate(shape):
                squares += (np.array([each[j] for each in self.prototypes], np.float32) - x) ** 2
            nearest = int(squares.argmin())
            distance = math.sqrt(float(squares[nearest]) / len(shape))
        self.roots.append(math.sqrt(distance))
        shape_error = sum(self.roots) / 8
        shape_z = self.shape.z(shape_error) if self.settling == 0 and self.shape.rows >= 64 else 0.0

        rarity = 1.0
        if self.features == 1:
            x = float(row[0])
            v = x if abs(x) <= 3 else math.copysign(min(3 + math.log(1 + abs(x) - 3), 8), x)
            bin_ = min(math.floor((v + 8) / 0.25), 63)
            self.rare.append(1 / (1 + self.counts.get(bin_, 0)))
            rarity = max(sum(self.rare) / 10, 0.003)
            self.counts[bin_] = self.counts.get(bin_, 0) + 1

        def join(z: float) -> float:
            powers = (max(z, 0) / 2.25) ** 4 + (level / 4.7) ** 4 + (max(shape_z, 0) / 2.7) ** 4
            return min(powers**0.25, 50.0) * rarity**0.5

        z, last_z = self.error.z(error), self.last.z(last)
        scores = join(z), join(last_z)

        if self.features == 1:  # of many, the error's moments stay where training left them
            self.error.learn(error, z)
            self.last.run = self.error.run - (z > 2)
            self.last.learn(last, z)
        for x, each, one in zip(row, self.levels, level_z, strict=True):
            each.learn(float(x), one)
        if self.settling:
            self.settling -= 1
        else:
            self.shape.learn(shape_error, shape_z)
        self._remember(shape, distance, nearest)
        return scores

    def _remember(self, shape: NDArray[np.float32], distance: float, nearest: int) -> None:
        if nearest < 0 or distance > self.nearness:
            if len(self.prototypes) < 64:
                self.prototypes.append(shape)
                self.uses.append(1)
            else:
                least = self.uses.index(min(self.uses))
                self.prototypes[least], self.uses[least] = shape, 1
        else:
            known = self.prototypes[nearest]
            self.prototypes[nearest] = known + np.float32(0.05) * (shape - known)
            self.uses[nearest] += 1
        weight = max(1 - 0.5 ** (1 / 1_000), 1 / (self.seen + 1))
        self.nearness += weight * (distance - self.nearness)
        self.seen += 1


@pytest.mark.parametrize(
    "rows", [noise(ROWS), machine(ROWS), noise(ROWS, 3), machine(ROWS, 5), noise(400, 10)]
)
def test_every_score_is_the_one_of_the_recipe(rows: Values) -> None:
    features = rows.shape[1]
    feed = Feed(joint(features), FakeScorer())
    slow = (2_000, 1_000) if features == 1 else (20_000, 20_000)
    recipe = Recipe(features, *slow)

    found = feed.send(*events(rows)).scores[0]

    wanted = np.array([recipe.row(rows[t - 7 : t + 1]) for t in range(7, len(rows))])
    np.testing.assert_allclose(found.score * 50, wanted[:, 0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.last_score * 50, wanted[:, 1], rtol=1e-9, atol=1e-12)
    assert np.ptp(wanted) > 1


class CalibratedOn(FakeScorer):
    """A model that was calibrated on so many held-out rows."""

    def __init__(self, held_out: float, **known: float) -> None:
        super().__init__(**known)
        self._held_out = held_out

    def assign(self, series: Sequence[str]) -> Calibrated:
        found = super().assign(series)
        found.calibration[:, 4] = self._held_out
        return found


class TestLine:
    """Where the line of the joined score is, in windows of 8 rows."""

    def line(self, features: int, held_out: float = math.inf, **threshold: object) -> float:
        feed = Feed(joint(features, **{"line": None, **threshold}), CalibratedOn(held_out))
        return float(feed.send(*events(noise(9, features))).scores[0].threshold[0])

    def test_of_one_feature_it_is_lower_where_rarity_weighs_the_score(self) -> None:
        assert [self.line(1, 4, rarity=rarity) for rarity in (True, False)] == [0.444, 1.55]

    def test_of_several_it_rises_with_their_fifth_root(self) -> None:
        assert [self.line(features) for features in (2, 16)] == pytest.approx([1.780, 2.699], rel=1e-3)

    def test_it_is_two_standard_errors_higher_where_the_calibration_rests_on_few_rows(self) -> None:
        deviations = np.random.default_rng(0).normal(size=(100_000, 25)).std(axis=1)

        rise = self.line(4, held_out=25 * 8) / self.line(4) - 1

        assert rise == pytest.approx(2 * deviations.std(), rel=0.05)

    @pytest.mark.parametrize("change", ["accepted", "another model"])
    def test_it_rests_on_the_same_rows_after_a_new_normal(self, change: str) -> None:
        feed = Feed(joint(4, line=None), CalibratedOn(400))
        before = feed.send(*events(noise(20, 4))).scores[0].threshold[-1]
        if change == "accepted":
            accept(feed.state.rows[0])
        else:
            feed.state.adopt(CalibratedOn(400, normal_error=0.01), "another")

        after = feed.send(*events(noise(20, 4), first=20)).scores[0].threshold[0]

        assert after == pytest.approx(before)

    def test_a_line_that_is_set_stands_as_it_is(self) -> None:
        assert self.line(4, 4, line=3.0) == 3.0


class TestState:
    """The state of the companions goes wherever the state of a series goes."""

    def test_any_batching_gives_the_same_bits(self) -> None:
        rows = np.concatenate([machine(300), noise(300)])
        whole = self.fed(rows, [600])

        for cuts in ([1] * 600, [7] * 80 + [40], [299, 1, 300]):
            pieces = self.fed(rows, cuts)
            assert pieces[0].tobytes() == whole[0].tobytes()
            assert pieces[1].tobytes() == whole[1].tobytes()

    def fed(self, rows: Values, sizes: Sequence[int]) -> tuple[NDArray[np.uint8], Values]:
        feed = Feed(joint(line=0.5, adapt_after="10s"), FakeScorer())
        scores, first = [], 0
        for size in sizes:
            made = events(rows[first : first + size], first=first)
            scores += [each.score for each in feed.send(*made).scores]
            first += size
        assert feed.alerts
        return feed.state.pack(whole=True).rows, np.concatenate(scores)

    @settings(deadline=None, derandomize=True, max_examples=20 if COMPILED else 2)
    @given(at=st.integers(1, 199), features=st.sampled_from([1, 2, 9]), seed=st.integers(0, 9))
    def test_what_was_packed_goes_on_as_if_nothing_had_happened(
        self, at: int, features: int, seed: int
    ) -> None:
        rows, settings_ = machine(200, features, seed), joint(features, line=0.5, adapt_after="10s")
        one, two = Feed(settings_, FakeScorer()), Feed(settings_, FakeScorer())
        one.send(*events(rows[:at]))
        two.send(*events(rows[:at]))

        packed = two.state.pack(whole=True)
        unpacked = PartitionState.unpack(two.state.layout, packed)
        assert unpacked is not None
        two.state = unpacked
        outputs = [each.send(*events(rows[at:], first=at)) for each in (one, two)]

        assert one.state.pack(whole=True).rows.tobytes() == two.state.pack(whole=True).rows.tobytes()
        assert [each.score.tolist() for each in outputs[0].scores] == [
            each.score.tolist() for each in outputs[1].scores
        ]

    def test_another_model_begins_with_its_own_seeds_and_the_line_stays_as_high_as_it_grew(self) -> None:
        feed = Feed(joint(line=0.5), FakeScorer())
        feed.send(*events(machine(300)))
        grown = feed.state.series.scalars["grown"][0, 0]
        assert grown > 0

        feed.scorer = FakeScorer(level=1.0, spread=2.0)
        feed.state.adopt(feed.scorer, "bundle-2")
        feed.send(*events(noise(1), first=300))

        mine, anew = feed.state.series, Feed(joint(line=0.5), feed.scorer)
        anew.send(*events(np.concatenate([machine(300)[-7:], noise(1)]), first=293))
        assert mine.scalars["grown"][0, 0] == pytest.approx(grown * 2 ** (-1 / 10_000))
        for name in set(Companions._fields) - {"scalars"}:
            ours, theirs = getattr(mine, name)[0], getattr(anew.state.series, name)[0]
            np.testing.assert_array_equal(ours, theirs, err_msg=name)

    def test_a_series_that_was_gone_comes_back_as_a_new_one_in_the_same_batch_or_the_next(self) -> None:
        settings_ = joint(line=0.5)
        limits = settings_.events.model_copy(update={"forget_after": 1_000.0})
        after = [*events(noise(1), "b", 4_000), *events(noise(1), first=4_001)]
        sent = [*events(machine(200)), *after, *events(noise(100), first=4_002)]
        states = []
        for cut in (0, 201):
            feed = Feed(settings_.model_copy(update={"events": limits}), FakeScorer())
            outputs = [feed.send(*sent[:cut]), feed.send(*sent[cut:])]
            assert [alert.series for alert in feed.alerts if alert.at.timestamp() < 200]
            scores = np.concatenate([each.score for one in outputs for each in one.scores])
            states.append((scores[193:].tolist(), feed.state.series.scalars["grown"].max()))

        assert states[0] == states[1]

    def test_series_pay_for_what_they_have(self) -> None:
        """The figures of the guide."""

        def size(*, features: int = 1, **threshold: object) -> int:
            return (
                Layout.of(joint(features, 32, **threshold)).row_bytes
                - Layout.of(stream(window=32, features=[f"x{f}" for f in range(features)])).row_bytes
            )

        off = {"level": False, "shapes": False, "rarity": False}
        assert size(**off) == 104
        assert size(**off | {"level": True}) == 104 + 24
        assert size(**off | {"rarity": True}) == 104 + 208
        assert size(**off | {"shapes": True}) == 104 + 2_368
        assert size() == 2_704
        assert size(features=4) == 104 + 48 + 96 + 2_368
        assert size(features=4, shapes="auto") == 104 + 48 + 96
        assert size(shapes="auto") == 2_704
        assert size(features=38) == 104 + 592 + 912 + 10_048

    def test_automatic_shapes_end_where_partitions_are_large(self) -> None:
        small, large = joint(shapes="auto"), joint(shapes="auto")
        events_ = large.events.model_copy(update={"max_series": 100_001})

        assert Parts.of(small).shapes == 8
        assert Parts.of(large.model_copy(update={"events": events_})).shapes == 0
        forced = joint(shapes=True).model_copy(update={"events": events_})
        assert Parts.of(forced).shapes == 8

    def test_a_model_of_another_size_is_refused_before_anything_is_judged(self) -> None:
        feed = Feed(joint(17), scorer=None)
        feed.send(*events(noise(9, 17)))

        with pytest.raises(ValueError, match="companions"):
            feed.state.calibrate(FakeScorer(), [0])


class TestChannels:
    """What each companion adds, and that it adds nothing when it is off."""

    rows = machine(ROWS)

    def seen(self, **threshold: object) -> Values:
        feed = Feed(joint(**threshold), FakeScorer())
        feed.send(*events(self.rows))
        found = feed.detector._verdicts.channels[: len(self.rows)]
        return found[feed.detector._items.window[: len(self.rows)] >= 0].copy()

    @pytest.mark.parametrize(
        ("switch", "column", "off"), [("level", 1, 0), ("shapes", 2, 0), ("rarity", 3, 1)]
    )
    def test_a_switch_takes_one_channel_out_and_leaves_the_others_as_they_are(
        self, switch: str, column: int, off: float
    ) -> None:
        whole, without = self.seen(), self.seen(**{switch: False})

        assert np.ptp(whole[:, column]) > 0
        assert (without[:, column] == off).all()
        others = [n for n in range(4) if n != column]
        np.testing.assert_array_equal(without[:, others], whole[:, others])

    def test_a_new_regime_is_accepted_by_every_channel(self) -> None:
        before, after = noise(1_500, seed=3), noise(1_500, seed=4)
        for away in (8.0, -8.0):
            feed = Feed(joint(line=1.5, rarity=False, adapt_after="30s"), FakeScorer())
            values = np.concatenate([before, after + away])

            scores = feed.send(*events(values)).scores[0].score

            at = 1_500 - 7
            assert scores[at : at + 30].min() > 1
            assert feed.row("a")["episode"] != FIRING
            assert scores[at + 300 :].max() < 1
            assert feed.state.series.level[0, 0] / away > 0.5

    def test_a_spike_of_one_row_is_found_and_normal_rows_are_not(self) -> None:
        values = noise(2_000)
        values[1_500] = 9.0
        feed = Feed(joint(line=0.8, adapt_after="6h"), Warmed(noise(1_000, seed=9)))

        feed.send(*events(values))

        firing = [alert for alert in feed.alerts if alert.revision == 1]
        assert [alert.started_at.timestamp() for alert in firing] == [1_500]

    def test_each_alert_raises_its_series_line_which_is_half_forgotten_after_10000_rows(self) -> None:
        feed = Feed(joint(line=1.0, rarity=False, rules={"recovery": 1}), FakeScorer())
        values = noise(40)
        values[20] = 50.0

        thresholds = feed.send(*events(values)).scores[0].threshold

        assert [alert.state for alert in feed.alerts][:1] == ["firing"]
        fired = int(np.argmax(thresholds > 1.0)) - 1
        assert thresholds[fired] == 1.0
        left = 2 ** (-np.arange(1, 3) / 10_000)
        np.testing.assert_allclose(thresholds[fired + 1 : fired + 3], 1 + 0.05 * left)

    def test_what_is_judged_anomalous_teaches_no_companion(self) -> None:
        rows = noise(400)
        feed = Feed(joint(line=3.0, rarity=False, adapt_after="6h"), FakeScorer())
        feed.send(*events(rows))
        before = [getattr(feed.state.series, name).copy() for name in ("level", "shapes", "uses")]

        feed.send(*events(rows[:20] + 60, first=400))

        assert feed.row("a")["episode"] == FIRING
        after = feed.state.series
        np.testing.assert_array_equal(after.level[0, :2], before[0][0, :2])
        np.testing.assert_array_equal(after.shapes, before[1])
        np.testing.assert_array_equal(after.uses, before[2])
        assert feed.state.counters.frozen == 20

    def test_an_accepted_row_is_what_is_normal_to_every_channel(self) -> None:
        rows = noise(1_000)
        feed = Feed(joint(line=2.5, rarity=False, adapt_after="6h"), FakeScorer())
        feed.send(*events(rows))
        feed.send(*events(rows[:60] + 9, first=1_000))
        assert feed.row("a")["episode"] == FIRING

        accept(feed.state.rows[0])
        scores = feed.send(*events(rows[60:160] + 9, first=1_060)).scores[0].score

        assert scores.max() < 1
        assert feed.state.series.level[0, 0] == pytest.approx(9, abs=1)


class TestAlerts:
    """What an alert tells of a joined score."""

    def fired(self, **threshold: object) -> Alert:
        values = noise(2_000)
        values[1_500:] += 9.0
        feed = Feed(joint(adapt_after="6h", **{"line": 2.0, "rarity": False, **threshold}), FakeScorer())
        feed.send(*events(values))
        return next(alert for alert in feed.alerts if alert.started_at.timestamp() >= 1_500)

    def test_the_channel_that_adds_most_comes_first(self) -> None:
        alert = self.fired()

        assert alert.joined is not None
        channels = alert.joined.channels
        assert {each.name for each in channels} == {"autoencoder", "level", "shapes"}
        assert [each.share for each in channels] == sorted((each.share for each in channels), reverse=True)
        assert sum(each.share for each in channels) == pytest.approx(1)
        at_one = {"autoencoder": 2.25, "level": 4.7, "shapes": 2.7}
        parts = [(max(each.z, 0) / at_one[each.name]) ** 4 for each in channels]
        assert parts[0] / sum(parts) == pytest.approx(channels[0].share)
        assert alert.score is not None
        assert alert.threshold is not None
        assert alert.score * alert.threshold == pytest.approx(sum(parts) ** 0.25)

    def test_what_is_off_is_not_named(self) -> None:
        alert = self.fired(level=False, shapes=False)
        assert alert.joined is not None
        assert [each.name for each in alert.joined.channels] == ["autoencoder"]
        assert alert.joined.rarity is None

        weighed = self.fired(rarity=True, line=0.7).joined
        assert weighed is not None
        assert weighed.rarity is not None
        assert 0.003 <= weighed.rarity <= 1

    def test_other_policies_join_nothing(self) -> None:
        feed = Feed(stream())
        feed.send(*(reading("a", t, 50.0) for t in range(3)))

        assert [alert.joined for alert in feed.alerts[:1]] == [None]


class Warmed(FakeScorer):
    """A scorer whose bundle has seen some rows, in windows of eight."""

    def __init__(self, rows: Values, *, median: float = 0.0, spread: float = 1.0) -> None:
        features, window = rows.shape[1], 8
        super().__init__(level=median, spread=spread)
        parts = Parts.all(window, features)
        scaling = np.full((1, features), median), np.full((1, features), spread)
        self._seeds = Seeds(*scaling, Companions.empty(1, parts))
        room = np.zeros(parts.shapes, np.float32), Scratch.room(window, features)
        segment = np.zeros(len(rows), np.int32)
        go_over(self._seeds.begin, 0, rows, segment, self._seeds, 0, *weights(features), *room)
        last = np.abs((rows - median) / spread).mean(axis=1)
        windows = np.sqrt(np.lib.stride_tricks.sliding_window_view(last**2, window).mean(axis=1))
        self.usual = np.array([windows.mean(), windows.std(), last.mean(), last.std(), len(windows)])

    def assign(self, series: Sequence[str]) -> Calibrated:
        found = super().assign(series)
        return replace(found, calibration=np.tile(self.usual, (len(series), 1)))


def test_a_history_teaches_what_its_rows_would_have_taught_live() -> None:
    rows = machine(600)
    live = Feed(joint(window=8), FakeScorer())
    live.send(*events(rows))
    seeds = Warmed(rows)._seeds.begin

    assert seeds.scalars["stored"][0, 0] == PROTOTYPES
    assert seeds.counts.sum() == 600
    assert seeds.scalars["shape_rows"][0, 0] == 600 - 7 - 300
    assert seeds.level[0, 0] == pytest.approx(live.state.series.level[0, 0], rel=0.05)


@pytest.mark.parametrize("at", [1_100, 1_500, 2_222])
def test_a_model_change_causes_no_alert(at: int) -> None:
    """On the same healthy rows, whenever it comes, and wherever the scaling of the new model is."""
    rows = noise(3_000, seed=5)
    feed = Feed(joint(line=0.8, adapt_after="6h"), Warmed(rows[:1_000]))
    feed.send(*events(rows[1_000:at], first=1_000))
    highest = 0.0

    for median, spread in ((0.0, 1.0), (0.5, 2.0)):
        feed.scorer = Warmed(rows[at - 800 : at], median=median, spread=spread)
        feed.state.adopt(feed.scorer, f"bundle of {median}")
        scores = feed.send(*events(rows[at : at + 300], first=at)).scores[0]
        highest, at = max(highest, scores.score.max()), at + 300

    assert feed.alerts == []
    assert highest > 0.2
