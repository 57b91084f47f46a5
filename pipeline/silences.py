"""Silences: which alerts are not told, or which rows teach nothing, and when.

Times are the reader's: a worker holds event times against the spans (``freeze``), the notifier the wall clock.
Recurrence is an RFC 5545 rule, which python-dateutil expands in the silence's own time zone, so that 02:00
stays 02:00 when the clocks change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from dateutil.rrule import rrule, rruleset, rrulestr
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

_MOST_SPANS = 10_000
"""Of one silence in one question: a rule by the second is cut, and ends a question in bounded time."""


def _regular(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    return text


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is no time zone; write one such as Europe/Berlin or UTC") from error
    return name


Glob = Annotated[str, Field(min_length=1, max_length=500)]


class Matchers(BaseModel):
    """What is silenced: all that is given must fit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stream: Glob = Field("*", description="name, or a pattern with * and ?")
    series: Glob = Field("*", description="name, or a pattern with * and ?")
    series_regex: Annotated[str, AfterValidator(_regular)] | None = Field(
        None, max_length=500, description="a regular expression that the whole name fits"
    )
    feature: Glob | None = Field(
        None, description="the feature with the largest share of the error; name or pattern"
    )
    severity: Literal["warning", "critical"] | None = None
    labels: dict[str, Glob] = Field(default_factory=dict, description="label values; names or patterns")

    def cover(self, stream: str, series: str, labels: Mapping[str, str]) -> bool:
        """Whether a row of this series is among them, whatever its alerts are like."""
        return (
            fnmatchcase(stream, self.stream)
            and fnmatchcase(series, self.series)
            and (self.series_regex is None or re.fullmatch(self.series_regex, series) is not None)
            and all(fnmatchcase(labels.get(name, ""), value) for name, value in self.labels.items())
        )


class Silence(BaseModel):
    """What is silenced when, and how.

    Attributes:
        mode: ``mute``: detected, and nobody is told; ``freeze``: and neither threshold nor training learns.
        start, end: of the silence; with a rule, of its first window, which recurs.
        rrule: RFC 5545, such as ``FREQ=WEEKLY;BYDAY=SU``; without COUNT and UNTIL it recurs for ever.
        zone: the time zone that the rule is in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    matchers: Matchers
    mode: Literal["mute", "freeze"] = "mute"
    start: AwareDatetime
    end: AwareDatetime
    rrule: Annotated[str, Field(max_length=500)] | None = None
    zone: Annotated[str, AfterValidator(_zone)] = "UTC"

    @model_validator(mode="after")
    def _sound(self) -> Silence:
        if self.end <= self.start:
            raise ValueError(f"it ends at {self.end.isoformat()}, which is not after its start")
        if self.mode == "freeze" and (self.matchers.feature or self.matchers.severity):
            raise ValueError(
                "`freeze` is about rows, which have neither a feature nor a severity; match the stream, the "
                "series or a label"
            )
        if self.rrule is not None:
            try:
                _ = self._recurrence
            except ValueError as error:
                raise ValueError(
                    f"{self.rrule!r} is no recurrence rule ({error}); write one such as FREQ=WEEKLY;BYDAY=SU"
                ) from error
        return self

    @cached_property
    def _recurrence(self) -> rrule | rruleset:
        # Wall time in the zone, without the zone: the rule counts days as people there do.
        local = self.start.astimezone(ZoneInfo(self.zone)).replace(tzinfo=None)
        return rrulestr(str(self.rrule), dtstart=local)

    def spans(self, first: datetime, last: datetime) -> Iterator[tuple[datetime, datetime]]:
        """The windows that reach into ``[first, last]``, in UTC, by start; a span holds its start, not its end."""
        length = self.end - self.start
        if self.rrule is None:
            if self.start <= last and self.end > first:
                yield self.start.astimezone(UTC), self.end.astimezone(UTC)
            return
        zone, day = ZoneInfo(self.zone), timedelta(days=1)  # a zone's clock may go back by hours
        since = first.astimezone(zone).replace(tzinfo=None) - length - day
        for count, local in enumerate(self._recurrence.xafter(since, inc=True)):
            start = local.replace(tzinfo=zone).astimezone(UTC)
            if start > last or count >= _MOST_SPANS:
                return
            if start + length > first:
                yield start, start + length

    def active(self, at: datetime) -> bool:
        """Whether one of its windows holds a moment."""
        return any(start <= at < end for start, end in self.spans(at, at))

    def over(self, at: datetime) -> bool:
        """Whether none of its windows ends behind a moment."""
        if self.rrule is None:
            return self.end <= at
        zone = ZoneInfo(self.zone)
        local = at.astimezone(zone).replace(tzinfo=None) - (self.end - self.start) - timedelta(days=1)
        return all(
            next_.replace(tzinfo=zone) + (self.end - self.start) <= at
            for next_ in self._recurrence.xafter(local, count=8, inc=True)
        )


def frozen_spans(
    silences: Sequence[Silence], stream: str, series: str, labels: Mapping[str, str], first: datetime, last: datetime
) -> list[tuple[datetime, datetime]]:
    """When a series teaches nothing within ``[first, last]``."""
    return [
        span
        for silence in silences
        if silence.mode == "freeze" and silence.matchers.cover(stream, series, labels)
        for span in silence.spans(first, last)
    ]
