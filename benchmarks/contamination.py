"""What anomalies among the rows that are learned from cost, and when a slow push of a series is noticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from labelled import (
    DAY_NS,
    NOTHING_LEFT_OUT,
    DataSet,
    Float64s,
    Int64s,
    Remembering,
    Series,
    as_records,
    train,
    watch,
)

from models import Bundle, SeriesRows, StackScorer
from models.episodes import Episode, LeftOut
from models.reference import drifted
from pipeline.alerts import Transition

SHARES = (0.01, 0.05, 0.10)
STRETCHES = 4
"""In so many places anomalies are put among the rows that are learned from."""
REFERENCE_ROWS, RETRAIN_ROWS, RETRAINS = 4_000, 1_000, 10
"""The reference learns from the first of these; each retrain sees as many, the next of these further on."""
PUSHES = (0.0, 0.1, 0.2, 0.5)
"""Robust standard deviations by which a series is pushed at each retrain."""
ALONE, ALONE_PUSHES = 4, (0.2, 0.5, 1.0)
"""And so many features of each series, one at a time; a single one has to go farther."""


def halved(data: DataSet) -> DataSet:
    """The series whose windows give anomalies to learn from and leave others to be found.

    The first half of the windows gives, the others are watched; what fires before them does not count.
    """
    every = []
    for each in data.every:
        giving = len(each.windows) // 2
        if giving:
            watched = int(np.searchsorted(each.time_ns, each.windows[giving - 1, 1], "right"))
            every.append(replace(each, learned=watched, history=each.records.before(each.learned)))
    return replace(data, every=[replace(each, windows=_watched(each)) for each in every])


def _watched(series: Series) -> Int64s:
    return series.windows[series.windows[:, 0] >= series.time_ns[series.learned]]


def contaminated(data: DataSet, whole: DataSet, share: float) -> tuple[DataSet, list[Episode]]:
    """The halved set with a share of anomalous rows among those learned from, and where they stand.

    They come from the middles of the windows that give, and stand in place of as many normal rows.
    """
    windows = {each.name: each.windows for each in whole.every}
    learned = {each.name: each.learned for each in whole.every}
    every, put = [], list[Episode]()
    for each in data.every:
        rows = learned[each.name]
        values, times = each.values[:rows].copy(), each.time_ns[:rows]
        length = max(round(share * rows / STRETCHES), 1)
        giving = windows[each.name][: len(windows[each.name]) - len(each.windows)]
        for n, at in enumerate(np.linspace(0, rows, STRETCHES + 2)[1:-1].astype(int).tolist()):
            first, last = np.searchsorted(each.time_ns, giving[n % len(giving)])
            middle = np.clip(np.arange(length) + (first + last - length) // 2, first, last)
            values[at : at + length] = each.values[middle]
            put.append(Episode(each.name, int(times[at]), int(times[at + length - 1]), False, False))
        records = as_records(data.name, each.name, data.features, times, values)
        every.append(replace(each, history=records))
    return replace(data, every=every), put


def told(data: DataSet, scorer: Remembering) -> list[Episode]:
    """The episodes that a champion tells of in the rows that are about to be learned from."""
    episodes = []
    for each in data.every:
        watched = replace(each, records=each.lessons)
        changes = watch(data, watched, scorer, data.stream()).changes
        episodes += _episodes(each.name, changes, int(each.time_ns[-1]))
    return episodes


def _episodes(series: str, changes: Sequence[Transition], end_ns: int) -> list[Episode]:
    """Alerts as the retrainer leaves them out; one that is still open lasts to the end."""
    found = dict[str, Episode]()
    for each in changes:
        ended = each.at_ns if each.state == "resolved" else end_ns
        critical = each.severity == "critical"
        found[each.id] = Episode(series, each.started_ns, ended, critical, normal=False)
    return list(found.values())


def variants(whole: DataSet, kept: Path) -> list[tuple[str, str, DataSet, Remembering]]:
    """Share, what was left out, the set, and a scorer of what was learned from it."""
    data = halved(whole)

    def learned(some: DataSet, left_out: LeftOut = NOTHING_LEFT_OUT) -> Remembering:
        return Remembering(StackScorer(train(some, None, kept, left_out)))

    champion = learned(data)
    made = [("none", "", data, champion)]
    for share in SHARES:
        bad, put = contaminated(data, whole, share)
        made += [
            (f"{share:.0%}", "nothing", bad, learned(bad)),
            (f"{share:.0%}", "labelled rows", bad, learned(bad, LeftOut(episodes=put))),
            (
                f"{share:.0%}",
                "the champion's alerts",
                bad,
                learned(bad, LeftOut(episodes=told(bad, champion))),
            ),
        ]
    return made


def stretches(whole: DataSet) -> DataSet:
    """Pieces of each series that are long enough for a reference and its retrains.

    The next one begins where the reference of the one before it ends.
    """
    rows, every = REFERENCE_ROWS + RETRAINS * RETRAIN_ROWS, []
    for each in whole.every:
        for first in range(0, len(each.values) - rows + 1, REFERENCE_ROWS):
            name, piece = f"{each.name} from row {first}", slice(first, first + rows)
            times, values = each.time_ns[piece], each.values[piece]
            records = as_records(whole.name, name, whole.features, times, values)
            every.append(Series(name, records, REFERENCE_ROWS, times, values, each.windows))
    return replace(whole, every=every)


def poisoned(whole: DataSet, kept: Path) -> list[dict[str, Any]]:
    """At which retrain a push of so many deviations each is noticed against the pinned first bundle.

    All features are pushed, or one alone.
    """
    data = stretches(whole)
    if not data.every:
        return []
    reference, features = train(data, None, kept), len(data.features)
    rows = [_pushed(data, reference, push, [np.ones(features)]) for push in PUSHES]
    if features > 1:
        alone = list(np.eye(features)[:: -(-features // ALONE)])
        rows += [_pushed(data, reference, push, alone) for push in ALONE_PUSHES]
    return rows


def _pushed(data: DataSet, reference: Bundle, push: float, which: Sequence[Float64s]) -> dict[str, Any]:
    """What is noticed when the features float64[F] of each of ``which`` are pushed."""
    models = StackScorer(reference).assign([each.name for each in data.every]).model
    flat = np.zeros(REFERENCE_ROWS, np.int32)
    noticed = np.zeros((len(which), len(data.every), RETRAINS), bool)
    for n, some in enumerate(which):
        for retrain in range(1, RETRAINS + 1):
            newest = slice(retrain * RETRAIN_ROWS, retrain * RETRAIN_ROWS + REFERENCE_ROWS)
            pushed = {
                each.name: SeriesRows(
                    each.values[newest] + retrain * push * some * reference.scaling.spread[model], flat
                )
                for each, model in zip(data.every, models, strict=True)
            }
            drifts = {drift.series: drift.noticed for drift in drifted(reference, pushed)}
            noticed[n, :, retrain - 1] = [drifts[each.name] for each in data.every]
    at = noticed.argmax(axis=2)[noticed.any(axis=2)] + 1
    a_row = np.mean([np.median(np.diff(each.time_ns)) for each in data.every])
    return {
        "push": push,
        "features": int(which[0].sum()),
        "series": noticed.shape[0] * noticed.shape[1],
        "noticed": len(at),
        "at_retrain": float(np.median(at)) if len(at) else None,
        "first": int(at.min()) if len(at) else None,
        "last": int(at.max()) if len(at) else None,
        "retrains": noticed.size,
        "noticed_retrains": int(noticed.sum()),
        "days": noticed.size * RETRAIN_ROWS * float(a_row) / DAY_NS,
    }
