"""Readings to rows: order, duplicates, the grid, holes, silence and forgetting.

The rules stand in docs/bins.md. They depend on the order of a partition's records alone, never on where a
batch ends: what the partition clock brings to a series is done before its next record, and for all series
at the end of a batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.accounting import Bin
from pipeline.kernels import Row, kernel
from pipeline.policy import ALWAYS, NEVER, AlignPolicy
from pipeline.ports import Float32s, Float64s, Int32s
from pipeline.records import Int64s
from pipeline.series import Arrays
from pipeline.windows import FULL, push, unroll

SCORED, WARMING, WAITING = int(Bin.SCORED), int(Bin.WARMING), int(Bin.WAITING_MODEL)
MERGED, PENDING, LATE = int(Bin.MERGED), int(Bin.PENDING), int(Bin.LATE)
DUPLICATE, OVER_LIMIT, OUTSIDE = int(Bin.DUPLICATE), int(Bin.OVER_LIMIT), int(Bin.OUTSIDE)

ROW, FILL, SILENT, BACK, GONE, BEGUN = 0, 1, 2, 3, 4, 5
_FACTOR, _PRIME = 1_000_003, (1 << 31) - 1
"""Of a row's checksum, a polynomial of the offsets modulo a prime: one missed or doubled record shows."""
_METRIC_SHIFT = 48
"""A held reading is its time within the cell, below this bit, and its metric above it."""


class Columns(NamedTuple):
    """Decoded records of one partition.

    slot int32[n] (-1: in a bin already), inside bool[n] (whether `when` holds), metric int32[n] (-1: the
    record holds all features), time_ns and
    limit_ns int64[n] (the record's timestamp plus ``ahead``), offset int64[n], values float64[n, F], or
    float64[n, 1] for one metric; NaN is missing.
    """

    slot: Int32s
    inside: NDArray[np.bool_]
    metric: Int32s
    time_ns: Int64s
    limit_ns: Int64s
    offset: Int64s
    values: Float64s


class Items(NamedTuple):
    """What came of the records, in order: rows, and what the clock brought.

    kind uint8 (ROW, FILL: a row held over a hole, SILENT, BACK, GONE, BEGUN: a series is live from this
    record on), slot int32, time_ns, offset int64 of the record behind it, window int32 (index into ``tails``,
    -1 without), fresh uint8 (first row of a window), held bool[., F] (values that were missing and held; only
    without a model, as training reads), values float64[., F] after the transforms;
    tails float32[., W x F], anchors float64[., F];
    size int64[2]: items and windows in use; closing float64[F]: room for the row of a cell being closed.
    """

    kind: NDArray[np.uint8]
    slot: Int32s
    time_ns: Int64s
    offset: Int64s
    window: Int32s
    fresh: NDArray[np.uint8]
    held: NDArray[np.bool_]
    values: Float64s
    tails: Float32s
    anchors: Float64s
    size: Int64s
    closing: Float64s

    @classmethod
    def room(cls, items: int, windows: int, window_rows: int, features: int) -> Items:
        """Empty columns for so many items, and so many windows among them."""
        return cls(
            np.empty(items, np.uint8),
            np.empty(items, np.int32),
            np.empty(items, np.int64),
            np.empty(items, np.int64),
            np.empty(items, np.int32),
            np.empty(items, np.uint8),
            np.empty((items, features), np.bool_),
            np.empty((items, features)),
            np.empty((windows, window_rows * features), np.float32),
            np.empty((windows, features)),
            np.zeros(2, np.int64),
            np.empty(features),
        )


class Table(NamedTuple):
    """The arrays of a partition's state that alignment reads and writes.

    series and dirty as in PartitionState; clock int64[3]: partition clock, live series, time of the
    next sweep; bins int64[11]; attributes int64[2]; transforms int64[F].
    """

    series: Arrays
    dirty: NDArray[np.bool_]
    clock: Int64s
    bins: Int64s
    attributes: Int64s
    transforms: Int64s


