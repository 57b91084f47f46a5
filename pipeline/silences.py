"""Silences: which alerts are not told, or which rows teach nothing, and when.

Times are the reader's: a worker holds event times against the spans (``freeze``), the notifier the wall
clock. Recurrence is an RFC 5545 rule, which python-dateutil expands in the silence's own time zone, so that
02:00 stays 02:00 when the clocks change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import islice, takewhile
from typing import Annotated, Literal, TypeAlias
from zoneinfo import ZoneInfo

from dateutil.relativedelta import relativedelta
from dateutil.rrule import rrulebase, rrulestr
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from pipeline.alerts import Alert, Severity

_Moment = Annotated[AwareDatetime, AfterValidator(lambda at: at.astimezone(UTC))]
"""In UTC: two times of one zone differ by what its clocks say, and not by what passed between them."""
Span: TypeAlias = tuple[datetime, datetime]
"""A window in UTC: it holds its start, and not its end."""

_DAY = timedelta(days=1)
"""No zone's clocks were ever changed by more."""
_LONGEST = timedelta(days=3653)
_MOST_A_DAY = 100
_UNTIL = re.compile(r"UNTIL=(\d{8})(?:T(\d{6}))?(Z?)")
_INTERVAL = re.compile(r"INTERVAL=(-?\d*)")
_STEPS = {
    "YEARLY": relativedelta(years=1),
    "MONTHLY": relativedelta(years=1),  # a month ago the 31st may be missing
    "WEEKLY": relativedelta(weeks=1),
}


def _regular(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    return text


def known_zone(name: str) -> str:
    """The name of a time zone as it is; raises ValueError where there is none of that name."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is no time zone; write one such as Europe/Berlin or UTC") from error
    return name


def fits(pattern: str, text: str) -> bool:
    """Whether a text is what a pattern with * and ? says, or the very same as the pattern."""
    return pattern == text or fnmatchcase(text, pattern)


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
    severity: Severity | None = None
    labels: dict[str, Glob] = Field(default_factory=dict, description="label values; names or patterns")

    def cover(self, stream: str, series: str, labels: Mapping[str, str]) -> bool:
        """Whether a row of this series is among them, whatever its alerts are like."""
        return (
            fits(self.stream, stream)
            and fits(self.series, series)
            and (self.series_regex is None or re.fullmatch(self.series_regex, series) is not None)
            and all(fits(value, labels.get(name, "")) for name, value in self.labels.items())
        )

    def cover_alert(self, alert: Alert) -> bool:
        """Whether an alert is among them; one without features has none that fits."""
        return (
            self.cover(alert.stream, alert.series, alert.labels)
            and self.severity in {None, alert.severity}
            and (self.feature is None or any(fits(self.feature, each.name) for each in alert.features[:1]))
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
    start: _Moment
    end: _Moment
    rrule: Annotated[str, Field(max_length=500)] | None = None
    zone: Annotated[str, AfterValidator(known_zone)] = "UTC"

    @model_validator(mode="after")
    def _sound(self) -> Silence:
        if self.end <= self.start:
            raise ValueError(f"it ends at {self.end.isoformat()}, which is not after its start")
        if self.end - self.start > _LONGEST:
            raise ValueError("it holds for more than ten years at a time; give it an earlier end")
        if self.mode == "freeze" and (self.matchers.feature or self.matchers.severity):
            raise ValueError(
                "`freeze` is about rows, which have neither a feature nor a severity; match the stream, the "
                "series or a label"
            )
        if self.rrule is not None:
            self._check_rule(self.rrule)
        return self

    def _check_rule(self, rule: str) -> None:
        try:
            starts = iter(self._recurrence)
            first = next(starts, None)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{rule!r} is no recurrence rule ({error}); write one such as FREQ=WEEKLY;BYDAY=SU"
            ) from error
        if first is None:
            raise ValueError(f"{rule!r} never comes; try it without a part")
        soon = takewhile(lambda start: start < first + _DAY, starts)
        if len(list(islice(soon, _MOST_A_DAY))) == _MOST_A_DAY:
            raise ValueError(f"{rule!r} comes more than {_MOST_A_DAY} times a day; make it rarer and longer")

    @cached_property
    def _interval(self) -> int:
        given = _INTERVAL.search(self._rule)
        return int(given[1] or 0) if given else 1

    @cached_property
    def _rule(self) -> str:
        return str(self.rrule).upper().removeprefix("RRULE:")

    @cached_property
    def _recurrence(self) -> rrulebase:
        """Wall time in the zone, without the zone: the rule counts days as people there do."""
        zone = ZoneInfo(self.zone)
        if re.search(r"[\s:]", self._rule):  # other properties of a calendar, such as a start of its own
            raise ValueError("one rule, and nothing else of a calendar")
        if "FREQ=" not in self._rule:
            raise ValueError("it has no FREQ")
        if self._interval < 1:  # the library would never come to an end
            raise ValueError("its INTERVAL is not 1 or more")

        def local(until: re.Match[str]) -> str:
            day, time, utc = until.groups()
            if not utc:
                return f"UNTIL={day}T{time or '235959'}"
            at = datetime.strptime(day + (time or "235959"), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
            return f"UNTIL={at.astimezone(zone):%Y%m%dT%H%M%S}"

        start = self.start.astimezone(zone).replace(tzinfo=None)
        return rrulestr(_UNTIL.sub(local, self._rule), dtstart=start, cache=True)

    def following(self, at: datetime) -> Iterator[Span]:
        """The windows that end behind a moment, by start (but for an hour that the clocks skip)."""
        length = self.end - self.start
        if self.rrule is None:
            if self.end > at:
                yield self.start.astimezone(UTC), self.end.astimezone(UTC)
            return
        zone = ZoneInfo(self.zone)
        since = at.astimezone(zone).replace(tzinfo=None) - length - _DAY
        for local in self._recurrence.xafter(since, inc=True):
            start = local.replace(tzinfo=zone).astimezone(UTC)
            if start + length > at:
                yield start, start + length

    def spans(self, first: datetime, last: datetime) -> list[Span]:
        """The windows that reach into ``[first, last]``, by start."""
        maybe = takewhile(lambda span: span[0] <= last + _DAY, self.following(first))
        return sorted({span for span in maybe if span[0] <= last})

    def laid_over(self, first: datetime) -> Silence:
        """The same as if its rule had held before its start already: from ``first`` on."""
        rule = re.sub(r"(COUNT|UNTIL)=[^;]*;?", "", self._rule).strip(";")
        frequency = re.search(r"FREQ=(\w+)", rule)
        # A whole number of steps, so that every second week stays the same ones.
        step = _STEPS.get(frequency[1] if frequency else "", relativedelta(days=1)) * self._interval
        start = self.start.astimezone(ZoneInfo(self.zone))
        while start > first:
            start -= step
        end = start.astimezone(UTC) + (self.end - self.start)
        return Silence(
            matchers=self.matchers, mode=self.mode, start=start, end=end, rrule=rule, zone=self.zone
        )
