"""What uninterrupted work would have made of a place, and how what is there differs from it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from offbeat.app import StreamModels
from pipeline.adoption import adopt, reconcile
from pipeline.alerts import Alert, DeadLetter, Transition
from pipeline.control import NO_DECISIONS, ControlLog, ControlView
from pipeline.detect import Detector, Outputs
from pipeline.journal import InForce, JournalLog, Past
from pipeline.ownership import Shelf
from pipeline.ports import Reader, Scorer
from pipeline.reading import stretch
from pipeline.records import Int64s, PackedRows, RecordBatch, TopicPartition
from pipeline.series import Header, PartitionState
from pipeline.state import connect as connect_state
from pipeline.state.snapshots import decode

from .load import STREAM
from .place import DEADLINE_S, Place

READ_RECORDS = 1_777
"""Of another size than any batch of the workers."""
RELATIVE = 1e-5
_MEASURED = "score", "peak_score", "error", "threshold"


@dataclass
class Verdict:
    """How what came of a faulty run differs from uninterrupted work.

    Attributes:
        outputs: alerts and dead letters that uninterrupted work gives.
        lost: those of them that are missing; one that is there with other content counts too.
        doubled: alerts and dead letters that are there more often than uninterrupted work gives them.
        wrong: what is wrong with states, snapshots and journals, a sentence for each series.
        ties: rows so close to their line that rounding might judge them either way.
        reasons: of the alerts, what they told of.
        bins: where the records ended.
        changes: how often something else came into force.
        snapshots: how many were looked at.
    """

    outputs: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)
    ties: int = 0
    reasons: set[str] = field(default_factory=set)
    bins: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    snapshots: int = 0


class Anew(NamedTuple):
    """A state that was made anew from ``first_offset`` on; ``open``: alerts at the first live record."""

    first_offset: int = 0
    live_from: int = 0
    open: Mapping[str, Transition] = MappingProxyType({})


@dataclass(frozen=True)
class GivenUp:
    """What a fault costs by the product's own rules, so that exactly that is expected.

    Attributes:
        besides: alerts, dead letters and alert changes that are there besides those of uninterrupted work.
        skipped: by partition, records ``[from, to)`` that were read without outputs.
        anew: by partition, where the state was made anew.
    """

    besides: Outputs = field(default_factory=Outputs)
    skipped: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    anew: Mapping[int, Anew] = field(default_factory=dict)


def left(place: Place) -> Outputs:
    """All alerts and dead letters that workers published, and the alert changes in their journal."""
    reader, found = place.broker.reader(), Outputs()
    found.alerts += map(Alert.model_validate_json, _values(place, place.settings.alerts_topic))
    found.dead_letters += map(
        DeadLetter.model_validate_json, _values(place, place.settings.dead_letters_topic)
    )
    for past in pasts(place, reader).values():
        found.changes += chain.from_iterable(entry.changes for entry in past.alerts)
    return found


def pasts(place: Place, reader: Reader) -> dict[int, Past]:
    """What the journal says of each partition."""
    journal = JournalLog(reader, place.settings.journal_topic(STREAM))
    bounds = reader.bounds(place.topic)
    return {number: journal.past(number, each.topic_id, each.end_offset) for number, each in bounds.items()}


def as_decided(past: Past, view: ControlView) -> bool:
    """Whether what the journal says last is what was decided last."""
    last = past.changes[-1]
    return (last.bundle_sha, last.policy_sha) == (view.champions[STREAM], view.policies[STREAM])


def judge(place: Place, given_up: GivenUp | None = None) -> Verdict:
    """Compare all that workers left on a place; they have ended, and everything is read."""
    verdict, given_up = Verdict(), given_up or GivenUp()
    alerts, letters = [*given_up.besides.alerts], [*given_up.besides.dead_letters]
    with closing(connect_state(place.settings.state)) as server:
        store = server.store(namespace=place.namespace, stream=STREAM)
        for number in place.broker.reader().bounds(place.topic):
            stored = store.peek(TopicPartition(place.topic, number))
            reference = Reference(place, number, None if stored is None else stored.rows, given_up)
            alerts += reference.outputs.alerts
            letters += reference.outputs.dead_letters
            verdict.wrong += reference.wrong
            verdict.ties += reference.ties
            verdict.bins.update(reference.state.counters.named())
            verdict.changes += len(reference.past.changes) - 1
            verdict.snapshots += len(reference.copies) - 1
    published = left(place)
    _compare_alerts(verdict, alerts, published.alerts)
    _compare(verdict, Counter(map(_letter, letters)), Counter(map(_letter, published.dead_letters)))
    verdict.outputs = len(alerts) + len(letters)
    verdict.reasons = {alert.reason for alert in alerts}
    return verdict


@dataclass(eq=False)
class _Copy:
    """A state that workers left somewhere; ``looked`` once it was compared."""

    where: str
    header: Header
    rows: PackedRows
    looked: bool = False


class Reference:
    """A partition read from its first record by one detect step, under what the journal says was in force.

    Alert changes are judged here, never imposed, but for records that were skipped. Every state that workers
    left is compared on the way, at its offset and under what was in force for it: where several things came
    into force at one offset, the journal has what a state does not have yet.

    Attributes:
        past: what the journal says.
        copies: the states that workers left, the stored one and the snapshots.
        state: at the partition's end.
        outputs: all of them.
        ties, wrong: as in :class:`Verdict`.
    """

    def __init__(self, place: Place, number: int, stored: PackedRows | None, given_up: GivenUp) -> None:
        self.partition = TopicPartition(place.topic, number)
        reader = place.broker.reader()
        bounds = reader.bounds(place.topic)[number]
        journal = JournalLog(reader, place.settings.journal_topic(STREAM))
        self.past = journal.past(number, bounds.topic_id, bounds.end_offset)
        self.outputs, self.ties, self.wrong = Outputs(), 0, list[str]()
        self.copies = [*self._copies(place, bounds.topic_id, stored)]
        control = ControlLog(reader, place.settings.control_topic)
        control.refresh()
        self._shelf = Shelf(place.namespace, STREAM, control, StreamModels(place.settings, STREAM))
        self._anew = given_up.anew.get(number, Anew())
        first_offset = self._anew.first_offset
        self._skipped = given_up.skipped.get(number, (0, 0))
        self._before = Counter(map(_change, given_up.besides.changes))
        first = self.past.at(first_offset)
        if first is None:
            entries, _ = journal.entries(number)
            said = [each for each in entries if isinstance(each, InForce)]
            raise AssertionError(
                f"{self.partition}: the journal does not say what was in force at first for {bounds}: {said}"
            )
        self.state = self._detector(first).fresh(bounds.topic_id, first_offset)
        self._settle()
        for batch in stretch(reader, self.partition, first_offset, bounds.end_offset, READ_RECORDS):
            rest = batch
            while rest.next_offset > self.state.next_offset:
                stop = self._next_stop(rest.next_offset)
                self._take(self._step(rest.before(stop)))
                rest = rest.since(stop)
                self._settle()
        self._check_end(stored, control)

    def _step(self, batch: RecordBatch) -> Outputs:
        """Outputs of a stretch of records that all are live, or none of them."""
        at, (begin, end) = self.state.next_offset, self._skipped
        imposed = self.past.imposed(begin) if begin <= at < end else None
        outputs = self._detector().step(self.state, batch, self._scorer(), imposed)
        return outputs if imposed is None and at >= self._anew.live_from else Outputs(scores=outputs.scores)

    def _copies(self, place: Place, topic_id: str, stored: PackedRows | None) -> Iterator[_Copy]:
        number = str(self.partition.partition)
        folder = Path(place.settings.snapshots, place.namespace, STREAM, topic_id, number)
        found = [(path.name, decode(path.read_bytes())) for path in sorted(folder.glob("[0-9]*.snapshot"))]
        for where, rows in [*found, *([("the store", stored)] if stored else [])]:
            header = Header.of(rows)
            if header is None:
                self.wrong.append(f"{self.partition}: the state in {where} cannot be read")
            else:
                yield _Copy(where, header, rows)

    def _next_stop(self, end_offset: int) -> int:
        """Where something else comes into force, or there is a state to compare, or the batch ends."""
        changes, copies = self.past.changes, self.copies
        stops = [*(each.next_offset for each in changes), *(each.header.next_offset for each in copies)]
        stops += [self._anew.live_from, *self._skipped]
        return min(each for each in [*stops, end_offset] if each > self.state.next_offset)

    def _settle(self) -> None:
        """Bring into force what is due, one after the other, and compare what was left here."""
        self._compare_copies()
        if self.state.next_offset == self._anew.live_from > 0:
            self._take(reconcile(self._detector(), self.state, self.partition, self._anew.open))
        for due in self.past.due(self.state.in_force, self.state.next_offset):
            detector, scorer = self._detector(due), self._scorer(due)
            self.state, outputs = adopt(
                detector, self.state, self.partition, due, scorer, decisions=NO_DECISIONS
            )
            self._take(outputs)
            self._compare_copies()

    def _compare_copies(self) -> None:
        for copy in self.copies:
            here = copy.header.next_offset == self.state.next_offset
            if here and copy.header.in_force == self.state.in_force:
                copy.looked = True
                found = differences(self.state, copy.rows)
                self.wrong += [f"{self.partition}, in {copy.where}: {each}" for each in found]

    def _take(self, outputs: Outputs) -> None:
        self.outputs.alerts += outputs.alerts
        self.outputs.changes += outputs.changes
        self.outputs.dead_letters += outputs.dead_letters
        for scores in outputs.scores:
            near = np.minimum(np.abs(scores.score - 1), np.abs(scores.last_score - 1))
            self.ties += int((near < RELATIVE).sum())

    def _check_end(self, stored: PackedRows | None, control: ControlLog) -> None:
        """What can be said once all is read."""
        wrong, end = [], self.state.next_offset
        wrong += [f"{each.where} has a state of another past" for each in self.copies if not each.looked]
        if not any(each.rows is stored and each.header.next_offset == end for each in self.copies):
            wrong.append("the state at the end is not stored")
        told = Counter(_change(each) for entry in self.past.alerts for each in entry.changes)
        if told - self._before != Counter(map(_change, self.outputs.changes)):
            wrong.append("the journal tells of other alert changes than were made")
        if not as_decided(self.past, control.view):
            wrong.append("what the journal says last is not what was decided last")
        self.wrong += [f"{self.partition}: {each}" for each in wrong]

    def _detector(self, force: InForce | None = None) -> Detector:
        force = force or self.state.in_force
        assert force is not None
        return self._shelf.detector(force.policy_sha)

    def _scorer(self, force: InForce | None = None) -> Scorer | None:
        force = force or self.state.in_force
        assert force is not None
        assert force.bundle_sha is not None
        return self._shelf.scorer(force.bundle_sha, force.policy_sha)


def differences(expected: PartitionState, packed: PackedRows) -> list[str]:
    """How a stored state differs from what it should be, a sentence for each series."""
    state = PartitionState.unpack(expected.layout, packed)
    if state is None:
        return ["rows of another layout"]
    found = [
        f"{name} is {getattr(state, name)}, not {getattr(expected, name)}"
        for name in ("topic_id", "clock_ns", "bundle_id", "letters_second", "letters_count")
        if getattr(state, name) != getattr(expected, name)
    ]
    for name, counts, others in zip(("bins", "attributes"), *map(_counts, (expected, state)), strict=True):
        if not np.array_equal(counts, others):
            found += [f"{name} are {others.tolist()}, not {counts.tolist()}"]
    ours, theirs = _live(expected), _live(state)
    found += [f"{name} is in one state only" for name in sorted(ours.keys() ^ theirs.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        where = _difference(expected, ours[name], state, theirs[name])
        if where is not None:
            found.append(f"{name} differs in {where}")
    return found


def _counts(state: PartitionState) -> tuple[Int64s, Int64s]:
    return state.counters.bins, state.counters.attributes


def _live(state: PartitionState) -> dict[str, int]:
    return {
        name: slot for slot, name in enumerate(state.names) if name is not None and state.rows["live"][slot]
    }


def _difference(expected: PartitionState, slot: int, state: PartitionState, other: int) -> str | None:
    """What of a series is not the same: whole numbers exactly, others to rounding."""
    for name, ours, theirs in zip(expected.series._fields, expected.series, state.series, strict=True):
        if ours.dtype.names is None:
            if not _alike(ours[slot], theirs[other]):
                return name
            continue
        for part in ours.dtype.names:
            if not _alike(ours[part][slot], theirs[part][other]):
                return f"{name}.{part}: {theirs[part][other]}, not {ours[part][slot]}"
    return None


def _alike(ours: Any, theirs: Any) -> bool:  # noqa: ANN401 - scalars and arrays of any type
    if np.asarray(ours).dtype.kind == "f":
        return bool(np.allclose(ours, theirs, rtol=RELATIVE, atol=0.0, equal_nan=True))
    return bool(np.array_equal(ours, theirs))


def _compare_alerts(verdict: Verdict, expected: Sequence[Alert], published: Sequence[Alert]) -> None:
    """Each revision with its content, what was measured to rounding."""
    _compare(verdict, Counter(map(_exact, expected)), Counter(map(_exact, published)))
    measured = {_exact(alert): alert for alert in expected}
    for alert in published:
        other = measured.get(_exact(alert))
        if other is not None and not all(_close(getattr(alert, n), getattr(other, n)) for n in _MEASURED):
            verdict.lost += 1
            verdict.doubled += 1


def _compare(verdict: Verdict, expected: Counter[str], found: Counter[str]) -> None:
    verdict.lost += (expected - found).total()
    verdict.doubled += (found - expected).total()


def _exact(alert: Alert) -> str:
    return alert.model_dump_json(exclude={*_MEASURED, "features"})


def _letter(letter: DeadLetter) -> str:
    return letter.model_dump_json()


def _change(change: Transition) -> tuple[str, int, int]:
    return change.id, change.revision, change.offset


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=RELATIVE)


def _values(place: Place, topic: str) -> Iterator[bytes]:
    """All records of a topic, once every transaction on it has ended."""
    reader, deadline = place.broker.reader(), time.monotonic() + DEADLINE_S
    while any(each.end_offset < each.written_offset for each in reader.bounds(topic).values()):
        if time.monotonic() > deadline:
            raise AssertionError(f"a transaction on {topic} does not end")
        time.sleep(0.1)
    for number, bounds in reader.bounds(topic).items():
        at = TopicPartition(topic, number)
        for batch in stretch(reader, at, bounds.first_offset, bounds.end_offset):
            yield from (batch.value(row) or b"" for row in range(len(batch)))
