"""The state of one partition: a row for each series, as plain arrays that can be saved and compared.

The byte format of a row is its NumPy dtype; :attr:`Layout.name` names it, so that rows of another window,
feature set or schema version are never read as these.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.accounting import Bin, Counters
from pipeline.companions import SCALARS, Companions, Parts, Seeds
from pipeline.config import Quantile, Stream
from pipeline.control import NO_DECISIONS, Decisions
from pipeline.episodes import IDLE, clear
from pipeline.journal import InForce
from pipeline.keys import KeyTable
from pipeline.partitioning import UNKEYED
from pipeline.policy import ALWAYS, NEVER
from pipeline.ports import Float32s, Float64s, Scorer
from pipeline.records import BUCKET_ROWS, Int32s, Int64s, PackedRows
from pipeline.thresholds import ACCEPTED, BINS, CARRIED

SCHEMA_VERSION = 5
_SEPARATOR = "\x1f"
_HELD_READINGS = 16
"""Readings of one cell that are remembered exactly, to know a duplicate."""


_ROW = [
    ("live", "u1"),
    ("episode", "u1"),  # episodes.IDLE, PENDING or FIRING
    ("armed", "u1"),  # the score was below the line since the last episode
    ("silent", "u1"),
    ("pushed", "i4"),  # rows since the window began; above 2 W it goes on at W + 1
    ("key_hash", "i8"),  # of the record that began the series, see partitioning.key_hash
    ("moved", "i8"),  # its key belongs to another partition since partitions were added
    ("checksum", "i8"),  # of the offsets of all records it saw, in their order
    ("due_ns", "i8"),  # when something happens to the series without a record of its own
    ("last_ns", "i8"),  # time of the newest reading
    ("row_ns", "i8"),  # time of the newest row
    ("offset", "i8"),  # of the record behind the newest row, at first of the record that began the series
    ("rows", "f8"),  # that the moments rest on; or thresholds.ACCEPTED or CARRIED
    ("error_mean", "f8"),
    ("error_variance", "f8"),
    ("last_mean", "f8"),
    ("last_variance", "f8"),
    ("judged_ns", "i8"),  # time of the newest judged row
    ("above_ns", "i8"),  # since when the series is judged anomalous
    ("start_ns", "i8"),  # first row of the open episode
    ("calm_ns", "i8"),  # since when the open episode is below the recovery line
    ("quiet_until_ns", "i8"),  # end of the refractory time
    ("silent_start_ns", "i8"),
    ("peak", "f8"),  # highest score of the open episode
    ("run", "i4"),  # rows counted towards `for` or `recovery`
    ("revision", "i4"),
]
_CELL = [
    ("index", "i8"),  # time // every
    ("offset", "i8"),  # newest record merged
    ("readings", "i8"),  # 0 is a free cell
]


class Arrays(NamedTuple):
    """The state of all series by slot (the first axis, S).

    Scalars stand in records, the rest in plain arrays, so that the kernels are compiled once for all windows
    and feature sets.

    Attributes:
        rows: structured[S].
        raw, raw_ns: float64 and int64[S, F], newest observed values and when they were observed.
        out: float64[S, F], newest values after their transform.
        anchor, tail: float64[S, F] and float32[S, W x F]: the window, relative to the anchor. Its rows stand
            in a ring: the newest is written over the oldest (:meth:`PartitionState.window`).
        cells: structured[S, K], open grid cells.
        cell_value, cell_ns, cell_count: float64, int64, int32[S, K, F]: what was merged, the time of the
            reading that `last` kept, and how many.
        cell_held: int64[S, K, H], metric and time of readings, to know duplicates.
        sketch: float32[S, Q], the quantiles of a rolling threshold that is one (:mod:`pipeline.thresholds`).
        units: float64[S, 2 F or 0], median and spread of each feature that the companions' values are in.
        scalars, level, shapes, uses, apart, counts, rare: see :class:`pipeline.companions.Companions`.
    """

    rows: NDArray[np.void]
    raw: Float64s
    raw_ns: Int64s
    out: Float64s
    anchor: Float64s
    tail: Float32s
    cells: NDArray[np.void]
    cell_value: Float64s
    cell_ns: Int64s
    cell_count: Int32s
    cell_held: Int64s
    sketch: Float32s
    units: Float64s
    scalars: NDArray[np.void]
    level: Float64s
    shapes: Float32s
    uses: Int32s
    apart: Float64s
    counts: NDArray[np.uint16]
    rare: Float64s

    @property
    def companions(self) -> Companions:
        """Those of them that are the companions'."""
        return Companions(
            self.scalars, self.level, self.shapes, self.uses, self.apart, self.counts, self.rare
        )


