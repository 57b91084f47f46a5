"""Bytes to columns: the decoder that a stream's settings describe.

Plain flat events are read into columns by a compiled loop (``flat_json``). All others are decoded one by one
(a joined buffer can be fooled by crafted values) into typed structs, whose fields become columns at once.
What cannot be read becomes a :class:`Rejected` with its reason, and the rest of the batch goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.align import Columns
from pipeline.conditions import Condition
from pipeline.config import Stream
from pipeline.flat_json import Fields, Found, read
from pipeline.partitioning import key_hash
from pipeline.policy import TRANSFORM
from pipeline.records import Int32s, Int64s, RecordBatch
from pipeline.series import PartitionState

MAX_SERIES_CHARS = 500
MAX_LABEL_CHARS = 256
_EARLIEST_S, _LATEST_S = -2_208_988_800, 4_102_444_800
"""The years 1900 to 2099: sums and differences of such times in nanoseconds, and of the longest duration,
fit into int64."""
_BAD_TIME = "its time is outside the years 1900 to 2099"
_TIME_TYPES: dict[str, Any] = {"s": float, "ms": float, "ns": int, "iso": datetime}
_Key = str | int
_UNKNOWN = -2
"""A metric that is no feature; -1 stands for an event that holds all features."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that could not be read: its row in the batch, and why."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """A decoded batch: columns for the records that could be read, and the rest with their reasons."""

    columns: Columns
    rejected: list[Rejected]


@dataclass(slots=True)
class _Node:
    """One level of the JSON object that a stream's paths reach into."""

    fields: dict[str, tuple[Any, bool]] = field(default_factory=dict)
    below: dict[str, _Node] = field(default_factory=dict)

    def add(self, path: str, kind: Any, *, required: bool) -> None:  # noqa: ANN401 - a type annotation
        *parents, leaf = path.split(".")
        node = self
        for parent in parents:
            node = node.below.setdefault(parent, _Node())
        node.fields.setdefault(leaf, (kind, required))

    def build(self, name: str) -> tuple[type[msgspec.Struct], dict[str, str]]:
        """The struct of this level, and the attribute path of each JSON path below it."""
        required, optional = [], []
        rename: dict[str, str] = {}
        attributes: dict[str, str] = {}
        for key, (kind, needed) in self.fields.items():
            attribute = f"f{len(rename)}"
            rename[attribute], attributes[key] = key, attribute
            if needed:
                required.append((attribute, kind))
            else:
                optional.append((attribute, kind | None, None))
        for key, node in self.below.items():
            attribute = f"f{len(rename)}"
            struct, inner = node.build(f"{name}_{attribute}")
            rename[attribute] = key
            required.append((attribute, struct))
            attributes |= {f"{key}.{path}": f"{attribute}.{rest}" for path, rest in inner.items()}
        # A container of one subscriber's values makes no cycles: the collector need not look at it.
        struct = msgspec.defstruct(name, [*required, *optional], rename=rename, gc=False)
        return struct, attributes


