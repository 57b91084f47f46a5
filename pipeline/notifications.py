"""What is told to people: notifications about incidents, on a topic of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pipeline.alerts import Alert, Reason, Severity, State, cloud_event
from pipeline.figures import measured, number
from pipeline.records import RecordBatch, Send

MOST_SHOWN = 50
"""Alerts that a notification shows, the worst first."""
MOST_MEMBERS = 5_000
"""Alerts of one incident, so that a notification stays within the 1 MiB of a record; more are another one."""

_ADVERB = {"changed": "now", "repeated": "still", "resolved": "no longer"}

Event = Literal["opened", "changed", "repeated", "resolved"]
IncidentKind = Literal["anomaly", "silent", "stream silent"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measured(_Record):
    """A feature as it was, and as it was expected to be, in its own units after its transform."""

    name: str
    unit: str
    observed: float
    expected: float


class Member(_Record):
    """One alert of an incident, as it stands when that is told."""

    id: str
    series: str
    labels: dict[str, str]
    state: State
    reason: Reason
    severity: Severity
    peak_score: float | None
    started_at: Annotated[datetime, Field(description="event time of its first row")]
    feature: Annotated[Measured | None, Field(description="with the largest share of the error")]

    @classmethod
    def of(cls, alert: Alert) -> Member:
        """An alert in brief."""
        worst = alert.features[0] if alert.features else None
        return cls(
            id=alert.id,
            series=alert.series,
            labels=alert.labels,
            state=alert.state,
            reason=alert.reason,
            severity=alert.severity,
            peak_score=alert.peak_score,
            started_at=alert.started_at,
            feature=worst
            and Measured(name=worst.name, unit=worst.unit, observed=worst.observed, expected=worst.expected),
        )


class Notification(_Record):
    """One thing told about one incident; all about one incident share the id, which is the record's key.

    An incident is alerts of one kind of many series of a stream that opened one soon after the other, or a
    stream from which nothing comes any more.
    """

    schema_version: Literal[1] = 1
    id: Annotated[
        str,
        Field(
            description="of the incident: hash of namespace, stream, kind and the first alert's id; of a "
            "stream that is silent, of the position at which its topic stands"
        ),
    ]
    sequence: Annotated[int, Field(ge=1, description="1 for the first of the incident, without holes")]
    event: Annotated[
        Event,
        Field(
            description="`opened`; `changed` more alerts joined, or it became critical; `repeated` it is "
            "open for long and nobody acknowledged it; `resolved` all is over, also where that comes before "
            "the first telling"
        ),
    ]
    namespace: str
    stream: str
    kind: IncidentKind
    severity: Annotated[Severity, Field(description="the highest that any of its alerts had")]
    at: Annotated[AwareDatetime, Field(description="when it was told, on the notifier's clock")]
    started_at: Annotated[
        AwareDatetime,
        Field(
            description="event time at which the earliest alert began; of a silent stream, when its last "
            "record was seen, on the notifier's clock"
        ),
    ]
    title: Annotated[str, Field(description="one sentence for people")]
    count: Annotated[int, Field(ge=0, description="alerts of the incident")]
    open: Annotated[int, Field(ge=0, description="of these, still firing")]
    alerts: Annotated[
        list[Member],
        Field(
            description=f"the {MOST_SHOWN} worst: firing ones first, of these critical ones, of these the "
            "highest peak score; empty where the topic takes no more"
        ),
    ]
    members: Annotated[list[str], Field(description="ids of all its alerts, as they joined")]
    acknowledged_by: Annotated[
        str | None, Field(description="who acknowledged one of its alerts; it is not repeated then")
    ]
    after_silence: Annotated[
        bool, Field(description="it was held back by a silence that has ended, and was still open then")
    ]

    def with_less(self) -> Notification | None:
        """The same without showing its alerts; None where it shows none."""
        return self.model_copy(update={"alerts": []}) if self.alerts else None

    def send(self, topic: str) -> Send:
        """The record to publish, with CloudEvents 1.0 attributes in its headers."""
        return cloud_event(
            self,
            topic,
            id=self.id,
            revision=self.sequence,
            type=f"incident.{self.event}",
            source=f"/{self.namespace}/{self.stream}",
            subject=self.kind,
            at=self.at,
        )


def incident_id(namespace: str, stream: str, kind: IncidentKind, first: str) -> str:
    """32 hexadecimal digits, the same for every notifier that sees the same first alert (or position)."""
    text = f"{namespace}\x1f{stream}\x1f{kind}\x1f{first}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def ranked(alerts: Iterable[Member]) -> list[Member]:
    """The worst first: firing ones, of these critical ones, of these the highest peak score."""
    return sorted(alerts, key=_rank)


def _rank(alert: Member) -> tuple[bool, bool, float, str, str]:
    peak = alert.peak_score or 0.0
    return alert.state == "resolved", alert.severity != "critical", -peak, alert.series, alert.id


def title(
    stream: str, kind: IncidentKind, event: Event, alerts: Sequence[Member], *, after_silence: bool
) -> str:
    """What is to be said of ranked alerts, in one sentence; at the end of all, before of open ones."""
    about = alerts if event == "resolved" else [each for each in alerts if each.state == "firing"]
    series = list(dict.fromkeys(each.series for each in about))
    predicate = _predicate(kind, event, about, after_silence=after_silence)
    if not about:  # their topic retains them no more
        return f"series of {stream} are {predicate}"
    if len(series) == 1:
        sentence = f"{series[0]} of {stream} is {predicate}"
    else:
        the = "worst" if kind == "anomaly" else "such as"
        sentence = f"{len(series):,} series of {stream} are {predicate}, {the} {series[0]}"
    worst = about[0].feature
    if worst is not None:
        sentence += (
            f": {worst.name} {measured(worst.observed, worst.unit)}, expected {number(worst.expected)}"
        )
    return sentence


def _predicate(kind: IncidentKind, event: Event, about: Sequence[Member], *, after_silence: bool) -> str:
    state = "anomalous" if kind == "anomaly" else "silent"
    if event == "opened":
        return f"still {state} after a silence" if after_silence else state
    if event == "resolved" and about and all(each.reason == "gone" for each in about):
        return "gone, after sending nothing for too long"
    return f"{_ADVERB[event]} {state}"


def stream_title(stream: str, event: Event, since: datetime) -> str:
    """What is to be said of a stream of which no record came since a moment, in one sentence."""
    moment = f"{since:%Y-%m-%d %H:%M:%S} UTC"
    if event == "resolved":
        return f"records of {stream} come again; there was none since {moment}"
    return (
        f"{'still ' * (event == 'repeated')}no record of {stream} since {moment}: the whole stream is silent"
    )


_Published = TypeVar("_Published", Alert, Notification)


def published(batch: RecordBatch, kind: type[_Published]) -> tuple[list[tuple[int, _Published]], int]:
    """The records of a batch, each with its row, and how many are damaged or not of this version."""
    found, unreadable = [], batch.damaged
    for row in range(len(batch)):
        try:
            found.append((row, kind.model_validate_json(batch.value(row) or b"")))
        except ValidationError:
            unreadable += 1
    return found, unreadable
