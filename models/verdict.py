"""A ruling as people read it: words and figures, for a page as for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from models.gate import CHALLENGER, Comparison, Figures, Found, Measure, Ruling, Verdict
from models.intervals import Estimate
from pipeline.alerts import timestamp
from pipeline.figures import number

COMPARED: Final = ("measure", "against", "this model", "the other", "worse by (90 % interval)", "allowed")
"""Heads of :func:`compared`."""
WORDS: Final[dict[Verdict, str]] = {"within": "no worse", "worse": "worse", "open": "unclear"}

_SCALES: Final[dict[Measure, tuple[float, str]]] = {
    "false alarms": (1.0, "a day"),
    "faults found": (100.0, "points"),
    "held-out error": (100.0, "%"),
}
_UNKNOWN: Final = "unknown"


def verdict(ruling: Ruling) -> str:
    """What became of the challenger, in a few words."""
    if ruling.promoted:
        return "promoted"
    if ruling.moved or any(each.verdict == "worse" for each in ruling.comparisons):
        return "refused"
    return "not promoted, too little data to tell"


def compared(ruling: Ruling, comparison: Comparison) -> tuple[str, ...]:
    """One comparison, in the order of ``COMPARED``; false alarms are to a day and series."""
    scale, unit = _SCALES[comparison.measure]
    by, (mine, other) = comparison.worse_by, _did(ruling, comparison)
    worse = _UNKNOWN
    if by is not None:
        value, low, high = (_figure(scale * each) for each in (by.value, by.low, by.high))
        worse = f"{value} {unit} ({low} to {high})"
    return (
        comparison.measure,
        comparison.against,
        mine,
        other,
        worse,
        f"{_figure(scale * comparison.bound)} {unit}",
    )


def _did(ruling: Ruling, comparison: Comparison) -> list[str]:
    contenders = [ruling.contenders[role] for role in (CHALLENGER, comparison.against)]
    if comparison.measure == "false alarms":
        return [f"{each.false_alarms:,}" for each in contenders]
    if comparison.measure == "faults found":
        return [f"{each.found.faults} of {each.found.of}" for each in contenders]
    return [_error(each) for each in contenders]


def figures(ruling: Ruling) -> Iterator[tuple[str, ...]]:
    """What each contender did besides finding faults: a name, then a cell each in the order of contenders."""
    did = ruling.contenders.values()
    yield "false alarms", *(f"{each.false_alarms:,}" for each in did)
    yield "to a day and series", *(_estimate(each.a_day) for each in did)
    if any(each.raised > 1 for each in did):
        yield "its lines raised", *(f"{each.raised:.3g} times" for each in did)
    yield "held-out error", *(_error(each) for each in did)


def faults(figures_: Figures) -> dict[str, Found]:
    """What a contender found, in all and of each kind that there was."""
    return {"faults found": figures_.found} | {
        name: each for name, each in figures_.by_kind.items() if each.of
    }


def found(each: Found) -> str:
    """How many of how many, and the interval of the share."""
    if each.share is None:
        return "none there"
    return f"{each.faults} of {each.of} ({100 * each.share.low:.0f} to {100 * each.share.high:.0f} %)"


def extent(ruling: Ruling) -> str:
    """What was looked at, out of how much."""
    each = ruling.extent
    if not each.series:
        return f"none of {each.of_records:,} records made a row that counts"
    first, last = (f"{timestamp(ns):%Y-%m-%d %H:%M}" for ns in (each.first_ns, each.last_ns))
    return (
        f"{each.records:,} of {each.of_records:,} records and {each.series:,} of {each.of_series:,} series, "
        f"{first} to {last} (event time, UTC); {ruling.series_days:.3g} days of one series in all"
    )


def _error(each: Figures) -> str:
    return _UNKNOWN if each.held_out_error is None else f"{each.held_out_error:.3f}"


def _estimate(each: Estimate | None) -> str:
    return _UNKNOWN if each is None else f"{each.value:.3g} ({each.low:.2g} to {each.high:.2g})"


def _figure(value: float) -> str:
    """Three digits, and a sign that is seen."""
    return number(float(f"{value:.3g}")).replace("-", "\N{MINUS SIGN}")
