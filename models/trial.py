"""A trial: the same replayed records, without and with faults, through the detect step of every contender."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import series_hash
from models.faults import Changed, Injecting, Raw, Track, changes, place
from models.samples import HELD_OUT_SHARE, evenly, windows_at
from models.scaling import TARGET_CLIP
from pipeline.config import Stream
from pipeline.control import NO_DECISIONS, Decisions
from pipeline.detect import Detector
from pipeline.freezes import frozen_rows
from pipeline.ports import Float64s, Scorer, Windows
from pipeline.readings import Decoder, Readings
from pipeline.records import Int64s, RecordBatch, TopicPartition
from pipeline.series import PartitionState
from pipeline.silences import Matchers

Batches = Callable[[], Iterator[RecordBatch]]

MAX_RECORDS: Final = 1_000_000
"""Records that a trial holds and goes through several times: some seconds a time, and about 200 MB."""
LEAST_SERIES: Final = 30
"""Where there are more records, half of the series are left out, and half of those left; at so few series
the oldest records are, instead."""
MAX_WINDOWS: Final = 8_192
"""Held-out windows, over all series: their errors' mean is sure to a percent."""
DAY_NS: Final = 86_400 * 10**9
_ALL: Final = 1 << 64


class Episode(NamedTuple):
    """A known anomaly of a series: from the first to the last of its event times."""

    series: str
    start_ns: int
    end_ns: int


class Alarm(NamedTuple):
    """An alert that fired: the track of its series, its first row's time, and that of the row it fired at."""

    track: int
    started_ns: int
    at_ns: int
    peak: float


