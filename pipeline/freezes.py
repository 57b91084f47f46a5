"""Which rows teach nothing because somebody said so: the same for thresholds and for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.alerts import nanoseconds, timestamp
from pipeline.control import Standing
from pipeline.ports import Int32s
from pipeline.records import Int64s
from pipeline.silences import Matchers


def frozen_rows(
    freezes: Sequence[Standing], slot: Int32s, time_ns: Int64s, covers: Callable[[Matchers, int], bool]
) -> NDArray[np.bool_]:
    """bool[n]: whether a row, of a series by its slot and of an event time, is in a window of a freeze.

    Args:
        freezes: the silences that keep rows from teaching.
        slot: int32[n].
        time_ns: int64[n].
        covers: whether matchers are about the series in a slot.
    """
    frozen = np.zeros(len(slot), bool)
    if not freezes or not len(slot):
        return frozen
    first, last = timestamp(int(time_ns.min())), timestamp(int(time_ns.max()))
    slots = np.unique(slot).tolist()
    for freeze in freezes:
        spans, matchers = freeze.spans(first, last), freeze.record.silence.matchers
        covered = np.isin(slot, [each for each in slots if spans and covers(matchers, each)])
        for start, end in spans:
            frozen |= covered & (time_ns >= nanoseconds(start)) & (time_ns < nanoseconds(end))
    return frozen
