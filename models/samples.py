"""Windows to learn from: which there are, which are held out, and samples of several series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.ports import Float64s, Int32s, Windows

Int64s = NDArray[np.int64]

HELD_OUT_SHARE: Final = 0.2
"""The last windows of a series, held out for early stopping and calibration."""
POOL_WINDOWS: Final = 8_192
"""Bound on the training windows of a pool; a quarter as many are held out for it."""

_POOL_VALUES: Final = 2**25  # the same bound where windows are very wide: 256 MiB of float64


@dataclass(frozen=True, slots=True, eq=False)
class SeriesRows:
    """One series' history, oldest row first.

    Attributes:
        values: float64[n, F], finite.
        segment: int32[n]; a change marks a gap, which no window crosses.
    """

    values: Float64s
    segment: Int32s


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """First rows of windows, int64, rising; no row is in a window of both."""

    train: Int64s
    held_out: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Windows of many series.

    Attributes:
        windows: float64[k, W, F], raw; those to train on, then those held out.
        of: int64[k], the place of each window's series among those that were pooled.
        train: how many are to be trained on.
    """

    windows: Float64s
    of: Int64s
    train: int


def window_starts(segment: Int32s, window_rows: int) -> Int64s:
    """The first row of every window that crosses no gap."""
    last = len(segment) - window_rows
    if last < 0:
        return np.empty(0, np.int64)
    stretch = np.concatenate([[0], np.cumsum(segment[1:] != segment[:-1])])
    return np.flatnonzero(stretch[: last + 1] == stretch[window_rows - 1 :])


def usable_rows(segment: Int32s, window_rows: int) -> int:
    """The length of the unbroken stretch that would give as many windows: each gap costs window_rows - 1."""
    windows = len(window_starts(segment, window_rows))
    return windows + window_rows - 1 if windows else 0


def split(segment: Int32s, window_rows: int) -> Split:
    """Hold out the last windows; those that share rows with them are left out of training.

    A series too short for that is all training.
    """
    starts = window_starts(segment, window_rows)
    held_out = starts[len(starts) - round(HELD_OUT_SHARE * len(starts)) :]
    if len(held_out) and starts[0] + window_rows <= held_out[0]:
        return Split(starts[starts + window_rows <= held_out[0]], held_out)
    return Split(starts, starts[:0])


def evenly(starts: Int64s, count: int) -> Int64s:
    """At most ``count`` of them, evenly spaced."""
    if len(starts) <= count:
        return starts
    return starts[np.arange(count) * len(starts) // count]


def windows_at(values: Float64s, starts: Int64s, window_rows: int) -> Float64s:
    """The windows float64[k, W, F] that begin at ``starts``."""
    windows: Float64s = values[starts[:, None] + np.arange(window_rows)]
    return windows


def as_windows(raw: Float64s, model: Int32s) -> Windows:
    """Raw windows float64[n, W, F] of the models int32[n], as the detect step hands them over."""
    anchor = raw[:, -1].copy()
    largest = float(np.finfo(np.float32).max)
    with np.errstate(over="ignore"):  # differences near the end of float64 are clipped like any other
        tail = (raw - anchor[:, None]).clip(-largest, largest).astype(np.float32)
    return Windows(tail, anchor, model)


def pool(series: Sequence[SeriesRows], splits: Sequence[Split], window_rows: int) -> Pool:
    """A bounded sample for a network that serves several series, as many windows from each.

    Of the series too short to be split, every fifth is held out whole.
    """
    bound = max(1, min(POOL_WINDOWS, _POOL_VALUES // (window_rows * series[0].values.shape[1])))
    chosen = evenly(np.arange(len(series)), bound)
    train_each = bound // len(chosen)
    held_out_each = max(1, train_each // 4)
    train, held_out, unsplit = [], [], 0
    for i in chosen.tolist():
        parts = splits[i]
        if not len(parts.held_out):
            unsplit += 1
            if unsplit % 5 == 0:
                held_out.append((i, evenly(parts.train, held_out_each)))
                continue
        train.append((i, evenly(parts.train, train_each)))
        held_out.append((i, evenly(parts.held_out, held_out_each)))
    both = train + held_out
    return Pool(
        np.concatenate([windows_at(series[i].values, starts, window_rows) for i, starts in both]),
        np.repeat([i for i, _ in both], [len(starts) for _, starts in both]),
        sum(len(starts) for _, starts in train),
    )
