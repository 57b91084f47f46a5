"""A stream's settings compiled to the plain numbers that the kernels take."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.companions import weights
from pipeline.config import Ewma, Joint, Quantile, Static, Stream
from pipeline.ports import Explanation, Float64s
from pipeline.records import Int64s

NEVER = -(1 << 62)
"""A time before every event, in nanoseconds."""
ALWAYS = 1 << 62
"""A time after every event, in nanoseconds; also the length of an unbounded duration."""

COMBINE = {"mean": 0, "last": 1, "min": 2, "max": 3, "sum": 4}
SIGN = {"both": 0, "above": 1, "below": -1}
TRANSFORM = {"none": 0, "rate": 1, "diff": 2, "log": 3}

_WITH_RARITY, _WITHOUT_RARITY = 0.444, 1.55
"""Lines of the joined score of one feature."""
_BY_FEATURES = 0.2
"""Of F features the line is F to this power as high: 3.2 of the 38 that it was measured on."""
_STANDARD_ERRORS = 2.0


class AlignPolicy(NamedTuple):
    """How readings become rows; durations in nanoseconds."""

    every_ns: int
    late_ns: int
    gap_ns: int
    silent_ns: int
    forget_ns: int
    combine: int
    hold: bool
    max_series: int
    has_model: bool
    """Whether full windows are handed out to be scored."""


class JudgePolicy(NamedTuple):
    """How errors become episodes; durations in nanoseconds."""

    static_line: float
    """The fixed line, or 0 for a rolling one."""
    k: float
    quantile: float
    """The share of rows at or below the quantile, or 0 for mean + k standard deviations."""
    margin: float
    joint_line: float
    """The line of the joined score, or 0 where the error alone is judged."""
    joint_doubt: float
    """Over the root of the rows that moments rest on: the share by which that line is higher."""
    error_weight: float
    """How much a row weighs among the errors, and the shapes, once they rest on many."""
    still: bool
    """Whether the moments of the error stay where training left them."""
    level_weight: float
    memory_ns: float
    adapt_ns: int
    asks_deviation: bool
    """Whether a row above the line must also deviate enough, see :class:`Deviations`."""
    for_rows: int
    recovery_rows: int
    recovery_line: float
    recovery_ns: int
    refractory_ns: int
    critical: float


class Deviations(NamedTuple):
    """How far from what was expected a feature's value must be to count.

    At least ``least`` float64[F] away, to the side of ``sign`` int64[F], or to any where that is 0.
    """

    least: Float64s
    sign: Int64s

    @property
    def ask(self) -> bool:
        """Whether they ask for anything."""
        return bool(self.least.any() or self.sign.any())

    def enough(self, why: Explanation) -> NDArray[np.bool_]:
        """bool[n]: whether the row and feature that contribute most to each window's error deviate enough."""
        rows, feature = np.arange(len(why.contribution)), why.contribution.argmax(axis=1)
        apart = (why.observed - why.expected)[rows, :, feature]
        most = apart[rows, np.abs(apart).argmax(axis=1)]
        wanted = self.sign[feature]
        far = np.abs(most) >= self.least[feature]
        return np.asarray(far & ((wanted == 0) | (np.sign(most) == wanted)), bool)


def _ns(seconds: float | None, default: int = ALWAYS) -> int:
    return default if seconds is None else round(seconds * 1e9)


def align_policy(stream: Stream, *, has_model: bool) -> AlignPolicy:
    """The alignment rules of a stream."""
    events = stream.events
    return AlignPolicy(
        every_ns=_ns(events.every, 0),
        late_ns=_ns(events.late_s),
        gap_ns=_ns(events.gap_s),
        silent_ns=_ns(events.silent_after),
        forget_ns=_ns(events.forget_after),
        combine=COMBINE[events.combine],
        hold=events.missing == "hold",
        max_series=events.max_series,
        has_model=has_model,
    )


def judge_policy(stream: Stream) -> JudgePolicy:
    """The threshold and alert rules of a stream."""
    threshold, rules = stream.threshold, stream.alerts
    rolling = None if isinstance(threshold, Static) else threshold
    error_weight, level_weight = weights(len(stream.feature_names))
    return JudgePolicy(
        static_line=threshold.value if isinstance(threshold, Static) else 0.0,
        k=threshold.k if isinstance(threshold, Ewma) else 0.0,
        quantile=threshold.q if isinstance(threshold, Quantile) else 0.0,
        margin=threshold.margin if isinstance(threshold, Quantile) else 0.0,
        joint_line=joint_line(stream),
        joint_doubt=_joint_doubt(stream),
        error_weight=error_weight if isinstance(threshold, Joint) else 1 - 2 ** (-1 / 1_000),
        still=isinstance(threshold, Joint) and len(stream.feature_names) > 1,
        level_weight=level_weight,
        memory_ns=rolling.memory * 1e9 if rolling else 0.0,
        adapt_ns=_ns(rolling.adapt_after) if rolling else ALWAYS,
        asks_deviation=deviations(stream).ask,
        for_rows=rules.for_rows,
        recovery_rows=rules.recovery,
        recovery_line=rules.recovery_line,
        recovery_ns=_ns(rules.recovery_for),
        refractory_ns=_ns(rules.refractory),
        critical=rules.critical,
    )


def joint_line(stream: Stream) -> float:
    """The joined score that is the line, or 0 where the error alone is judged."""
    threshold = stream.threshold
    if not isinstance(threshold, Joint):
        return 0.0
    if len(stream.feature_names) > 1:
        return threshold.line or _WITHOUT_RARITY * len(stream.feature_names) ** _BY_FEATURES
    return threshold.line or (_WITH_RARITY if threshold.rarity else _WITHOUT_RARITY)


def _joint_doubt(stream: Stream) -> float:
    """Two standard errors of a deviation measured on one row, as a share of it; 0 where it does not count.

    Of n normal and independent values it is 1 / sqrt(2 n); so many windows, of which each row begins one, are
    n / W independent ones. Of one feature moments go on to learn, and a line that is set is meant.
    """
    threshold = stream.threshold
    if not isinstance(threshold, Joint) or threshold.line or len(stream.feature_names) == 1:
        return 0.0
    return _STANDARD_ERRORS * math.sqrt(stream.model.window / 2)


def deviations(stream: Stream) -> Deviations:
    """The deviations that a stream's rules ask for."""
    least, direction = stream.alerts.min_deviation, stream.alerts.direction
    names = stream.feature_names
    signs = [
        SIGN[direction.get(name, "both") if isinstance(direction, dict) else direction] for name in names
    ]
    return Deviations(
        np.array([least.get(name, 0.0) if isinstance(least, dict) else least for name in names]),
        np.array(signs, np.int64),
    )
