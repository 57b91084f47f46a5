"""A stream's past as rows to learn from, made by the same step that detection runs on live records.

Left out are rows that silences freeze and rows of alerts, and where a series has more rows than are asked
for, all but slices of them. Every row is accounted for, and no window reaches over one that is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.episodes import Episode, LeftOut
from models.samples import HELD_OUT_SHARE, SeriesRows
from pipeline.detect import Detector, Rows
from pipeline.freezes import frozen_rows
from pipeline.kernels import kernel
from pipeline.ports import Float64s, Int32s, Reader
from pipeline.reading import stretch
from pipeline.readings import Decoder
from pipeline.records import Bounds, Int64s, RecordBatch, TopicPartition
from pipeline.series import PartitionState
from pipeline.silences import Matchers

Bools = NDArray[np.bool_]
Batches = Callable[[], Iterator[RecordBatch]]
"""Opens the records of one partition; may be called again."""

MOST_VALUES: Final = 1 << 26
"""Values that are kept at once, over all series: 512 MiB; of a row its features, and three for its place."""
LEFT_OUT_SHARE: Final = 0.2
"""Of the rows of a series, at most this share is left out because of alerts: where more than that is out of
the ordinary, it is the ordinary that has changed."""
SLICE_WINDOWS: Final = 8
"""Rows of a slice, in windows: each slice costs the rows of a window, less one."""

_LEAST_SLICES: Final = 4  # fewer say less about a range than its newest rows do
_COMPACT_ROWS: Final = 1 << 17
_NONE: Final = -1
_RANK: Final = (5**0.5 - 1) / 2
"""The golden ratio's fraction: of its multiples, those below a line are about evenly spaced at any line (the
three-distance theorem, Sós 1958), and not equally: slices at equal distances could all meet the same hour."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which rows of each series are learned from.

    Attributes:
        rows: at most so many: the newest, as many as are held out, and evenly spaced slices of those before.
        first: only the first share of its rows, above 0 and up to 1.
    """

    rows: int
    first: float = 1.0


@dataclass(slots=True, eq=False)
class Account:
    """What became of the rows of one series; ``rows`` is the sum of learned, frozen, alerts and thinned.

    Attributes:
        rows: made of records, in the share that was asked for.
        frozen: left out because a silence freezes them.
        alerts: left out because of an alert: its rows and those whose windows they touch.
        thinned: left out because there are more than are asked for.
        learned: what is left.
        normal: learned from although an alert was raised, which people called a false alarm or normal.
        over: learned from although an alert was raised, because ``LEFT_OUT_SHARE`` was reached.
        held: int64[F], of all rows that are not frozen: those where a feature was missing and held its value.
    """

    held: Int64s
    rows: int = 0
    frozen: int = 0
    alerts: int = 0
    thinned: int = 0
    learned: int = 0
    normal: int = 0
    over: int = 0

    def add(self, other: Account) -> None:
        """Take another account of the same series in."""
        self.held = self.held + other.held
        for name in ("rows", "frozen", "alerts", "thinned", "learned", "normal", "over"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True, eq=False)
class History:
    """Rows by series, and what became of the records they were made from.

    Attributes:
        series: what is learned from.
        time_ns: int64[n], the event times of these rows.
        accounts: of every series that had rows, by its name.
        records: records read.
        bins: how many of them did not become rows of their own, by bin.
        rows_limit: the bound on rows of a series that was kept, below the one asked for where memory asks it.
    """

    series: dict[str, SeriesRows] = field(default_factory=dict)
    time_ns: dict[str, Int64s] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    records: int = 0
    bins: dict[str, int] = field(default_factory=dict)
    rows_limit: int = 0

    @property
    def rows(self) -> int:
        """All rows that are learned from."""
        return sum(len(each.segment) for each in self.series.values())

    @property
    def account(self) -> Account:
        """That of all series together."""
        total = Account(np.zeros(1, np.int64))
        for each in self.accounts.values():
            total.add(each)
        return total

    @property
    def rate(self) -> float | None:
        """Rows of all series a second of event time, in the newer half of them; None where it is unknown."""
        times = np.sort(np.concatenate([np.zeros(0, np.int64), *self.time_ns.values()]))
        newer = times[len(times) // 2 :]
        if len(newer) < 2 or newer[0] == newer[-1]:
            return None
        return float((len(newer) - 1) / (newer[-1] - newer[0]) * 1e9)

    def add(self, name: str, account: Account, learned: _Columns | None) -> None:
        """Take a series in; one that stands in two partitions is two stretches."""
        if name in self.accounts:
            self.accounts[name].add(account)
        else:
            self.accounts[name] = account
        if learned is None or not len(learned.slot):
            return
        rows, time_ns = learned.learned()
        before = self.series.get(name)
        if before is not None:
            rows = SeriesRows(
                np.concatenate([before.values, rows.values]),
                np.concatenate([before.segment, rows.segment + before.segment[-1] + 1]),
            )
            time_ns = np.concatenate([self.time_ns[name], time_ns])
        self.series[name], self.time_ns[name] = rows, time_ns


def gather(
    detector: Detector,
    sources: Sequence[Batches],
    part: Part,
    left_out: LeftOut,
    on_records: Callable[[int], None],
) -> History:
    """Read every source to its end; ``on_records`` hears of each batch's length.

    Where only a first share is asked for, sources are read twice: the share is of each series' own rows. Rows
    within windows of freezes count for nothing. Of episodes, and of the rows of a window after each, up to
    ``LEFT_OUT_SHARE`` of a series is left out: first those that became critical, and of equals the shorter
    ones, because what lasts is more likely what is normal now.
    """
    history = History(rows_limit=part.rows)
    layout = detector.layout
    most = MOST_VALUES // max(len(sources), 1) // (layout.features + 3)
    for source in sources:
        allowed = None
        if part.first < 1:
            counts = _counted(detector, source, left_out, on_records)
            allowed = np.floor(counts * part.first).astype(np.int64)
        marked = _Marked(detector, left_out, allowed)
        kept = _Kept(part.rows, most, layout.window_rows)
        for batch in source():
            for rows in marked(batch):
                kept.add(rows)
            history.records += len(batch) + batch.damaged
            on_records(len(batch))
        kept.compact()
        history.rows_limit = min(history.rows_limit, kept.limit)
        marked.settle(kept, history)
        for name, count in marked.state.counters.named().items():
            history.bins[name] = history.bins.get(name, 0) + count
    return history


def _counted(
    detector: Detector, source: Batches, left_out: LeftOut, on_records: Callable[[int], None]
) -> Int64s:
    """The rows of each slot that nobody froze."""
    marked = _Marked(detector, left_out, None)
    for batch in source():
        for _ in marked(batch):
            pass
        on_records(len(batch))
    return marked.counts("rows") - marked.counts("frozen")


class _BySeries:
    """Episodes in the order of their series, and there of their beginning.

    Attributes:
        started_ns, ended_ns: int64[E], the first and the last event time of each.
        critical, normal: bool[E], see :class:`models.episodes.Episode`.
    """

    def __init__(self, episodes: Sequence[Episode]) -> None:
        ordered = sorted(episodes, key=lambda each: (each.series, each.started_ns))
        self.started_ns = np.array([each.started_ns for each in ordered], np.int64)
        self.ended_ns = np.array([each.ended_ns for each in ordered], np.int64)
        self.critical = np.array([each.critical for each in ordered], bool)
        self.normal = np.array([each.normal for each in ordered], bool)
        self._ranges = dict[str, tuple[int, int]]()
        for number, each in enumerate(ordered):
            self._ranges[each.series] = (self._ranges.get(each.series, (number, 0))[0], number + 1)

    def range(self, series: str) -> tuple[int, int]:
        """The first episode of a series, and one past the last."""
        return self._ranges.get(series, (0, 0))

    def left_out(self, episode: Int32s) -> Bools:
        """bool[n]: which rows of a series are left out, by the episode of each; -1 for none."""
        out = np.zeros(len(episode), bool)
        chosen = np.flatnonzero(episode != _NONE)
        chosen = chosen[~self.normal[episode[chosen]]]
        own = episode[chosen]
        length = np.bincount(own, minlength=len(self.critical))[own]
        order = np.lexsort((chosen, own, length, ~self.critical[own]))
        out[chosen[order][: int(LEFT_OUT_SHARE * len(episode))]] = True
        return out


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """Rows as columns, with their place among all rows of their series and their episode (-1: none)."""

    slot: Int32s
    place: Int32s
    episode: Int32s
    fresh: Bools
    time_ns: Int64s
    values: Float64s

    @classmethod
    def joined(cls, parts: Sequence[_Columns]) -> _Columns:
        """All rows, one part after the other."""
        return cls(*(np.concatenate([getattr(each, name) for each in parts]) for name in cls.__slots__))

    def take(self, rows: Bools | Int64s | slice) -> _Columns:
        """Some of the rows."""
        return _Columns(*(getattr(self, name)[rows] for name in self.__slots__))

    def learned(self) -> tuple[SeriesRows, Int64s]:
        """The rows of one series, in segments that end wherever a row is left out or a window begins."""
        begins = self.fresh | (np.diff(self.place, prepend=-2) != 1)
        return SeriesRows(self.values, np.cumsum(begins, dtype=np.int32)), self.time_ns


_SLOT = np.dtype(
    [
        ("rows", "i8"),
        ("frozen", "i8"),
        ("allowed", "i8"),  # rows that are not frozen beyond so many are none
        ("next", "i8"),  # the next episode, or the one that is open
        ("episodes", "i8"),  # one past the last of the series
        ("touched", "i8"),  # the episode that the last rows belong to, or whose rows are in their windows
        ("since", "i8"),  # rows since its end
    ]
)


@kernel
def _mark(
    slot: Int32s,
    time_ns: Int64s,
    fresh: Bools,
    frozen: Bools,
    slots: NDArray[np.void],
    started_ns: Int64s,
    ended_ns: Int64s,
    margin: int,
    place: Int32s,
    episode: Int32s,
    taken: Bools,
) -> None:
    """Number rows within their series, and find the episode of each and whether it is taken.

    A row after an episode belongs to it while their window would hold a row of it: ``margin`` rows.
    """
    for i in range(slot.shape[0]):
        at = slots[slot[i]]
        taken[i] = at["rows"] - at["frozen"] < at["allowed"]
        if not taken[i]:
            continue
        place[i] = at["rows"]
        at["rows"] += 1
        while at["next"] < at["episodes"] and ended_ns[at["next"]] < time_ns[i]:
            at["next"] += 1
        if fresh[i]:
            at["touched"] = -1
        if at["next"] < at["episodes"] and started_ns[at["next"]] <= time_ns[i]:
            at["touched"] = at["next"]
            at["since"] = 0
        elif at["touched"] >= 0:
            at["since"] += 1
            if at["since"] > margin:
                at["touched"] = -1
        episode[i] = at["touched"]
        if frozen[i]:
            at["frozen"] += 1
            taken[i] = False


class _Marked:
    """The rows of batches that nobody froze, and the counts of all of them.

    Attributes:
        state: of the partition.
    """

    def __init__(self, detector: Detector, left_out: LeftOut, allowed: Int64s | None) -> None:
        self.state: PartitionState = detector.fresh("", 0)
        self._detector, self._freezes, self._allowed = detector, left_out.freezes, allowed
        self._episodes = _BySeries(left_out.episodes)
        self._labels = _Labels(detector) if detector.stream.events.labels and left_out.freezes else None
        self._slots = np.zeros(0, _SLOT)
        self._held = np.zeros((0, detector.layout.features), np.int64)

    def counts(self, name: str) -> Int64s:
        """A count of each slot."""
        counted: Int64s = self._slots[name]
        return counted

    def __call__(self, batch: RecordBatch) -> Iterator[_Columns]:
        if self._labels is not None:
            self._labels.read(batch)
        for rows in self._detector.rows(self.state, batch):
            if len(rows.slot):
                yield self._mark(rows)

    def _mark(self, rows: Rows) -> _Columns:
        self._grow()
        n = len(rows.slot)
        place, episode = np.empty(n, np.int32), np.empty(n, np.int32)
        taken = np.empty(n, bool)
        frozen = frozen_rows(self._freezes, rows.slot, rows.time_ns, self._covers)
        _mark(
            rows.slot, rows.time_ns, rows.fresh, frozen, self._slots, self._episodes.started_ns,
            self._episodes.ended_ns, self._detector.layout.window_rows - 1, place, episode, taken,
        )  # fmt: skip
        slot, held = rows.slot[taken], rows.held[taken]
        for feature in range(held.shape[1]):
            self._held[:, feature] += np.bincount(slot[held[:, feature]], minlength=len(self._held))
        return _Columns(
            slot, place[taken], episode[taken], rows.fresh[taken], rows.time_ns[taken], rows.values[taken]
        )

    def _grow(self) -> None:
        """Make room for series that were not met before."""
        first, end = len(self._slots), len(self.state.names)
        if first == end:
            return
        more = np.zeros(end - first, _SLOT)
        more["allowed"] = np.iinfo(np.int64).max if self._allowed is None else self._allowed[first:end]
        more["touched"] = _NONE
        for row, name in zip(more, self.state.names[first:], strict=True):
            row["next"], row["episodes"] = self._episodes.range(name or "")
        self._slots = np.concatenate([self._slots, more])
        self._held = np.concatenate([self._held, np.zeros((len(more), self._held.shape[1]), np.int64)])

    def _covers(self, matchers: Matchers, slot: int) -> bool:
        series = self.state.names[slot] or ""
        labels = {} if self._labels is None else self._labels.found.get(series, {})
        return matchers.cover(self._detector.name, series, labels)

    def settle(self, kept: _Kept, history: History) -> None:
        """Leave episodes out, and write down what became of the rows of each series."""
        held = dict(kept.series())
        for slot, counts in enumerate(self._slots):
            account = Account(self._held[slot], int(counts["rows"]), int(counts["frozen"]))
            account.thinned = account.rows - account.frozen
            rows = held.get(slot)
            if rows is not None:
                out = self._episodes.left_out(rows.episode)
                inside = rows.episode[~out & (rows.episode != _NONE)]
                account.alerts = int(np.count_nonzero(out))
                account.normal = int(np.count_nonzero(self._episodes.normal[inside]))
                account.over = len(inside) - account.normal
                account.learned = len(out) - account.alerts
                account.thinned -= len(out)
                rows = rows.take(~out)
            if account.rows:
                history.add(self.state.names[slot] or "", account, rows)


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


class _Kept:
    """The newest rows of each slot and slices of those before, in bounded memory.

    While rows come it is not known how many there will be: slices have ranks, and those of the lowest ranks
    are kept, which each further slice can only thin out (:data:`_RANK`).

    Attributes:
        limit: rows of a slot that are kept; falls when there are so many slots that ``most`` is reached.
    """

    def __init__(self, limit: int, most: int, window_rows: int) -> None:
        self.limit = limit
        self._most, self._least = most, 2 * window_rows
        self._slice_rows = SLICE_WINDOWS * window_rows
        self._parts: list[_Columns] = []
        self._held = self._compacted = 0

    def add(self, rows: _Columns) -> None:
        """Take rows that came after all those taken before."""
        self._parts.append(rows)
        self._held += len(rows.place)
        if self._held > max(2 * self._compacted, _COMPACT_ROWS):
            self.compact()

    def compact(self) -> None:
        """Sort by slot, oldest row first, and drop what is over the limit."""
        if not self._held:
            return
        rows = _Columns.joined(self._parts)
        order = np.argsort(rows.slot, kind="stable")
        slot = rows.slot[order]
        counts = np.bincount(slot)
        self.limit = min(self.limit, max(self._most // int(np.count_nonzero(counts)), self._least))
        newest, slices = self._shares()
        keep = np.cumsum(counts)[slot] - np.arange(len(slot)) <= newest
        older = np.flatnonzero(~keep)
        keep[older] = _spread(slot[older], rows.place[order[older]] // self._slice_rows, slices)
        self._parts = [rows.take(order[keep])]
        self._held = self._compacted = len(self._parts[0].slot)

    def _shares(self) -> tuple[int, int]:
        """How many rows are the newest ones, and how many slices there are before them."""
        newest = round(HELD_OUT_SHARE * self.limit)
        slices = (self.limit - newest) // self._slice_rows
        return (newest, slices) if slices >= _LEAST_SLICES else (self.limit, 0)

    def series(self) -> Iterator[tuple[int, _Columns]]:
        """Each slot with its rows, once they are compact."""
        for rows in self._parts:
            first = np.flatnonzero(np.diff(rows.slot, prepend=-1))
            for start, end in zip(first.tolist(), np.append(first, len(rows.slot))[1:].tolist(), strict=True):
                yield int(rows.slot[start]), rows.take(slice(start, end))


def _spread(slot: Int32s, number: Int32s, slices: int) -> Bools:
    """bool[n]: which rows, in the order of their slots and slices, are of a slot's so many lowest ranks."""
    first = np.flatnonzero((np.diff(slot, prepend=-1) != 0) | (np.diff(number, prepend=-1) != 0))
    order = np.lexsort((number[first] * _RANK % 1, slot[first]))
    begins = np.flatnonzero(np.diff(slot[first][order], prepend=-1))
    lengths = np.diff(begins, append=len(order))
    kept = np.empty(len(order), bool)
    kept[order] = np.arange(len(order)) - np.repeat(begins, lengths) < slices
    return np.repeat(kept, np.diff(first, append=len(slot)))


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


