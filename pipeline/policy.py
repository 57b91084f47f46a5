"""A stream's settings compiled to the plain numbers that the kernels take."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.config import Ewma, Stream

NEVER = -(1 << 62)
"""A time before every event, in nanoseconds."""
ALWAYS = 1 << 62
"""A time after every event, in nanoseconds; also the length of an unbounded duration."""

COMBINE = {"mean": 0, "last": 1, "min": 2, "max": 3, "sum": 4}
TRANSFORM = {"none": 0, "rate": 1, "diff": 2, "log": 3}


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
    """The fixed line, or 0 for the rolling one."""
    k: float
    memory_ns: float
    adapt_ns: int
    for_rows: int
    recovery_rows: int
    refractory_ns: int


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
    rolling = threshold if isinstance(threshold, Ewma) else None
    return JudgePolicy(
        static_line=0.0 if isinstance(threshold, Ewma) else threshold.value,
        k=rolling.k if rolling else 0.0,
        memory_ns=rolling.memory * 1e9 if rolling else 0.0,
        adapt_ns=_ns(rolling.adapt_after) if rolling else ALWAYS,
        for_rows=rules.for_rows,
        recovery_rows=rules.recovery,
        refractory_ns=_ns(rules.refractory),
    )