@dataclass(frozen=True, slots=True)
class Extent:
    """What a trial looks at, and out of how much.

    Attributes:
        records, of_records: replayed, and found in the sources.
        series, of_series: the same of series.
        first_ns, last_ns: event times of the first and the last judged row.
        rows: judged rows of the replay that count.
    """

    records: int
    of_records: int
    series: int
    of_series: int
    first_ns: int
    last_ns: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Windows to compare errors by.

    Attributes:
        series: names.
        of: int64[n], the index of each window's series, rising.
        raw: float64[n, W, F], in the features' own units.
        spread: float64[series, F], by which residuals of all contenders are divided alike.
    """

    series: list[str]
    of: Int64s
    raw: Float64s
    spread: Float64s

    def errors(self, scorer: Scorer) -> Float64s:
        """float64[n]: the root of the mean absolute residual, in spreads of the rows and not of a model."""
        model = scorer.assign(self.series).model[self.of]
        anchor = self.raw[:, -1]
        with np.errstate(over="ignore"):  # what overflows is clipped
            why = scorer.explain(Windows((self.raw - anchor[:, None]).astype(np.float32), anchor, model))
        residual = np.abs(why.observed - why.expected) / self.spread[self.of][:, None]
        errors: Float64s = np.sqrt(residual.clip(max=TARGET_CLIP).mean(axis=(1, 2)))
        return errors


class _Sampled:
    """The newest records of evenly chosen series of one source, in bounded memory."""

    def __init__(self, stream: Stream, most: int) -> None:
        self.batches: list[tuple[RecordBatch, NDArray[np.uint64]]] = []
        self.read = self.held = 0
        self.names = dict[str, int]()
        self._decoder, self._most, self._limit = Decoder(stream), most, _ALL
        self._hash = np.zeros(0, np.uint64)

    def add(self, batch: RecordBatch, state: PartitionState) -> None:
        """Take records that follow those taken before."""
        columns = self._decoder.decode(batch, state).columns
        fresh = state.names[len(self._hash) :]
        self.names.update((name, series_hash(name)) for name in fresh if name is not None)
        more = np.array([self.names.get(name or "", 0) for name in fresh], np.uint64)
        self._hash = np.concatenate([self._hash, more])
        good = columns.slot >= 0
        kept = np.searchsorted(batch.offset, columns.offset[good])
        self.read += len(batch)
        self._keep(batch, kept, self._hash[columns.slot[good]])
        while self.held > self._most and len(self.batches) > 1:
            self._leave_out()

    @property
    def series(self) -> int:
        """How many series are held."""
        return sum(each < self._limit for each in self.names.values())

    def _keep(self, batch: RecordBatch, rows: NDArray[np.intp], hashes: NDArray[np.uint64]) -> None:
        chosen = hashes <= np.uint64(self._limit - 1)
        rows, hashes = rows[chosen], hashes[chosen]
        if len(rows):
            self.batches.append((batch if len(rows) == len(batch) else _only(batch, rows), hashes))
            self.held += len(rows)

    def _leave_out(self) -> None:
        if self.series <= LEAST_SERIES:
            self.held -= len(self.batches.pop(0)[0])
            return
        self._limit //= 2
        before, self.batches, self.held = self.batches, [], 0
        for batch, hashes in before:
            self._keep(batch, np.arange(len(batch)), hashes)


def _only(batch: RecordBatch, rows: NDArray[np.intp]) -> RecordBatch:
    """Some records of a batch, in a buffer of their own."""
    records = [(batch.key(row), batch.value(row), int(batch.timestamp_ms[row])) for row in rows.tolist()]
    taken = RecordBatch.of(batch.partition, 0, records)
    return replace(taken, offset=batch.offset[rows], next_offset=batch.next_offset)


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
        for slot, row in zip(slots.tolist(), np.searchsorted(batch.offset, columns.offset[first]), strict=True):
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


class Trial:
    """Records of a stream's past, and the faults that are put into them.

    Attributes:
        stream: the settings that all contenders run under.
        tracks: the series that are looked at.
        faults: what is put into them.
        extent: how much is looked at.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        stream: Stream,
        sources: Sequence[Batches],
        *,
        decisions: Decisions = NO_DECISIONS,
        known: Sequence[Episode] = (),
        most_records: int = MAX_RECORDS,
    ) -> None:
        """Read every source to its end, once.

        Args:
            namespace, name, stream: the stream.
            sources: each opens the records of one partition.
            decisions: what people decided about how its rows are judged.
            known: anomalies that there were: alerts in them are no false alarms.
            most_records: bound on the records that are kept.

        Raises:
            BusDown, Unreadable, InputError: from a source.
        """
        self.stream, self._decisions = stream, decisions
        self._namespace, self._name = namespace, name
        plain = Detector(namespace, name, stream)
        self._sources, self.tracks = list[list[RecordBatch]](), list[Track]()
        of_records = of_series = 0
        for source in sources:
            sampled = _Sampled(stream, most_records // len(sources))
            state = plain.fresh("", 0)
            for batch in source():
                sampled.add(batch, state)
            self._sources.append([batch for batch, _ in sampled.batches])
            self.tracks += self._survey(self._sources[-1], known)
            of_records += sampled.read
            of_series += len(sampled.names)
        self._index = {(each.partition, each.series): n for n, each in enumerate(self.tracks)}
        self.faults = place(self.tracks, stream, stream.training.seed)
        self._changed = changes(self.tracks, self.faults, stream, stream.training.seed)
        times = [each.time_ns for each in self.tracks]
        self.extent = Extent(
            records=sum(map(len, chain(*self._sources))),
            of_records=of_records,
            series=len(self.tracks),
            of_series=of_series,
            first_ns=min((int(each[0]) for each in times), default=0),
            last_ns=max((int(each[-1]) for each in times), default=0),
            rows=sum(int(each.usable.sum()) for each in self.tracks),
        )

    def _survey(self, batches: Sequence[RecordBatch], known: Sequence[Episode]) -> Iterator[Track]:
        """The series of one source, those without a full window left out."""
        if not batches:
            return
        watching = _Watching(self.stream)
        detector = Detector(self._namespace, self._name, self.stream, watching)
        state = detector.fresh("", 0)
        rows = [rows for batch in batches for rows in detector.rows(state, batch)]
        slot, time_ns, fresh, values = (
            np.concatenate(column)
            for column in zip(*((r.slot, r.time_ns, r.fresh, r.values) for r in rows), strict=True)
        )

        def covers(matchers: Matchers, slot: int) -> bool:
            return matchers.cover(self._name, state.names[slot] or "", watching.found[slot])

        frozen = frozen_rows(self._decisions.freezes, slot, time_ns, covers)
        order = np.argsort(slot, kind="stable")
        ends = np.searchsorted(slot[order], np.arange(len(state.names) + 1)).tolist()
        raw, window = watching.raw(len(state.names)), self.stream.model.window
        for each, (first, end) in enumerate(pairwise(ends)):
            mine, name = order[first:end], state.names[each] or ""
            shunned = frozen[mine]
            for episode in known:
                if episode.series == name:
                    shunned |= (time_ns[mine] >= episode.start_ns) & (time_ns[mine] <= episode.end_ns)
            full = _full(fresh[mine], window)
            if full.any():
                usable = full & ~_near(shunned, window)
                yield Track(
                    name, batches[0].partition, time_ns[mine], values[mine], usable, fresh[mine], raw[each]
                )

    def alarms(self, scorer: Scorer, *, raised: float = 1.0) -> list[Alarm]:
        """What a contender raises without faults, at rows that count; ``raised`` times are the lines."""
        return [
            alarm
            for alarm in self._run(scorer, {}, raised)
            if (track := self.tracks[alarm.track]).usable[np.searchsorted(track.time_ns, alarm.at_ns)]
        ]

    def found(self, scorer: Scorer, *, raised: float = 1.0) -> NDArray[np.bool_]:
        """bool[faults]: whether a contender raises an alert in a fault's stretch or a window after it.

        An alert that was open before has not found it.
        """
        alarms = self._run(scorer, self._changed, raised)
        found = np.zeros(len(self.faults), bool)
        for n, fault in enumerate(self.faults):
            found[n] = any(
                alarm.track == fault.track and fault.start_ns <= alarm.started_ns <= alarm.at_ns <= fault.until_ns
                for alarm in alarms
            )
        return found

    def _run(self, scorer: Scorer, changed: Mapping[TopicPartition, Changed], raised: float) -> list[Alarm]:
        """The anomalies that fire, by the one detect step from fresh states."""
        rules, decisions = self.stream.alerts, self._decisions
        share = raised * decisions.raised(rules) - 1
        rules = rules.model_copy(update={"raise_by": share, "raise_most": share})
        stream = self.stream.model_copy(update={"alerts": rules})
        detector = Detector(self._namespace, self._name, stream, Injecting(stream, changed))
        fired = dict[str, Alarm]()
        for batches in self._sources:
            state = detector.fresh("", 0)
            state.decisions = replace(decisions, false_alarms=1)
            for batch in batches:
                outputs = detector.step(state, batch, scorer)
                for change, alert in zip(outputs.changes, outputs.alerts, strict=True):
                    if change.alert == "anomaly":
                        track = self._index[batch.partition, change.series]
                        alarm = fired.get(change.id) or Alarm(track, change.started_ns, change.at_ns, 0.0)
                        fired[change.id] = alarm._replace(peak=alert.peak_score or 0.0)
        return list(fired.values())

    def blocks(self) -> tuple[Int64s, Float64s]:
        """Days of series that have rows that count: int64[n, 2] track and day, and float64[n] how long, in days.
        """
        found, days = list[Int64s](), list[Float64s]()
        for index, track in enumerate(self.tracks):
            day, rows = np.unique(track.time_ns[track.usable] // DAY_NS, return_counts=True)
            found.append(np.stack([np.full(len(day), index), day], axis=1))
            days.append(rows * track.every_ns / DAY_NS)
        return np.concatenate(found or [np.zeros((0, 2), np.int64)]), np.concatenate(days or [np.zeros(0)])

    def held_out(self) -> HeldOut:
        """Windows of the newest fifth of each series' rows that count, evenly chosen.

        Training holds out as much of the same rows, and a model that is older has not seen them either.
        """
        window, each = self.stream.model.window, max(MAX_WINDOWS // max(len(self.tracks), 1), 1)
        ends = []
        for track in self.tracks:
            usable = np.flatnonzero(track.usable)
            newest = usable[len(usable) - round(HELD_OUT_SHARE * len(usable)) :]
            ends.append(evenly(newest, each))
        raw = [
            windows_at(track.values, end - window + 1, window)
            for track, end in zip(self.tracks, ends, strict=True)
        ]
        counts = [len(end) for end in ends]
        return HeldOut(
            [track.series for track in self.tracks],
            np.repeat(np.arange(len(counts)), counts),
            np.concatenate(raw or [np.zeros((0, window, len(self.stream.feature_names)))]),
            np.stack([track.spread for track in self.tracks]) if self.tracks else np.zeros((0, 1)),
        )


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