def recent_ms(reader: Reader, topic: str, history_s: float, until_ms: int | None = None) -> int | None:
    """The record timestamp that lies ``history_s`` before ``until_ms``, or else before the newest record.

    The newest is the latest of the last records of all partitions. None where there is no record.

    Raises:
        NotFound: the topic does not exist.
        BusDown: the bus cannot be reached.
    """
    if until_ms is None:
        last = (
            _last_ms(reader, TopicPartition(topic, number), each)
            for number, each in reader.bounds(topic).items()
        )
        until_ms = max((each for each in last if each is not None), default=None)
    return None if until_ms is None else until_ms - round(history_s * 1000)


def _last_ms(reader: Reader, partition: TopicPartition, bounds: Bounds) -> int | None:
    """The timestamp of the last record; the last offsets may be a bus's own marks, which nobody reads."""
    step, start = 1, bounds.end_offset
    while start > bounds.first_offset:
        start, step = max(bounds.end_offset - step, bounds.first_offset), 8 * step
        batches = [each for each in stretch(reader, partition, start, bounds.end_offset) if len(each)]
        if batches:
            return int(batches[-1].timestamp_ms[-1])
    return None


def topic_source(reader: Reader, partition: TopicPartition, bounds: Bounds) -> Batches:
    """The records of a partition in ``[first_offset, end_offset)``; see :func:`pipeline.reading.stretch`."""
    return lambda: stretch(reader, partition, bounds.first_offset, bounds.end_offset)
