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

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.config import Stream
from pipeline.ports import Reader
from pipeline.reading import READ_RECORDS, intact, stretch
from pipeline.records import RecordBatch, Send, TopicPartition


class _Control(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    stream: str
    at: Annotated[datetime, Field(description="when it was decided, on the writer's clock")]
    who: Annotated[str, Field(description="the person or program that decided")]
    why: Annotated[str, Field(description="the reason they gave")]


class Champion(_Control):
    """From now on this bundle judges the stream; void unless ``predecessor`` is the champion then."""

    kind: Literal["champion"] = "champion"
    bundle: Annotated[str, Field(min_length=1, max_length=128, description="id of the bundle")]
    predecessor: str | None


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


ControlRecord = Annotated[Champion | Policy, Field(discriminator="kind")]
_RECORD: TypeAdapter[Champion | Policy] = TypeAdapter(ControlRecord)


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


def send(record: Champion | Policy, topic: str) -> Send:
    """The record to be published."""
    return Send(topic, record.stream.encode(), record.model_dump_json().encode(), partition=0)


@dataclass(slots=True)
class ControlView:
    """What stands after the records below ``next_offset``.

    Attributes:
        champions: bundle id by stream.
        policies: policy hash by stream.
        settings: every policy there ever was, by hash.
    """

    next_offset: int = 0
    champions: dict[str, str] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Stream] = field(default_factory=dict)

    def take(self, batch: RecordBatch) -> list[str]:
        """Take records in, in order; returns, in sentences, those that change nothing and why."""
        void = []
        for row in range(len(batch)):
            reason = self._take(batch.value(row) or b"")
            if reason:
                void.append(f"{batch.partition} offset {batch.offset[row]}: {reason}")
        self.next_offset = max(self.next_offset, batch.next_offset)
        return void

    def _take(self, value: bytes) -> str | None:
        try:
            record = _RECORD.validate_json(value)
            if isinstance(record, Policy):
                return self._take_policy(record)
        except ValidationError as error:
            first = error.errors()[0]
            return f"no control record that this version knows ({first['loc']}: {first['msg']}); left out"
        if record.predecessor != self.champions.get(record.stream):
            return (
                f"the champion {record.bundle[:12]} of {record.stream!r} is void: it follows "
                f"{_short(record.predecessor)}, and {_short(self.champions.get(record.stream))} was in use"
            )
        self.champions[record.stream] = record.bundle
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
