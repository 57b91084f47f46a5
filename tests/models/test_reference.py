"""The pinned reference notices what retrain after retrain does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from machines import waves

from models import Bundle, ModelSpec, SeriesRows, train
from models.reference import Drift, drifted


def changed(rows: SeriesRows, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, SeriesRows]:
    return {"pump-1": SeriesRows(change(rows.values), rows.segment)}


def test_a_series_that_goes_on_as_before_has_not_drifted(bundle: Bundle) -> None:
    [drift] = drifted(bundle, {"pump-1": waves(9, 10)})

    assert drift.series == "pump-1"
    assert abs(drift.level) < 0.2
    assert drift.spread == pytest.approx(1, abs=0.2)
    assert drift.error == pytest.approx(1, abs=0.2)
    assert drift.few < 0.2
    assert drift.beyond < 0.5
    assert not drift.noticed


def test_a_level_pushed_a_little_at_each_retrain_is_noticed(bundle: Bundle) -> None:
    spread = bundle.scaling.spread[0]

    drifts = [
        drifted(bundle, changed(waves(20 + n, 10), lambda values, n=n: values + 0.2 * n * spread))[0]
        for n in range(8)
    ]

    assert [round(drift.level, 1) for drift in drifts] == pytest.approx([0.2 * n for n in range(8)], abs=0.11)
    noticed = [drift.noticed for drift in drifts]
    assert not noticed[0]
    assert all(noticed[noticed.index(True) :])
    assert noticed[5]


def test_one_feature_of_two_is_enough_and_is_the_one_that_is_told(bundle: Bundle) -> None:
    def fall(values: np.ndarray) -> np.ndarray:
        return values - np.array([0.0, 2.0]) * bundle.scaling.spread[0]

    [drift] = drifted(bundle, changed(waves(9, 10), fall))

    assert drift.level == pytest.approx(-2, abs=0.2)
    assert drift.features["heat"] == drift.level
    assert list(drift.features) == ["heat", "load"]
    assert drift.noticed


def test_a_spread_that_grows_or_dies_away_is_noticed(bundle: Bundle) -> None:
    rows = waves(9, 10)

    wide, still = (
        drifted(bundle, changed(rows, lambda values, times=times: 10 + (values - 10) * times))[0]
        for times in (5, 0.1)
    )

    assert wide.spread == pytest.approx(5, rel=0.2)
    assert still.spread == pytest.approx(0.1, rel=0.2)
    assert wide.noticed
    assert still.noticed


def test_another_shape_at_the_same_level_and_spread_is_noticed_by_its_error(bundle: Bundle) -> None:
    shuffled = changed(waves(9, 10), lambda values: np.random.default_rng(0).permutation(values))

    [drift] = drifted(bundle, shuffled)

    assert abs(drift.level) < 0.2
    assert drift.spread == pytest.approx(1, abs=0.2)
    assert drift.few < 1
    assert drift.error > 3
    assert drift.noticed


def test_nothing_is_said_of_series_that_the_reference_does_not_know(bundle: Bundle) -> None:
    short = SeriesRows(np.zeros((3, 2)), np.zeros(3, np.int32))

    assert drifted(bundle, {"stranger": waves(9, 10), "newcomer": waves(9, 10), "pump-1": short}) == []


MANY = 20
STILL, STARTED, RISEN = MANY - 1, MANY - 2, MANY - 3


def machine(seed: int, still: int = 2) -> np.ndarray:
    """Noise around zero; the last features stand still."""
    values = np.random.default_rng(seed).normal(0, 1, (800, MANY))
    values[:, MANY - still :] = 0.0
    return values


def one_series(values: np.ndarray) -> dict[str, SeriesRows]:
    return {"machine": SeriesRows(values, np.zeros(len(values), np.int32))}


def learned_from(values: np.ndarray) -> Bundle:
    spec = ModelSpec(features=tuple(f"m{n}" for n in range(MANY)), window_rows=4, steps=100)
    return train(one_series(values), spec, source={}, created_at="2026-01-01T00:00:00Z")


@pytest.fixture(scope="module")
def known() -> Bundle:
    return learned_from(machine(0))


class TestManyFeatures:
    """Of many features some always moved: that is no drift, and a push of all or of a few is."""

    def moved(self, known: Bundle, spreads: np.ndarray, seed: int = 1) -> Drift:
        """Rows of a later time: a feature that stood still has started to move, and one has risen."""
        values = machine(seed)
        values[:, STARTED] = np.random.default_rng(seed).normal(0, 1, len(values))
        values[:, RISEN] += 2.5
        [drift] = drifted(known, one_series(values + spreads * known.scaling.spread[0]))
        return drift

    def test_a_feature_that_moves_or_starts_to_move_is_no_drift_of_the_whole(self, known: Bundle) -> None:
        drift = self.moved(known, np.zeros(MANY))

        assert not drift.noticed
        assert abs(drift.level) < 0.2
        assert next(iter(drift.features)) == f"m{RISEN}"
        assert drift.features[f"m{RISEN}"] == pytest.approx(2.5, abs=0.4)

    @pytest.mark.parametrize("ways", [[1.0], [1.0, -1.0]])
    def test_all_features_pushed_a_little_at_each_retrain_are_noticed(
        self, known: Bundle, ways: list[float]
    ) -> None:
        push = 0.2 * np.resize(ways, MANY)

        noticed = [self.moved(known, retrain * push, retrain).noticed for retrain in range(8)]

        assert not any(noticed[:4])
        assert all(noticed[6:])

    def test_features_that_stand_still_do_not_outvote_the_others(self) -> None:
        """Eleven of twenty stood still and do; the others moved by more than a spread."""
        values = machine(2, still=11)
        known = learned_from(values)

        [drift] = drifted(known, one_series(values + 1.3 * (np.arange(MANY) < MANY - 11)))

        assert drift.level == pytest.approx(1.3, abs=0.2)
        assert drift.noticed

    @pytest.mark.parametrize(
        ("features", "spreads", "noticed"),
        [(1, 5.0, False), (1, 7.0, True), (5, 2.0, False), (5, 2.7, True)],
    )
    def test_few_features_have_to_go_farther_the_fewer_they_are(
        self,
        known: Bundle,
        features: int,
        spreads: float,
        noticed: bool,  # noqa: FBT001
    ) -> None:
        drift = self.moved(known, spreads * (np.arange(MANY) < features))

        assert abs(drift.level) < 0.5
        assert drift.error < 3
        assert drift.noticed is noticed
        assert "m0" in drift.features or features > 1

    def test_half_of_the_features_is_enough_where_each_went_as_far_as_one_alone_would_have_to(
        self, known: Bundle
    ) -> None:
        half, fewer = (self.moved(known, 1.3 * (np.arange(MANY) < count)) for count in (10, 5))

        assert half.few < 1
        assert half.level == pytest.approx(1.3, abs=0.2)
        assert half.noticed
        assert not fewer.noticed

    def test_where_nothing_moved_at_all_nothing_has_drifted(self) -> None:
        still = np.full((400, MANY), 7.0)

        [drift] = drifted(learned_from(still), one_series(still))

        assert (drift.level, drift.spread, drift.few, drift.features) == (0.0, 1.0, 0.0, {})
        assert not drift.noticed
