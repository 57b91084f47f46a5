"""The rolling line that a reconstruction error is held against.

Two exponentially weighted moments for the window's error, two for the last row's own error; the line is
mean + k standard deviations. An average over all rows first (weight 1/n), then a half-life that is the longer
of 1,000 rows and ``memory`` (Welford's update with a weight, as in Finch 2009, "Incremental calculation of
weighted mean and variance", section 9).
"""

from __future__ import annotations

import math

from pipeline.kernels import Row, kernel
from pipeline.policy import JudgePolicy
from pipeline.ports import Float64s

_ROW_WEIGHT = 1 - 2 ** (-1 / 1_000)
_LEAST_SPREAD = 0.05
"""A model that reproduces a constant signal has errors with no spread at all; without a floor, relative to
their mean, the next rounding error would be an anomaly."""


@kernel
def line(mean: float, variance: float, policy: JudgePolicy) -> float:
    """The threshold: the fixed one, or mean + k standard deviations."""
    if policy.static_line > 0:
        return policy.static_line
    return mean + policy.k * max(math.sqrt(variance), _LEAST_SPREAD * mean) + 1e-9


@kernel
def start(row: Row, calibration: Float64s) -> None:
    """Begin with the bundle's calibration (see :class:`pipeline.ports.Calibrated`)."""
    row.error_mean = calibration[0]
    row.error_variance = calibration[1] ** 2
    row.last_mean = calibration[2]
    row.last_variance = calibration[3] ** 2
    row.rows = max(calibration[4], 1.0)


@kernel
def learn(row: Row, error: float, last_error: float, time_ns: int, policy: JudgePolicy) -> None:
    """Let one row's errors move the moments."""
    weight = _ROW_WEIGHT
    if policy.memory_ns > 0:
        elapsed = (time_ns - row.judged_ns) / policy.memory_ns
        weight = min(weight, -math.expm1(-math.log(2.0) * elapsed))
    weight = max(weight, 1.0 / (row.rows + 1.0))
    row.rows += 1.0
    step = error - row.error_mean
    row.error_mean += weight * step
    row.error_variance = (1.0 - weight) * (row.error_variance + weight * step * step)
    step = last_error - row.last_mean
    row.last_mean += weight * step
    row.last_variance = (1.0 - weight) * (row.last_variance + weight * step * step)
