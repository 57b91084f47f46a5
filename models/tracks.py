"""The series of a trial as they are without faults: their rows, and the raw values these are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.episodes import Episode
from models.scaling import Scaling
from pipeline.config import Stream
from pipeline.control import Standing
from pipeline.detect import Detector
from pipeline.freezes import frozen_rows
from pipeline.ports import Float64s
from pipeline.readings import Decoder, Readings
from pipeline.records import Int64s, RecordBatch, TopicPartition
from pipeline.series import PartitionState
from pipeline.silences import Matchers


class Raw(NamedTuple):
    """One feature's observed raw values in order of time: offset, time_ns int64[n], value float64[n]."""

    offset: Int64s
    time_ns: Int64s
    value: Float64s


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One series of one partition, as it is without faults.

    Attributes:
        series, partition: which.
        time_ns: int64[n], rising, of the rows that are judged.
        values: float64[n, F], their values after the transforms.
        usable: bool[n], whether an alert there is a false one: not within a window's reach of confirmed
            anomalies and of frozen rows.
        calm: bool[n], whether a fault may stand there: no anomaly was told of at all within a window's reach.
        fresh: bool[n]; true where a hole is before the row, over which no window reaches.
        raw: for each feature, what was observed.
    """

    series: str
    partition: TopicPartition
    time_ns: Int64s
    values: Float64s
    usable: NDArray[np.bool_]
    calm: NDArray[np.bool_]
    fresh: NDArray[np.bool_]
    raw: tuple[Raw, ...]

    def runs(self) -> Iterator[tuple[int, int]]:
        """Stretches ``[first, end)`` of calm rows without a hole."""
        calm = np.concatenate([[False], self.calm, [False]])
        fresh = np.concatenate([self.fresh, [True]])
        first = np.flatnonzero(calm[1:] & (~calm[:-1] | fresh))
        end = np.flatnonzero(calm[:-1] & (~calm[1:] | fresh))
        yield from zip(first.tolist(), end.tolist(), strict=True)

    @property
    def spread(self) -> Float64s:
        """float64[F], the robust spread of its rows; see :meth:`models.scaling.Scaling.fit`."""
        rows = self.values[self.usable] if self.usable.any() else self.values
        spread: Float64s = Scaling.fit(rows).spread[0]
        return spread

    @property
    def every_ns(self) -> float:
        """The usual time between two rows."""
        return float(np.median(np.diff(self.time_ns))) if len(self.time_ns) > 1 else 1.0


def survey(
    detector: Detector, batches: Sequence[RecordBatch], freezes: Sequence[Standing], known: Sequence[Episode]
) -> Iterator[Track]:
    """The series of one partition's records, those without a full window left out.

    ``detector`` says which stream; ``known`` are the anomalies that were told of.
    """
    if not batches:
        return
    stream, name = detector.stream, detector.name
    watching = _Watching(stream)
    detector = Detector(detector.namespace, name, stream, watching)
    state = detector.fresh("", 0)
    rows = [rows for batch in batches for rows in detector.rows(state, batch)]
    slot, time_ns, fresh, values = (
        np.concatenate(column)
        for column in zip(*((r.slot, r.time_ns, r.fresh, r.values) for r in rows), strict=True)
    )

    def covers(matchers: Matchers, slot: int) -> bool:
        return matchers.cover(name, state.names[slot] or "", watching.found[slot])

    frozen = frozen_rows(freezes, slot, time_ns, covers)
    order = np.argsort(slot, kind="stable")
    ends = np.searchsorted(slot[order], np.arange(len(state.names) + 1)).tolist()
    raw, window = watching.raw(len(state.names)), stream.model.window
    for each, (first, end) in enumerate(pairwise(ends)):
        mine, series = order[first:end], state.names[each] or ""
        full = _full(fresh[mine], window)
        if not full.any():
            continue
        told = [episode for episode in known if episode.series == series]
        confirmed = [episode for episode in told if episode.confirmed]
        usable, calm = (
            full & ~_near(frozen[mine] | _within(some, time_ns[mine]), window) for some in (confirmed, told)
        )
        yield Track(
            series, batches[0].partition, time_ns[mine], values[mine], usable, calm, fresh[mine], raw[each]
        )


def _within(episodes: Sequence[Episode], time_ns: Int64s) -> NDArray[np.bool_]:
    """bool[n]: whether a row is in one of some episodes."""
    inside = np.zeros(len(time_ns), bool)
    for each in episodes:
        inside |= (time_ns >= each.started_ns) & (time_ns <= each.ended_ns)
    return inside


class _Watching(Decoder):
    """A stream's decoder that remembers what was observed, by slot, and the labels of each slot's series."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self.found = dict[int, dict[str, str]]()
        self._label_names, self._one_a_record = stream.events.labels, stream.events.kind == "narrow"
        self._seen = list[tuple[NDArray[Any], ...]]()

    def decode(self, batch: RecordBatch, state: PartitionState) -> Readings:
        """Decode a batch."""
        readings = super().decode(batch, state)
        columns = readings.columns
        slots, first = np.unique(columns.slot, return_index=True)
        for slot, row in zip(
            slots.tolist(), np.searchsorted(batch.offset, columns.offset[first]), strict=True
        ):
            if slot >= 0 and slot not in self.found:
                labels = self.labels(batch.value(row) or b"")
                self.found[slot] = dict(zip(self._label_names, labels, strict=False))
        good = columns.inside & (columns.slot >= 0)
        kept = (columns.slot, columns.offset, columns.time_ns, columns.metric, columns.values)
        self._seen.append(tuple(column[good] for column in kept))
        return readings

    def raw(self, slots: int) -> list[tuple[Raw, ...]]:
        """What was observed, by slot and feature."""
        slot, offset, time_ns, metric, values = map(np.concatenate, zip(*self._seen, strict=True))
        order = np.lexsort((time_ns, slot))
        ends = np.searchsorted(slot[order], np.arange(slots + 1)).tolist()
        by_slot = []
        for mine in (order[first:end] for first, end in pairwise(ends)):
            by_feature = []
            for feature in range(len(self.feature_names)):
                here = mine[metric[mine] == feature] if self._one_a_record else mine
                value = values[here, 0 if self._one_a_record else feature]
                there = ~np.isnan(value)
                by_feature.append(Raw(offset[here[there]], time_ns[here[there]], value[there]))
            by_slot.append(tuple(by_feature))
        return by_slot


def _full(fresh: NDArray[np.bool_], window: int) -> NDArray[np.bool_]:
    """bool[n]: whether a row has a window behind it."""
    at = np.arange(len(fresh))
    since = np.maximum.accumulate(np.where(fresh, at, 0))
    return np.asarray(at - since >= window - 1)


def _near(marked: NDArray[np.bool_], window: int) -> NDArray[np.bool_]:
    """bool[n]: whether a marked row is less than a window away."""
    total = np.concatenate([[0], np.cumsum(marked)])
    at = np.arange(len(marked))
    first, end = np.maximum(at - window + 1, 0), np.minimum(at + window, len(marked))
    return np.asarray(total[end] > total[first])
