"""What a stream's first model must not be worse than."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from models.companions import learn
from models.samples import HELD_OUT_SHARE, SeriesRows
from models.scaling import Scaling
from models.spec import ModelSpec
from pipeline.companions import Seeds
from pipeline.ports import Calibrated, Errors, Explanation, Float64s, Int32s, Windows

_TOP: Final = 3  # of many features the few that are furthest off tell most; a mean over all drowns them

_SHAPE_ROWS: Final = 8  # a shape is no longer, whatever the window


PCA: Final = "pca"
EWMA_Z: Final = "ewma-z"


def linear(spec: ModelSpec) -> ModelSpec:
    """PCA of the same code size as a challenger's."""
    return replace(spec, kind=PCA, hidden=None, code=min(spec.encoder_widths()[-1], spec.width - 1))


class EwmaZ:
    """A :class:`pipeline.ports.Scorer` that knows no shapes: how far the newest value is from the usual one.

    The error is in standard deviations of the rows it was fitted on, the mean of the largest three over the
    features; the detect step holds it against a rolling mean and deviation, as it does any error.
    """

    def __init__(self, rows: Mapping[str, SeriesRows]) -> None:
        """Fit on the first rows of each series and calibrate on the rest; all rows are for series not seen.

        ``rows`` are those that a model was trained on: at least two series' rows, or one of some length.
        """
        history = {name: each.values for name, each in rows.items() if len(each.values) > 1}
        self._model = {name: model for model, name in enumerate(history)}
        together = np.concatenate(list(history.values()))
        parts = [np.split(each, [_fitted(len(each))]) for each in (*history.values(), together)]
        self._mean = np.stack([first.mean(axis=0) for first, _ in parts])
        floor = np.maximum(1e-3 * np.abs(self._mean), 1e-9)
        self._deviation = np.maximum(np.stack([first.std(axis=0) for first, _ in parts]), floor)
        self._calibration = np.stack([self._calibrated(rest, model) for model, (_, rest) in enumerate(parts)])
        scaling, series = Scaling(self._mean, self._deviation), [rows[name] for name in history]
        self._seeds = Seeds(self._mean, self._deviation, learn(scaling, series, together, _SHAPE_ROWS))

    def assign(self, series: Sequence[str]) -> Calibrated:
        """Each series' own mean; that of all rows for one not seen."""
        found = (self._model.get(name, len(self._model)) for name in series)
        model = np.fromiter(found, np.int32, len(series))
        return Calibrated(model, self._calibration[model], self._seeds)

    def score(self, windows: Windows) -> Errors:
        """The newest row's distance, for the window as for the row."""
        errors = self._errors(windows.anchor + windows.tail[:, -1], windows.model)
        return Errors(errors, errors)

    def explain(self, windows: Windows) -> Explanation:
        """The mean is what was expected; features share by their distance."""
        observed = windows.anchor[:, None, :] + windows.tail
        expected = np.broadcast_to(self._mean[windows.model][:, None, :], observed.shape)
        z = self._z(observed[:, -1], windows.model) + 1e-12
        return Explanation(observed, expected, z / z.sum(axis=1, keepdims=True))

    def _z(self, values: Float64s, model: Int32s) -> Float64s:
        z: Float64s = np.abs(values - self._mean[model]) / self._deviation[model]
        return z

    def _errors(self, values: Float64s, model: Int32s) -> Float64s:
        top: Float64s = np.sort(self._z(values, model), axis=1)[:, -_TOP:].mean(axis=1)
        return top

    def _calibrated(self, held_out: Float64s, model: int) -> Float64s:
        errors = self._errors(held_out, np.full(len(held_out), model, np.int32))
        moments = [errors.mean(), max(errors.std(), 0.05 * errors.mean() + 1e-6)]
        return np.array([*moments, *moments, len(errors)])


def _fitted(rows: int) -> int:
    """How many of a series' rows are fitted on: all but the newest fifth, which holds one at least."""
    return rows - max(round(HELD_OUT_SHARE * rows), 1)
