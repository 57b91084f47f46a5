"""The replayer: a range of a stream's topic once more through the detect step, outside any group.

Each record is judged under what was in force for it, as the journal says, and alerts change where live work
changed them, as far as that has come. Nothing is written, and nobody is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isclose
from typing import Literal, NamedTuple

import numpy as np

from pipeline.adoption import adopt
from pipeline.alerts import Alert, Transition
from pipeline.config import Config
from pipeline.control import ControlLog
from pipeline.detect import Detector, Outputs
from pipeline.errors import BusDown, NotFound
from pipeline.journal import InForce, JournalLog, Past
from pipeline.ownership import REBUILD_RECORDS, Shelf
from pipeline.ports import Admin, Models, Reader, Scorer, Snapshots
from pipeline.reading import READ_RECORDS, stretch
from pipeline.records import Bounds, Int64s, PackedRows, RecordBatch, TopicPartition
from pipeline.series import Header, PartitionState

TIE = 1e-5
"""A row whose score, or whose last row's own, is this close to 1 could be judged the other way in other
batches, were the journal's judgement not imposed."""
KEPT_TIES = 1_000
SAME = 1e-5
"""Relative difference of two figures that count as the same."""
_SETTLED_S, _LOOK_S = 12.0, 0.2
"""How long, and how often, to ask for a journal while a live worker's commit is being settled."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a replay is made of.

    Attributes:
        reader, admin: of the bus of the stream.
        rewind_records: records read before a range, at most, where nothing better is there to begin with.
    """

    config: Config
    stream: str
    reader: Reader
    admin: Admin
    snapshots: Snapshots
    models: Models
    rewind_records: int = REBUILD_RECORDS


class Tie(NamedTuple):
    """A row at the line; ``series`` is None where it was forgotten in the same batch."""

    series: str | None
    time_ns: int
    score: float
    last_score: float


class Read(NamedTuple):
    """What one step brought: how many records, and the alerts, which are all of the range."""

    records: int
    alerts: list[Alert]


class _Start(NamedTuple):
    """Where a replay begins; ``change`` is what its state has to be brought under first."""

    state: PartitionState
    change: InForce
    exact: bool
    basis: str