class Decoder:
    """Decodes the records of one stream. Keeps nothing from one batch to the next; one thread uses it."""

    def __init__(self, stream: Stream) -> None:
        events = self._events = stream.events
        self.feature_names = stream.feature_names
        self.transforms: Int64s = np.array(
            [TRANSFORM[feature.transform] for feature in events.features.values()], np.int64
        )
        self._narrow = events.kind == "narrow"
        paths = [feature.path or name for name, feature in events.features.items()]
        self._metric = {path: i for i, path in enumerate(paths)}
        root = _Node()
        if events.time.format != "record":
            root.add(events.time.field, _TIME_TYPES[events.time.format], required=True)
        for path in events.series:
            root.add(path, _Key, required=True)
        if self._narrow:
            root.add(events.metric, str, required=True)
            root.add(events.value, float, required=True)
        else:
            for path in paths:
                root.add(path, float, required=False)
        for path in events.labels:
            root.add(path, str | int | float | bool, required=False)
        struct, at = root.build("Event")
        self._flat = self._fields(paths)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(struct).decode
        self._time = None if events.time.format == "record" else attrgetter(at[events.time.field])
        self._series = attrgetter(*(at[path] for path in events.series))
        self._labels = [attrgetter(at[path]) for path in events.labels]
        self._metric_of = attrgetter(at[events.metric]) if self._narrow else None
        self._when = None if events.when is None else Condition(events.when)
        self._values = [attrgetter(at[path]) for path in ([events.value] if self._narrow else paths)]

    def _fields(self, paths: Sequence[str]) -> Fields | None:
        """What the compiled reader looks for; None where events are not of the kind that it reads."""
        events = self._events
        time = None if events.time.format == "record" else events.time.field
        names = [*paths, *([] if time is None else [time]), *events.series]
        nested = any("." in name for name in [*names, *events.labels])
        if self._narrow or events.time.format in {"ns", "iso"} or len(events.series) > 1 or nested:
            return None
        return Fields.of(paths, time, *events.series) if len(set(names)) == len(names) else None

    def decode(self, batch: RecordBatch, state: PartitionState) -> Readings:
        """Decode a batch and give every new series in it a slot of ``state``."""
        rejected: list[Rejected] = []
        found = self._plain(batch)
        rows, events = self._structs(batch, np.flatnonzero(~found.plain), rejected)
        time_ns, bad = self._times(batch, found, rows, events)
        values, metric = found.values, np.full(len(batch), -1, np.int32)
        if events:
            metric[rows] = self._metrics(events)
            for column, value in enumerate(self._values):
                values[rows, column] = list(map(value, events))  # a null becomes NaN
        good = found.plain.copy()
        good[rows] = True
        kept = np.flatnonzero(good)
        stamped_ms = np.clip(batch.timestamp_ms, _EARLIEST_S * 1_000, _LATEST_S * 1_000)
        limit_ns = stamped_ms * 1_000_000 + round(self._events.ahead * 1e9)
        refusals = [
            (bad, _BAD_TIME),
            (
                time_ns > limit_ns,
                f"its time is over {self._events.ahead:g} s ahead of its record's timestamp",
            ),
            (metric == _UNKNOWN, "its metric is no feature of this stream; name it, or filter it out"),
            (self._null(values), "a feature is null or missing, and `missing` is `reject`"),
        ]
        for wrong, reason in refusals:
            rejected.extend(Rejected(row, reason) for row in np.flatnonzero(good & wrong).tolist())
            good &= ~wrong
        inside = self._inside(batch, good, rejected)
        slot = self._slots(batch, found, rows, events, good, state=state, rejected=rejected)
        rejected.sort(key=lambda one: one.row)
        columns = Columns(slot, inside, metric, time_ns, limit_ns, batch.offset, values)
        if len(kept) < len(batch):
            columns = Columns._make(column[kept] for column in columns)
        return Readings(columns, rejected)

    def _inside(
        self, batch: RecordBatch, good: NDArray[np.bool_], rejected: list[Rejected]
    ) -> NDArray[np.bool_]:
        """bool[n]: whether `when` holds; records that it cannot be asked of are good no more."""
        inside = np.ones(len(batch), bool)
        if self._when is None:
            return inside
        for row in np.flatnonzero(good).tolist():
            try:
                inside[row] = self._when.holds(batch.value(row) or b"")
            except ValueError as error:
                good[row] = False
                rejected.append(Rejected(row, f"`when` has no answer for it: {error}"))
        return inside

    def _plain(self, batch: RecordBatch) -> Found:
        """What can be read without the library, which is nothing where the stream's events are not flat."""
        found = Found.room(len(batch), len(self._values))
        if self._flat is not None:
            read(
                _text(batch), batch.value_start, batch.value_length, self._events.max_bytes, self._flat, found
            )
        return found

    def _structs(
        self, batch: RecordBatch, chosen: NDArray[np.intp], rejected: list[Rejected]
    ) -> tuple[NDArray[np.intp], list[Any]]:
        """The events among the ``chosen`` records that are JSON of the right shape, and their rows."""
        buffer, decode = batch.buffer, self._decode
        length = batch.value_length[chosen]
        start = batch.value_start[chosen]
        if ((length >= 0) & (length <= self._events.max_bytes)).all():
            try:
                ends = (start + length).tolist()
                return chosen, [decode(buffer[a:b]) for a, b in zip(start.tolist(), ends, strict=True)]
            except (ValueError, RecursionError):
                pass
        rows, events = [], []
        for row in chosen.tolist():
            value = batch.value(row)
            if value is None:
                rejected.append(Rejected(row, "it has no value"))
            elif len(value) > self._events.max_bytes:
                rejected.append(Rejected(row, f"it is {len(value)} bytes, over `max_bytes`"))
            else:
                try:
                    events.append(decode(value))
                    rows.append(row)
                except (ValueError, RecursionError) as error:
                    rejected.append(Rejected(row, self._reason(error)))
        return np.array(rows, np.intp), events

    @staticmethod
    def _reason(error: Exception) -> str:
        if isinstance(error, UnicodeDecodeError):
            return f"it is not UTF-8: {error.reason}"
        if isinstance(error, RecursionError):
            return "it is not JSON: it is nested too deeply"
        kind = "a field is wrong" if isinstance(error, msgspec.ValidationError) else "it is not JSON"
        return f"{kind}: {error}"

    def _times(
        self, batch: RecordBatch, found: Found, rows: NDArray[np.intp], events: list[Any]
    ) -> tuple[Int64s, NDArray[np.bool_]]:
        """int64[n] nanoseconds, and which of them do not fit."""
        if self._time is None:
            stamped_ms = batch.timestamp_ms
            bad = (stamped_ms < _EARLIEST_S * 1_000) | (stamped_ms >= _LATEST_S * 1_000)
            return np.where(bad, 0, stamped_ms) * 1_000_000, bad
        time_ns, bad = self._from_doubles(found.time)
        if not events:
            return time_ns, bad
        form, times = self._events.time.format, list(map(self._time, events))
        if form == "ns":
            wrong = np.array([not _EARLIEST_S * 10**9 <= time < _LATEST_S * 10**9 for time in times], bool)
            time_ns[rows] = [0 if w else t for t, w in zip(times, wrong, strict=True)]
            bad[rows] = wrong
        else:
            doubles = np.array(list(map(_epoch, times)) if form == "iso" else times, np.float64)
            time_ns[rows], bad[rows] = self._from_doubles(doubles)
        return time_ns, bad

    def _from_doubles(self, times: NDArray[np.float64]) -> tuple[Int64s, NDArray[np.bool_]]:
        seconds = times / 1e3 if self._events.time.format == "ms" else times
        bad = ~((seconds >= _EARLIEST_S) & (seconds < _LATEST_S))
        # A double holds the present time to a quarter of a microsecond.
        micros = np.rint(np.where(bad, 0.0, seconds) * 1e6).astype(np.int64)
        return micros * 1_000, bad

    def _metrics(self, events: list[Any]) -> Int32s:
        if self._metric_of is None:
            return np.full(len(events), -1, np.int32)
        known = self._metric
        return np.fromiter(
            (known.get(self._metric_of(event), _UNKNOWN) for event in events), np.int32, len(events)
        )

    def _null(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        if self._events.missing == "hold":
            return np.zeros(len(values), bool)
        return np.asarray(np.isnan(values).any(axis=1), bool)

    def _slots(
        self,
        batch: RecordBatch,
        found: Found,
        rows: NDArray[np.intp],
        events: list[Any],
        good: NDArray[np.bool_],
        *,
        state: PartitionState,
        rejected: list[Rejected],
    ) -> Int32s:
        """int32[n]: the slot of each record's series, -1 for those refused."""
        slots = state.keys.find(_text(batch), found.key, found.key_length)
        unknown = np.flatnonzero(found.plain & good & (slots < 0))
        if len(unknown) or events:
            start = found.key[unknown]
            end = start + found.key_length[unknown]
            keys = [batch.buffer[a:b] for a, b in zip(start.tolist(), end.tolist(), strict=True)]
            named: list[tuple[int, Hashable]] = [
                *zip(unknown.tolist(), (key.decode() for key in keys), strict=True),
                *zip(rows.tolist(), map(self._series, events), strict=True),
            ]
            named.sort(key=itemgetter(0))
            self._begin(batch, named, good, state=state, rejected=rejected)
            for row, key in named:
                slots[row] = state.index.get(key, -1)
            state.keys.add(
                {key: slot for key, slot in zip(keys, slots[unknown].tolist(), strict=True) if slot >= 0}
            )
        slots[~good] = -1
        return slots

    def _begin(
        self,
        batch: RecordBatch,
        named: Sequence[tuple[int, Hashable]],
        good: NDArray[np.bool_],
        *,
        state: PartitionState,
        rejected: list[Rejected],
    ) -> None:
        """Give slots to the series of rows that are not known yet, or refuse them for their names."""
        fresh: dict[Hashable, int] = {}
        for row, key in named:
            if good[row] and key not in state.index:
                fresh.setdefault(key, row)
        names, refused = self._names(list(fresh))
        taken = [key for key in fresh if key not in refused]
        hashes = [key_hash(batch.key(fresh[key])) for key in taken]
        state.add(taken, names, hashes, batch.partition.partition)
        for row, key in named if refused else ():
            if good[row] and key in refused:
                rejected.append(Rejected(row, refused[key]))
                good[row] = False

    def _names(self, keys: Sequence[Hashable]) -> tuple[list[str], dict[Hashable, str]]:
        """The series key of each, and those refused with their reasons."""
        names, refused = [], {}
        for key in keys:
            name = _series_key(key)
            if not name or len(name) > MAX_SERIES_CHARS or not name.isprintable():
                refused[key] = f"its series key is not 1 to {MAX_SERIES_CHARS} printable characters"
            else:
                names.append(name)
        return names, refused

    def labels(self, value: bytes) -> tuple[str, ...]:
        """The labels in a record that could be read, cut to their bound; empty where there are none."""
        event = self._decode(value)
        values = [label(event) for label in self._labels]
        texts = ("" if value is None else str(value)[:MAX_LABEL_CHARS] for value in values)
        return tuple(text.replace("\x1f", " ") for text in texts)


def _text(batch: RecordBatch) -> NDArray[np.uint8]:
    """The bytes of a batch, whatever holds them, as the one kind that the kernels are compiled for."""
    return np.frombuffer(memoryview(batch.buffer).toreadonly(), np.uint8)


def _series_key(key: Hashable) -> str:
    """One field as it is; several joined by ``/``, a ``/`` or ``%`` within them escaped."""
    if isinstance(key, tuple):
        return "/".join(str(part).replace("%", "%25").replace("/", "%2F") for part in key)
    return str(key)


def _epoch(time: datetime) -> float:
    """Epoch seconds; a time without a zone is UTC."""
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