@kernel
def has_room(items: Items, spare: int, cells: int) -> bool:
    """Whether whatever one record can bring still fits: ``spare`` items, a window for each cell and two."""
    windows = bool(items.size[1] + cells + 2 <= items.tails.shape[0])
    return windows and bool(items.size[0] + spare <= items.kind.shape[0])


@kernel
def _item(items: Items, kind: int, slot: int, time_ns: int, offset: int) -> int:
    n = items.size[0]
    items.kind[n] = kind
    items.slot[n] = slot
    items.time_ns[n] = time_ns
    items.offset[n] = offset
    items.window[n] = -1
    items.fresh[n] = 0
    items.size[0] = n + 1
    return int(n)


@kernel
def _take_row(
    table: Table,
    policy: AlignPolicy,
    items: Items,
    slot: int,
    time_ns: int,
    offset: int,
    values: Float64s,
    filled: bool,
) -> int:
    """Push one row; returns the bin of the record behind it."""
    row = table.series.rows[slot]
    result = push(
        table.series, slot, time_ns, values, table.transforms, policy.gap_ns, policy.hold, table.attributes
    )
    if result == 0:
        return WAITING if not policy.has_model else WARMING
    if not filled:
        row.offset = offset
    n = _item(items, FILL if filled else ROW, slot, time_ns, row.offset)
    items.fresh[n] = 1 if row.pushed == 1 else 0
    for f in range(items.values.shape[1]):
        items.values[n, f] = table.series.out[slot, f]
    if not policy.has_model:
        for f in range(items.values.shape[1]):
            items.held[n, f] = math.isnan(values[f])
        return WAITING
    if result != FULL:
        return WARMING
    if not filled:
        w = items.size[1]
        items.window[n] = w
        anchor = table.series.anchor
        for f in range(anchor.shape[1]):
            items.anchors[w, f] = anchor[slot, f]
        unroll(table.series.tail[slot], row.pushed, anchor.shape[1], items.tails[w])
        items.size[1] = w + 1
    return SCORED


@kernel
def _close_cell(table: Table, policy: AlignPolicy, items: Items, slot: int, k: int) -> None:
    """Turn one cell into a row, after rows for the empty cells before it."""
    row, cell = table.series.rows[slot], table.series.cells[slot, k]
    features = table.series.out.shape[1]
    size = table.series.tail.shape[1] // features
    merged, count = table.series.cell_value[slot, k], table.series.cell_count[slot, k]
    values = items.closing
    values[:] = np.nan
    if row.row_ns != NEVER:
        before = row.row_ns // policy.every_ns
        holes = cell.index - before - 1
        if holes > 0:
            if policy.hold and holes < size and (holes + 1) * policy.every_ns <= policy.gap_ns:
                for hole in range(holes):
                    time_ns = (before + 1 + hole) * policy.every_ns
                    _take_row(table, policy, items, slot, time_ns, row.offset, values, True)
            else:
                row.pushed = 0
    for f in range(features):
        if count[f] > 0:
            values[f] = merged[f] / count[f] if policy.combine == 0 else merged[f]
    time_ns = cell.index * policy.every_ns
    bin_ = _take_row(table, policy, items, slot, time_ns, cell.offset, values, False)
    table.bins[PENDING] -= 1
    table.bins[bin_] += 1
    cell.readings = 0


@kernel
def _close_due(table: Table, policy: AlignPolicy, items: Items, slot: int, until_ns: int) -> None:
    """Close the cells of a series that end by ``until_ns``, its lateness included, oldest first."""
    while True:
        due = -1
        for k in range(table.series.cells.shape[1]):
            cell = table.series.cells[slot, k]
            end_ns = (cell.index + 1) * policy.every_ns + policy.late_ns
            earlier = due < 0 or cell.index < table.series.cells[slot, due].index
            if cell.readings > 0 and end_ns <= until_ns and earlier:
                due = k
        if due < 0:
            return
        _close_cell(table, policy, items, slot, due)
        table.dirty[slot] = True


@kernel
def _can_fall_silent(row: Row, policy: AlignPolicy) -> bool:
    """Not twice, and not where its events go to another partition now."""
    return bool(row.silent == 0 and row.moved == 0 and policy.silent_ns < ALWAYS)


