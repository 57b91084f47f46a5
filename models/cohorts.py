"""Cohorts: series whose training windows look alike, so that one network can serve them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.scaling import INPUT_CLIP
from pipeline.config import Scope
from pipeline.ports import Float32s

Int64s = NDArray[np.int64]

MAX_COHORTS: Final = 64
"""However many series there are: a network holds many shapes."""

_STARTS: Final = 4  # of the search for centres; the best one counts


def shape(windows: Float32s) -> Float32s:
    """What windows float32[k, W, F] of one series look like, float32[(W // 2 + 1) * F].

    It is the mean of their absolute spectra, so it does not matter where in a period a window begins. The
    windows are scaled, so neither level nor size counts.
    """
    spectra = np.fft.rfft(windows.clip(-INPUT_CLIP, INPUT_CLIP), axis=1, norm="ortho")
    looks: Float32s = np.abs(spectra).mean(axis=0, dtype=np.float32).ravel()
    return looks


def divide(
    lengths: Int64s, scope: Scope, max_models: int, look: Callable[[int], Float32s], seed: int
) -> list[Int64s]:
    """Which of n series share a network: groups int64[k] of their places, each place in one of them.

    Args:
        lengths: int64[n], how much history each has.
        scope: ``series``: each series is a group of its own, but for those beyond ``max_models``, which
            form cohorts; ``cohort``: all of them form cohorts; ``global``: all of them are one group.
        max_models: of the scope ``series``; the longest histories come first.
        look: the shape float32[d] of the series at a place, see :func:`shape`.
        seed: of the search for cohorts.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    alone = np.sort(longest_first[:max_models] if scope == "series" else longest_first[:0])
    others = np.setdiff1d(np.arange(len(lengths)), alone)
    cohort = np.zeros(len(others), np.int64)
    if scope != "global" and len(others):
        cohort = group(np.stack([look(place) for place in others.tolist()]), seed)
    return [*alone[:, None], *(others[cohort == number] for number in range(cohort.max(initial=-1) + 1))]


def group(shapes: Float32s, seed: int) -> Int64s:
    """The cohort of each of n shapes float32[n, d]: int64[n], numbered from 0 in the order of appearance.

    There are at most sqrt(n / 2) of them, rounded (the rule of thumb of Mardia, Kent and Bibby, 1979), and at
    most ``MAX_COHORTS``; fewer where shapes are the same. The centres are found by k-means.
    """
    # It takes a second and 90 MB, which only training of cohorts is to pay.
    from sklearn.cluster import KMeans  # noqa: PLC0415
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    count = min(max(1, round((len(shapes) / 2) ** 0.5)), MAX_COHORTS)
    # One thread: several would add up in the order in which they finish, and rounding could move a series.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different shapes than cohorts
        found = KMeans(count, n_init=_STARTS, random_state=seed % 2**32).fit_predict(shapes)
    _, first, number = np.unique(found, return_index=True, return_inverse=True)
    order: Int64s = np.argsort(np.argsort(first))
    return order[number]
