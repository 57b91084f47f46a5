"""The pinned reference notices what retrain after retrain does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from machines import waves

from models import Bundle, SeriesRows
from models.reference import drifted


def changed(rows: SeriesRows, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, SeriesRows]:
    return {"pump-1": SeriesRows(change(rows.values), rows.segment)}


def test_a_series_that_goes_on_as_before_has_not_drifted(bundle: Bundle) -> None:
    [drift] = drifted(bundle, {"pump-1": waves(9, 10)})

    assert drift.series == "pump-1"
    assert abs(drift.level) < 0.2
    assert drift.spread == pytest.approx(1, abs=0.2)
    assert abs(drift.error) < 1
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


def test_one_feature_is_enough_and_is_the_one_that_is_told(bundle: Bundle) -> None:
    def fall(values: np.ndarray) -> np.ndarray:
        return values - np.array([0.0, 2.0]) * bundle.scaling.spread[0]

    [drift] = drifted(bundle, changed(waves(9, 10), fall))

    assert drift.level == pytest.approx(-2, abs=0.2)
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
    assert drift.error > 2
    assert drift.noticed


def test_nothing_is_said_of_series_that_the_reference_does_not_know(bundle: Bundle) -> None:
    short = SeriesRows(np.zeros((3, 2)), np.zeros(3, np.int32))

    assert drifted(bundle, {"stranger": waves(9, 10), "newcomer": waves(9, 10), "pump-1": short}) == []
