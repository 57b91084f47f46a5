"""Known faults for a trial: where they stand, and what they make of the raw values of the records.

A fault is defined on what a model sees, the rows after their transforms, in units of the series' own spread;
the raw values that give such rows are found by the transform's inverse. So a level shift of a counter's rate
is a counter that runs faster, and the one and only detect step makes its rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.tracks import Raw, Track
from pipeline.config import Stream
from pipeline.policy import TRANSFORM
from pipeline.ports import Float64s
from pipeline.readings import Decoder, Readings
from pipeline.records import Int32s, Int64s, RecordBatch, TopicPartition
from pipeline.series import PartitionState

MAX_FAULTS: Final = 240
"""Forty of each kind: models whose shares lie 5 points apart can be told from each other."""

_TIMES: Final = (0.25, 0.5, 1.0, 2.0)
"""Times a kind's size, in turn: what every model finds tells no two apart, nor does what none finds."""
_DONORS: Final = 8
"""Other times that are looked at for a lost phase; the one that differs most is taken, for a rhythm that
comes round again is no fault."""


LOST_PHASE: Final = "lost phase"


class Stretch(NamedTuple):
    """What a fault finds in one feature, by reading and after its transform.

    Attributes:
        clean: float64[n], the values without the fault.
        donor: float64[n], those of another time of the series.
        draws: float64[n], normal noise, one draw a row.
        grown: float64[n], the part of the fault that has passed, above 0 and up to 1.
        push: how far up or down the fault goes, in the feature's units.
        held: what a sensor shows that is stuck.
    """

    clean: Float64s
    donor: Float64s
    draws: Float64s
    grown: Float64s
    push: float
    held: float


class Kind(NamedTuple):
    """How many windows a fault lasts (at least a row), its size in spreads, and what it makes of values."""

    windows: float
    size: float
    change: Callable[[Stretch], Float64s]

    def rows(self, window_rows: int) -> int:
        """How many rows it lasts."""
        return max(1, round(self.windows * window_rows))


