"""The one step that live work, re-reading, replay and the promotion gate share: records in, alerts out.

Nothing here does I/O, reads a clock or logs. The same records give the same rows, bins and episodes in any
batching; errors agree to the rounding of a matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.accounting import Bin
from pipeline.alerts import (
    Alert,
    Channel,
    DeadLetter,
    FeatureEvidence,
    Joined,
    Kind,
    Reason,
    Transition,
    alert_id,
    severity,
)
from pipeline.align import BEGUN, FILL, Columns, Items, Table, has_room, sweep, take
from pipeline.companions import CHANNELS, Scratch, shares
from pipeline.config import Stream
from pipeline.episodes import FIRED, NOTHING, RESOLVED, WORSENED
from pipeline.freezes import frozen_rows
from pipeline.judge import IS_GONE, JUDGE, SILENCE, UNKNOWN, Joining, Verdicts, judge
from pipeline.policy import align_policy, deviations, judge_policy
from pipeline.ports import Errors, Float32s, Float64s, Int32s, Scorer, Windows
from pipeline.readings import Decoder, Rejected
from pipeline.records import Int64s, RecordBatch
from pipeline.series import Layout, PartitionState
from pipeline.silences import Matchers

LETTERS_PER_S = 1_000
"""Dead letters of a partition and second that keep their bytes; beyond it ranges are counted."""
_DRAWN_FEATURES = 8
"""Features of an alert that come with their whole window."""
_PIECE_ITEMS = 51_200
"""A whole poll in one piece: stacked models share the cost of reading their weights among more rows."""
_PIECE_BYTES = 32 << 20
_EXPLAINED = 256
"""Windows that are explained at once, where rules ask how far they deviate."""
_NO_ERRORS = Errors(np.zeros(0), np.zeros(0))


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Judged rows, as columns: slot int32, time_ns int64, the others float64.

    ``last_score`` is that of the last row's own error, by which episodes begin to fire and end. ``rule`` int8
    is what decided (:func:`pipeline.episodes.step`), ``silenced`` bool whether somebody said that the row
    teaches nothing.
    """

    slot: Int32s
    time_ns: Int64s
    error: Float64s
    score: Float64s
    last_score: Float64s
    threshold: Float64s
    rule: NDArray[np.int8]
    silenced: NDArray[np.bool_]