@dataclass(slots=True, eq=False)
class Replay:
    """One partition's part of a range; :meth:`run` it, then look at what has become of it.

    Attributes:
        first_offset, end_offset: the range ``[first_offset, end_offset)``.
        start_offset: records from here on are read; those before the range in silence.
        live_to: live work has committed the records below it.
        imposed_to: alerts change below it where live work changed them, and are judged anew from it on.
        past: what the journal says of the records below ``live_to``.
        exact: the state is that which live work had, from the first record of the range to the last.
        basis: what the state rests on, in words.
        notes: what else a person should know, in sentences.
        state: everything up to ``state.next_offset``.
        records, dead_letters: of the range.
        alerts: of the range, as far as live work has come, without their evidence, by id and revision.
        revisions, fired: alerts of the whole range, all revisions and first ones.
        ties: the first rows at the line; tie_count counts all of them.
    """

    partition: TopicPartition
    first_offset: int
    end_offset: int
    start_offset: int
    live_to: int
    imposed_to: int
    past: Past
    exact: bool
    basis: str
    notes: list[str]
    state: PartitionState
    _reader: Reader
    _shelf: Shelf
    _under: InForce
    _detector: Detector
    _scorer: Scorer | None = None
    records: int = 0
    dead_letters: int = 0
    alerts: dict[tuple[str, int], Alert] = field(default_factory=dict)
    revisions: int = 0
    fired: int = 0
    ties: list[Tie] = field(default_factory=list)
    tie_count: int = 0
    _bins_before: Int64s | None = None

    @property
    def bins(self) -> dict[str, int]:
        """Where the records of the range ended; less is pending where cells from before it closed in it."""
        now = self.state.counters.bins
        before = now if self._bins_before is None else self._bins_before
        names = self.state.counters.named()
        return dict(zip(names, (now - before).tolist(), strict=True))

    def on_grid(self, offset: int) -> bool:
        """Whether the record at an offset made its row together with others, when a later one came."""
        change = self.past.at(offset)
        return change is None or self._shelf.detector(change.policy_sha).stream.events.every is not None

    def reach(self, end_offset: int) -> None:
        """Let the range end there, which is further on, and note what a person should know up to there."""
        before, self.end_offset = self.end_offset, end_offset
        for change in self.past.due(self._under, end_offset):
            if change.rebuilt_from is not None and change.next_offset > before:
                self.exact = False
                self.imposed_to = min(self.imposed_to, change.next_offset)
                self.notes.append(
                    f"from offset {change.next_offset} on live work rested on a state that was rebuilt from "
                    f"the records of {change.rebuilt_from} on; what follows may differ"
                )
        if before <= self.live_to < end_offset:
            self.notes.append(
                f"live work has come to offset {self.live_to}; the records behind it are judged as it would "
                "next"
            )

    def run(self, batch_records: int = READ_RECORDS) -> Iterator[Read]:
        """Read to the end of the range, at most ``batch_records`` a step.

        Raises:
            BusDown: the bus cannot be reached.
            NotFound, BundleError: a model that judged in the range is not there any more, or damaged.
        """
        self._settle()
        imposed = self.past.imposed(self.start_offset)
        start, end = self.state.next_offset, self.end_offset
        for fetched in stretch(self._reader, self.partition, start, end, batch_records):
            left = fetched
            while left.next_offset > self.state.next_offset:
                batch = self._piece(left, batch_records)
                inside = self.state.next_offset >= self.first_offset
                if inside and self._bins_before is None:
                    self._bins_before = self.state.counters.bins.copy()
                known = imposed if self.state.next_offset < self.imposed_to else None
                outputs = self._detector.step(self.state, batch, self._scorer, known)
                if inside:
                    self.records += len(batch) + batch.damaged
                    self._look_for_ties(outputs)
                ended = self._settle()
                self.state.stored()  # no store waits for what changed
                yield Read(len(batch), self._told([outputs, *ended]) if inside else [])
                left = left.since(self.state.next_offset)

    def _piece(self, batch: RecordBatch, most: int) -> RecordBatch:
        """The first records of a batch, up to where something else holds."""
        at, cuts = self.state.next_offset, [self.first_offset, self.live_to]
        boundary = self.past.boundary(at)
        if boundary is not None:
            cuts.append(boundary)
        batch = batch.before(min([cut for cut in cuts if cut > at], default=batch.next_offset))
        if len(batch) > most:
            batch = batch.before(int(batch.offset[most]))
        return batch

    def _settle(self) -> list[Outputs]:
        """Bring into force what the journal says; what that ends belongs to the records before it."""
        due = self.past.due(self.state.in_force, self.state.next_offset)
        return [self.bring(change) for change in due]

    def bring(self, change: InForce) -> Outputs:
        """Bring something into force at the state's offset."""
        self._detector, self._scorer = self._shelf.detector(change.policy_sha), None
        if change.bundle_sha is not None:
            self._scorer = self._shelf.scorer(change.bundle_sha, change.policy_sha)
        decisions = self._shelf.decisions(change.decided)
        self.state, outputs = adopt(
            self._detector, self.state, self.partition, change, self._scorer, decisions=decisions
        )
        return outputs

    def _told(self, found: list[Outputs]) -> list[Alert]:
        alerts = [alert for outputs in found for alert in outputs.alerts]
        self.dead_letters += sum(letter.count for outputs in found for letter in outputs.dead_letters)
        self.revisions += len(alerts)
        self.fired += sum(alert.state == "firing" for alert in alerts)
        if self.state.next_offset <= self.live_to:
            self.alerts |= {_key(alert): _without_evidence(alert) for alert in alerts}
        return alerts

    def _look_for_ties(self, outputs: Outputs) -> None:
        for scores in outputs.scores:
            near = np.minimum(np.abs(scores.score - 1.0), np.abs(scores.last_score - 1.0)) <= TIE
            rows = np.flatnonzero(near)
            self.tie_count += len(rows)
            for row in rows[: max(KEPT_TIES - len(self.ties), 0)].tolist():
                series = self.state.names[scores.slot[row]]
                figures = float(scores.score[row]), float(scores.last_score[row])
                self.ties.append(Tie(series, int(scores.time_ns[row]), *figures))


