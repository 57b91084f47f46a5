"""A pinned reference: whether what is learned from now is still what a bundle of long ago learned from.

A series that is pushed a little before each retrain looks normal to every model that was trained a retrain
before; it does not to one that was trained long ago.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.bundle import Bundle
from models.samples import SeriesRows, as_windows, evenly, window_starts, windows_at
from models.scaling import Scaling
from models.scorer import StackScorer

LEVEL: Final = 1.0
"""A median that moved by so many of the reference's spreads has drifted: real series moved by half."""
SPREAD: Final = 4.0
"""The same for a spread that grew or shrank so many times: real series, by bursts, three times."""
ERROR: Final = 2.0
"""The same for a mean error so many standard deviations of its calibration higher: real series, by 1.4."""

_WINDOWS: Final = 1_024


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the newest rows of a series are from what the reference learned.

    Attributes:
        series: its name.
        level: by how many spreads of the reference the median of a feature moved, signed; of the feature
            where it moved most.
        spread: how many times as large a spread is; of the feature where it changed most.
        error: by how many standard deviations of its calibration the reference's mean error is higher.
    """

    series: str
    level: float
    spread: float
    error: float

    @property
    def noticed(self) -> bool:
        """Whether one of them is beyond what series do by themselves."""
        return abs(self.level) >= LEVEL or abs(np.log(self.spread)) >= np.log(SPREAD) or self.error >= ERROR


def drifted(reference: Bundle, rows: Mapping[str, SeriesRows]) -> list[Drift]:
    """Hold the newest training rows of each series against the reference, in the order of their names.

    Series that the reference has no model for, and those without a whole window, are left out: nothing is
    known of them.
    """
    spec, scorer = reference.manifest.spec, StackScorer(reference)
    found = []
    for name, each in sorted(rows.items()):
        model = int(scorer.assign([name]).model[0])
        starts = evenly(window_starts(each.segment, spec.window_rows), _WINDOWS)
        if model == len(reference.hashes) or not len(starts):
            continue
        now, then = Scaling.fit(each.values), reference.scaling
        level = (now.median[0] - then.median[model]) / then.spread[model]
        spread = now.spread[0] / then.spread[model]
        raw = windows_at(each.values, starts, spec.window_rows)
        error = scorer.score(as_windows(raw, np.full(len(raw), model, np.int32))).window.mean()
        mean, deviation = reference.calibration[model, :2]
        found.append(
            Drift(
                name,
                float(level[np.abs(level).argmax()]),
                float(spread[np.abs(np.log(spread)).argmax()]),
                float((error - mean) / deviation),
            )
        )
    return found
