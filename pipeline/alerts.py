"""What is published: alerts with their evidence, and dead letters with their bytes and position."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import Stream
from pipeline.records import RecordBatch, Send, TopicPartition

LETTER_BYTES = 128 << 10
"""Bytes of a dead record that are kept: a letter must fit where its record did not."""
_ID_SEPARATOR = "\x1f"


Kind = Literal["anomaly", "silent"]
State = Literal["firing", "resolved"]
Severity = Literal["warning", "critical"]
Ended = Literal["recovered", "accepted", "gone", "moved", "policy changed", "state lost"]
Reason = Literal["error above its threshold", "it got worse", "no events"] | Ended


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeatureEvidence(_Record):
    """What one feature had to do with an alert, in its own units after its transform."""

    name: str
    unit: str
    observed: float = Field(description="the newest row's value")
    expected: float = Field(description="the newest row as the model reconstructs it")
    contribution: float = Field(description="share of the window's error; all features sum to 1")
    window_observed: list[float] = Field(
        description="the whole window, oldest first; empty beyond the first features, an alert has a bound"
    )
    window_expected: list[float]


class Channel(_Record):
    """One of the things that were joined into a score."""

    name: Literal["autoencoder", "level", "shapes"]
    z: Annotated[float, Field(description="standard deviations above what is usual of it; of a level, away")]
    share: Annotated[float, Field(description="what it adds to the score; all sum to 1, or to 0")]


class Joined(_Record):
    """What a joined score was made of."""

    channels: Annotated[list[Channel], Field(description="largest share first; without those that are off")]
    rarity: Annotated[
        float | None,
        Field(description="how rare the level is, at most 1: its root times the channels is the score"),
    ]


class Source(_Record):
    """The record behind an alert's newest row."""

    topic: str
    partition: int
    offset: int


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One revision of one alert.

    Attributes:
        offset, at_ns: of the row that made the revision; at_ns and started_ns are event times.
        alert: ``anomaly`` or ``silent``.
        state: ``firing`` or ``resolved``.
        severity: the highest so far.
        judged: whether a score made it; what follows from the records alone is never imposed.
    """

    id: str
    revision: int
    alert: Kind
    state: State
    series: str
    labels: dict[str, str]
    started_ns: int
    at_ns: int
    offset: int
    severity: Severity = "warning"
    judged: bool


class Alert(_Record):
    """One revision of one alert; revisions share the id, which is the record's key."""

    schema_version: Literal[1] = 1
    id: Annotated[str, Field(description="hash of namespace, stream, series, kind and time of the first row")]
    revision: Annotated[int, Field(ge=1)]
    kind: Kind
    state: State
    reason: Annotated[
        Reason,
        Field(
            description="of firing ones: `it got worse` the severity rose; "
            "of resolved ones: `accepted` somebody said that this is its normal now; `gone` no events for "
            "`forget_after`; `moved` the series goes to another partition now; `policy changed` its rows are "
            "made otherwise now; `state lost` nothing is known of it any more"
        ),
    ]
    namespace: str
    stream: str
    series: str
    labels: dict[str, str]
    started_at: Annotated[datetime, Field(description="event time of the episode's first row")]
    at: Annotated[datetime, Field(description="event time of the row that made this revision")]
    severity: Annotated[
        Severity, Field(description="the highest so far: `critical` from a score of `alerts.critical` on")
    ]
    score: Annotated[float | None, Field(description="error, or joined score, over threshold; 1 is the line")]
    peak_score: Annotated[float | None, Field(description="highest score of the episode so far")]
    error: float | None
    threshold: Annotated[
        float | None,
        Field(
            description="the error that was the line, raised by false alarms included; of the policy `joint` "
            "the line of the joined score"
        ),
    ]
    joined: Annotated[
        Joined | None, Field(description="what the score was made of; only the policy `joint` has it")
    ] = None
    features: Annotated[
        list[FeatureEvidence],
        Field(
            description="largest contribution first; without windows, or empty, where the topic takes no more"
        ),
    ]
    bundle: Annotated[str | None, Field(description="id of the model that judged")]
    source: Source

    @classmethod
    def of(
        cls,
        transition: Transition,
        namespace: str,
        stream: str,
        partition: TopicPartition,
        **rest: Any,  # noqa: ANN401 - checked by the model
    ) -> Alert:
        """The alert of a change; ``rest`` is what a change does not hold."""
        return cls(
            id=transition.id,
            revision=transition.revision,
            kind=transition.alert,
            state=transition.state,
            namespace=namespace,
            stream=stream,
            series=transition.series,
            labels=transition.labels,
            started_at=timestamp(transition.started_ns),
            at=timestamp(transition.at_ns),
            severity=transition.severity,
            source=Source(topic=partition.topic, partition=partition.partition, offset=transition.offset),
            **rest,
        )

    def with_less(self) -> Alert | None:
        """The same with less evidence: without windows, then without features; None where none is left."""
        if any(feature.window_observed for feature in self.features):
            no_windows: dict[str, list[float]] = {"window_observed": [], "window_expected": []}
            features = [feature.model_copy(update=no_windows) for feature in self.features]
            return self.model_copy(update={"features": features})
        return self.model_copy(update={"features": []}) if self.features else None

    def send(self, topic: str) -> Send:
        """The record to publish, with CloudEvents 1.0 attributes in its headers."""
        return cloud_event(
            self,
            topic,
            id=self.id,
            revision=self.revision,
            type=f"alert.{self.state}",
            source=f"/{self.namespace}/{self.stream}",
            subject=self.series,
            at=self.at,
        )


