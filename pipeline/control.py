"""Control records: what people and programs decide for the workers, on one topic that is kept for ever.

One partition, not compacted: it is the audit log (who, when, why), it outlives Redis, and every role reads
it the same way. What is in force for which record of an input topic stands in the journal
(:mod:`pipeline.journal`), because workers take these records in between batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.config import AlertRules, Stream
from pipeline.ports import Reader
from pipeline.reading import READ_RECORDS, intact, stretch
from pipeline.records import RecordBatch, Send, TopicPartition
from pipeline.silences import Silence, Span, fits


class _Control(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    stream: str
    at: Annotated[AwareDatetime, Field(description="when it was decided, on the writer's clock")]
    who: Annotated[str, Field(description="the person or program that decided")]
    why: Annotated[str, Field(description="the reason they gave")]


Fence = Annotated[int, Field(ge=1, description="the writer's hold of the work on the stream, rising")]


class Champion(_Control):
    """From now on this bundle judges the stream; void unless ``predecessor`` is the champion then.

    A program's says under which hold of the work it was made (``fence``), and is void once another has begun
    under a higher one. A person's has none.
    """

    kind: Literal["champion"] = "champion"
    bundle: Annotated[str, Field(min_length=1, max_length=128, description="id of the bundle")]
    predecessor: str | None
    fence: Fence | None = None


class Begun(_Control):
    """A program begins to work on the stream's next champion; void where one began under a higher fence."""

    kind: Literal["begun"] = "begun"
    fence: Fence


class Refused(_Control):
    """A program's challenger did not become the champion, or none could be made (``bundle`` is None)."""

    kind: Literal["refused"] = "refused"
    bundle: Annotated[str, Field(min_length=1, max_length=128)] | None
    fence: Fence


class Pinned(_Control):
    """From now on challengers are held against this bundle, too, so that none drifts away step by step.

    ``bundle`` is None to hold them against none.
    """

    kind: Literal["pinned"] = "pinned"
    bundle: Annotated[str, Field(min_length=1, max_length=128)] | None


class Policy(_Control):
    """From now on these are the stream's settings; void unless ``predecessor`` is the policy in force then.

    Attributes:
        sha: SHA-256 of ``settings`` as :func:`policy_sha` writes them.
        settings: the stream's section of the configuration, defaults included.
    """

    kind: Literal["policy"] = "policy"
    sha: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    predecessor: str | None
    settings: dict[str, Any]

    @cached_property
    def stream_settings(self) -> Stream:
        """The settings as the program uses them; raises ValidationError."""
        return Stream.model_validate(self.settings)


class Silenced(_Control):
    """From now on a silence holds; ``stream`` repeats that of its matchers, which may be a pattern."""

    kind: Literal["silence"] = "silence"
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    silence: Silence


class Expired(_Control):
    """A silence ends at this moment, if it has not ended before."""

    kind: Literal["expired"] = "expired"
    id: str


Verdict = Literal["ack", "confirm", "false alarm", "accept"]


class Feedback(_Control):
    """What somebody says of an alert.

    ``ack``: somebody looks after it; ``confirm``: it was right; ``false alarm``: it was not, and the stream's
    line rises a little; ``accept``: what the series does is its new normal. Of confirm and false alarm the
    last one counts.
    """

    kind: Literal["feedback"] = "feedback"
    alert: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    series: str
    verdict: Verdict


Record = Champion | Begun | Refused | Pinned | Policy | Silenced | Expired | Feedback
ControlRecord = Annotated[Record, Field(discriminator="kind")]
_RECORD: TypeAdapter[Record] = TypeAdapter(ControlRecord)


@dataclass(frozen=True, slots=True)
class Standing:
    """A silence as it stands: who made it when and why, and when it was ended before its time."""

    record: Silenced
    expired_at: datetime | None = None

    def spans(self, first: datetime, last: datetime) -> list[Span]:
        """Its windows that reach into ``[first, last]``, cut where it was ended."""
        spans = self.record.silence.spans(first, last)
        cut = [(start, min(end, self.expired_at or end)) for start, end in spans]
        return [(start, end) for start, end in cut if end > max(start, first)]

    def window(self, at: datetime) -> Span | None:
        """The window that holds a moment, or else the next one; None where it never holds again."""
        start, end = next(self.record.silence.following(at), (at, at))
        end = min(end, self.expired_at or end)
        return (start, end) if end > max(start, at) else None

    def active(self, at: datetime) -> bool:
        """Whether it holds at a moment."""
        return any(start <= at < end for start, end in self.spans(at, at))

    def over(self, at: datetime) -> bool:
        """Whether it never holds again after a moment."""
        return self.window(at) is None