@kernel
def _settle(table: Table, policy: AlignPolicy, items: Items, slot: int) -> None:
    """All that the partition clock brings to a live series, by time: closed cells, silence, forgetting."""
    row = table.series.rows[slot]
    clock_ns = table.clock[0]
    if _can_fall_silent(row, policy) and row.last_ns + policy.silent_ns <= clock_ns:
        if policy.every_ns > 0:
            _close_due(table, policy, items, slot, row.last_ns + policy.silent_ns)
        row.silent = 1
        table.dirty[slot] = True
        _item(items, SILENT, slot, row.last_ns + policy.silent_ns, row.offset)
    if policy.every_ns > 0:
        _close_due(table, policy, items, slot, clock_ns)
    if row.last_ns + policy.forget_ns <= clock_ns:
        _item(items, GONE, slot, row.last_ns + policy.forget_ns, row.offset)
        row.live = 0
        table.clock[1] -= 1
        table.dirty[slot] = True


@kernel
def _schedule(table: Table, policy: AlignPolicy, slot: int) -> None:
    """Note when the clock brings something to this series next."""
    row = table.series.rows[slot]
    due = row.last_ns + policy.forget_ns
    if _can_fall_silent(row, policy):
        due = min(due, row.last_ns + policy.silent_ns)
    for k in range(table.series.cells.shape[1]):
        if table.series.cells[slot, k].readings > 0:
            due = min(due, (table.series.cells[slot, k].index + 1) * policy.every_ns + policy.late_ns)
    row.due_ns = due
    table.clock[2] = min(table.clock[2], due)


@kernel
def _begin(table: Table, items: Items, slot: int, time_ns: int, offset: int) -> None:
    """A series is live from this record on; nothing is left of an earlier life in the same slot."""
    series, row = table.series, table.series.rows[slot]
    row.live = 1
    row.pushed = 0
    row.silent = 0
    row.checksum = 0
    row.offset = offset
    row.last_ns = NEVER
    row.row_ns = NEVER
    series.raw[slot] = 0.0
    series.raw_ns[slot] = NEVER
    series.out[slot] = np.nan
    series.anchor[slot] = 0.0
    series.tail[slot] = 0.0
    for k in range(series.cells.shape[1]):
        series.cells[slot, k].index = 0
        series.cells[slot, k].offset = 0
        series.cell_value[slot, k] = 0.0
        series.cell_ns[slot, k] = 0
        series.cell_count[slot, k] = 0
        series.cell_held[slot, k] = 0
    table.clock[1] += 1
    _item(items, BEGUN, slot, time_ns, offset)


@kernel
def _merge(table: Table, policy: AlignPolicy, columns: Columns, i: int) -> int:
    """Put a reading into its grid cell; returns its bin."""
    slot, time_ns, metric = columns.slot[i], columns.time_ns[i], int(columns.metric[i])
    row = table.series.rows[slot]
    index = time_ns // policy.every_ns
    closed = row.row_ns != NEVER and index <= row.row_ns // policy.every_ns
    if closed or (index + 1) * policy.every_ns + policy.late_ns <= table.clock[0]:
        return LATE
    free, found = -1, -1
    for k in range(table.series.cells.shape[1]):
        if table.series.cells[slot, k].readings == 0:
            free = k
        elif table.series.cells[slot, k].index == index:
            found = k
    first = found < 0
    k = free if first else found
    cell, held = table.series.cells[slot, k], table.series.cell_held[slot, k]
    merged, count = table.series.cell_value[slot, k], table.series.cell_count[slot, k]
    merged_ns = table.series.cell_ns[slot, k]
    if first:
        cell.index = index
        count[:] = 0
    reading = time_ns - index * policy.every_ns + ((metric + 1) << _METRIC_SHIFT)
    for h in range(min(cell.readings, held.shape[0])):
        if held[h] == reading:
            return DUPLICATE
    held[cell.readings % held.shape[0]] = reading
    cell.readings += 1
    cell.offset = columns.offset[i]
    for j in range(columns.values.shape[1]):
        f = metric if metric >= 0 else j
        value = columns.values[i, j]
        if np.isnan(value):
            continue
        if count[f] == 0:
            merged[f] = value
            merged_ns[f] = time_ns
        elif policy.combine in (0, 4):
            merged[f] += value
        elif policy.combine == 1:
            if time_ns >= merged_ns[f]:
                merged[f] = value
                merged_ns[f] = time_ns
        elif policy.combine == 2:
            merged[f] = min(merged[f], value)
        else:
            merged[f] = max(merged[f], value)
        count[f] += 1
    return PENDING if first else MERGED


