"""The rolling line that a reconstruction error is held against.

With the policy `ewma`: two exponentially weighted moments for the window's error, two for the last row's own
error; the line is mean + k standard deviations. An average over all rows first (weight 1/n), then a half-life
that is the longer of 1,000 rows and ``memory`` (:mod:`pipeline.moments`). With `quantile`: a multiple of a
quantile of either, by sketches that forget alike. With `joint` the moments are those of `ewma`, and what is
held against a line of its own is :mod:`pipeline.companions`'.
"""

from __future__ import annotations

import math

from pipeline.kernels import Row, kernel
from pipeline.moments import LEAST_SPREAD, moved
from pipeline.policy import JudgePolicy
from pipeline.ports import Float32s, Float64s

BINS = 28
"""Of each of a series' two sketches: 224 bytes."""
_LOWEST, _GROWTH = 0.2, 1.15
ACCEPTED, CARRIED = -1.0, -2.0
"""In place of the rows that a series' moments rest on: its next row is what is normal; or it was calm when
another model took over."""
_ROWS_AT_HAND = 32.0
"""How much what a line begins with weighs against the rows that follow, where it is not the bundle's."""


@kernel
def line(mean: float, variance: float, sketch: Float32s, policy: JudgePolicy) -> float:
    """The threshold: the fixed one, mean + k standard deviations, or a multiple of the quantile.

    ``sketch`` is float32[BINS] where the policy is a quantile, and ``mean`` then the scale it began with.
    """
    if policy.static_line > 0:
        return policy.static_line
    if policy.quantile > 0:
        return policy.margin * _quantile(mean, sketch, policy.quantile) + 1e-9
    return mean + policy.k * max(math.sqrt(variance), LEAST_SPREAD * mean) + 1e-9


@kernel
def joined_line(rows: float, grown: float, policy: JudgePolicy) -> float:
    """The line of the joined score, where moments rest on so many rows and alerts have made it grow."""
    return policy.joint_line * (1.0 + grown) * (1.0 + policy.joint_doubt / math.sqrt(max(rows, 1.0)))


@kernel
def start(row: Row, sketch: Float32s, calibration: Float64s, policy: JudgePolicy) -> None:
    """Begin with the bundle's calibration (see :class:`pipeline.ports.Calibrated`)."""
    _begin(row, sketch, calibration, calibration[0], calibration[2], policy)
    row.rows = max(calibration[4], 1.0)


@kernel
def start_again(
    row: Row,
    sketch: Float32s,
    calibration: Float64s,
    error: float,
    last_error: float,
    window_rows: int,
    policy: JudgePolicy,
) -> None:
    """Begin with the calibration scaled to what is normal now, before a row with these errors is judged.

    An accepted row is itself what is normal. Where a series was calm under another model it is what the rows
    before have under this one, unless that is lower: a model that sees a series otherwise than its held-out
    rows says nothing about the series. What no row will move rests on the calibration's rows as before.
    """
    mean, last_mean = error, last_error
    if row.rows != ACCEPTED:
        mean = _before(error, last_error, window_rows)
        if mean <= calibration[0]:
            start(row, sketch, calibration, policy)
            return
        last_mean = calibration[2] * mean / max(calibration[0], 1e-9)
    _begin(row, sketch, calibration, mean, last_mean, policy)
    row.rows = max(calibration[4], 1.0) if policy.still else _ROWS_AT_HAND


@kernel
def _begin(
    row: Row, sketch: Float32s, calibration: Float64s, mean: float, last_mean: float, policy: JudgePolicy
) -> None:
    deviation = calibration[1] * mean / max(calibration[0], 1e-9)
    last_deviation = calibration[3] * last_mean / max(calibration[2], 1e-9)
    row.error_mean = mean
    row.error_variance = deviation**2
    row.last_mean = last_mean
    row.last_variance = last_deviation**2
    if policy.quantile > 0:
        _seed(sketch[:BINS], mean, deviation)
        _seed(sketch[BINS:], last_mean, last_deviation)


@kernel
def _before(error: float, last_error: float, window_rows: int) -> float:
    """The error of a window without its newest row (see :class:`pipeline.ports.Errors`)."""
    others = window_rows * error**2 - last_error**2
    return math.sqrt(max(others, 0.0) / max(window_rows - 1, 1))


@kernel
def most(row: Row, time_ns: int, policy: JudgePolicy) -> float:
    """How much a row weighs at most, by the time since the one before and ``memory``."""
    if policy.memory_ns == 0:
        return 1.0
    elapsed = (time_ns - row.judged_ns) / policy.memory_ns
    return -math.expm1(-math.log(2.0) * elapsed)


@kernel
def learn(
    row: Row, sketch: Float32s, error: float, last_error: float, weight: float, policy: JudgePolicy
) -> None:
    """Let one row's errors move the moments, or the quantiles, by its ``weight``."""
    row.rows += 1.0
    if policy.quantile > 0:
        _count(sketch[:BINS], row.error_mean, error, weight)
        _count(sketch[BINS:], row.last_mean, last_error, weight)
        return
    row.error_mean, row.error_variance = moved(row.error_mean, row.error_variance, error, weight)
    row.last_mean, row.last_variance = moved(row.last_mean, row.last_variance, last_error, weight)


# Quantiles: shares of rows by the height of their error, in bins whose edges grow by _GROWTH each, as in
# Masson, Rim and Lee 2019, "DDSketch" (a quantile is right within half a bin, and sketches of one scale add
# up), here over a bounded range of _LOWEST to some ten times the scale that the series began with.


@kernel
def _edge(scale: float, n: int) -> float:
    """The lower edge of a bin."""
    return float(max(scale, 1e-9) * _LOWEST * _GROWTH**n)


@kernel
def _count(sketch: Float32s, scale: float, error: float, weight: float) -> None:
    """Add a row; those before it lose as much weight as it has."""
    height = max(error, 1e-12) / _edge(scale, 0)
    n = min(max(math.floor(math.log(height) / math.log(_GROWTH)), 0), BINS - 1)
    for each in range(BINS):
        sketch[each] *= 1.0 - weight
    sketch[n] += weight


@kernel
def _seed(sketch: Float32s, mean: float, deviation: float) -> None:
    """Begin with a normal distribution."""
    deviation = max(deviation, LEAST_SPREAD * mean, 1e-12) * math.sqrt(2.0)
    below = 0.0
    for n in range(BINS):
        up_to = 0.5 * (1.0 + math.erf((_edge(mean, n + 1) - mean) / deviation)) if n < BINS - 1 else 1.0
        sketch[n] = up_to - below
        below = up_to


@kernel
def _quantile(scale: float, sketch: Float32s, q: float) -> float:
    """The error that the share ``q`` of rows is at or below."""
    total = 0.0
    for n in range(BINS):
        total += sketch[n]
    above = (1.0 - q) * total
    for n in range(BINS - 1, 0, -1):
        if sketch[n] > above:
            return _edge(scale, n) * float(_GROWTH ** (1.0 - above / sketch[n]))
        above -= sketch[n]
    return _edge(scale, 1)
