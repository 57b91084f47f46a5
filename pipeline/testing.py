"""Public fakes for tests of your own; the in-memory bus is ``pipeline.bus.connect("sqlite://")``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.companions import Parts, Seeds
from pipeline.ports import Calibrated, Errors, Explanation, Windows

_FEATURES = 16


class FakeScorer:
    """A scorer that expects every feature to stand at ``level``, give or take ``spread``.

    A row's error is its mean distance from the level in spreads; the calibration says that ``normal_error``
    with a tenth of it as standard deviation is usual. Its companions begin with a level of ``level``, give or
    take ``spread``, and with no more, of up to 16 features.
    """

    def __init__(self, *, level: float = 0.0, spread: float = 1.0, normal_error: float = 1.0) -> None:
        self._level, self._spread, self._normal_error = level, spread, normal_error
        every = Parts(joint=True, level=_FEATURES, shapes=_FEATURES, rarity=True)
        scaling = np.full((1, _FEATURES), level), np.full((1, _FEATURES), spread)
        self._seeds = Seeds.blank(*scaling, every)

    def assign(self, series: Sequence[str]) -> Calibrated:
        """Model 0 for everyone."""
        usual = [self._normal_error, self._normal_error / 10] * 2
        everyone = np.zeros(len(series), np.int32)
        return Calibrated(everyone, np.tile([*usual, 1_000.0], (len(series), 1)), self._seeds)

    def score(self, windows: Windows) -> Errors:
        """Mean distance of each row from the level: its root mean square over the window, and the last."""
        rows = (np.abs(self._values(windows) - self._level) / self._spread).mean(axis=2)
        return Errors(np.hypot.reduce(rows, axis=1) / np.sqrt(rows.shape[1]), rows[:, -1])

    def explain(self, windows: Windows) -> Explanation:
        """The level is what was expected; each feature contributes by its distance."""
        observed = self._values(windows)
        distance = np.abs(observed - self._level).mean(axis=1)
        total = np.maximum(distance.sum(axis=1, keepdims=True), 1e-12)
        return Explanation(observed, np.full_like(observed, self._level), distance / total)

    def _values(self, windows: Windows) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return windows.anchor[:, None, :] + windows.tail
