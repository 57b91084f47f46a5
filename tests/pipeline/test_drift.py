"""A stream has drifted when errors far above their calibration are no longer rare among its newest rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.drift import DRIFTED, Drift, far

HOUR_NS = 3_600 * 10**9


def calibrated(rows: int, mean: float = 1.0, deviation: float = 0.5) -> np.ndarray:
    return np.tile([mean, deviation, 9.0, 9.0, 100.0], (rows, 1))


def rows(hours: float, errors: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one moment, whose usual errors are 1 give or take 0.5: far above 2.5."""
    time_ns = np.full(len(errors), round(hours * HOUR_NS))
    return time_ns, np.array(errors), calibrated(len(errors))


def test_an_error_is_far_by_its_own_series_calibration() -> None:
    calibration = np.concatenate([calibrated(2), calibrated(2, 10.0, 0.1)])

    assert far(np.array([2.4, 2.6, 10.2, 10.4]), calibration).tolist() == [False, True, False, True]


def test_the_share_is_that_of_all_rows_at_first() -> None:
    drift = Drift()
    assert drift.share == 0

    drift.add("b1", *rows(0, [1.0] * 3 + [9.0]))

    assert drift.share == 0.25


def test_rows_lose_half_their_weight_in_six_hours() -> None:
    drift = Drift()
    drift.add("b1", *rows(0, [1.0] * 6_000))
    drift.add("b1", *rows(6, [9.0] * 6_000))

    assert drift.share == pytest.approx(2 / 3)


def test_and_never_sooner_than_in_a_thousand_rows() -> None:
    drift = Drift()
    drift.add("b1", *rows(0, [1.0] * 1_000))
    for day in range(1, 6):
        drift.add("b1", *rows(24 * day, [9.0] * 100))

    before = sum(2 ** -(500 / 1_000) for _ in range(1_000))
    after = sum(100 * 2 ** -(100 * age / 1_000) for age in range(5))
    assert drift.share == pytest.approx(after / (before + after))


def test_another_regime_is_a_drift_within_hours_and_a_passing_anomaly_is_none() -> None:
    regime, passing = Drift(), Drift()
    for minute in range(24 * 60):
        for drift in (regime, passing):
            drift.add("b1", *rows(minute / 60, [1.0] * 10))
    assert regime.share == 0

    for minute in range(24 * 60, 27 * 60):
        regime.add("b1", *rows(minute / 60, [9.0] * 10))
        passing.add("b1", *rows(minute / 60, [9.0 if minute < 24.5 * 60 else 1.0] * 10))

    assert regime.share >= DRIFTED > 2 * passing.share


def test_another_bundle_has_another_calibration_and_begins_anew() -> None:
    drift = Drift()
    drift.add("b1", *rows(0, [9.0] * 100))

    drift.add("b2", *rows(1, [1.0] * 10))

    assert drift.share == 0


def test_rows_that_come_late_weigh_as_much_as_the_newest() -> None:
    drift = Drift()
    drift.add("b1", *rows(48, [1.0] * 10))
    drift.add("b1", *rows(0, [9.0] * 10))

    assert drift.share == pytest.approx(0.5, abs=0.01)


@given(st.lists(st.tuples(st.floats(0, 100), st.lists(st.floats(0, 9), max_size=20)), max_size=20))
def test_a_share_is_a_share(batches: list[tuple[float, list[float]]]) -> None:
    drift = Drift()
    for hours, errors in batches:
        drift.add("b1", *rows(hours, errors))

        assert 0 <= drift.share <= 1
