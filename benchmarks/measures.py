"""What is said of a detector: pure functions of rows, labels, scores and alerts. Never point-adjusted.

Windows are int64[w, 2], the first and last row of each, apart and in order; alerts are the rows they fire in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

NAB_FALSE_ALARM = 0.11
"""What a false alarm far from any window costs in NAB's standard profile; a window counts 1."""
BUFFERS = tuple(range(0, 101, 10))
"""Rows by which VUS-PR widens labels, half to either side."""


def event_f1(found: float, false_alarms: float, events: float) -> float:
    """The harmonic mean of windows found among all, and of them among what was told: 0 to 1.

    A window counts once however many alerts it has, and each false alarm counts.
    """
    return 2 * found / (found + false_alarms + events) if found else 0.0


def nab_points(windows: Int64s, fired: Int64s) -> float:
    """NAB's raw score of one file in the standard profile: a perfect one has 1 a window, silence -1 a window.

    Lavin and Ahmad 2015, "Evaluating Real-time Anomaly Detection Algorithms", section II: of a window the
    first alert counts, by a sigmoid of its place; a false alarm costs the more the further it lies behind the
    last window, and all of it before the first.
    """
    points, first_row = -float(len(windows)), -1
    for n, (first, last) in enumerate(windows.tolist()):
        inside = fired[(fired >= first) & (fired <= last)]
        if len(inside):
            width = last - first + 1
            place = -(last - int(inside.min()) + 1) / width
            points += 1.0 + _sigmoid(place) / _sigmoid(-1.0)
        between = fired[(fired > first_row) & (fired < first)]
        points += NAB_FALSE_ALARM * _behind(windows[:n], between)
        first_row = last
    return points + NAB_FALSE_ALARM * _behind(windows, fired[fired > first_row])


def _behind(windows: Int64s, rows: Int64s) -> float:
    """What false alarms behind the last of some windows count, each -1 at most."""
    if not len(windows):
        return -float(len(rows))
    first, last = windows[-1].tolist()
    return sum(_sigmoid((row - last) / max(last - first, 1)) for row in rows.tolist())


def _sigmoid(place: float) -> float:
    """From 1 at the beginning of a window over 0 at its end to -1 behind it."""
    return -1.0 if place > 3.0 else float(2.0 / (1.0 + np.exp(5.0 * place)) - 1.0)


def nab_score(points: float, events: float) -> float:
    """Points of all files as NAB states them: 0 for silence, 100 for a perfect detector."""
    return 100.0 * (points + events) / (2.0 * events) if events else float("nan")


def average_precision(scores: Float64s, labels: NDArray[np.bool_]) -> float:
    """The area under the precision-recall curve, as the mean of precision over the steps of recall.

    Scores that are equal are taken together.
    """
    return _area(scores, labels.astype(np.float64), float(labels.sum()), np.zeros(0))


def vus_pr(scores: Float64s, labels: NDArray[np.bool_], buffers: Sequence[int] = BUFFERS) -> float:
    """The volume under the surface of precision and recall over buffers round the labels.

    Paparrizos et al. 2022, "Volume Under the Surface", VLDB 15(11), section 4: labels fade out over half a
    buffer to either side by the root of what is left of it; recall is over the mean of labels with and
    without it, times the share of windows that the rows above the cut touch.
    """
    return float(np.mean([_range_area(scores, labels, each) for each in buffers]))


def _range_area(scores: Float64s, labels: NDArray[np.bool_], buffer: int) -> float:
    soft = labels.astype(np.float64)
    edges = np.flatnonzero(np.diff(labels, prepend=False, append=False))
    first, last = edges[0::2], edges[1::2] - 1
    for away in range(1, buffer // 2 + 1):
        fading = (1.0 - away / buffer) ** 0.5
        beside = np.concatenate([first - away, last + away])
        beside = beside[(beside >= 0) & (beside < len(soft))]
        soft[beside] = np.maximum(soft[beside], fading)
    touched = np.flatnonzero(np.diff(soft > 0, prepend=False, append=False))
    tops = np.array([scores[a:b].max() for a, b in zip(touched[0::2], touched[1::2], strict=True)])
    return _area(scores, soft, (float(labels.sum()) + float(soft.sum())) / 2, tops)


def _area(scores: Float64s, labels: Float64s, positives: float, tops: Float64s) -> float:
    """Precision summed over the steps of recall; ``tops`` are the highest scores of windows to be touched."""
    order = np.argsort(-scores, kind="stable")
    cuts = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    hits = np.cumsum(labels[order])[cuts]
    recall = np.minimum(hits / positives, 1.0)
    if len(tops):
        recall *= np.searchsorted(np.sort(-tops), -scores[order][cuts], "right") / len(tops)
    return float(np.sum(np.diff(recall, prepend=0.0) * hits / (cuts + 1)))


def hit_rate(ranked: Sequence[int], causes: Sequence[int], share: float) -> float:
    """The share of the true causes among the first ``share`` times as many of a ranking: HitRate@100 at 1."""
    first = ranked[: int(share * len(causes))]
    return len(set(first) & set(causes)) / len(causes)