@dataclass(frozen=True)
class Layout:
    """The byte format of a series' state.

    Attributes:
        window_rows, features: W and F.
        cells: K, open cells a row can hold; 0 without a grid.
        held: H, readings of a cell that are remembered to know duplicates.
        sketch: Q, values of a quantile threshold; 0 with any other.
        rows_sha: what a row means, :attr:`pipeline.config.Stream.rows_sha`.
        labels: what the labels of a series are called, which ``rows_sha`` knows, too.
        parts: the companions that there are.
    """

    window_rows: int
    features: int
    cells: int
    held: int
    sketch: int
    rows_sha: str
    labels: tuple[str, ...] = field(default=(), repr=False)
    parts: Parts = field(default_factory=Parts)

    @property
    def name(self) -> str:
        """A digest of the format; equal names are readable as each other."""
        text = f"{SCHEMA_VERSION} {_ROW} {_CELL} {SCALARS} {self}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def row_bytes(self) -> int:
        """Bytes of one packed series."""
        return sum(array.nbytes for array in self.arrays(1))

    def same_rows(self, other: Layout) -> bool:
        """Whether they differ in their thresholds alone."""
        return replace(self, sketch=other.sketch, parts=other.parts) == other

    def arrays(self, slots: int) -> Arrays:
        """Empty state for so many slots."""
        s, w, f, k = slots, self.window_rows, self.features, self.cells
        return Arrays(
            rows=np.zeros(s, _record(_ROW)),
            raw=np.zeros((s, f)),
            raw_ns=np.zeros((s, f), np.int64),
            out=np.zeros((s, f)),
            anchor=np.zeros((s, f)),
            tail=np.zeros((s, w * f), np.float32),
            cells=np.zeros((s, k), _record(_CELL)),
            cell_value=np.zeros((s, k, f)),
            cell_ns=np.zeros((s, k, f), np.int64),
            cell_count=np.zeros((s, k, f), np.int32),
            cell_held=np.zeros((s, k, self.held), np.int64),
            sketch=np.zeros((s, self.sketch), np.float32),
            units=np.zeros((s, 2 * f * self.parts.joint)),
            **Companions.empty(s, self.parts)._asdict(),
        )

    @classmethod
    def of(cls, stream: Stream) -> Layout:
        """The format that a stream's settings ask for."""
        events = stream.events
        features = len(events.features)
        cells = 0 if events.every is None else int(np.ceil(events.late_s / events.every)) + 2
        held = _HELD_READINGS if events.kind == "wide" else min(4 * features, 256)
        sketch = 2 * BINS if isinstance(stream.threshold, Quantile) else 0
        return cls(
            window_rows=stream.model.window,
            features=features,
            cells=cells,
            held=held,
            sketch=sketch,
            rows_sha=stream.rows_sha,
            labels=events.labels,
            parts=Parts.of(stream),
        )


def _record(fields: list[tuple[str, str]]) -> np.dtype[np.void]:
    """An aligned format whose fields read as attributes, also where the kernels run uncompiled.

    No field may have the name of an attribute of NumPy's own, such as `mean`: it would hide the field there.
    Fields leave no bytes between them: what stands there is not copied, and equal rows would differ.
    """
    return np.dtype((np.record, np.dtype(fields, align=True)))


