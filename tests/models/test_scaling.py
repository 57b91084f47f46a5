"""Scaling: robust, floored, and its clips."""

from __future__ import annotations

import numpy as np

from models.scaling import TARGET_CLIP, Scaling


def test_a_normal_feature_is_measured_in_its_standard_deviation() -> None:
    rows = np.random.default_rng(0).normal(7, 3, (10_000, 1))

    scaling = Scaling.fit(rows)

    assert abs(scaling.median[0, 0] - 7) < 0.1
    assert abs(scaling.spread[0, 0] - 3) < 0.1


def test_a_few_outliers_move_the_spread_by_half_their_deviation_at_most() -> None:
    rows = np.random.default_rng(0).normal(0, 1, (1_000, 1))
    rows[:5] = 1_000

    assert Scaling.fit(rows).spread[0, 0] == 0.5 * rows.std()


def test_a_feature_that_hardly_ever_moves_is_measured_in_its_deviation() -> None:
    rows = np.zeros((1_000, 1))
    rows[::10] = 4

    assert Scaling.fit(rows).spread[0, 0] == rows.std()


def test_a_constant_feature_has_a_floor() -> None:
    assert Scaling.fit(np.full((100, 1), -50.0)).spread[0, 0] == 0.05
    assert Scaling.fit(np.zeros((100, 1))).spread[0, 0] == 1e-9


def test_numbers_near_the_end_of_float64_give_a_finite_scaling() -> None:
    rows = np.array([[1e308], [-1e308]] * 50)

    scaling = Scaling.fit(rows)

    assert np.isfinite(scaling.spread).all()
    assert np.isfinite(scaling.apply(0, rows)).all()


def test_targets_are_clipped_at_fifty_units() -> None:
    scaling = Scaling(np.array([[10.0]]), np.array([[2.0]]))

    scaled = scaling.apply(0, np.array([[12.0], [1e6], [-1e6]]))

    assert scaled[:, 0].tolist() == [1.0, TARGET_CLIP, -TARGET_CLIP]