class Replayer:
    """Finds what a replay has to begin with.

    Args:
        shelf: makes the shelf that the replays take their detect steps from.

    Attributes:
        control: the control topic, read to its end.

    Raises:
        NotFound: there is no control topic.
        BusDown: the bus cannot be reached.
    """

    def __init__(self, parts: Parts, shelf: Callable[[str, str, ControlLog, Models], Shelf] = Shelf) -> None:
        config, name = parts.config, parts.stream
        self._parts, self._topic = parts, config.stream(name).topic
        self._journal = JournalLog(parts.reader, config.journal_topic(name))
        self.control = ControlLog(parts.reader, config.control_topic)
        self.control.refresh()
        self.shelf = shelf(config.namespace, name, self.control, parts.models)

    def prepare(self, ranges: Mapping[int, Bounds]) -> tuple[list[Replay], list[str]]:
        """A replay of each partition's range, and in sentences what is left out.

        Raises:
            NotFound: nothing is left; or a model is not there any more.
            BundleError: a model is damaged, or does not fit.
            BusDown, StoreDown: the bus, or the folder of the snapshots, cannot be read.
        """
        parts, replays, left_out = self._parts, list[Replay](), list[str]()
        # Before the journals: what they say then goes as far as these positions, or further.
        committed = parts.admin.committed(parts.config.group(parts.stream), self._topic)
        retained = parts.reader.bounds(self._topic)
        for number, asked in sorted(ranges.items()):
            partition = TopicPartition(self._topic, number)
            found = self._replay(partition, asked, retained[number], committed.get(number, 0))
            if isinstance(found, Replay):
                replays.append(found)
            else:
                left_out.append(found)
        if not replays:
            more = f" ({len(left_out):,} partitions have nothing)" if len(left_out) > 1 else ""
            raise NotFound(
                f"nothing of stream {parts.stream!r} to replay: {left_out[0]}{more}; choose another range, "
                f"or let a worker read it first (`offbeat detect {parts.stream}`)"
            )
        return replays, left_out

    def _replay(
        self, partition: TopicPartition, asked: Bounds, retained: Bounds, live_to: int
    ) -> Replay | str:
        if asked.first_offset >= asked.end_offset:
            return f"{partition} has no record in the range"
        past = self.past(partition.partition, asked.topic_id, live_to)
        if not past.changes:
            return f"no worker has read {partition} yet"
        begun = past.changes[0].next_offset
        if begun >= asked.end_offset:
            return f"live work on {partition} began behind the range, at offset {begun}"
        first = max(asked.first_offset, begun)
        start = self._start(partition, first, retained, past)
        replay = Replay(
            partition=partition,
            first_offset=first,
            end_offset=0,
            start_offset=start.state.next_offset,
            live_to=live_to,
            imposed_to=live_to if start.exact else start.state.next_offset,
            past=past,
            exact=start.exact,
            basis=start.basis,
            notes=[],
            state=start.state,
            _reader=self._parts.reader,
            _shelf=self.shelf,
            _under=start.change,
            _detector=self.shelf.detector(start.change.policy_sha),
        )
        replay.bring(start.change)
        if begun > asked.first_offset:
            replay.notes.append(f"live work began at offset {begun}; the records before it are left out")
        replay.reach(asked.end_offset)
        return replay

    def past(self, number: int, topic_id: str, live_to: int) -> Past:
        """What the journal says of the records of a partition below ``live_to``; empty where there is none.

        Raises:
            BusDown: the bus cannot be reached, or a commit was not settled in time.
        """
        until = time.monotonic() + _SETTLED_S
        while True:
            try:
                return self._journal.past(number, topic_id, live_to)
            except NotFound:
                return Past()
            except BusDown:
                if time.monotonic() >= until:
                    raise
                time.sleep(_LOOK_S)

    def _start(self, partition: TopicPartition, first: int, retained: Bounds, past: Past) -> _Start:
        """The newest snapshot, or live work's own beginning, or some records before the range."""
        found: list[tuple[PartitionState, InForce]] = []

        def fits(rows: PackedRows) -> bool:
            header = Header.of(rows)
            if header is None or header.in_force is None or not self.shelf.knows(header.in_force.policy_sha):
                return False
            layout = self.shelf.detector(header.in_force.policy_sha).layout
            state = PartitionState.unpack(layout, rows)
            if state is None or state.next_offset < retained.first_offset:
                return False
            if not past.leads_to(header.in_force, state.next_offset):
                return False
            found.append((state, header.in_force))
            return True

        if self._parts.snapshots.newest(partition, retained.topic_id, first, fits) is not None:
            state, change = found[-1]
            return _Start(state, change, True, f"from the snapshot at offset {state.next_offset}")
        begun = past.changes[0]
        if begun.rebuilt_from is None and begun.next_offset >= retained.first_offset:
            state = self._fresh(begun, retained, begun.next_offset)
            return _Start(state, begun, True, f"from offset {begun.next_offset}, where live work began")
        offset = max(first - self._parts.rewind_records, retained.first_offset)
        change = past.at(offset) or begun
        basis = (
            f"from an empty state at offset {offset}, {first - offset} records before the range, because "
            "there is no snapshot below it; thresholds and open episodes may differ"
        )
        return _Start(self._fresh(change, retained, offset), change, False, basis)

    def _fresh(self, change: InForce, retained: Bounds, offset: int) -> PartitionState:
        return self.shelf.detector(change.policy_sha).fresh(retained.topic_id, offset)


