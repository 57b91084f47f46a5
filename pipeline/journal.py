"""The journal: what was in force from which offset on, and every change of every alert.

A stream's journal topic has a partition for each partition of its input, is kept for ever, and is written
only in the commit that it tells of. Whoever reads records again follows it, never today's control topic, and
imposes its alert changes: the same rows in other batches give errors that differ by up to 4e-7, which could
turn a judgement at the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from pipeline.alerts import Transition
from pipeline.errors import BusDown, NotFound, OffbeatError
from pipeline.ports import Reader
from pipeline.reading import intact, stretch
from pipeline.records import RecordBatch, Send, TopicPartition

SCHEMA_VERSION = 1
_RECORD_BYTES = 256 << 10
"""Of one record, about: a broker takes no more than 1 MiB unless it is told otherwise."""


class InForce(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="in_force"):
    """What holds for the rows of records from ``next_offset`` on.

    Attributes:
        topic_id: the input topic; one that was made again is another one.
        control_offset: the control records below it had been taken in.
        bundle_sha: the model, None before the first.
        policy_sha: the stream's settings.
        decided: of what people decided about how rows are judged, the records below it hold
            (:meth:`pipeline.control.ControlView.decisions`).
        partitions: how many partitions the input topic had, each count it ever had in turn; the last holds.
        rebuilt_from: the state at ``next_offset`` was made anew from the records of this offset on, and is
            not what uninterrupted work would have had; None where it is.
    """

    schema_version: int = SCHEMA_VERSION
    topic_id: str
    next_offset: int
    control_offset: int
    bundle_sha: str | None
    policy_sha: str
    decided: int = 0
    partitions: tuple[int, ...]
    rebuilt_from: int | None = None

    def same(self, other: InForce | None) -> bool:
        """Whether rows are judged alike under both."""
        return other is not None and (
            (self.topic_id, self.bundle_sha, self.policy_sha, self.decided, self.partitions)
            == (other.topic_id, other.bundle_sha, other.policy_sha, other.decided, other.partitions)
        )


class Transitions(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="alerts"):
    """The alert changes of one commit; ``through`` is its position: the records below it had been read."""

    schema_version: int = SCHEMA_VERSION
    through: int
    changes: list[Transition]


Entry = InForce | Transitions
_DECODER: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


def sends(topic: str, partition: int, entries: Iterable[Entry]) -> list[Send]:
    """The records to be written in the commit."""
    return [Send(topic, None, msgspec.json.encode(entry), partition=partition) for entry in entries]


def transitions(through: int, changes: Sequence[Transition]) -> Iterator[Transitions]:
    """The entries of one commit's changes, in records of bounded size."""
    together, size = list[Transition](), 0
    for change in changes:
        more = len(msgspec.json.encode(change))
        if together and size + more > _RECORD_BYTES:
            yield Transitions(through=through, changes=together)
            together, size = [], 0
        together.append(change)
        size += more
    if together:
        yield Transitions(through=through, changes=together)


@dataclass(slots=True, eq=False)
class Past:
    """What the journal says of one partition of one topic, up to a position.

    Attributes:
        changes: what was in force, by rising offset; where several share one, it came in this order.
        alerts: alert changes, by rising position.
        open: alerts that nobody has closed, by id, those of an earlier topic of the same name included.
        superseded: entries told of records at or beyond the position: the group was set back, or the topic
            was made again.
        end_offset: the journal below it has been read.
    """

    changes: list[InForce] = field(default_factory=list)
    alerts: list[Transitions] = field(default_factory=list)
    open: dict[str, Transition] = field(default_factory=dict)
    superseded: bool = False
    end_offset: int = 0

    def at(self, offset: int) -> InForce | None:
        """What was in force for the record at ``offset``; None where this does not say."""
        return next((each for each in reversed(self.changes) if each.next_offset <= offset), None)

    def due(self, before: InForce | None, offset: int) -> list[InForce]:
        """What came into force after ``before``, one after the other, up to the record at ``offset``."""
        found = [each for each in self.changes if each.next_offset <= offset]
        if before is None:
            return found[-1:]
        found = [each for each in found if each.next_offset >= before.next_offset]
        known = [number for number, each in enumerate(found) if each == before]
        return found[known[-1] + 1 :] if known else found

    def leads_to(self, before: InForce | None, offset: int) -> bool:
        """Whether a state at ``offset`` that came there under ``before`` is of this past, all of it known.

        It is not where the group was set back below ``offset`` since, and went on otherwise.
        """
        return before in self.changes and all(each.next_offset >= offset for each in self.due(before, offset))

    def boundary(self, offset: int) -> int | None:
        """The next offset above ``offset`` where something else came into force."""
        return next((each.next_offset for each in self.changes if each.next_offset > offset), None)

    def imposed(self, offset: int) -> dict[tuple[str, int, int], Transition]:
        """The judged changes from ``offset`` on, by series, time and offset of the row behind each."""
        return {
            (each.series, each.at_ns, each.offset): each
            for entry in self.alerts
            if entry.through > offset
            for each in entry.changes
            if each.judged
        }