@dataclass(frozen=True, slots=True)
class Decisions:
    """What people decided about how the rows of a stream are judged, up to an offset of the control topic.

    Attributes:
        freezes: silences under which nothing is learned.
        accepted: offset and series of each new normal, in order.
        false_alarms: alerts that were called false alarms, and not confirmed since.
    """

    freezes: tuple[Standing, ...] = ()
    accepted: tuple[tuple[int, str], ...] = ()
    false_alarms: int = 0

    def raised(self, rules: AlertRules) -> float:
        """What every line is multiplied by."""
        return 1.0 + min(rules.raise_by * self.false_alarms, rules.raise_most)


def settings_of(stream: Stream) -> dict[str, Any]:
    """A stream's section with its defaults, as JSON values."""
    return stream.model_dump(mode="json", by_alias=True)


def policy_sha(settings: dict[str, Any]) -> str:
    """SHA-256 of settings as JSON with sorted keys and no blanks; features stand in their own order."""
    events = settings.get("events")
    if isinstance(events, dict) and isinstance(features := events.get("features"), dict):
        settings = {**settings, "events": {**events, "features": list(features.items())}}
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def send(record: Record, topic: str) -> Send:
    """The record to be published."""
    return Send(topic, record.stream.encode(), record.model_dump_json().encode(), partition=0)


NO_DECISIONS = Decisions()


