"""The loop that compares, then learns: errors against thresholds, scores to episodes, in order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.align import BACK, GONE, SILENT, Items
from pipeline.companions import (
    Companions,
    Scratch,
    Seeds,
    alerted,
    begin,
    begin_again,
    carry,
    error_weight,
    go_on,
    joined,
    learn_level,
    learn_rarity,
    learn_shape,
    level_of,
    nearest_shape,
    rarity_of,
    scaled,
    shape_error_of,
    shapes_z_of,
)
from pipeline.episodes import FIRED, FIRING, NOTHING, RESOLVED, clear, frozen, impose, step
from pipeline.kernels import Row, kernel
from pipeline.moments import deviations, pace
from pipeline.policy import JudgePolicy
from pipeline.ports import Float32s, Float64s, Int32s
from pipeline.records import Int64s
from pipeline.thresholds import ACCEPTED, BINS, joined_line, learn, line, most, start, start_again

ANOMALY, SILENCE = 0, 1
RECOVERED, IS_GONE = 0, 1
JUDGE = -1
"""Imposed on a row that nobody has judged before."""
UNKNOWN = -1
"""A window that nobody has asked yet whether it deviates enough."""


class Verdicts(NamedTuple):
    """What came of the items of one piece.

    score, last_score (of the last row's own error) and threshold float64[items], NaN for items that were
    not judged; channels float64[items, 4], with the policy `joint` alone: how many standard deviations the
    error, the level and the shapes are above their means, and the rarity of the level; rule int8[items], what
    decided (:func:`pipeline.episodes.step`); silenced bool[items], set before: the row teaches nothing
    because somebody said so; imposed int8[items] (JUDGE, or the NOTHING, FIRED, RESOLVED, WORSENED of a time
    before) with the imposed_start_ns int64 of the episode that fired. Transitions, of which size[0] are in
    use: item int32, kind uint8 (ANOMALY, SILENCE), change uint8 (FIRED, RESOLVED, WORSENED), reason uint8
    (RECOVERED, IS_GONE), start_ns int64 of the episode, peak float64, revision int32.
    """

    score: Float64s
    last_score: Float64s
    threshold: Float64s
    channels: Float64s
    rule: NDArray[np.int8]
    silenced: NDArray[np.bool_]
    imposed: NDArray[np.int8]
    imposed_start_ns: Int64s
    item: Int32s
    kind: NDArray[np.uint8]
    change: NDArray[np.uint8]
    reason: NDArray[np.uint8]
    start_ns: Int64s
    peak: Float64s
    revision: Int32s
    size: Int64s

    @classmethod
    def room(cls, items: int) -> Verdicts:
        """Empty columns for so many items, each with two transitions at most."""
        return cls(
            np.empty(items),
            np.empty(items),
            np.empty(items),
            np.empty((items, 4)),
            np.empty(items, np.int8),
            np.zeros(items, bool),
            np.full(items, JUDGE, np.int8),
            np.zeros(items, np.int64),
            np.empty(2 * items, np.int32),
            np.empty(2 * items, np.uint8),
            np.empty(2 * items, np.uint8),
            np.empty(2 * items, np.uint8),
            np.empty(2 * items, np.int64),
            np.empty(2 * items),
            np.empty(2 * items, np.int32),
            np.zeros(1, np.int64),
        )


@kernel
def _note(
    out: Verdicts, item: int, kind: int, change: int, reason: int, start_ns: int, peak: float, revision: int
) -> None:
    n = out.size[0]
    out.item[n] = item
    out.kind[n] = kind
    out.change[n] = change
    out.reason[n] = reason
    out.start_ns[n] = start_ns
    out.peak[n] = peak
    out.revision[n] = revision
    out.size[0] = n + 1


@kernel
def _bring(
    row: Row, sketch: Float32s, scalars: NDArray[np.void], kind: int, time_ns: int, item: int, out: Verdicts
) -> None:
    """What the clock brings to a series: silence, its end, and being forgotten."""
    if kind == SILENT:
        row.silent_start_ns = time_ns
        _note(out, item, SILENCE, FIRED, RECOVERED, time_ns, 0.0, 1)
    elif kind == BACK:
        _note(out, item, SILENCE, RESOLVED, RECOVERED, row.silent_start_ns, 0.0, 2)
        row.silent_start_ns = 0
    elif kind == GONE:
        if row.episode == FIRING:
            _note(out, item, ANOMALY, RESOLVED, IS_GONE, row.start_ns, row.peak, row.revision + 1)
        if row.silent_start_ns != 0:
            _note(out, item, SILENCE, RESOLVED, IS_GONE, row.silent_start_ns, 0.0, 2)
        clear(row)
        row.silent_start_ns = 0
        for n in range(sketch.shape[0]):
            sketch[n] = 0.0
        for n in range(scalars.shape[0]):
            scalars[n].grown = 0.0


class Joining(NamedTuple):
    """What the companions are judged by.

    ``now`` and ``units`` by slot, ``seeds`` by model, model int32[slots]; sight float64[3]: of the row
    being judged the distance to the nearest prototype, which that is, and the error of the shapes.
    """

    now: Companions
    units: Float64s
    seeds: Seeds
    model: Int32s
    scratch: Scratch
    sight: Float64s


@kernel
def _weigh(
    row: Row,
    joining: Joining,
    items: Items,
    i: int,
    error: float,
    last_error: float,
    accepted: bool,
    policy: JudgePolicy,
    channels: Float64s,
) -> tuple[float, float, float]:
    """What the channels make of an item before it teaches them anything.

    Returns the joined score, the same with the last row's own error, and the line of both.
    """
    now, seeds, slot, window = joining.now, joining.seeds, items.slot[i], items.window[i]
    model, values = joining.model[slot], items.values[i]
    nearest, distance = nearest_shape(
        now, slot, items.tails[window], items.anchors[window], seeds, model, joining.scratch
    )
    shape_error = shape_error_of(now, slot, distance)
    if accepted:
        begin_again(now, slot, values, shape_error, seeds, model)
    joining.sight[0] = distance
    joining.sight[1] = nearest
    joining.sight[2] = shape_error
    level = level_of(now, slot, values, seeds, model, joining.scratch)
    shapes = shapes_z_of(now, slot, shape_error)
    rarity = rarity_of(now, slot, scaled(values[0], seeds.median[model, 0], seeds.spread[model, 0]))
    z = deviations(error, row.error_mean, row.error_variance)
    last_z = deviations(last_error, row.last_mean, row.last_variance)
    channels[0] = z
    channels[1] = level
    channels[2] = shapes
    channels[3] = rarity
    height = joined_line(row.rows, now.scalars[slot, 0].grown, policy)
    return joined(z, level, shapes, rarity), joined(last_z, level, shapes, rarity), height


@kernel
def _compare(
    row: Row,
    sketch: Float32s,
    calibration: Float64s,
    joining: Joining,
    items: Items,
    i: int,
    error: float,
    last_error: float,
    policy: JudgePolicy,
    raised: float,
    channels: Float64s,
) -> tuple[float, float, float]:
    """Hold an item against the line that the rows before it drew.

    Returns the score, that of the last row's own error, and the threshold.
    """
    slot, accepted = items.slot[i], row.rows == ACCEPTED
    if row.rows == 0.0:
        start(row, sketch, calibration, policy)
        begin(joining.now, joining.units, slot, joining.seeds, joining.model[slot])
        row.judged_ns = items.time_ns[i]
    elif row.rows < 0.0:
        window_rows = items.tails.shape[1] // items.anchors.shape[1]
        start_again(row, sketch, calibration, error, last_error, window_rows, policy)
        model = joining.model[slot]
        carry(joining.now, joining.units, slot, joining.seeds, model, joining.scratch)
    if policy.joint_line > 0.0:
        score, last_score, height = _weigh(
            row, joining, items, i, error, last_error, accepted, policy, channels
        )
        return score / (raised * height), last_score / (raised * height), raised * height
    height = raised * line(row.error_mean, row.error_variance, sketch[:BINS], policy)
    last_height = raised * line(row.last_mean, row.last_variance, sketch[BINS:], policy)
    return error / height, last_error / last_height, height


@kernel
def _keep(
    joining: Joining,
    slot: int,
    values: Float64s,
    taught: bool,
    by_time: float,
    policy: JudgePolicy,
    channels: Float64s,
) -> None:
    """Take the row weighed last to the newest ones and, unless it is not to teach, to what is normal."""
    now, seeds, model = joining.now, joining.seeds, joining.model[slot]
    distance, nearest, shape_error = joining.sight[0], int(joining.sight[1]), joining.sight[2]
    value = scaled(values[0], seeds.median[model, 0], seeds.spread[model, 0])
    go_on(now, slot, channels[0], channels[2], distance, value, joining.scratch)
    if taught:
        learn_level(now, slot, values, seeds, model, min(policy.level_weight, by_time))
        weight = min(policy.error_weight, by_time)
        learn_shape(now, slot, nearest, distance, shape_error, weight, joining.scratch)
        learn_rarity(now, slot, value)


@kernel
def judge(
    rows: NDArray[np.void],
    sketches: Float32s,
    calibration: Float64s,
    items: Items,
    window_error: Float64s,
    last_error: Float64s,
    deviates: NDArray[np.int8],
    joining: Joining,
    policy: JudgePolicy,
    raised: float,
    attributes: Int64s,
    out: Verdicts,
    first: int,
) -> int:
    """Judge the items of one piece from ``first`` on; errors are indexed by ``items.window``.

    ``raised`` times is every line. Returns the next item: where it is below the end, its window is above a
    line and ``deviates`` int8[windows] is UNKNOWN for it; find out, and go on.
    """
    if first == 0:
        out.size[0] = 0
    for i in range(first, items.size[0]):
        out.score[i] = np.nan
        out.last_score[i] = np.nan
        out.threshold[i] = np.nan
        slot, kind, time_ns = items.slot[i], items.kind[i], items.time_ns[i]
        row, sketch = rows[slot], sketches[slot]
        window = items.window[i]
        threshold = score = last_score = error = last = 0.0
        if window >= 0:
            error, last = window_error[window], last_error[window]
            score, last_score, threshold = _compare(
                row,
                sketch,
                calibration[slot],
                joining,
                items,
                i,
                error,
                last,
                policy,
                raised,
                out.channels[i],
            )
            high = score >= 1.0 or last_score >= policy.recovery_line
            if policy.asks_deviation and high and deviates[window] == UNKNOWN:
                return i
        _bring(row, sketch, joining.now.scalars[slot], kind, time_ns, i, out)
        if window < 0:
            continue
        change, counts = int(out.imposed[i]), deviates[window] != 0
        if change == JUDGE:
            change, rule = step(row, time_ns, score, last_score, counts, policy)
        else:
            start_ns = out.imposed_start_ns[i]
            rule = impose(row, time_ns, score, last_score, counts, policy, change, start_ns)
        if change != NOTHING:
            _note(out, i, ANOMALY, change, RECOVERED, row.start_ns, row.peak, row.revision)
        taught = not (out.silenced[i] or frozen(row, time_ns, policy))
        by_time = most(row, time_ns, policy)
        weight = pace(min(policy.error_weight, by_time), row.rows)
        if policy.joint_line > 0.0:
            if change == FIRED:
                alerted(joining.now, slot)
            _keep(joining, slot, items.values[i], taught, by_time, policy, out.channels[i])
            weight = error_weight(joining.now, slot, weight, row.rows)
        if taught and not policy.still:
            learn(row, sketch, error, last, weight, policy)
        elif not taught:
            attributes[1] += 1
        row.judged_ns = time_ns
        out.score[i] = score
        out.last_score[i] = last_score
        out.threshold[i] = threshold
        out.rule[i] = rule
    return int(items.size[0])
