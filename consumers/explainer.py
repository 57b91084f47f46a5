"""The explainer: why a row of a series was judged as it was, or why it was not, from topic and journal alone.

First the record is looked for by what a record alone says (series and time), then a replay comes to the state
that live work had, and goes over the record with a detect step that keeps what it was judged by. Nothing is
written, and any batching gives the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import NamedTuple

from consumers.replayer import TIE, Parts, Replay, Replayer
from consumers.tracer import AlertState, Trace, TracingShelf, Watch, silences_at
from pipeline.accounting import Bin
from pipeline.alerts import Source, nanoseconds, timestamp
from pipeline.config import Feature, Stream
from pipeline.errors import NotFound
from pipeline.journal import Past
from pipeline.policy import NEVER, AlignPolicy, align_policy
from pipeline.ports import Reader
from pipeline.reading import stretch
from pipeline.readings import Decoder
from pipeline.records import Bounds, TopicPartition
from pipeline.series import Layout, PartitionState

_BACK_RECORDS = 100_000
"""Where nothing is found from the asked time on, so many records before it are looked at, then ever more."""
_LATE_RECORDS = 200_000
"""So many records behind the asked time are looked at for one of that very time that came late."""
_STEP_RECORDS = 500
"""So many records a step until a grid cell closes, then ever more."""
_SHOWN = 8
_AHEAD_S = 10 * 365 * 86400.0
_NO_ROW = (Bin.DEAD_LETTERED, Bin.OVER_LIMIT, Bin.OUTSIDE, Bin.LATE, Bin.DUPLICATE)
"""Where a record ends that has no part in any row."""
_TIME = "%Y-%m-%d %H:%M:%S UTC"


class Explainer:
    """Answers why and why not for the rows of a stream that are still in its topic.

    Args:
        on_records: hears how many records were looked at, now and then.

    Raises:
        NotFound: there is no control topic.
        BusDown: the bus cannot be reached.
    """

    def __init__(self, parts: Parts, on_records: Callable[[int], None] = lambda _: None) -> None:
        self._parts, self._on_records = parts, on_records

    def explain(self, series: str, time: datetime) -> Trace:
        """The trace of the row at a time, or else of the newest record at or before it.

        A time of a whole second stands for all of that second.

        Raises:
            NotFound: there is no such series or record, or no worker has read it; a model is not there any
                more.
            BundleError: a model is damaged, or does not fit.
            BusDown, StoreDown: the bus, or the folder of the snapshots, cannot be read.
        """
        first_ns = nanoseconds(time)
        end_ns = first_ns + (1_000 if time.microsecond else 1_000_000_000)
        watch = Watch(series)
        replayer = Replayer(self._parts, partial(TracingShelf, watch))
        trail, hit = self._find(replayer, series, first_ns, end_ns)
        watch.time_ns = hit.time_ns
        asked = Bounds(hit.offset, hit.offset + 1, trail.bounds.topic_id, hit.offset + 1)
        [replay], _ = replayer.prepare({trail.partition.partition: asked})
        self._run(replay)
        counted = replay.bins
        ended = next((bin_ for bin_ in _NO_ROW if counted[bin_.name.lower()] > 0), None)
        records = _STEP_RECORDS
        end = trail.bounds.end_offset
        while (
            watch.row is None
            and replay.end_offset < end
            and (_is_open(replay, watch) or replay.end_offset <= hit.last)
        ):
            replay.reach(min(replay.end_offset + records, end))
            self._run(replay)
            records *= 2
        return _Answer(replayer, replay, watch, hit, time, end_ns).trace(ended)

    def _run(self, replay: Replay) -> None:
        for read in replay.run():
            self._on_records(read.records)

    def _find(self, replayer: Replayer, series: str, first_ns: int, end_ns: int) -> tuple[_Trail, _Hit]:
        """The partition and the record of the series that the time is about."""
        trails = self._trails(replayer, series, first_ns, end_ns)
        self._look_on(trails)
        records = _BACK_RECORDS
        while all(trail.hit is None for trail in trails) and any(trail.more_before for trail in trails):
            for trail in trails:
                for count in trail.look_back(records):
                    self._on_records(count)
            records *= 4
        found = [(trail, trail.hit) for trail in trails if trail.hit is not None]
        if not found:
            raise NotFound(self._nothing(series, first_ns, trails))
        trail, hit = max(found, key=lambda each: (each[1].found, each[1].time_ns))
        begun = trail.past.changes[0].next_offset
        if hit.offset < begun:
            raise NotFound(
                f"the record of series {series!r} at {timestamp(hit.time_ns):{_TIME}} was never judged: live "
                f"work on {trail.partition} began at offset {begun}, behind its offset {hit.offset}; ask for "
                "a later time"
            )
        return trail, hit

    def _trails(self, replayer: Replayer, series: str, first_ns: int, end_ns: int) -> list[_Trail]:
        """Each partition that a worker has read, from where a record of the time may stand."""
        parts, name = self._parts, self._parts.stream
        topic = parts.config.stream(name).topic
        committed = parts.admin.committed(parts.config.group(name), topic)
        trails = []
        for number, bounds in sorted(parts.reader.bounds(topic).items()):
            partition = TopicPartition(topic, number)
            past = replayer.past(number, bounds.topic_id, committed.get(number, 0))
            if not past.changes:
                continue
            policies = {each.policy_sha for each in past.changes}
            streams = {sha: replayer.shelf.detector(sha).stream for sha in policies}
            ahead_s = max(stream.events.ahead for stream in streams.values())
            since_ms = max(first_ns // 1_000_000 - round(ahead_s * 1_000), 0)
            start = max(parts.reader.offset_at(partition, since_ms), bounds.first_offset)
            trails.append(
                _Trail(partition, bounds, past, streams, series, first_ns, end_ns, parts.reader, start)
            )
        if not trails:
            raise NotFound(
                f"no worker has read stream {name!r} yet, so nothing was judged; let one read it first "
                f"(`offbeat detect {name}`)"
            )
        return trails

    def _look_on(self, trails: list[_Trail]) -> None:
        """Look from the asked time on, in all partitions side by side, until one has gone far enough."""
        looking = {trail.partition: trail.look_on() for trail in trails}
        while looking and not any(trail.settled for trail in trails):
            for partition, records in list(looking.items()):
                count = next(records, None)
                if count is None:
                    del looking[partition]
                else:
                    self._on_records(count)

    def _nothing(self, series: str, first_ns: int, trails: list[_Trail]) -> str:
        name = self._parts.stream
        oldest = [trail.oldest_ns for trail in trails if trail.oldest_ns is not None]
        if oldest:
            return (
                f"the topic of stream {name!r} holds no record of series {series!r} at or before "
                f"{timestamp(first_ns):{_TIME}}; its oldest is of {timestamp(min(oldest)):{_TIME}}: ask for "
                "a time from then on"
            )
        names = sorted(set[str]().union(*(trail.names for trail in trails)))
        if not names:
            return f"the topic of stream {name!r} holds no record that names its series"
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        return (
            f"stream {name!r} has no series {series!r} in its topic; it has {', '.join(names[:_SHOWN])}{more}"
        )


class _Hit(NamedTuple):
    """A record of the series.

    Attributes:
        time_ns: of its row, or of the row that it would have made.
        offset: of the first record of that row.
        last: of the last one that was seen: where the first cannot be read another may have made the row.
        found: whether that row was asked for.
    """

    time_ns: int
    offset: int
    last: int
    found: bool


@dataclass(slots=True, eq=False)
class _Trail:
    """A partition, and what of the series was found in it.

    Attributes:
        start: records from here on were looked at.
        settled: nothing behind it can change what was found.
        oldest_ns: time of the series' oldest record that was seen.
        names: of all series that were seen.
    """

    partition: TopicPartition
    bounds: Bounds
    past: Past
    streams: dict[str, Stream]
    series: str
    first_ns: int
    end_ns: int
    _reader: Reader
    start: int
    settled: bool = False
    oldest_ns: int | None = None
    names: set[str] = field(default_factory=set)
    _best: _Hit | None = None
    _late: _Hit | None = None
    _newest_ns: int = NEVER
    _passed: int | None = None

    @property
    def hit(self) -> _Hit | None:
        """The record of the row, else one of that time that made none, else the newest before."""
        if self._best is not None and self._best.found:
            return self._best
        return self._late or self._best

    @property
    def more_before(self) -> bool:
        """Whether there are records before those looked at."""
        return self.start > self.bounds.first_offset

    def look_on(self) -> Iterator[int]:
        """Look from the start on; yields counts of records."""
        return self._look(self.start, self.bounds.end_offset)

    def look_back(self, records: int) -> Iterator[int]:
        """Look at so many records before those looked at."""
        end, self.start = self.start, max(self.start - records, self.bounds.first_offset)
        self._newest_ns = NEVER
        return self._look(self.start, end)

    def _look(self, first: int, end: int) -> Iterator[int]:
        while first < end:
            change = self.past.at(first) or self.past.changes[0]
            until = min(self.past.boundary(first) or end, end)
            yield from self._look_under(self.streams[change.policy_sha], first, until)
            first = until

    def _look_under(self, stream: Stream, first: int, end: int) -> Iterator[int]:
        named, policy = _names_only(stream), align_policy(stream, has_model=True)
        decoder, state = Decoder(named), PartitionState(Layout.of(named))
        less_ns = round(_AHEAD_S * 1e9) - round(stream.events.ahead * 1e9)
        for batch in stretch(self._reader, self.partition, first, end):
            columns = decoder.decode(batch, state).columns
            mine = columns.slot == state.index.get(self.series, -2)
            times, limits = columns.time_ns[mine], columns.limit_ns[mine] - less_ns
            for time_ns, limit_ns, offset in zip(
                times.tolist(), limits.tolist(), columns.offset[mine].tolist(), strict=True
            ):
                self._take(policy, time_ns, offset, refused=time_ns > limit_ns)
            found = self.hit is not None and self.hit.found
            gone_on = self._passed is not None and batch.next_offset > self._passed + _LATE_RECORDS
            self.settled = self._passed is not None and (found or gone_on)
            yield len(batch)
        self.names.update(name for name in state.names if name is not None)

    def _take(self, policy: AlignPolicy, time_ns: int, offset: int, *, refused: bool) -> None:
        """Look at one record of the series; one that is late, or ``refused``, makes no row."""
        every_ns, first_ns, end_ns = policy.every_ns, self.first_ns, self.end_ns
        row_ns, closes_ns = time_ns, time_ns
        if every_ns > 0:
            first_ns -= first_ns % every_ns
            end_ns = first_ns + every_ns
            row_ns = time_ns - time_ns % every_ns
            closes_ns = row_ns + every_ns + policy.late_ns
        hit, best = _Hit(row_ns, offset, offset, first_ns <= row_ns < end_ns), self._best
        if best is not None and best.time_ns == row_ns:
            self._best = best._replace(last=offset)
        if refused or closes_ns <= self._newest_ns:
            if hit.found and self._late is None:
                self._late = hit
            return
        self._newest_ns = max(self._newest_ns, time_ns)
        self.oldest_ns = min(time_ns, self.oldest_ns or time_ns)
        if row_ns < end_ns and (best is None or (best.time_ns != first_ns and best.time_ns < row_ns)):
            self._best = hit
        if self._passed is None and self._newest_ns >= end_ns + policy.late_ns:
            self._passed = offset


def _names_only(stream: Stream) -> Stream:
    """Settings that read of a record whose it is and of when, whatever else is wrong with it."""
    events = {
        "kind": "wide",
        "features": {"none": Feature(path="no field that anybody has")},
        "labels": (),
        "every": None,
        "late": None,
        "missing": "hold",
        "ahead": _AHEAD_S,
        "max_bytes": 16 << 20,
        "when": None,
    }
    model = stream.model.model_copy(update={"window": 2})
    return stream.model_copy(update={"events": stream.events.model_copy(update=events), "model": model})


def _is_open(replay: Replay, watch: Watch) -> bool:
    """Whether the row's grid cell still waits for its end."""
    slot = replay.state.index.get(watch.series)
    if slot is None or watch.detector is None:
        return False
    every_ns = align_policy(watch.detector.stream, has_model=True).every_ns
    cells = replay.state.series.cells[slot]
    return bool(((cells["readings"] > 0) & (cells["index"] * every_ns == watch.time_ns)).any())


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """What a replay came to, put together."""

    replayer: Replayer
    replay: Replay
    watch: Watch
    hit: _Hit
    asked: datetime
    end_ns: int

    def trace(self, ended: Bin | None) -> Trace:
        """The trace; ``ended`` is the bin of a record that has no part in any row."""
        replay, watch, hit, row = self.replay, self.watch, self.hit, self.watch.row
        detector, in_force = watch.detector, watch.in_force
        assert detector is not None  # noqa: S101 - the record was gone over
        assert in_force is not None  # noqa: S101 - its step was under something
        stream, state = detector.stream, replay.state
        slot = state.index.get(watch.series)
        labels = {} if slot is None else dict(zip(state.layout.labels, state.labels[slot], strict=False))
        filled = 0 if slot is None else len(state.window(slot))
        at = timestamp(hit.time_ns)
        silences = [
            each
            for each in self.replayer.control.view.silences.values()
            if each.record.silence.matchers.cover(detector.name, watch.series, labels)
        ]
        return Trace(
            stream=detector.name,
            series=watch.series,
            labels=labels,
            asked=self.asked,
            at=at,
            cell_s=stream.events.every,
            found=hit.found,
            source=Source(
                topic=replay.partition.topic,
                partition=replay.partition.partition,
                offset=hit.offset if row is None else row.offset,
            ),
            bin=self._bin(ended).name.lower(),
            reason=self._reason(ended, stream),
            window_filled=filled if row is None else row.filled,
            window_rows=stream.model.window,
            bundle=in_force.bundle_sha,
            policy=in_force.policy_sha,
            judgement=None if row is None else row.judgement,
            silent=None if hit.found else self._silent(),
            silences=silences_at(silences, at),
            exact=replay.exact,
            basis=replay.basis,
            notes=[*replay.notes, *self._ties()],
        )

    def _bin(self, ended: Bin | None) -> Bin:
        row, in_force = self.watch.row, self.watch.in_force
        if row is not None and row.judgement is not None:
            return Bin.SCORED
        if row is None and _is_open(self.replay, self.watch):
            return Bin.PENDING
        if row is None and ended is not None:
            return ended
        without_model = in_force is not None and in_force.bundle_sha is None
        return Bin.WAITING_MODEL if without_model else Bin.WARMING

    def _reason(self, ended: Bin | None, stream: Stream) -> str | None:
        if self.watch.row is not None:
            return None
        if ended is Bin.OUTSIDE:
            return stream.events.when
        offset = self.hit.offset
        letters = (each for each in self.watch.letters if each.offset <= offset <= each.last_offset)
        return next((each.reason for each in letters), None)

    def _silent(self) -> AlertState | None:
        """The `silent` alert of the series that was open at the time that was asked for."""
        changes = [
            change
            for entry in self.replay.past.alerts
            for change in entry.changes
            if (change.alert, change.series) == ("silent", self.watch.series) and change.at_ns < self.end_ns
        ]
        if not changes or changes[-1].state == "resolved":
            return None
        last = changes[-1]
        return AlertState(
            id=last.id,
            kind="silent",
            state=last.state,
            revision=last.revision,
            severity=last.severity,
            started_at=timestamp(last.started_ns),
        )

    def _ties(self) -> list[str]:
        judged = None if self.watch.row is None else self.watch.row.judgement
        if judged is None or min(abs(judged.score - 1.0), abs(judged.last_score - 1.0)) > TIE:
            return []
        return [f"a score is within {TIE:g} of the line: what the row did is what live work journaled"]