@dataclass(slots=True)
class ControlView:
    """What stands after the records below ``next_offset``.

    Attributes:
        champions: bundle id by stream.
        fences: the highest fence that a program began under, by stream.
        begun: the last that began by stream.
        promotions: every champion there ever was by stream, in order.
        pinned: the reference that challengers are held against by stream; None where one was unpinned.
        refusals: every challenger that did not become one by stream, in order.
        policies: policy hash by stream.
        settings: every policy there ever was, by hash.
        silences: every silence there ever was, by id, as it stands.
        feedback: what was said of alerts, in order, with the offset of each.
    """

    next_offset: int = 0
    champions: dict[str, str] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    begun: dict[str, Begun] = field(default_factory=dict)
    promotions: dict[str, list[Champion]] = field(default_factory=dict)
    pinned: dict[str, str | None] = field(default_factory=dict)
    refusals: dict[str, list[Refused]] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Stream] = field(default_factory=dict)
    silences: dict[str, Standing] = field(default_factory=dict)
    feedback: list[tuple[int, Feedback]] = field(default_factory=list)
    _judging: list[tuple[int, Silenced | Expired | Feedback]] = field(default_factory=list)

    def decided(self, stream: str) -> int:
        """The offset behind the last record that changes how rows of a stream are judged; 0 for none."""
        return next((offset + 1 for offset, each in reversed(self._judging) if _about(each, stream)), 0)

    def decisions(self, stream: str, decided: int) -> Decisions:
        """What those records below ``decided`` come to."""
        freezes, accepted, said = dict[str, Standing](), list[tuple[int, str]](), dict[str, str]()
        for offset, each in self._judging:
            if offset >= decided or not _about(each, stream):
                continue
            if isinstance(each, Silenced):
                freezes[each.id] = Standing(each)
            elif isinstance(each, Expired):
                freezes[each.id] = Standing(freezes[each.id].record, each.at)
            elif each.verdict == "accept":
                accepted.append((offset, each.series))
            else:
                said[each.alert] = each.verdict
        false_alarms = sum(verdict == "false alarm" for verdict in said.values())
        return Decisions(tuple(freezes.values()), tuple(accepted), false_alarms)

    def take(self, batch: RecordBatch) -> list[str]:
        """Take records in, in order; returns, in sentences, those that change nothing and why."""
        void = []
        for row in range(len(batch)):
            reason = self._take(int(batch.offset[row]), batch.value(row) or b"")
            if reason:
                void.append(f"{batch.partition} offset {batch.offset[row]}: {reason}")
        self.next_offset = max(self.next_offset, batch.next_offset)
        return void

    def _take(self, offset: int, value: bytes) -> str | None:
        try:
            record = _RECORD.validate_json(value)
            if isinstance(record, Policy):
                return self._take_policy(record)
        except ValidationError as error:
            first = error.errors()[0]
            return f"no control record that this version knows ({first['loc']}: {first['msg']}); left out"
        if isinstance(record, Pinned):
            self.pinned[record.stream] = record.bundle
            return None
        if isinstance(record, Champion | Begun | Refused):
            return self._take_fence(record) or self._take_training(record)
        return self._take_decision(offset, record)

    def _take_fence(self, record: Champion | Begun | Refused) -> str | None:
        """Whoever lost its hold of the work may be slow to notice: what it writes then comes too late."""
        highest = self.fences.get(record.stream, 0)
        if record.fence is not None and record.fence < highest:
            return (
                f"the {record.kind} record of {record.stream!r} by {record.who} is void: it was made under "
                f"the fence {record.fence}, and work began under {highest} since"
            )
        self.fences[record.stream] = max(highest, record.fence or 0)
        return None

    def _take_training(self, record: Champion | Begun | Refused) -> str | None:
        if isinstance(record, Begun):
            self.begun[record.stream] = record
        if isinstance(record, Refused):
            self.refusals.setdefault(record.stream, []).append(record)
        if not isinstance(record, Champion):
            return None
        if record.predecessor != self.champions.get(record.stream):
            return (
                f"the champion {record.bundle[:12]} of {record.stream!r} is void: it follows "
                f"{_short(record.predecessor)}, and {_short(self.champions.get(record.stream))} was in use"
            )
        self.champions[record.stream] = record.bundle
        self.promotions.setdefault(record.stream, []).append(record)
        return None

    def succession(self, stream: str) -> list[str]:
        """The champions that lead to the one in use, the last of them; those rolled back are left out."""
        found = list[str]()
        for each in self.promotions.get(stream, []):
            if each.bundle in found:
                del found[found.index(each.bundle) :]
            found.append(each.bundle)
        return found

    def _take_decision(self, offset: int, record: Silenced | Expired | Feedback) -> str | None:
        if isinstance(record, Feedback):
            self.feedback.append((offset, record))
            if record.verdict != "ack":
                self._judging.append((offset, record))
            return None
        if isinstance(record, Silenced):
            if record.id in self.silences:
                return f"the silence {record.id} is void: there is one of this id"
            standing = self.silences[record.id] = Standing(record)
        else:
            before = self.silences.get(record.id)
            if before is None or before.expired_at is not None:
                return f"the end of the silence {record.id} is void: there is no such silence that could end"
            record = record.model_copy(update={"stream": before.record.stream})
            standing = self.silences[record.id] = Standing(before.record, record.at)
        if standing.record.silence.mode == "freeze":
            self._judging.append((offset, record))
        return None

    def _take_policy(self, record: Policy) -> str | None:
        if record.sha != policy_sha(record.settings):
            return f"the policy of {record.stream!r} is void: its hash is not that of its settings"
        self.settings.setdefault(record.sha, record.stream_settings)
        if record.predecessor != self.policies.get(record.stream):
            return (
                f"the policy {record.sha[:12]} of {record.stream!r} is void: it follows "
                f"{_short(record.predecessor)}, and {_short(self.policies.get(record.stream))} was in force"
            )
        self.policies[record.stream] = record.sha
        return None


def _about(record: Silenced | Expired | Feedback, stream: str) -> bool:
    """Whether a record is about a stream; the stream of a silence may be a pattern."""
    return fits(record.stream, stream)


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"


class ControlLog:
    """The control topic as one reader follows it."""

    def __init__(self, reader: Reader, topic: str, notice: Callable[[str], None] = lambda _: None) -> None:
        self._reader = reader
        self._partition = TopicPartition(topic, 0)
        self._notice = notice
        self.view = ControlView()

    def look(self) -> ControlView:
        """Take in what is new and at hand, without waiting for it; raises as :meth:`refresh`."""
        self._take(self._reader.read(self._partition, self.view.next_offset, READ_RECORDS, 0.0))
        return self.view

    def refresh(self) -> ControlView:
        """Read what is new, to the topic's end.

        Raises:
            NotFound: the topic does not exist.
            BusDown: the bus cannot be reached.
            Unreadable: part of it is damaged.
        """
        end = self._reader.bounds(self._partition.topic)[0].end_offset
        for batch in stretch(self._reader, self._partition, self.view.next_offset, end):
            self._take(batch)
        return self.view

    def _take(self, batch: RecordBatch) -> None:
        for sentence in self.view.take(intact(batch)):
            self._notice(sentence)