KINDS: Final[Mapping[str, Kind]] = {
    "spike": Kind(0, 4, lambda at: at.clean + at.push),
    "level shift": Kind(2, 1.5, lambda at: at.clean + at.push),
    "drift": Kind(3, 2.5, lambda at: at.clean + at.push * at.grown),
    "stuck": Kind(2, 0, lambda at: np.full_like(at.clean, at.held)),
    "noise": Kind(2, 0.75, lambda at: at.clean + at.push * at.draws),
    LOST_PHASE: Kind(2, 0, lambda at: at.donor),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault.

    Attributes:
        number: counts the faults of a trial, and seeds what is random in one.
        kind: one of ``KINDS``.
        track: index of its series' track.
        features: indices of the features it changes.
        push: how far it goes, in spreads, with its sign.
        first, end: its rows ``[first, end)`` of the track.
        donor: the row of the track from which on a lost phase takes its values; else its own first one.
        start_ns, end_ns: event times ``[start_ns, end_ns)`` of the readings it changes.
        until_ns: an alert that fires up to then has found it; the last row within a window of its end.
    """

    number: int
    kind: str
    track: int
    features: tuple[int, ...]
    push: float
    first: int
    end: int
    donor: int
    start_ns: int
    end_ns: int
    until_ns: int


class _Berth(NamedTuple):
    """Rows ``[first, first + length)`` of a track, of which a fault and the room around it take ``size``."""

    track: int
    first: int
    length: int
    size: int


def place(tracks: Sequence[Track], stream: Stream, seed: int, most: int = MAX_FAULTS) -> list[Fault]:
    """Faults for a trial, at most ``most``, evenly over series and time, equally many of each kind.

    Each has calm rows of its own: a window before it, one after it in which it may still be found, and as
    many as an alert takes to end and the series to be able to raise the next. Only features that vary are
    changed. The result follows from the arguments alone.
    """
    window = stream.model.window
    varying = [np.flatnonzero(np.ptp(each.values, axis=0) > 0) for each in tracks]
    berths = [
        berth
        for index, track in enumerate(tracks)
        if len(varying[index])
        for berth in _berths(index, track, 2 * window + _rest(track, stream))
    ]
    count = min(most, len(berths)) // len(KINDS) * len(KINDS)
    chosen = [berths[n * len(berths) // count] for n in range(count)]
    numbers = np.random.default_rng(seed).permutation(count).tolist()
    return [
        _fault(number, berth, tracks[berth.track], varying[berth.track], window=window, seed=seed)
        for number, berth in zip(numbers, chosen, strict=True)
    ]


def _rest(track: Track, stream: Stream) -> int:
    """Rows of the longest fault, and of the time an alert takes to end and the series to raise the next."""
    rules = stream.alerts
    longest = max(kind.rows(stream.model.window) for kind in KINDS.values())
    quiet_ns = (rules.recovery_for + rules.refractory) * 1e9
    return longest + rules.recovery + int(np.ceil(quiet_ns / track.every_ns))


def _berths(index: int, track: Track, size: int) -> Iterator[_Berth]:
    for first, end in track.runs():
        room = (end - first) // size
        for n in range(room):
            yield _Berth(index, first + n * ((end - first) // room), (end - first) // room, size)


def _fault(
    number: int, berth: _Berth, track: Track, varying: NDArray[np.intp], *, window: int, seed: int
) -> Fault:
    name, kind = list(KINDS.items())[number % len(KINDS)]
    rng = np.random.default_rng([seed, number])
    some = rng.choice(varying, size=int(rng.integers(1, max(1, len(varying) // 2) + 1)), replace=False)
    features = tuple(sorted(some.tolist()))
    times = _TIMES[number // len(KINDS) % len(_TIMES)]
    first = berth.first + window + int(rng.integers(0, berth.length - berth.size + 1))
    end = first + kind.rows(window)
    return Fault(
        number=number,
        kind=name,
        track=berth.track,
        features=features,
        push=kind.size * times * float(rng.choice((-1.0, 1.0))),
        first=first,
        end=end,
        donor=_donor(track, first, end, features, rng) if name == LOST_PHASE else first,
        start_ns=int(track.time_ns[first]),
        end_ns=int(track.time_ns[end]),
        until_ns=int(track.time_ns[end + window - 1]),
    )


def _donor(track: Track, first: int, end: int, features: tuple[int, ...], rng: np.random.Generator) -> int:
    """Where else in the series as many rows stand that look most unlike those of a fault."""
    rows = end - first
    starts = np.concatenate([np.arange(a, b - rows + 1) for a, b in track.runs()])
    drawn = rng.choice(starts[np.abs(starts - first) >= rows], _DONORS)
    values = track.values[:, features] / track.spread[list(features)]
    here = values[first:end]
    unlike = [np.abs(values[start : start + rows] - here).mean() for start in drawn.tolist()]
    return int(drawn[np.argmax(unlike)])


class Changed(NamedTuple):
    """Raw values to put in place of others: offset int64[n], rising, feature int32[n], value float64[n]."""

    offset: Int64s
    feature: Int32s
    value: Float64s


def changes(
    tracks: Sequence[Track], faults: Sequence[Fault], stream: Stream, seed: int
) -> dict[TopicPartition, Changed]:
    """What faults make of the raw values of their series, by partition.

    Behind a fault of a counter or of differences the raw values go on beside the old ones, by what it added.
    """
    codes = [TRANSFORM[feature.transform] for feature in stream.events.features.values()]
    by_track = dict[int, list[Fault]]()
    for fault in faults:
        by_track.setdefault(fault.track, []).append(fault)
    found = dict[TopicPartition, list[Changed]]()
    for index, mine in by_track.items():
        track = tracks[index]
        for feature, code in enumerate(codes):
            here = [fault for fault in mine if feature in fault.features]
            raw = track.raw[feature]
            value = _faulty(track, here, feature, code, seed)
            other = np.flatnonzero(value != raw.value)
            column = np.full(len(other), feature, np.int32)
            found.setdefault(track.partition, []).append(Changed(raw.offset[other], column, value[other]))
    return {partition: _in_order(parts) for partition, parts in found.items()}


def _in_order(parts: Sequence[Changed]) -> Changed:
    offset, feature, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(offset, kind="stable")
    return Changed(offset[order], feature[order], value[order])


def _faulty(track: Track, faults: Sequence[Fault], feature: int, code: int, seed: int) -> Float64s:
    """The raw values float64[n] of a feature with faults in them."""
    raw, spread = track.raw[feature], track.spread[feature]
    clean = _transformed(raw, code)
    values = clean.copy()
    for fault in faults:
        at = slice(*np.searchsorted(raw.time_ns, (fault.start_ns, fault.end_ns)).tolist())
        time_ns, rows = raw.time_ns[at], fault.end - fault.first
        age = np.searchsorted(track.time_ns[fault.first : fault.end], time_ns, side="right") - 1
        back_ns = track.time_ns[fault.first] - track.time_ns[fault.donor]
        donor = np.searchsorted(raw.time_ns, time_ns - back_ns).clip(0, len(clean) - 1)
        rng = np.random.default_rng([seed, fault.number, feature])
        values[at] = KINDS[fault.kind].change(
            Stretch(
                clean=clean[at],
                donor=clean[donor],
                draws=rng.standard_normal(rows)[age],
                grown=(age + 1) / rows,
                push=fault.push * spread,
                held=0.0 if code in _DIFFERENCES else float(clean[max(at.start - 1, 0)]),
            )
        )
    return _restored(raw, code, clean, values)


_DIFFERENCES: Final = (TRANSFORM["rate"], TRANSFORM["diff"])


def _since_s(raw: Raw) -> Float64s:
    """Seconds since the reading before, at least a microsecond."""
    return np.maximum(np.diff(raw.time_ns, prepend=raw.time_ns[:1]), 1_000) * 1e-9


def _falls(raw: Raw) -> NDArray[np.bool_]:
    return np.diff(raw.value, prepend=raw.value[:1]) < 0


def _transformed(raw: Raw, code: int) -> Float64s:
    """Raw values after a transform, as :func:`pipeline.windows.transformed`; the first difference is 0."""
    rise: Float64s = np.diff(raw.value, prepend=raw.value[:1])
    if code == TRANSFORM["log"]:
        rise = np.copysign(np.log1p(np.abs(raw.value)), raw.value)
    elif code == TRANSFORM["rate"]:
        rise = np.where(_falls(raw), raw.value, rise) / _since_s(raw)
    return raw.value if code == TRANSFORM["none"] else rise


def _restored(raw: Raw, code: int, clean: Float64s, values: Float64s) -> Float64s:
    """The raw values float64[n] that a transform makes ``values`` of, as they were where these are ``clean``.

    Behind a change of differences they stay as far apart as it moved them. A counter falls only where it was
    reset, and counts from zero then.
    """
    if code == TRANSFORM["log"]:
        grown: Float64s = np.copysign(np.expm1(np.abs(values)), values)
        return np.where(values == clean, raw.value, grown)
    if code == TRANSFORM["diff"]:
        moved: Float64s = raw.value + np.cumsum(values - clean)
        return moved
    if code == TRANSFORM["rate"]:
        added = np.where(values == clean, 0.0, (np.maximum(values, 0.0) - clean) * _since_s(raw))
        total = np.cumsum(added)
        resets = np.flatnonzero(_falls(raw))
        before = np.concatenate([[0.0], (total - added)[resets]])
        since = before[np.searchsorted(resets, np.arange(len(total)), side="right")]
        faster: Float64s = raw.value + total - since
        return faster
    return values


class Injecting(Decoder):
    """A stream's decoder that puts faults into what it reads."""

    def __init__(self, stream: Stream, faults: Mapping[TopicPartition, Changed]) -> None:
        super().__init__(stream)
        self._faults, self._one_a_record = faults, stream.events.kind == "narrow"

    def decode(self, batch: RecordBatch, state: PartitionState) -> Readings:
        """Decode a batch, then change the values that faults change."""
        readings = super().decode(batch, state)
        changed, columns = self._faults.get(batch.partition), readings.columns
        if changed is not None and len(columns.offset):
            within = slice(*np.searchsorted(changed.offset, (columns.offset[0], columns.offset[-1] + 1)))
            row = np.searchsorted(columns.offset, changed.offset[within])
            column = 0 if self._one_a_record else changed.feature[within]
            columns.values[row, column] = changed.value[within]
        return readings