@dataclass(frozen=True, slots=True)
class Difference:
    """One revision of an alert that live work and a replay do not have alike.

    Attributes:
        kind: ``missing`` in the replay, ``new`` in it, or ``changed``.
        says: what the difference is.
    """

    kind: Literal["missing", "new", "changed"]
    id: str
    revision: int
    state: str
    series: str
    partition: int
    offset: int
    says: str


@dataclass(slots=True)
class Comparison:
    """Replayed alerts against those of live work, as far as it has come.

    Attributes:
        same: revisions that both have alike.
        unpublished: those among them that the alerts topic keeps no more: only the journal knows them, and
            their figures are not compared.
        differences: all others.
    """

    same: int = 0
    unpublished: int = 0
    differences: list[Difference] = field(default_factory=list)


def compare(replays: Iterable[Replay], published: Iterable[Alert]) -> Comparison:
    """Match alerts by id and revision; what live work did is what the journal says.

    ``published`` is what the alerts topic holds. An alert whose record cannot be told to be in the range or
    just outside it, because live work read both in one batch, is missing from no replay.
    """
    done = [(replay, _of_live(replay)) for replay in replays]
    known = {key for _, live in done for key in live}
    figures = {key: _without_evidence(alert) for alert in published if (key := _key(alert)) in known}
    found = Comparison()
    for replay, live in done:
        for key, alert in replay.alerts.items():
            if key not in live:
                found.differences.append(_different("new", alert, alert.reason))
                continue
            found.unpublished += key not in figures
            says = _changes(figures.get(key, alert), alert)
            if says:
                found.differences.append(_different("changed", alert, says))
            else:
                found.same += 1
        number = replay.partition.partition
        for key, (change, surely) in live.items():
            if surely and key not in replay.alerts:
                says = figures[key].reason if key in figures else "published no more"
                found.differences.append(
                    Difference("missing", *key, change.state, change.series, number, change.offset, says)
                )
    return found


def _of_live(replay: Replay) -> dict[tuple[str, int], tuple[Transition, bool]]:
    """The alert changes of live work that may be of the range, and whether they surely are.

    A commit is of several records, and tells of no more than its end. The record that made a change is the
    row's own where rows are records, else one at or behind it, and behind the commit before.
    """
    found: dict[tuple[str, int], tuple[Transition, bool]] = {}
    positions = [each.next_offset for each in replay.past.changes]
    positions += [each.through for each in replay.past.alerts]
    ordered = np.unique(np.array(positions, np.int64))
    first, end = replay.first_offset, replay.end_offset
    for entry in replay.past.alerts:
        at = int(np.searchsorted(ordered, entry.through))
        begun = int(ordered[at - 1]) if at else 0
        for change in entry.changes:
            if entry.through > first and change.offset < end:
                told = entry.through <= end or (change.judged and not replay.on_grid(change.offset))
                found[change.id, change.revision] = change, told and max(change.offset, begun) >= first
    return found


def _changes(live: Alert, replayed: Alert) -> str:
    """What of an alert is not the same, in words; its evidence is not looked at."""
    said = []
    for name in ("state", "reason", "severity", "series", "labels", "started_at", "at", "bundle", "source"):
        was, now = getattr(live, name), getattr(replayed, name)
        if was != now:
            said.append(f"{name} {now}, live {was}")
    for name in ("score", "peak_score", "error", "threshold"):
        was, now = getattr(live, name), getattr(replayed, name)
        if not (was is now if was is None or now is None else isclose(was, now, rel_tol=SAME)):
            said.append(f"{name} {now}, live {was}")
    return "; ".join(said)


def _different(kind: Literal["new", "changed"], alert: Alert, says: str) -> Difference:
    source = alert.source
    return Difference(
        kind, alert.id, alert.revision, alert.state, alert.series, source.partition, source.offset, says
    )


def _key(alert: Alert) -> tuple[str, int]:
    return alert.id, alert.revision


def _without_evidence(alert: Alert) -> Alert:
    return alert.model_copy(update={"features": []})
