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
from pipeline.ports import Float64s

LEVEL: Final = 1.0
"""A series whose median moved by so many of the reference's spreads has drifted; one of several features
when half of them did. Real series moved by half."""
SPREAD: Final = 4.0
"""The same for spreads that grew or shrank so many times: of real series three times, by bursts."""
ERROR: Final = 3.0
"""The same for a mean error so many times its calibration: of real series twice, by single features."""
TAIL: Final = 0.6
"""Of F features the k that moved farthest have to move (F / k) ** TAIL times as far as a single one, for
among many one is always far off: the F / k of Simes' test, under a tail that falls with a power of 1 / TAIL.
Chosen, of 0.4 to 0.7, on four machines, where it adds few notices to those of half of the features."""

_WINDOWS: Final = 1_024
_NAMED: Final = 3
_LEAST_ERROR: Final = 1e-6  # of a series that stood still


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the newest rows of a series are from what the reference learned.

    Features that stood still all the time are not counted.

    Attributes:
        series: its name.
        level: by how many spreads of the reference the median of a feature moved, signed; of the feature in
            the middle: half of them moved as far or farther.
        spread: how many times as large a spread is; of the feature in the middle, likewise.
        few: how far the few features that moved farthest did; at 1 it is farther than by themselves.
        error: how many times its calibration the reference's mean error is.
        features: by how many spreads the medians of those that moved farthest moved, signed, by name.
    """

    series: str
    level: float
    spread: float
    few: float
    error: float
    features: dict[str, float]

    @property
    def beyond(self) -> float:
        """The measure that is farthest out, in units of its bound."""
        spread = abs(float(np.log(self.spread))) / float(np.log(SPREAD))
        return max(abs(self.level) / LEVEL, spread, self.few, self.error / ERROR)

    @property
    def noticed(self) -> bool:
        """Whether one of them is beyond what series do by themselves."""
        return self.beyond >= 1


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
        now, unit = Scaling.fit(each.values), reference.scaling.spread[model]
        moved = now.median[0] - reference.scaling.median[model]
        level, times = moved / unit, now.spread[0] / unit
        alone = np.abs(moved) / np.maximum(unit, now.spread[0])  # what stood still then has no unit
        farthest = np.argsort(-alone, kind="stable")[:_NAMED].tolist()
        changed = (level != 0) | (times != 1)
        raw = windows_at(each.values, starts, spec.window_rows)
        error = scorer.score(as_windows(raw, np.full(len(raw), model, np.int32))).window.mean()
        found.append(
            Drift(
                series=name,
                level=_middle(level[changed]),
                spread=float(np.exp(_middle(np.log(times[changed])))),
                few=_few(alone[changed]),
                error=float(error / max(reference.calibration[model, 0], _LEAST_ERROR)),
                features={spec.features[n]: float(level[n]) for n in farthest if level[n]},
            )
        )
    return found


def _middle(values: Float64s) -> float:
    """The one that half of them are as large as or larger than, whatever their signs; 0 of none."""
    return float(values[np.argsort(np.abs(values))[len(values) // 2]]) if len(values) else 0.0


def _few(alone: Float64s) -> float:
    """How far the k features that moved farthest did, for the k that says most; see ``TAIL``."""
    share = np.arange(1, len(alone) + 1) / max(len(alone), 1)
    return float((np.sort(alone)[::-1] * share**TAIL).max(initial=0.0))
