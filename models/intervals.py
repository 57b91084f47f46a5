"""How sure counts make us: intervals of shares and rates, and of the differences between two of them.

All are of 90 %: either end is passed by chance in one of twenty trials.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.ports import Float64s

_Z: Final = NormalDist().inv_cdf(0.95)
_DRAWS: Final = 2_000
_MOST_BLOCKS: Final = 2_000  # bounds the work of the bootstrap; more are joined with their neighbours


class Estimate(NamedTuple):
    """A figure and the ends of its interval."""

    value: float
    low: float
    high: float


def share(found: int, of: int) -> Estimate:
    """A share of independent trials (Wilson 1927); nothing is known of none."""
    if of == 0:
        return Estimate(float("nan"), 0.0, 1.0)
    value, weight = found / of, _Z**2 / of
    middle = value + weight / 2
    half = _Z * sqrt(value * (1 - value) / of + weight / (4 * of))
    return Estimate(value, (middle - half) / (1 + weight), (middle + half) / (1 + weight))


def difference_of_shares(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Estimate:
    """The share of ``first`` less that of ``second``, bool[n] over the same trials.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", method 10.
    """
    n = len(first)
    if n == 0:
        return Estimate(float("nan"), -1.0, 1.0)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    p, q = share(int(first.sum()), n), share(int(second.sum()), n)
    one, two = int(first.sum()), int(second.sum())
    spread = sqrt(one * (n - one) * two * (n - two))
    agreement = both * neither - (one - both) * (two - both)
    if agreement > 0:
        agreement = max(agreement - n / 2, 0)
    phi = agreement / spread if spread else 0.0
    below, above = (p.value - p.low, q.high - q.value), (p.high - p.value, q.value - q.low)
    low, high = (sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0)) for a, b in (below, above))
    value = p.value - q.value
    return Estimate(value, max(value - low, -1.0), min(value + high, 1.0))


def rate(count: int, exposure: float) -> Estimate:
    """Events to one unit of exposure, by the score interval of a Poisson mean (Rao; as Wilson's of a share)."""
    if exposure <= 0:
        return Estimate(float("nan"), 0.0, float("inf"))
    middle, half = count + _Z**2 / 2, _Z * sqrt(count + _Z**2 / 4)
    return Estimate(count / exposure, max(middle - half, 0.0) / exposure, (middle + half) / exposure)


def difference_of_rates(first: Float64s, second: Float64s, exposure: Float64s, seed: int) -> Estimate:
    """The rate of ``first`` less that of ``second``: events float64[n] in the same n blocks of ``exposure``.

    A paired bootstrap over blocks, which need not be alike. An event more for either is added to what was
    seen, without which blocks that saw none would make us certain.
    """
    total = float(exposure.sum())
    if total <= 0:
        return Estimate(float("nan"), -float("inf"), float("inf"))
    group = np.arange(len(first)) * min(_MOST_BLOCKS, len(first)) // len(first)
    more = np.concatenate([np.bincount(group, first - second), [1.0, -1.0]])
    time = np.concatenate([np.bincount(group, exposure), [0.0, 0.0]])
    rng, n = np.random.default_rng(seed), len(more)
    drawn = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(_DRAWS)])
    sums = drawn @ time
    low, high = np.quantile((drawn @ more)[sums > 0] / sums[sums > 0], (0.05, 0.95))
    return Estimate(float((first - second).sum()) / total, float(low), float(high))
