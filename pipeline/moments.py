"""Rolling moments: exponentially weighted mean and variance, as everything that rolls here uses them.

An average over all rows first (weight 1/n), then one with a half-life: Welford's update with a weight, as in
Finch 2009, "Incremental calculation of weighted mean and variance", section 9.
"""

from __future__ import annotations

import math

from pipeline.kernels import kernel

LEAST_SPREAD = 0.05
"""Of a standard deviation, relative to the mean. A model that reproduces a constant signal has errors with no
spread at all; without a floor the next rounding error would be an anomaly."""


@kernel
def pace(weight: float, rows: float) -> float:
    """The weight of a row in moments that rest on so many ``rows``."""
    return max(weight, 1.0 / (rows + 1.0))


@kernel
def moved(mean: float, variance: float, value: float, weight: float) -> tuple[float, float]:
    """Mean and variance after one more value."""
    step = value - mean
    return mean + weight * step, (1.0 - weight) * (variance + weight * step * step)


@kernel
def deviations(value: float, mean: float, variance: float) -> float:
    """How many standard deviations an error is above its mean."""
    return (value - mean) / (max(math.sqrt(variance), LEAST_SPREAD * mean) + 1e-9)