def _joined(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    # concatenate forgets that these are records, whose fields read as attributes
    return np.concatenate([before, after]).view(after.dtype)


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    flat = np.ascontiguousarray(array).reshape(len(array), math.prod(array.shape[1:]))
    return flat.view(np.uint8)


class Header(msgspec.Struct, kw_only=True):
    """The partition's own state, stored beside its rows."""

    schema_version: int = SCHEMA_VERSION
    layout: str
    topic_id: str
    next_offset: int
    clock_ns: int
    bundle_id: str | None
    in_force: InForce | None
    journal_offset: int
    bins: list[int]
    attributes: list[int]
    letters_second: int
    letters_count: int

    @classmethod
    def of(cls, packed: PackedRows) -> Header | None:
        """The header of stored rows; None where it is of another schema version, or damaged."""
        try:
            header = msgspec.json.decode(packed.header, type=cls)
        except msgspec.DecodeError:
            return None
        return header if header.schema_version == SCHEMA_VERSION else None


@dataclass(slots=True, eq=False)
class PartitionState:
    """All that a partition's work carries from one batch to the next. One thread uses it.

    Attributes:
        layout: the byte format of the series.
        topic_id: the topic that these rows were read from.
        series: the state of all series by slot.
        names: the series key of each slot, None where the slot is free.
        labels: the labels of each slot, from the record that began its series.
        index: slot by whatever an event names its series with.
        keys: the same, as far as it was asked for, by the bytes of a plain key.
        dirty: bool[capacity], changed since the last checkpoint.
        model, calibration: see :class:`pipeline.ports.Calibrated`, by slot.
        seeds: what the bundle knows of the rows of its models.
        clock_ns: the partition clock.
        next_offset: every record below it is in this state.
        bundle_id: the bundle that the thresholds belong to.
        in_force: what holds from ``next_offset`` on, as the journal has it; None before the first entry.
        journal_offset: the partition's journal below it is in this state.
        decisions: what ``in_force.decided`` comes to.
    """

    layout: Layout
    topic_id: str = ""
    series: Arrays = field(init=False)
    names: list[str | None] = field(default_factory=list)
    labels: list[tuple[str, ...]] = field(default_factory=list)
    index: dict[Hashable, int] = field(default_factory=dict)
    keys: KeyTable = field(default_factory=KeyTable)
    free: list[int] = field(default_factory=list)
    dirty: NDArray[np.bool_] = field(init=False)
    model: Int32s = field(init=False)
    calibration: NDArray[np.float64] = field(init=False)
    seeds: Seeds = field(init=False)
    counters: Counters = field(default_factory=Counters)
    live: int = 0
    clock_ns: int = NEVER
    sweep_ns: int = ALWAYS
    next_offset: int = 0
    bundle_id: str | None = None
    in_force: InForce | None = None
    journal_offset: int = 0
    decisions: Decisions = NO_DECISIONS
    letters_second: int = 0
    letters_count: int = 0
    removed: list[tuple[int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.series = self.layout.arrays(0)
        self.dirty = np.zeros(0, bool)
        self.model = np.zeros(0, np.int32)
        self.calibration = np.zeros((0, 5))
        nothing = np.ones((0, self.layout.features))
        self.seeds = Seeds.blank(nothing, nothing, self.layout.parts)

    @property
    def rows(self) -> NDArray[np.void]:
        """structured[capacity], the scalars of each series."""
        return self.series.rows

    def add(
        self, keys: Sequence[Hashable], names: Sequence[str], key_hashes: Sequence[int], partition: int
    ) -> None:
        """Give slots to series not known yet; they become live with their first good reading."""
        for key, name, key_hash in zip(keys, names, key_hashes, strict=True):
            slot = self.index.get(name)
            if slot is None:
                slot = self.free.pop() if self.free else len(self.names)
                self._reserve(slot + 1)
                self._name(slot, name, ())
                self.rows["key_hash"][slot] = key_hash
                self.rows["moved"][slot] = self.belongs_elsewhere(key_hash, partition)
            self.index[key] = slot

    def window(self, slot: int) -> Float64s:
        """The rows that a series' window holds, float64[n, F], oldest first."""
        pushed, size = int(self.rows["pushed"][slot]), self.layout.window_rows
        rows = self.series.anchor[slot] + self.series.tail[slot].reshape(size, -1)
        return rows[:pushed] if pushed <= size else np.roll(rows, size - pushed, axis=0)

    def belongs_elsewhere(self, key_hash: int, partition: int) -> bool:
        """Whether records of this key came here, and go to another partition since more were added."""
        if self.in_force is None or key_hash == UNKEYED:
            return False
        *before, now = (key_hash % partitions == partition for partitions in self.in_force.partitions)
        return any(before) and not now

    def relabel(self, slot: int, labels: tuple[str, ...]) -> None:
        """A series begins with these labels; what an earlier life of it stored under others goes."""
        if self.labels[slot] not in {(), labels}:
            self.removed.append((slot, self._stored_name(slot)))
        self.labels[slot] = labels

    def _name(self, slot: int, name: str, label: tuple[str, ...]) -> None:
        while len(self.names) <= slot:
            self.names.append(None)
            self.labels.append(())
        self.names[slot], self.labels[slot] = name, label
        self.index[name] = slot
        self._wipe(slot)

    def _wipe(self, slot: int) -> None:
        for array in self.series:
            array[slot] = np.zeros((), array.dtype)
        clear(self.rows[slot])

    def _reserve(self, slots: int) -> None:
        capacity = len(self.rows)
        if slots <= capacity:
            return
        extra = max(slots, 2 * capacity, 64) - capacity
        more = self.layout.arrays(extra)
        self.series = Arrays(*map(_joined, self.series, more))
        self.dirty = np.concatenate([self.dirty, np.zeros(extra, bool)])
        self.model = np.concatenate([self.model, np.zeros(extra, np.int32)])
        self.calibration = np.concatenate([self.calibration, np.zeros((extra, 5))])

    def calibrate(self, scorer: Scorer, slots: Sequence[int]) -> None:
        """Look up the model and calibration of some slots.

        Raises:
            ValueError: the model's companions are of another size than this layout's.
        """
        if slots:
            found = scorer.assign([self.names[slot] or "" for slot in slots])
            if not found.seeds.suffice(self.layout.parts):
                raise ValueError(f"the model's companions are too small for {self.layout.parts}")
            self.model[slots] = found.model
            self.calibration[slots] = found.calibration
            self.seeds = found.seeds

    def adopt(self, scorer: Scorer, bundle_id: str) -> None:
        """Change to another bundle: thresholds start again from its calibration.

        What a series is used to goes on where the model before judged it calm; otherwise it is the new
        model's to say whether the series is odd.
        """
        self.calibrate(scorer, [slot for slot, name in enumerate(self.names) if name is not None])
        if bundle_id != self.bundle_id:
            self.bundle_id, row = bundle_id, self.rows
            judged = (row["rows"] > 0.0) | (row["rows"] == CARRIED)
            calm = (row["episode"] == IDLE) & (row["above_ns"] == NEVER)
            begins = np.where(judged & calm & (row["pushed"] >= self.layout.window_rows), CARRIED, 0.0)
            row["rows"] = np.where(row["rows"] == ACCEPTED, ACCEPTED, begins)
            self.dirty |= row["live"] == 1

    def relay(self, layout: Layout) -> None:
        """Go on in a layout of other thresholds: they start again from the calibration."""
        self.layout = layout
        thresholds = {"sketch", "units", *Companions._fields}
        anew = layout.arrays(len(self.rows))._asdict()
        self.series = self.series._replace(**{name: anew[name] for name in thresholds})
        self.rows["rows"] = 0.0
        self.dirty |= self.rows["live"] == 1

    def look_at_all(self) -> None:
        """Have the next sweep look at every series: the durations that it goes by are others now."""
        live = self.rows["live"] == 1
        self.rows["due_ns"][live] = NEVER
        self.dirty |= live
        self.sweep_ns = NEVER

    def drop(self, slots: Sequence[int]) -> None:
        """End series before their time; records that wait in their open cells never fill a window."""
        waiting = int((self.series.cells["readings"][slots] > 0).sum())
        self.counters.bins[Bin.PENDING] -= waiting
        self.counters.bins[Bin.WARMING] += waiting
        self.live -= len(slots)
        self.dirty[slots] = True
        self.release(slots)

    def release(self, slots: Sequence[int]) -> None:
        """Forget series: their slots are free, their stored rows go with the next checkpoint."""
        gone = set(slots)
        for slot in gone:
            if self.dirty[slot]:  # else it was over the limit: never live, nothing of it is stored
                self.removed.append((slot, self._stored_name(slot)))
            self.names[slot] = None
            self._wipe(slot)
            self.dirty[slot] = False
            self.calibration[slot] = 0.0
            self.free.append(slot)
        self.index = {key: slot for key, slot in self.index.items() if slot not in gone}
        self.keys.clear()

    def _stored_name(self, slot: int) -> bytes:
        return _SEPARATOR.join((self.names[slot] or "", *self.labels[slot])).encode()

    def pack(self, *, whole: bool) -> PackedRows:
        """The rows changed since the last checkpoint (or all), and the header, as bytes.

        Changes beyond one delta script are widened to whole buckets.
        """
        live = self.rows["live"] == 1
        chosen = live.copy() if whole else live & self.dirty
        buckets: frozenset[int] = frozenset()
        if whole or np.count_nonzero(chosen) + len(self.removed) > BUCKET_ROWS:
            bucket = np.arange(len(live)) // BUCKET_ROWS
            touched = np.unique(bucket[chosen]).tolist()
            buckets = frozenset(touched) | frozenset(slot // BUCKET_ROWS for slot, _ in self.removed)
            chosen = live & np.isin(bucket, list(buckets))
        slots = np.flatnonzero(chosen).astype(np.int32)
        rows = np.concatenate([_as_bytes(array[slots]) for array in self.series], axis=1)
        names = [self._stored_name(slot) for slot in slots.tolist()]
        kept = {(slot // BUCKET_ROWS, self._stored_name(slot)) for slot, _ in self._live_again()}
        removed = tuple(
            (slot, name)
            for slot, name in self.removed
            if slot // BUCKET_ROWS not in buckets and (slot // BUCKET_ROWS, name) not in kept
        )
        return PackedRows(self._header(), slots, names, rows, removed, buckets)

    def _live_again(self) -> list[tuple[int, str]]:
        names = {name.decode().split(_SEPARATOR)[0] for _, name in self.removed}
        return [(self.index[name], name) for name in names if name in self.index]

    def stored(self) -> None:
        """The last packed rows are in the store: nothing is dirty any more."""
        self.dirty[:] = False
        self.removed.clear()

    def _header(self) -> bytes:
        return msgspec.json.encode(
            Header(
                layout=self.layout.name,
                topic_id=self.topic_id,
                next_offset=self.next_offset,
                clock_ns=self.clock_ns,
                bundle_id=self.bundle_id,
                in_force=self.in_force,
                journal_offset=self.journal_offset,
                bins=self.counters.bins.tolist(),
                attributes=self.counters.attributes.tolist(),
                letters_second=self.letters_second,
                letters_count=self.letters_count,
            )
        )

    @classmethod
    def unpack(cls, layout: Layout, packed: PackedRows) -> PartitionState | None:
        """Read stored rows; None when they, or their header, are of another layout or schema version."""
        header = Header.of(packed)
        if header is None or header.layout != layout.name:
            return None
        if len(packed.slots) and packed.rows.shape[1] != layout.row_bytes:
            return None
        state = cls(layout, header.topic_id)
        state.counters.bins[:] = header.bins
        state.counters.attributes[:] = header.attributes
        state.clock_ns, state.next_offset, state.bundle_id = (
            header.clock_ns,
            header.next_offset,
            header.bundle_id,
        )
        state.in_force, state.journal_offset = header.in_force, header.journal_offset
        state.letters_second, state.letters_count = header.letters_second, header.letters_count
        state._fill(packed)
        return state

    def _fill(self, packed: PackedRows) -> None:
        slots = packed.slots
        if not len(slots):
            return
        self._reserve(int(slots.max()) + 1)
        for slot, stored in zip(slots.tolist(), packed.series, strict=True):
            name, *labels = stored.decode().split(_SEPARATOR)
            self._name(slot, name, tuple(labels))
        self.free = [slot for slot, name in enumerate(self.names) if name is None]
        first = 0
        for array in self.series:
            width = array[:1].nbytes
            if width:
                block = np.ascontiguousarray(packed.rows[:, first : first + width])
                array[slots] = block.view(array.dtype).reshape(len(slots), *array.shape[1:])
            first += width
        self.live = len(slots)
        self.sweep_ns = int(self.rows["due_ns"][slots].min())