def fold(entries: Iterable[Entry], topic_id: str, position: int) -> Past:
    """What entries, in their order, say of the topic ``topic_id`` up to ``position``.

    An entry for an offset below that of earlier ones takes their place: the group was set back there.
    """
    past, before, topic = Past(), dict[str, Transition](), topic_id
    for entry in entries:
        if isinstance(entry, InForce):
            if entry.topic_id != topic:
                before = _open(past.alerts, before)
                past.changes, past.alerts, topic = [], [], entry.topic_id
            past.changes = [each for each in past.changes if each.next_offset <= entry.next_offset]
            past.alerts = [each for each in past.alerts if each.through <= entry.next_offset]
            past.changes.append(entry)
        else:
            past.alerts.append(entry)
    if topic != topic_id:
        return Past(open=_open(past.alerts, before), superseded=True)
    beyond = [each for each in past.changes if each.next_offset > position]
    beyond_alerts = [each for each in past.alerts if each.through > position]
    past.superseded = bool(beyond or beyond_alerts)
    past.changes = [each for each in past.changes if each.next_offset <= position]
    past.alerts = [each for each in past.alerts if each.through <= position]
    past.open = _open(past.alerts, before)
    return past


def _open(alerts: Iterable[Transitions], before: dict[str, Transition]) -> dict[str, Transition]:
    found = dict(before)
    for entry in alerts:
        for change in entry.changes:
            if change.state == "firing":
                found[change.id] = change
            else:
                found.pop(change.id, None)
    return found


class JournalLog:
    """The journal topic of a stream, as owners and replays read it."""

    def __init__(self, reader: Reader, topic: str) -> None:
        self._reader = reader
        self.topic = topic

    def entries(
        self, partition: int, first_offset: int = 0, *, settled: bool = True
    ) -> tuple[list[Entry], int]:
        """The entries from ``first_offset`` on, and the offset behind the last.

        Whoever goes on from there needs all of them (``settled``); others take what is there while workers
        are committing.

        Raises:
            NotFound: the topic, or the partition of it, does not exist.
            BusDown: the bus cannot be reached, or an earlier owner's commit is still being settled.
            Unreadable: part of it is damaged.
            OffbeatError: an entry was written by a newer version.
        """
        at = TopicPartition(self.topic, partition)
        bounds = self._reader.bounds(self.topic).get(partition)
        if bounds is None:
            raise NotFound(f"the journal {self.topic!r} has no partition {partition} yet")
        if settled and bounds.end_offset < bounds.written_offset:
            raise BusDown(f"{at}: the commit of an earlier owner is not settled yet; it takes 10 s at most")
        found = [
            _decoded(at, batch, row)
            for batch in stretch(self._reader, at, max(first_offset, bounds.first_offset), bounds.end_offset)
            for row in range(len(intact(batch)))
        ]
        return found, bounds.end_offset

    def past(self, partition: int, topic_id: str, position: int, first_offset: int = 0) -> Past:
        """What the entries from ``first_offset`` on say; see :func:`fold`. Raises as :meth:`entries`."""
        found, end_offset = self.entries(partition, first_offset)
        past = fold(found, topic_id, position)
        past.end_offset = end_offset
        return past

    def end_offsets(self) -> dict[int, int]:
        """One past the last settled entry of each partition."""
        return {number: each.end_offset for number, each in self._reader.bounds(self.topic).items()}


def _decoded(partition: TopicPartition, batch: RecordBatch, row: int) -> Entry:
    try:
        entry = _DECODER.decode(batch.value(row) or b"")
    except msgspec.DecodeError as error:
        reason = str(error)
    else:
        if entry.schema_version == SCHEMA_VERSION:
            return entry
        reason = f"schema version {entry.schema_version}"
    raise OffbeatError(
        f"{partition} offset {batch.offset[row]}: no journal entry that this version reads ({reason}); "
        "was it written by a newer offbeat? Run that one"
    )
