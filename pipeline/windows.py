"""Rows to windows: transforms, holding of missing values, and the window that each series drags along."""

from __future__ import annotations

import math

import numpy as np

from pipeline.kernels import kernel
from pipeline.policy import NEVER
from pipeline.ports import Float32s, Float64s
from pipeline.records import Int64s
from pipeline.series import Arrays

_FLOAT32_MAX = 3e38
"""A tail value further from its anchor would overflow float32."""

INCOMPLETE, WARMING, FULL = 0, 1, 2


@kernel
def newest(pushed: int, size: int) -> int:
    """The place of the newest row in a ring of ``size`` rows into which ``pushed`` went (``Arrays.tail``)."""
    return pushed - 1 if pushed <= size else pushed - 1 - size


@kernel
def transformed(code: int, value: float, before: float, before_ns: int, time_ns: int) -> float:
    """One value after its transform (``policy.TRANSFORM``); NaN where it needs a value before and has none.

    ``rate`` is per second and takes a fall for a counter's reset: it then counts from zero.
    """
    if code == 0:
        return value
    if code == 3:
        return math.copysign(math.log1p(abs(value)), value)
    if before_ns == NEVER:
        return math.nan
    if code == 2:
        return value - before
    rise = value - before if value >= before else value
    return rise / ((time_ns - before_ns) * 1e-9)


@kernel
def push(
    series: Arrays,
    slot: int,
    time_ns: int,
    values: Float64s,
    transforms: Int64s,
    gap_ns: int,
    hold: bool,
    attributes: Int64s,
) -> int:
    """Take one row of a series into its window.

    ``values`` is float64[F], NaN where nothing was observed. Such a feature keeps its last value while that
    is no older than ``gap_ns``; a row that cannot be completed ends the window. Returns INCOMPLETE, WARMING
    (the window is not full yet) or FULL.
    """
    row, tail = series.rows[slot], series.tail[slot]
    raw, raw_ns = series.raw[slot], series.raw_ns[slot]
    out, anchor = series.out[slot], series.anchor[slot]
    features = values.shape[0]
    if time_ns - row.row_ns > gap_ns:
        row.pushed = 0
    row.row_ns = time_ns
    complete, held = True, False
    for f in range(features):
        stale = raw_ns[f] == NEVER or time_ns - raw_ns[f] > gap_ns
        if math.isnan(values[f]):
            held = True
            if stale or not hold:
                out[f] = math.nan
        else:
            before_ns = NEVER if stale else raw_ns[f]
            out[f] = transformed(transforms[f], values[f], raw[f], before_ns, time_ns)
            raw[f] = values[f]
            raw_ns[f] = time_ns
        if not math.isfinite(out[f]):
            complete = False
    if not complete:
        row.pushed = 0
        return INCOMPLETE
    if held:
        attributes[0] += 1
    size = tail.shape[0] // features
    if row.pushed == 0:
        for f in range(features):
            anchor[f] = out[f]
    row.pushed = row.pushed + 1 if row.pushed < 2 * size else size + 1
    first = newest(row.pushed, size) * features
    for f in range(features):
        tail[first + f] = np.float32(min(max(out[f] - anchor[f], -_FLOAT32_MAX), _FLOAT32_MAX))
    return FULL if row.pushed >= size else WARMING


@kernel
def unroll(tail: Float32s, pushed: int, features: int, window: Float32s) -> None:
    """Copy a full ring float32[W x F] into ``window``, of the same shape, oldest row first."""
    oldest = (newest(pushed, tail.shape[0] // features) + 1) * features
    until = tail.shape[0] - oldest
    for j in range(until):
        window[j] = tail[oldest + j]
    for j in range(oldest):
        window[until + j] = tail[j]
