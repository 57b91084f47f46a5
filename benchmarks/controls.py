"""Detectors that any other must beat, as scores of rows; and the episode rules over such scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from labelled import Float64s, Int64s, Series
from numpy.typing import NDArray

from pipeline.config import Stream
from pipeline.episodes import FIRED, RESOLVED, clear, step
from pipeline.kernels import kernel
from pipeline.policy import JudgePolicy, judge_policy
from pipeline.series import Layout

HALF_LIFE, HALF_LIFE_OF_MANY = 1_000, 20_000
"""Rows, for one feature and for many."""
LARGEST = 3
"""Features whose z is averaged where there are many."""


def by_chance(series: Series) -> Float64s:
    """Scores float64[rows] that know nothing, each as good as any."""
    return np.random.default_rng(len(series.time_ns)).exponential(size=len(series.time_ns))


def always(series: Series) -> Float64s:
    """Scores float64[rows] that are all the same."""
    return np.ones(len(series.time_ns))


def ewma_z(series: Series) -> Float64s:
    """How many standard deviations each value is from its own moving mean, float64[rows].

    Of many features the mean of the three largest counts. Score first, learn second; moments are an average
    over all rows until the half-life takes over (Welford's update with a weight, Finch 2009, section 9).
    """
    rows, features = series.values.shape
    half_life = HALF_LIFE if features == 1 else HALF_LIFE_OF_MANY
    away = np.zeros((rows, features))
    _ewma_z(series.values, 1 - 2 ** (-1 / half_life), np.zeros(features), np.zeros(features), away)
    return np.sort(away, axis=1)[:, -LARGEST:].mean(axis=1)


@kernel
def _ewma_z(values: Float64s, weight: float, mean: Float64s, variance: Float64s, away: Float64s) -> None:
    for n in range(values.shape[0]):
        share = max(weight, 1.0 / (n + 1.0))
        for f in range(values.shape[1]):
            apart = values[n, f] - mean[f]
            # as the floor of scaling: a constant feature makes no anomaly of rounding
            away[n, f] = abs(apart) / max(variance[f] ** 0.5, 0.001 * abs(mean[f]), 1e-9) if n > 0 else 0.0
            mean[f] += share * apart
            variance[f] = (1.0 - share) * (variance[f] + share * apart * apart)


def episodes(scores: Float64s, last: Float64s, time_ns: Int64s, stream: Stream) -> tuple[Int64s, Int64s]:
    """The rows where alerts fire and where they end, int64 each, by a stream's rules.

    They are the program's own (:func:`pipeline.episodes.step`), over scores of rows, and of last rows alone,
    float64[n].
    """
    columns = np.stack([scores, last], axis=1)
    changed = np.zeros(len(scores), np.int8)
    _episodes(Layout.of(stream).arrays(1).rows, columns, time_ns, judge_policy(stream), changed)
    return np.flatnonzero(changed == FIRED), np.flatnonzero(changed == RESOLVED)


@kernel
def _episodes(
    rows: NDArray[Any], scores: Float64s, time_ns: Int64s, policy: JudgePolicy, changed: NDArray[np.int8]
) -> None:
    clear(rows[0])
    for n in range(scores.shape[0]):
        changed[n] = step(rows[0], time_ns[n], scores[n, 0], scores[n, 1], True, policy)[0]
