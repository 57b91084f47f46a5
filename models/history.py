"""A stream's past as rows to learn from, made by the same step that detection runs on live records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.samples import SeriesRows
from pipeline.control import Standing
from pipeline.detect import Detector, Rows
from pipeline.freezes import frozen_rows
from pipeline.ports import Reader
from pipeline.reading import stretch
from pipeline.readings import Decoder
from pipeline.records import Bounds, RecordBatch, TopicPartition
from pipeline.series import PartitionState
from pipeline.silences import Matchers

Int64s = NDArray[np.int64]
Batches = Callable[[], Iterator[RecordBatch]]
"""Opens the records of one partition; may be called again."""

MOST_VALUES = 1 << 26
"""Values that are held at once, over all series: 512 MiB."""
_COMPACT_ROWS = 1 << 17


@dataclass(frozen=True, slots=True)
class Part:
    """Which rows of each series are learned from.

    Attributes:
        rows: at most so many, the newest.
        first: only the first share of its rows, above 0 and up to 1.
    """

    rows: int
    first: float = 1.0


@dataclass(slots=True, eq=False)
class History:
    """Rows by series, and what became of the records they were made from.

    Attributes:
        series: what is learned from.
        records: records read.
        bins: how many of them did not become rows of their own, by bin.
        frozen: rows that are left out because a silence freezes them.
        rows_limit: the bound on rows of a series that was kept, below the one asked for where memory asks it.
    """

    series: dict[str, SeriesRows] = field(default_factory=dict)
    records: int = 0
    bins: dict[str, int] = field(default_factory=dict)
    frozen: int = 0
    rows_limit: int = 0

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(len(each.segment) for each in self.series.values())


def gather(
    detector: Detector,
    sources: Sequence[Batches],
    part: Part,
    freezes: Sequence[Standing],
    on_records: Callable[[int], None],
) -> History:
    """Read every source to its end; ``on_records`` hears of each batch's length.

    Where only a first share is asked for, sources are read twice: the share is of each series' own rows. Rows
    within windows of ``freezes`` count for nothing.
    """
    history = History(rows_limit=part.rows)
    most = MOST_VALUES // max(len(sources), 1) // detector.layout.features
    for source in sources:
        allowed = None
        if part.first < 1:
            counts = _rows_by_slot(detector, source, freezes, on_records)
            allowed = np.floor(counts * part.first).astype(np.int64)
        newest = _Newest(part.rows, most, 2 * detector.layout.window_rows, allowed)
        state = detector.fresh("", 0)
        thawed = _Thawed(detector, state, freezes)
        for batch in source():
            for rows in thawed(batch):
                newest.add(rows)
            history.records += len(batch) + batch.damaged
            on_records(len(batch))
        for slot, rows_of_series in newest.take():
            name = state.names[slot] or ""
            history.series[name] = _joined(history.series.get(name), rows_of_series)
        history.frozen += thawed.left_out
        history.rows_limit = min(history.rows_limit, newest.limit)
        for name, count in state.counters.named().items():
            history.bins[name] = history.bins.get(name, 0) + count
    return history


def _rows_by_slot(
    detector: Detector, source: Batches, freezes: Sequence[Standing], on_records: Callable[[int], None]
) -> Int64s:
    counts = np.zeros(0, np.int64)
    thawed = _Thawed(detector, detector.fresh("", 0), freezes)
    for batch in source():
        for rows in thawed(batch):
            counts = _added(counts, rows.slot)
        on_records(len(batch))
    return counts


def _added(counts: Int64s, slot: NDArray[np.int32]) -> Int64s:
    more = np.bincount(slot, minlength=len(counts))
    more[: len(counts)] += counts
    return more


def _joined(before: SeriesRows | None, after: SeriesRows) -> SeriesRows:
    """A series that stands in two partitions is two stretches."""
    if before is None:
        return after
    segment = after.segment + before.segment[-1] + 1
    return SeriesRows(
        np.concatenate([before.values, after.values]), np.concatenate([before.segment, segment])
    )


class _Thawed:
    """The rows of batches without those that silences freeze; no window reaches over the hole.

    Attributes:
        left_out: frozen rows so far.
    """

    def __init__(self, detector: Detector, state: PartitionState, freezes: Sequence[Standing]) -> None:
        self.left_out = 0
        self._detector, self._state, self._freezes = detector, state, freezes
        self._labels = _Labels(detector) if detector.stream.events.labels and freezes else None
        self._after = np.zeros(0, bool)  # by slot: its newest row was frozen

    def __call__(self, batch: RecordBatch) -> Iterator[Rows]:
        if self._labels is not None:
            self._labels.read(batch)
        for rows in self._detector.rows(self._state, batch):
            yield self._thaw(rows) if self._freezes and len(rows.slot) else rows

    def _thaw(self, rows: Rows) -> Rows:
        slot = rows.slot
        frozen = frozen_rows(self._freezes, slot, rows.time_ns, self._covers)
        self._after = np.concatenate([self._after, np.zeros(len(self._state.names) - len(self._after), bool)])
        order = np.argsort(slot, kind="stable")
        first = np.diff(slot[order], prepend=-1) != 0
        before = np.concatenate([[False], frozen[order][:-1]])
        before[first] = self._after[slot[order][first]]
        self._after[slot] = frozen  # of equal slots the last one stays
        fresh = rows.fresh.copy()
        fresh[order] |= before
        self.left_out += int(np.count_nonzero(frozen))
        kept = ~frozen
        return Rows(slot[kept], rows.time_ns[kept], fresh[kept], rows.values[kept])

    def _covers(self, matchers: Matchers, slot: int) -> bool:
        series = self._state.names[slot] or ""
        labels = {} if self._labels is None else self._labels.found.get(series, {})
        return matchers.cover(self._detector.name, series, labels)


class _Labels:
    """The labels of series, from the first record of each.

    Attributes:
        found: them by series.
    """

    def __init__(self, detector: Detector) -> None:
        self.found = dict[str, dict[str, str]]()
        self._names = detector.stream.events.labels
        self._decoder, self._state = Decoder(detector.stream), detector.fresh("", 0)

    def read(self, batch: RecordBatch) -> None:
        columns = self._decoder.decode(batch, self._state).columns
        slots, at = np.unique(columns.slot, return_index=True)
        rows = np.searchsorted(batch.offset, columns.offset[at])
        for slot, row in zip(slots.tolist(), rows.tolist(), strict=True):
            series = "" if slot < 0 else self._state.names[slot] or ""
            if series and series not in self.found:
                texts = self._decoder.labels(batch.value(row) or b"")
                self.found[series] = dict(zip(self._names, texts, strict=True))


class _Newest:
    """The newest rows of each slot, in bounded memory.

    Attributes:
        limit: rows of a slot that are kept; falls when there are so many slots that ``most`` is reached.
    """

    def __init__(self, limit: int, most: int, least: int, allowed: Int64s | None) -> None:
        self.limit = limit
        self._most, self._least, self._allowed = most, least, allowed
        self._seen = np.zeros(0, np.int64)
        self._slot: list[NDArray[np.int32]] = []
        self._fresh: list[NDArray[np.bool_]] = []
        self._values: list[NDArray[np.float64]] = []
        self._held = self._compacted = 0

    def add(self, rows: Rows) -> None:
        """Take rows that came after all those taken before."""
        chosen: slice | NDArray[np.bool_] = slice(None)
        if self._allowed is not None:
            before = _added(self._seen, rows.slot[:0])
            self._seen = _added(self._seen, rows.slot)
            before = np.concatenate([before, np.zeros(len(self._seen) - len(before), np.int64)])
            chosen = before[rows.slot] + _rank(rows.slot) < self._allowed[rows.slot]
        self._slot.append(rows.slot[chosen])
        self._fresh.append(rows.fresh[chosen])
        self._values.append(rows.values[chosen])
        self._held += len(self._slot[-1])
        if self._held > max(2 * self._compacted, _COMPACT_ROWS):
            self._compact()

    def _compact(self) -> None:
        """Sort by slot, oldest row first, and drop what is over the limit."""
        slot = np.concatenate(self._slot)
        order = np.argsort(slot, kind="stable")
        counts = np.bincount(slot)
        series = max(int(np.count_nonzero(counts)), 1)
        self.limit = min(self.limit, max(self._most // series, self._least))
        from_end = np.cumsum(counts)[slot[order]] - np.arange(len(slot))
        keep = order[from_end <= self.limit]
        self._slot = [slot[keep]]
        self._fresh = [np.concatenate(self._fresh)[keep]]
        self._values = [np.concatenate(self._values)[keep]]
        self._held = self._compacted = len(keep)

    def take(self) -> Iterator[tuple[int, SeriesRows]]:
        """Each slot with its rows."""
        if not self._held:
            return
        self._compact()
        [slot], [fresh], [values] = self._slot, self._fresh, self._values
        first = np.flatnonzero(np.diff(slot, prepend=-1))
        for start, end in zip(first.tolist(), [*first[1:].tolist(), len(slot)], strict=True):
            segment = np.cumsum(fresh[start:end]).astype(np.int32)
            yield int(slot[start]), SeriesRows(values[start:end], segment)


def _rank(slot: NDArray[np.int32]) -> Int64s:
    """How many equal slots stand before each."""
    order = np.argsort(slot, kind="stable")
    counts = np.bincount(slot)
    rank = np.empty(len(slot), np.int64)
    rank[order] = np.arange(len(slot)) - (np.cumsum(counts) - counts)[slot[order]]
    return rank


def topic_bounds(
    reader: Reader, topic: str, since_ms: int | None, until_ms: int | None
) -> Mapping[int, Bounds]:
    """The offsets of each partition whose records' timestamps lie from ``since_ms`` to before ``until_ms``.

    Raises:
        NotFound: the topic does not exist.
        BusDown: the bus cannot be reached.
    """
    found = {}
    for number, bounds in sorted(reader.bounds(topic).items()):
        partition = TopicPartition(topic, number)
        first, end = bounds.first_offset, bounds.end_offset
        if until_ms is not None:
            end = min(end, reader.offset_at(partition, until_ms))
        if since_ms is not None:
            first = min(max(first, reader.offset_at(partition, since_ms)), end)
        found[number] = Bounds(first, end, bounds.topic_id, end)
    return found


def topic_source(reader: Reader, partition: TopicPartition, bounds: Bounds) -> Batches:
    """The records of a partition in ``[first_offset, end_offset)``; see :func:`pipeline.reading.stretch`."""
    return lambda: stretch(reader, partition, bounds.first_offset, bounds.end_offset)