def cloud_event(
    record: BaseModel,
    topic: str,
    *,
    id: str,  # noqa: A002 - the names of CloudEvents
    revision: int,
    type: str,  # noqa: A002
    source: str,
    subject: str,
    at: datetime,
) -> Send:
    """A record as JSON under the key ``id``, with CloudEvents 1.0 attributes in its headers."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": f"{id}.{revision}",
        "ce_type": f"offbeat.{type}",
        "ce_source": source,
        "ce_subject": subject,
        "ce_time": at.isoformat(),
        "content-type": "application/json",
    }
    return Send(
        topic,
        id.encode(),
        record.model_dump_json().encode(),
        tuple((name, value.encode()) for name, value in headers.items()),
    )


def alert_id(namespace: str, stream: str, series: str, kind: str, start_ns: int) -> str:
    """32 hexadecimal digits, the same for every worker that sees the same first row."""
    text = _ID_SEPARATOR.join((namespace, stream, series, kind, str(start_ns)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def severity(score: float, stream: Stream) -> Severity:
    """How bad a score is."""
    return "critical" if score >= stream.alerts.critical else "warning"


def timestamp(time_ns: int) -> datetime:
    """An event time as people read it: UTC, to the microsecond."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1_000)


def nanoseconds(time: datetime) -> int:
    """An event time as workers count it; the other way of :func:`timestamp`."""
    whole = int(time.replace(microsecond=0).timestamp())
    return whole * 1_000_000_000 + time.microsecond * 1_000


class DeadLetter(_Record):
    """A record that could not be read, or the count of a range of them beyond the rate that is kept.

    Or an alert that is larger than its topic takes: its id is the key, its JSON the value, and the position
    that of the record behind it.

    As JSON, key and value are base64 in its URL-safe alphabet (RFC 4648, section 5).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    schema_version: Literal[1] = 1
    stream: str
    partition: TopicPartition
    offset: int
    last_offset: int = Field(description="of the range; `offset` for one record")
    count: int = Field(ge=1, description="records in the range")
    timestamp_ms: int
    reason: str
    key: bytes | None = None
    value: bytes | None = Field(
        None,
        description=f"the first {LETTER_BYTES} bytes; None for a range, or where the topic takes no more",
    )
    value_bytes: int | None = Field(None, description="how long the value was; None for a range or a null")

    @classmethod
    def of(cls, stream: str, batch: RecordBatch, row: int, reason: str) -> DeadLetter:
        """The letter of one record."""
        key, value = batch.key(row), batch.value(row)
        return cls(
            stream=stream,
            partition=batch.partition,
            offset=int(batch.offset[row]),
            last_offset=int(batch.offset[row]),
            count=1,
            timestamp_ms=int(batch.timestamp_ms[row]),
            reason=reason,
            key=key[:LETTER_BYTES] if key is not None else None,
            value=value[:LETTER_BYTES] if value is not None else None,
            value_bytes=len(value) if value is not None else None,
        )

    @classmethod
    def of_alert(cls, alert: Alert, refused: Send) -> DeadLetter:
        """The letter of an alert that was refused as ``refused``, which has nothing left to leave out."""
        source, value = alert.source, refused.value or b""
        return cls(
            stream=alert.stream,
            partition=TopicPartition(source.topic, source.partition),
            offset=source.offset,
            last_offset=source.offset,
            count=1,
            timestamp_ms=round(alert.at.timestamp() * 1_000),
            reason=f"alert {alert.id} revision {alert.revision} ({alert.state}) of series {alert.series} has "
            f"{refused.size} bytes without its evidence, more than {refused.topic} takes",
            key=alert.id.encode(),
            value=value[:LETTER_BYTES],
            value_bytes=len(value),
        )

    def with_less(self) -> DeadLetter | None:
        """The same without key and value; None where it has none."""
        if self.key is None and self.value is None:
            return None
        return self.model_copy(update={"key": None, "value": None})

    def send(self, topic: str) -> Send:
        """The record to publish, keyed by the partition it came from."""
        return Send(topic, str(self.partition).encode(), self.model_dump_json().encode())
