"""The public fake: an autoencoder whose answers can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.ports import Scorer, Windows
from pipeline.testing import FakeScorer


def windows(*rows: list[list[float]]) -> Windows:
    values = np.array(rows)
    anchor = values[:, 0]
    tail = (values - anchor[:, None]).astype(np.float32)
    return Windows(tail, anchor, np.zeros(len(rows), np.int32))


def test_it_stands_in_for_a_trained_bundle() -> None:
    scorer: Scorer = FakeScorer(normal_error=2.0)

    found = scorer.assign(["a", "b"])

    assert found.model.tolist() == [0, 0]
    assert found.calibration.tolist() == [[2.0, 0.2, 2.0, 0.2, 1_000.0]] * 2


def test_the_error_of_a_row_is_its_distance_from_the_level_in_spreads() -> None:
    errors = FakeScorer(level=10.0, spread=2.0).score(windows([[16.0], [18.0]], [[6.0], [10.0]]))

    assert errors.window.tolist() == [pytest.approx(12.5**0.5), pytest.approx(2.0**0.5)]
    assert errors.last.tolist() == [4.0, 0.0]


def test_each_feature_contributes_by_its_distance() -> None:
    why = FakeScorer().explain(windows([[1.0, 3.0], [1.0, -3.0]]))

    assert why.contribution.tolist() == [[0.25, 0.75]]
    assert why.observed.tolist() == [[[1.0, 3.0], [1.0, -3.0]]]
    assert why.expected.tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_a_window_without_error_has_contributions_that_are_no_nan() -> None:
    assert FakeScorer().explain(windows([[0.0], [0.0]])).contribution.tolist() == [[0.0]]
