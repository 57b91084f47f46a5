"""The scorer the detect step sees: a bundle's stack, and which series has which model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.bundle import Bundle, series_hash
from pipeline.companions import Seeds
from pipeline.ports import Calibrated, Errors, Explanation, Windows


class StackScorer:
    """A :class:`pipeline.ports.Scorer` over one bundle; used from one thread."""

    def __init__(self, bundle: Bundle) -> None:
        self._stack = bundle.stack()
        self._calibration = bundle.calibration
        self._seeds = Seeds(bundle.scaling.median, bundle.scaling.spread, bundle.companions)
        self._model = {int(key): model for model, key in enumerate(bundle.hashes)}
        self._fallback = len(bundle.hashes)

    def assign(self, series: Sequence[str]) -> Calibrated:
        """The model of each series by the hash of its name; the last one, the fallback, for unseen ones."""
        found = (self._model.get(series_hash(name), self._fallback) for name in series)
        model = np.fromiter(found, np.int32, len(series))
        return Calibrated(model, self._calibration[model], self._seeds)

    def score(self, windows: Windows) -> Errors:
        """Errors of windows of any mix of models; see :meth:`models.stack.Stack.score`."""
        return self._stack.score(windows)

    def explain(self, windows: Windows) -> Explanation:
        """Observed, expected and contributions; see :meth:`models.stack.Stack.explain`."""
        return self._stack.explain(windows)
