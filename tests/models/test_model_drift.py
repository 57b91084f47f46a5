"""The newest rows under the model in use, as whoever trains asks."""

from __future__ import annotations

import numpy as np
import pytest
from machines import SPEC, waves

from models import Bundle, SeriesRows, StackScorer
from models.drift import MAX_WINDOWS, drift
from pipeline.drift import DRIFTED


def test_rows_as_the_model_knows_them_have_not_drifted(bundle: Bundle) -> None:
    rows = {"pump-1": waves(21, 10), "pump-2": waves(22, 500)}

    assert drift(StackScorer(bundle), rows, SPEC.window_rows) < DRIFTED / 4


def test_another_regime_is_a_drift(bundle: Bundle) -> None:
    rows = {"pump-1": waves(21, 14), "pump-2": waves(22, 500)}

    assert drift(StackScorer(bundle), rows, SPEC.window_rows) == pytest.approx(0.5, abs=0.03)


def test_every_series_counts_alike_however_many_rows_it_has(bundle: Bundle) -> None:
    rows = {"pump-1": waves(21, 14, 8_000), "pump-2": waves(22, 500, 8_000)}

    assert MAX_WINDOWS < 2 * 8_000
    assert drift(StackScorer(bundle), rows, SPEC.window_rows) == pytest.approx(0.5, abs=0.03)


def test_without_a_window_nothing_has_drifted(bundle: Bundle) -> None:
    short = SeriesRows(np.zeros((3, 2)), np.zeros(3, np.int32))

    assert drift(StackScorer(bundle), {"pump-1": short}, SPEC.window_rows) == 0
    assert drift(StackScorer(bundle), {}, SPEC.window_rows) == 0