@dataclass(slots=True, eq=False)
class Outputs:
    """What came of a batch: alerts and dead letters in order, and the scores for whoever watches.

    ``changes`` are the alerts again, as the journal has them.
    """

    alerts: list[Alert] = field(default_factory=list)
    changes: list[Transition] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows as they go into windows: slot int32[n], time_ns int64[n], fresh bool[n], values float64[n, F].

    ``fresh`` marks the first row of a window: no window may reach over it. ``held`` bool[n, F] marks values
    that were missing, where the last one holds.
    """

    slot: Int32s
    time_ns: Int64s
    fresh: NDArray[np.bool_]
    values: Float64s
    held: NDArray[np.bool_]


Imposed: TypeAlias = Mapping[tuple[str, int, int], Transition]
"""The judged alert changes of a time before, see :meth:`pipeline.journal.Past.imposed`."""


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """A part of a batch that has been scored."""

    state: PartitionState
    batch: RecordBatch
    scorer: Scorer | None
    windows: Windows
    errors: Errors
    imposed: Imposed | None


class Detector:
    """The detect step of one stream. It keeps scratch space only; the state is the caller's. One thread.

    ``decoder`` makes readings of records: the stream's own, unless a trial watches or alters what it makes.
    """

    def __init__(self, namespace: str, name: str, stream: Stream, decoder: Decoder | None = None) -> None:
        self.layout = Layout.of(stream)
        self.namespace, self.name, self.stream = namespace, name, stream
        self._decoder = decoder or Decoder(stream)
        self._align = {has_model: align_policy(stream, has_model=has_model) for has_model in (False, True)}
        self._judge, self._deviations = judge_policy(stream), deviations(stream)
        # One record can close every open cell, each after a hole, and end or begin a silence.
        self._spare = self.layout.cells * self.layout.window_rows + 8
        size = max(_PIECE_ITEMS, 2 * self._spare)
        window_bytes = 4 * self.layout.window_rows * self.layout.features
        windows = max(min(_PIECE_ITEMS, _PIECE_BYTES // window_bytes), 2 * self.layout.cells + 4)
        self._items = Items.room(size, windows, self.layout.window_rows, self.layout.features)
        self._verdicts = Verdicts.room(size)
        self._scratch = Scratch.room(self.layout.window_rows, self.layout.features)
        # Compiled, or loaded, now: a stream may meet its first sweep after hours, and wait for seconds.
        state = self.fresh("", 0)
        sweep(self._table(state), self._align[False], self._items, 0, self._spare)

    def fresh(self, topic_id: str, next_offset: int) -> PartitionState:
        """The state of a partition of which nothing is known."""
        state = PartitionState(self.layout, topic_id)
        state.next_offset = next_offset
        return state

    def step(
        self,
        state: PartitionState,
        batch: RecordBatch,
        scorer: Scorer | None,
        imposed: Imposed | None = None,
    ) -> Outputs:
        """Advance ``state`` (in place) over ``batch``, which begins at or above its ``next_offset``.

        Without a scorer rows only fill their windows. Records that are read again come with what was made of
        them then (``imposed``): these rows, and no others, fire and resolve.
        """
        outputs = Outputs()
        readings = self._decoder.decode(batch, state)
        self._bury(state, batch, readings.rejected, outputs)
        self._bury_damage(state, batch, outputs)
        self._assign(state, readings.columns, scorer)
        for windows in self._pieces(state, readings.columns, has_model=scorer is not None):
            errors = scorer.score(windows) if scorer is not None and len(windows) else _NO_ERRORS
            self._verdict(_Piece(state, batch, scorer, windows, errors, imposed), outputs)
        self._release(state, readings.columns.slot)
        state.next_offset = batch.next_offset
        return outputs

    def rows(self, state: PartitionState, batch: RecordBatch) -> Iterator[Rows]:
        """Advance ``state`` over ``batch`` and hand out the rows that would fill windows: training's view."""
        readings = self._decoder.decode(batch, state)
        state.counters.bins[Bin.DEAD_LETTERED] += len(readings.rejected)
        state.counters.bins[Bin.CORRUPT] += batch.damaged
        for _ in self._pieces(state, readings.columns, has_model=False):
            items, n = self._items, int(self._items.size[0])
            chosen = np.flatnonzero(items.kind[:n] <= FILL)
            yield Rows(
                items.slot[chosen],
                items.time_ns[chosen],
                items.fresh[chosen] == 1,
                items.values[chosen],
                items.held[chosen],
            )
        state.next_offset = batch.next_offset

    def _assign(self, state: PartitionState, columns: Columns, scorer: Scorer | None) -> None:
        """Look up the models of series that have none yet."""
        if scorer is None:
            return
        used = np.unique(columns.slot[columns.slot >= 0])
        state.calibrate(scorer, used[state.calibration[used, 4] == 0].tolist())

    def _pieces(self, state: PartitionState, columns: Columns, *, has_model: bool) -> Iterator[Windows]:
        """Align the records; yields whenever the scratch space is full, and at the end."""
        items, policy, table = self._items, self._align[has_model], self._table(state)
        done, swept, n = 0, -1, len(columns.slot)
        while done < n:
            items.size[:] = 0
            done = int(take(table, policy, items, columns, done, self._spare, swept))
            if done < n and has_room(items, self._spare, self.layout.cells):
                yield self._windows(state)
                yield from self._sweep(state, table, has_model=has_model)
                swept = done
            else:
                yield self._windows(state)
        if table.clock[2] <= table.clock[0]:
            yield from self._sweep(state, table, has_model=has_model)
        state.clock_ns, state.live, state.sweep_ns = table.clock.tolist()

    def _table(self, state: PartitionState) -> Table:
        return Table(
            state.series,
            state.dirty,
            np.array([state.clock_ns, state.live, state.sweep_ns], np.int64),
            state.counters.bins,
            state.counters.attributes,
            self._decoder.transforms,
        )

    def _sweep(self, state: PartitionState, table: Table, *, has_model: bool) -> Iterator[Windows]:
        slot = 0
        while slot < len(state.rows):
            self._items.size[:] = 0
            slot = int(sweep(table, self._align[has_model], self._items, slot, self._spare))
            yield self._windows(state)

    def _windows(self, state: PartitionState) -> Windows:
        items = self._items
        n, count = items.size.tolist()
        slot = items.slot[:n][items.window[:n] >= 0]
        tails: Float32s = items.tails[:count].reshape(count, self.layout.window_rows, self.layout.features)
        return Windows(tails, items.anchors[:count], state.model[slot])

    def _verdict(self, piece: _Piece, outputs: Outputs) -> None:
        """Judge one piece and make its alerts."""
        state, errors = piece.state, piece.errors
        items, out = self._items, self._verdicts
        self._impose(piece)
        n = int(items.size[0])
        out.silenced[:n] = frozen_rows(
            state.decisions.freezes,
            items.slot[:n],
            items.time_ns[:n],
            lambda matchers, slot: self._covers(matchers, state, slot),
        )
        deviates = np.full(len(errors.window), UNKNOWN if self._judge.asks_deviation else 1, np.int8)
        at = 0
        while True:
            at = judge(
                state.rows,
                state.series.sketch,
                state.calibration,
                items,
                errors.window,
                errors.last,
                deviates,
                self._joining(state),
                self._judge,
                state.decisions.raised(self.stream.alerts),
                state.counters.attributes,
                out,
                at,
            )
            if at == n:
                break
            self._deviate(piece, at, deviates)
        judged = np.flatnonzero(items.window[:n] >= 0)
        if len(judged):
            outputs.scores.append(
                Scores(
                    items.slot[judged],
                    items.time_ns[judged],
                    errors.window,
                    out.score[judged],
                    out.last_score[judged],
                    out.threshold[judged],
                    out.rule[judged],
                    out.silenced[judged],
                )
            )
        labels = self._labels(piece)
        if labels:
            self._alerts(piece, labels, outputs)

    def _joining(self, state: PartitionState) -> Joining:
        series = state.series
        return Joining(series.companions, series.units, state.seeds, state.model, self._scratch, np.zeros(3))

    def _deviate(self, piece: _Piece, item: int, deviates: NDArray[np.int8]) -> None:
        """Find out whether an item's window deviates enough, and those behind it that may be asked next."""
        items, errors = self._items, piece.errors
        window = int(items.window[item])
        later = np.flatnonzero(deviates == UNKNOWN)
        later = later[(later >= window) & (errors.window[later] >= errors.window[window] / 2)]
        chosen = np.union1d(later[:_EXPLAINED], window)
        if piece.scorer is not None:
            windows = piece.windows
            some = Windows(windows.tail[chosen], windows.anchor[chosen], windows.model[chosen])
            deviates[chosen] = self._deviations.enough(piece.scorer.explain(some))

    def _covers(self, matchers: Matchers, state: PartitionState, slot: int) -> bool:
        labels = dict(zip(self.stream.events.labels, state.labels[slot], strict=False))
        return matchers.cover(self.name, state.names[slot] or "", labels)

    def _impose(self, piece: _Piece) -> None:
        """Set down which rows are known to have changed an alert."""
        state, items, out = piece.state, self._items, self._verdicts
        n = int(items.size[0])
        out.imposed[:n] = JUDGE if piece.imposed is None else NOTHING
        if not piece.imposed:
            return
        slots = {state.index[series]: series for series, *_ in piece.imposed if series in state.index}
        judged = (items.window[:n] >= 0) & np.isin(items.slot[:n], list(slots))
        for item in np.flatnonzero(judged).tolist():
            row = slots[int(items.slot[item])], int(items.time_ns[item]), int(items.offset[item])
            change = piece.imposed.get(row)
            if change is not None:
                first = FIRED if change.revision == 1 else WORSENED
                out.imposed[item] = first if change.state == "firing" else RESOLVED
                out.imposed_start_ns[item] = change.started_ns

    def _labels(self, piece: _Piece) -> list[tuple[str, ...]]:
        """The labels of each change's series, which are those of the record that began it."""
        state, batch, items = piece.state, piece.batch, self._items
        n, changed = int(items.size[0]), self._verdicts.item[: self._verdicts.size[0]].tolist()
        begun = np.flatnonzero(items.kind[:n] == BEGUN).tolist() if self.stream.events.labels else []
        labels, done = [], 0
        for item in [*changed, n]:
            while done < len(begun) and begun[done] < item:
                row = int(np.searchsorted(batch.offset, items.offset[begun[done]]))
                state.relabel(int(items.slot[begun[done]]), self._decoder.labels(batch.value(row) or b""))
                done += 1
            if item < n:
                labels.append(state.labels[items.slot[item]])
        return labels

    def _alerts(self, piece: _Piece, labels: list[tuple[str, ...]], outputs: Outputs) -> None:
        state, partition, errors = piece.state, piece.batch.partition, piece.errors
        items, out = self._items, self._verdicts
        changes = int(out.size[0])
        window = items.window[out.item[:changes]]
        evidence = self._evidence(piece.scorer, piece.windows, window)
        for change in range(changes):
            item = int(out.item[change])
            slot, silent = int(items.slot[item]), bool(out.kind[change] == SILENCE)
            done, judged = int(out.change[change]), bool(window[change] >= 0)
            kind: Kind = "silent" if silent else "anomaly"
            start_ns, series = int(out.start_ns[change]), state.names[slot] or ""
            reason = _reason(done, silent=silent, gone=bool(out.reason[change] == IS_GONE))
            transition = Transition(
                id=alert_id(self.namespace, self.name, series, kind, start_ns),
                revision=int(out.revision[change]),
                alert=kind,
                state="resolved" if done == RESOLVED else "firing",
                series=series,
                labels=dict(zip(self.stream.events.labels, labels[change], strict=False)),
                started_ns=start_ns,
                at_ns=int(items.time_ns[item]),
                offset=int(items.offset[item]),
                severity="warning" if silent else severity(float(out.peak[change]), self.stream),
                judged=judged,
            )
            outputs.changes.append(transition)
            outputs.alerts.append(
                Alert.of(
                    transition,
                    self.namespace,
                    self.name,
                    partition,
                    reason=reason,
                    score=float(out.score[item]) if judged else None,
                    peak_score=None if silent else float(out.peak[change]),
                    error=float(errors.window[window[change]]) if judged else None,
                    threshold=float(out.threshold[item]) if judged else None,
                    joined=self._joined(out.channels[item]) if judged else None,
                    features=evidence[change],
                    bundle=state.bundle_id,
                )
            )

    def _joined(self, channels: Float64s) -> Joined | None:
        """What a score was joined from, of :class:`pipeline.judge.Verdicts`."""
        parts, (*z, rarity) = self.layout.parts, channels.tolist()
        if not parts.joint:
            return None
        there = (True, bool(parts.level), bool(parts.shapes))
        found = [
            Channel(name=name, z=each, share=share)
            for name, each, share, on in zip(CHANNELS, z, shares(z), there, strict=True)
            if on
        ]
        found.sort(key=lambda each: -each.share)
        return Joined(channels=found, rarity=rarity if parts.rarity else None)

    def _evidence(
        self, scorer: Scorer | None, windows: Windows, window: Int32s
    ) -> list[list[FeatureEvidence]]:
        """For each change that a window made, the features with the largest share of its error first."""
        evidence: list[list[FeatureEvidence]] = [[] for _ in window]
        judged = np.flatnonzero(window >= 0)
        if scorer is None or not len(judged):
            return evidence
        at = window[judged]
        tails: Float32s = windows.tail[at]
        why = scorer.explain(Windows(tails, windows.anchor[at], windows.model[at]))
        features = list(self.stream.events.features.items())
        for n, change in enumerate(judged):
            for rank, f in enumerate(np.argsort(-why.contribution[n], kind="stable")):
                observed, expected = why.observed[n, :, f].tolist(), why.expected[n, :, f].tolist()
                drawn = rank < _DRAWN_FEATURES
                name, feature = features[f]
                evidence[change].append(
                    FeatureEvidence(
                        name=name,
                        unit=feature.unit,
                        observed=observed[-1],
                        expected=expected[-1],
                        contribution=float(why.contribution[n, f]),
                        window_observed=observed if drawn else [],
                        window_expected=expected if drawn else [],
                    )
                )
        return evidence

    def _bury(
        self, state: PartitionState, batch: RecordBatch, rejected: list[Rejected], outputs: Outputs
    ) -> None:
        """Dead letters; beyond LETTERS_PER_S of record time only the range and count of a second are kept."""
        state.counters.bins[Bin.DEAD_LETTERED] += len(rejected)
        surplus: list[Rejected] = []
        for one in rejected:
            second = int(batch.timestamp_ms[one.row]) // 1_000
            if second != state.letters_second:
                self._bury_range(batch, surplus, outputs)
                surplus = []
                state.letters_second, state.letters_count = second, 0
            state.letters_count += 1
            if state.letters_count > LETTERS_PER_S:
                surplus.append(one)
            else:
                outputs.dead_letters.append(DeadLetter.of(self.name, batch, one.row, one.reason))
        self._bury_range(batch, surplus, outputs)

    def _bury_range(self, batch: RecordBatch, surplus: list[Rejected], outputs: Outputs) -> None:
        if not surplus:
            return
        first, last = surplus[0], surplus[-1]
        outputs.dead_letters.append(
            DeadLetter(
                stream=self.name,
                partition=batch.partition,
                offset=int(batch.offset[first.row]),
                last_offset=int(batch.offset[last.row]),
                count=len(surplus),
                timestamp_ms=int(batch.timestamp_ms[first.row]),
                reason=f"over {LETTERS_PER_S} dead letters in a second; the first of these: {first.reason}",
            )
        )

    def _bury_damage(self, state: PartitionState, batch: RecordBatch, outputs: Outputs) -> None:
        """Count what the bus could not hand out, and say where it is."""
        state.counters.bins[Bin.CORRUPT] += batch.damaged
        for damage in batch.corrupt:
            outputs.dead_letters.append(
                DeadLetter(
                    stream=self.name,
                    partition=damage.partition,
                    offset=damage.offset,
                    last_offset=damage.next_offset - 1,
                    count=damage.next_offset - damage.offset,
                    timestamp_ms=0,
                    reason=f"the stored batch is damaged: {damage.reason}",
                )
            )

    def _release(self, state: PartitionState, used: Int32s) -> None:
        """Free the slots of series that are gone, and of those that the bound on series kept out."""
        if state.live == len(state.names) - len(state.free):
            return
        idle = state.rows["live"] == 0
        maybe = np.concatenate([used[used >= 0], np.flatnonzero(idle & state.dirty)])
        slots = np.unique(maybe)
        state.release(slots[idle[slots]].tolist())


def _reason(done: int, *, silent: bool, gone: bool) -> Reason:
    if done == RESOLVED:
        return "gone" if gone else "recovered"
    if done == WORSENED:
        return "it got worse"
    return "no events" if silent else "error above its threshold"
