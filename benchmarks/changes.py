"""What a change of model does to a stream's alerts: the same rows with and without each change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from labelled import DataSet, Int64s, Series, as_records, fired_ns, train

from models import StackScorer
from pipeline.detect import Detector
from pipeline.ports import Scorer

CHANGES, LEAST_ROWS = 4, 3_500
"""Evenly spaced over each series of at least so many rows behind those that were learned from."""
NEWEST_ROWS: Final = 1_000
"""Behind each change, that its model learns from."""
SPANS: Final = (1, 10)
"""Windows after a change in which alerts are counted."""


def changed(whole: DataSet, kept: Path) -> list[dict[str, Any]]:
    """Alerts soon after the changes, where they come and where the model before goes on.

    Returns one row a span: ``windows``, ``changes``, alerts ``with`` and ``without`` the change.
    """
    data = replace(whole, every=[each for each in whole.every if len(each.values) >= LEAST_ROWS])
    if not data.every:
        return []
    stream = data.stream()
    window = stream.model.window
    scorers = [_learned(data, change, kept) for change in range(CHANGES + 1)]
    counts = np.zeros((len(SPANS), 2), int)
    for series in data.every:
        detector = Detector("benchmark", data.name, stream)
        at = _at(series)
        through = _alerts(detector, series, at, scorers)
        for change in range(1, CHANGES + 1):
            stayed = [*scorers[:change], *[scorers[change - 1]] * (CHANGES + 1 - change)]
            without = _alerts(detector, series, at, stayed)
            for n, span in enumerate(SPANS):
                last = min(at[change] + span * window, at[change + 1]) - 1
                first_ns, last_ns = series.time_ns[at[change]], series.time_ns[last]
                for m, fired in enumerate((through, without)):
                    counts[n, m] += int(((fired >= first_ns) & (fired <= last_ns)).sum())
    return [
        {"windows": span, "changes": CHANGES * len(data.every), "with": int(each[0]), "without": int(each[1])}
        for span, each in zip(SPANS, counts, strict=True)
    ]


def _at(series: Series) -> list[int]:
    """The rows where each model begins, and the end."""
    return np.linspace(series.learned, len(series.values), CHANGES + 2).astype(int).tolist()


def _learned(data: DataSet, change: int, kept: Path) -> StackScorer:
    """The model of a change, or the first one."""
    if change == 0:
        return StackScorer(train(data, None, kept))
    every = []
    for each in data.every:
        newest = slice(max(_at(each)[change] - NEWEST_ROWS, 0), _at(each)[change])
        history = as_records(data.name, each.name, data.features, each.time_ns[newest], each.values[newest])
        every.append(replace(each, history=history))
    return StackScorer(train(replace(data, every=every), {"training": {"seed": change}}, kept))


def _alerts(detector: Detector, series: Series, at: Sequence[int], scorers: Sequence[Scorer]) -> Int64s:
    """When anomalies fired, with a scorer for each stretch of rows."""
    state, changes = detector.fresh("", 0), []
    for n, scorer in enumerate(scorers):
        state.adopt(scorer, f"bundle {id(scorer)}")
        first = 0 if n == 0 else at[n]
        records = series.records.before(at[n + 1]).since(first)
        changes += detector.step(state, records, scorer).changes
    return fired_ns(changes)
