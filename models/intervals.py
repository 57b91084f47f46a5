"""How sure counts make us: intervals of shares and rates, and of the differences between two of them.

All are of 90 %: either end is passed by chance in one of twenty trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.ports import Float64s

_Z: Final = NormalDist().inv_cdf(0.95)
_DRAWS: Final = 2_000
_MOST_BLOCKS: Final = 2_000  # bounds the work of the bootstrap; more are joined with their neighbours


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the ends of its interval. Of what nothing is known there is none."""

    value: float
    low: float
    high: float


def share(found: int, of: int) -> Estimate | None:
    """A share of independent trials (Wilson 1927); nothing is known of none."""
    return _wilson(found, of) if of else None


def _wilson(found: int, of: int) -> Estimate:
    value, weight = found / of, _Z**2 / of
    middle = value + weight / 2
    half = _Z * sqrt(value * (1 - value) / of + weight / (4 * of))
    low, high = max((middle - half) / (1 + weight), 0.0), min((middle + half) / (1 + weight), 1.0)
    return Estimate(value, low, high)


def difference_of_shares(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Estimate | None:
    """The share of ``first`` less that of ``second``, bool[n] over the same trials.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", method 10.
    """
    n = len(first)
    if n == 0:
        return None
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    p, q = _wilson(int(first.sum()), n), _wilson(int(second.sum()), n)
    one, two = int(first.sum()), int(second.sum())
    spread = sqrt(one * (n - one) * two * (n - two))
    agreement = both * neither - (one - both) * (two - both)
    corrected = max(agreement - n / 2, 0.0) if agreement > 0 else agreement
    phi = corrected / spread if spread else 0.0
    below, above = (p.value - p.low, q.high - q.value), (p.high - p.value, q.value - q.low)
    low, high = (sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0)) for a, b in (below, above))
    value = p.value - q.value
    return Estimate(value, max(value - low, -1.0), min(value + high, 1.0))


def rate(count: int, exposure: float) -> Estimate | None:
    """Events to one unit of exposure, with the score interval of a Poisson mean."""
    if exposure <= 0:
        return None
    middle, half = count + _Z**2 / 2, _Z * sqrt(count + _Z**2 / 4)
    return Estimate(count / exposure, max(middle - half, 0.0) / exposure, (middle + half) / exposure)


def difference_of_rates(first: Float64s, second: Float64s, exposure: Float64s, seed: int) -> Estimate | None:
    """The rate of ``first`` less that of ``second``: events float64[n] in the same n blocks of ``exposure``.

    A paired bootstrap over blocks, which need not be alike. An event more for either is added to what was
    seen, without which blocks that saw none would make us certain.
    """
    total = float(exposure.sum())
    if total <= 0:
        return None
    more = np.concatenate([_joined(first - second), [1.0, -1.0]])
    time = np.concatenate([_joined(exposure), [0.0, 0.0]])
    low, high = _bootstrapped(more, time, seed)
    return Estimate(float((first - second).sum()) / total, low, high)


def excess(first: Float64s, second: Float64s, seed: int) -> Estimate | None:
    """By what share the sum of ``first`` is above that of ``second``, float64[n] of the same n blocks.

    A paired bootstrap over blocks.
    """
    total = float(second.sum())
    if total <= 0:
        return None
    low, high = _bootstrapped(_joined(first - second), _joined(second), seed)
    return Estimate(float((first - second).sum()) / total, low, high)


def _joined(blocks: Float64s) -> Float64s:
    """At most ``_MOST_BLOCKS`` sums of neighbours."""
    group = np.arange(len(blocks)) * min(_MOST_BLOCKS, len(blocks)) // len(blocks)
    sums: Float64s = np.bincount(group, blocks).astype(np.float64)
    return sums


def _bootstrapped(above: Float64s, below: Float64s, seed: int) -> tuple[float, float]:
    """The ends of the interval of sum(above) / sum(below), by drawing blocks again."""
    drawn = np.random.default_rng(seed).integers(0, len(above), (_DRAWS, len(above)))
    sums = below[drawn].sum(axis=1)
    low, high = np.quantile(above[drawn].sum(axis=1)[sums > 0] / sums[sums > 0], (0.05, 0.95))
    return float(low), float(high)