@kernel
def _read(
    table: Table,
    policy: AlignPolicy,
    items: Items,
    columns: Columns,
    i: int,
) -> int:
    """Put one record of a live series where it belongs; returns its bin."""
    slot, time_ns = columns.slot[i], columns.time_ns[i]
    row = table.series.rows[slot]
    row.checksum = (row.checksum * _FACTOR + columns.offset[i] + 1) % _PRIME
    table.clock[0] = max(table.clock[0], min(time_ns, columns.limit_ns[i]))
    if policy.every_ns > 0:
        _close_due(table, policy, items, slot, table.clock[0])
    if not columns.inside[i]:
        bin_ = OUTSIDE
    elif policy.every_ns > 0:
        bin_ = _merge(table, policy, columns, i)
    elif time_ns > row.last_ns:
        bin_ = _take_row(table, policy, items, slot, time_ns, columns.offset[i], columns.values[i], False)
    else:
        bin_ = DUPLICATE if time_ns == row.last_ns else LATE
    if time_ns > row.last_ns and bin_ not in (LATE, DUPLICATE):
        row.last_ns = time_ns
        if row.silent == 1:
            row.silent = 0
            _item(items, BACK, slot, time_ns, columns.offset[i])
    table.dirty[slot] = True
    return bin_


@kernel
def take(
    table: Table,
    policy: AlignPolicy,
    items: Items,
    columns: Columns,
    first: int,
    spare: int,
    swept: int,
) -> int:
    """Work through records from ``first`` on, until they end or there is no :func:`has_room`.

    Returns the next record. When it is below the end although there is room, a new series met the bound on
    series: forget what is due (:func:`sweep`) and go on with ``swept`` set to that record.
    """
    i = first
    while i < columns.slot.shape[0] and has_room(items, spare, table.series.cells.shape[1]):
        slot = columns.slot[i]
        if slot < 0:
            i += 1
            continue
        row = table.series.rows[slot]
        if row.live == 1 and row.due_ns <= table.clock[0]:
            _settle(table, policy, items, slot)
        if row.live == 0:
            if table.clock[1] >= policy.max_series:
                if swept != i and table.clock[2] <= table.clock[0]:
                    return i
                # its time counts: else a bound full of series that are no more would hold for ever
                table.clock[0] = max(table.clock[0], min(columns.time_ns[i], columns.limit_ns[i]))
                table.bins[OVER_LIMIT] += 1
                i += 1
                continue
            _begin(table, items, slot, columns.time_ns[i], columns.offset[i])
        table.bins[_read(table, policy, items, columns, i)] += 1
        if row.last_ns == NEVER:
            # all that is known of it came too late: it is no series yet
            row.live = 0
            table.clock[1] -= 1
        else:
            _schedule(table, policy, slot)
        i += 1
    return i


@kernel
def sweep(
    table: Table,
    policy: AlignPolicy,
    items: Items,
    first: int,
    spare: int,
) -> int:
    """Bring to every live series from slot ``first`` on what the clock has passed.

    Returns the next slot; as :func:`take`, it stops when there is no room.
    """
    if first == 0:
        table.clock[2] = ALWAYS
    slot = first
    while slot < table.series.rows.shape[0] and has_room(items, spare, table.series.cells.shape[1]):
        row = table.series.rows[slot]
        if row.live == 1:
            if row.due_ns <= table.clock[0]:
                _settle(table, policy, items, slot)
            if row.live == 1:
                _schedule(table, policy, slot)
        slot += 1
    return slot
