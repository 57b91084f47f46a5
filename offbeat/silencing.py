"""Planning silences: from what a person asks for to a silence, and from a silence to what it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import TypeAdapter, ValidationError

from offbeat.stored_alerts import Revisions, as_it_stands
from pipeline.alerts import Alert
from pipeline.config import Config, Duration
from pipeline.control import Standing
from pipeline.errors import ConfigError, NotFound
from pipeline.silences import Silence, Span, fits, known_zone

_WINDOWS_SHOWN = 3
_OPTIONS = {"series_regex": "series-regex", "labels": "label", "rrule": "rule"}
_DURATION: TypeAdapter[float] = TypeAdapter(Duration)


@dataclass(frozen=True, slots=True)
class When:
    """When a silence holds, as it was asked for; times without a zone of their own are in ``zone``."""

    start: str | None = None
    end: str | None = None
    lasts: str | None = None
    rule: str | None = None
    zone: str = "UTC"

    @property
    def given(self) -> bool:
        """Whether any time was asked for."""
        return any((self.start, self.end, self.lasts, self.rule))


def planned(matchers: Mapping[str, Any], mode: str, when: When, now: datetime) -> Silence:
    """The silence that was asked for.

    Raises:
        ConfigError: it makes no sense; the message names the option.
    """
    try:
        zone = ZoneInfo(known_zone(when.zone))
    except ValueError as error:
        raise ConfigError(f"--zone: {error}") from None
    if when.rule is not None and when.start is None:
        raise ConfigError(
            "--rule repeats a first window, whose time of day it keeps; say when that begins, such as "
            "--start 2026-11-01T02:00"
        )
    if (when.end is None) == (when.lasts is None):
        raise ConfigError(
            "say once how long it holds: either --for, such as 2h, or --end, such as 2026-11-01T04:00 or +2h"
        )
    now = now.replace(microsecond=0)
    start = now if when.start is None else _moment(when.start, "--start", now, zone)
    end = (
        _moment(when.end, "--end", now, zone)
        if when.end is not None
        else start + timedelta(seconds=_duration(when.lasts or "", "--for"))
    )
    return _made(matchers, mode=mode, start=start, end=end, rrule=when.rule, zone=when.zone)


def laid_over(matchers: Mapping[str, Any], when: When, first: datetime, now: datetime) -> Silence:
    """The silence that was asked for, as if it had held from ``first`` to ``now``; without times, all along.

    Raises:
        ConfigError: it makes no sense, or its one window is not within that time.
    """
    if not when.given:
        return _made(matchers, start=first, end=now)
    silence = planned(matchers, "mute", when, now)
    if silence.rrule is not None:
        return silence.laid_over(first)
    if not silence.spans(first, now):
        raise ConfigError(
            f"that window, {during((silence.start, silence.end), silence.zone)}, does not reach into the "
            "time that is looked at; leave --start, --end and --for out to see all of it"
        )
    return silence


def _made(matchers: Mapping[str, Any], **rest: Any) -> Silence:  # noqa: ANN401 - checked by the model
    given = {name: value for name, value in matchers.items() if value not in (None, {})}
    if not given:
        raise ConfigError(
            "say what is silenced: --stream, --series, --series-regex, --feature, --severity or --label; "
            "--stream '*' is everything"
        )
    try:
        return Silence.model_validate({"matchers": given, **rest})
    except ValidationError as error:
        names = [str(part) for part in error.errors()[0]["loc"] if part != "matchers"]
        option = f"--{_OPTIONS.get(names[0], names[0])}: " if names else ""
        raise ConfigError(option + _said(error)) from None


def check_stream(config: Config, pattern: str) -> None:
    """See that a silence is of a stream that there is.

    Raises:
        ConfigError: no stream fits.
    """
    if not any(fits(pattern, name) for name in config.streams):
        raise ConfigError(
            f"--stream {pattern!r} fits none of the configuration's streams: {', '.join(config.streams)}"
        )


def labels(given: Iterable[str]) -> dict[str, str]:
    """``name=GLOB`` as it was given, any number of times.

    Raises:
        ConfigError: one is not of that form, or a name is given twice.
    """
    found = dict[str, str]()
    for each in given:
        name, _, value = each.partition("=")
        if not name or not value:
            raise ConfigError(f"--label is {each!r}; give a name and a value or pattern, such as rack=r7*")
        if name in found:
            raise ConfigError(
                f"--label {name} is given twice, and an alert has one; give one pattern for both"
            )
        found[name] = value
    return found


def _moment(text: str, option: str, now: datetime, zone: ZoneInfo) -> datetime:
    if text[:1] in {"+", "-"}:
        apart = timedelta(seconds=_duration(text[1:], option))
        return now + apart if text[0] == "+" else now - apart
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{option} is {text!r}; give an ISO 8601 time, such as 2026-11-01T02:00, or one from now, such "
            "as +30m"
        ) from None


def _duration(text: str, option: str) -> float:
    try:
        return _DURATION.validate_python(text)
    except ValidationError as error:
        raise ConfigError(f"{option}: {_said(error)}") from None


def _said(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Value error, ")


def chosen(silences: Mapping[str, Standing], silence_id: str) -> str:
    """The id of the one silence whose id begins so.

    Raises:
        NotFound: there is none, or there are several.
    """
    found = [each for each in silences if each.startswith(silence_id)]
    if len(found) != 1:
        several = (
            f"{len(found)} silences have ids that begin with" if found else "there is no silence with the id"
        )
        raise NotFound(f"{several} {silence_id!r}; `offbeat silences list --all` shows them")
    return found[0]


def what(silence: Silence) -> str:
    """What a silence is about, in words."""
    of = silence.matchers
    parts = [
        f"stream {of.stream}" if of.stream != "*" else "",
        f"series {of.series}" if of.series != "*" else "",
        f"series like /{of.series_regex}/" if of.series_regex else "",
        f"feature {of.feature}" if of.feature else "",
        f"severity {of.severity}" if of.severity else "",
        *(f"{name}={value}" for name, value in of.labels.items()),
    ]
    return ", ".join(filter(None, parts)) or "everything"


def during(span: Span, zone: str) -> str:
    """A window in words, on the clocks of a zone."""
    start, end = (each.astimezone(ZoneInfo(zone)) for each in span)
    to = f"{end:%H:%M}" if start.date() == end.date() else f"{end:%Y-%m-%d %H:%M}"
    return f"{start:%a %Y-%m-%d %H:%M} to {to}"


def windows(silence: Silence, now: datetime) -> list[Span]:
    """The next windows of a silence, that which holds now included; the last one where it is over."""
    return sorted(islice(silence.following(now), _WINDOWS_SHOWN)) or [(silence.start, silence.end)]


def open_alerts(silence: Silence, revisions: Revisions) -> int:
    """How many alerts are open that a silence is about."""
    return sum(
        silence.matchers.cover_alert(as_it_stands(each))
        for each in revisions.values()
        if each[-1].state == "firing"
    )


def silences_of(alert: Alert, silences: Iterable[Standing], now: datetime) -> list[tuple[Standing, Span]]:
    """The silences that are about an alert, with each of their windows that it reached into.

    It reaches from its start to its end by event time; one that is open to ``now``.
    """
    last = alert.at if alert.state == "resolved" else max(alert.at, now)
    return [
        (each, span)
        for each in silences
        if each.record.silence.matchers.cover_alert(alert)
        for span in each.spans(alert.started_at, last)
    ]


@dataclass(frozen=True, slots=True)
class Muted:
    """An alert that would not have been told when it came.

    Attributes:
        window: in which it started.
        told_at: when it would have been told after all: the window ended, and it was still open.
    """

    alert: Alert
    window: Span
    told_at: datetime | None


def preview(silence: Silence, alerts: Sequence[Alert], first: datetime, last: datetime) -> list[Muted]:
    """What a silence would have muted of alerts that started within ``[first, last]``, by their start."""
    spans, found = silence.spans(first, last), []
    for alert in alerts:
        if not silence.matchers.cover_alert(alert):
            continue
        span = next((each for each in spans if each[0] <= alert.started_at < each[1]), None)
        if span is not None:
            over = alert.state == "resolved" and alert.at <= span[1]
            found.append(Muted(alert, span, None if over or span[1] >= last else span[1]))
    return found
