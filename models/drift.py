"""Drift as whoever trains sees it: the newest rows under the model in use, in a bounded sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from models.samples import SeriesRows, as_windows, evenly, window_starts, windows_at
from pipeline.drift import far
from pipeline.ports import Scorer

MAX_WINDOWS: Final = 8_192


def drift(scorer: Scorer, rows: Mapping[str, SeriesRows], window_rows: int) -> float:
    """The share of windows whose errors are far above their calibration; 0 where there is no window.

    What a worker counts of live rows (:class:`pipeline.drift.Drift`), over equally many windows of each
    series, evenly spaced in its rows. From :data:`pipeline.drift.DRIFTED` on the stream has drifted.
    """
    names = sorted(rows)
    each = max(MAX_WINDOWS // max(len(names), 1), 1)
    starts = [evenly(window_starts(rows[name].segment, window_rows), each) for name in names]
    of = np.repeat(np.arange(len(names)), [len(some) for some in starts])
    if not len(of):
        return 0.0
    known = scorer.assign(names)
    raw = [windows_at(rows[name].values, some, window_rows) for name, some in zip(names, starts, strict=True)]
    errors = scorer.score(as_windows(np.concatenate(raw), known.model[of]))
    return float(far(errors.window, known.calibration[of]).mean())
