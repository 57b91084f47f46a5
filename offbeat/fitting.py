"""Whether what a producer writes is what a stream reads, said before the first event is sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pipeline.config import Stream
from pipeline.errors import ConfigError
from producers.layouts import FileOptions

_SHOWN = 12


def check_events(
    name: str,
    stream: Stream,
    source: str,
    *,
    time_field: str,
    series_field: str,
    columns: Iterable[str],
) -> None:
    """See that a stream can read flat events with these fields, their time in epoch seconds.

    Raises:
        ConfigError: it cannot; the message names the setting and what would fit.
    """
    events, where = stream.events, f"streams.{name}.events"
    _check_wide(name, stream)
    if events.time.format != "record" and events.time.field != time_field:
        raise ConfigError(
            f"{source} writes the time as {time_field!r}, and {where}.time.field is {events.time.field!r}; "
            f"set it to {time_field!r}"
        )
    if events.series != (series_field,):
        raise ConfigError(
            f"{source} names the series in {series_field!r}, and {where}.series is "
            f"{', '.join(map(repr, events.series))}; set it to {series_field!r}"
        )
    has = list(columns)
    missing = [path for each, feature in events.features.items() if (path := feature.path or each) not in has]
    if missing:
        shown = ", ".join(has[:_SHOWN]) + (f" and {len(has) - _SHOWN} more" if len(has) > _SHOWN else "")
        raise ConfigError(
            f"stream {name!r} reads {', '.join(map(repr, missing[:_SHOWN]))}, which {source} does not have; "
            f"it has {shown}: mend {where}.features"
        )


def _check_wide(name: str, stream: Stream) -> None:
    events, where = stream.events, f"streams.{name}.events"
    if events.kind != "wide":
        raise ConfigError(
            f"stream {name!r} reads narrow events, and these are wide ones; set {where}.kind to wide"
        )
    if events.time.format not in {"s", "record"}:
        raise ConfigError(
            f"stream {name!r} reads times as {events.time.format!r}, and these events carry epoch seconds; "
            f"set {where}.time.format to s"
        )


def file_options(
    name: str,
    stream: Stream | None,
    paths: Sequence[str],
    *,
    time_column: str | None,
    time_format: str,
    series_column: str | None,
    series: str | None,
    values: Sequence[str] | None,
    on_error: Literal["stop", "skip"],
) -> FileOptions:
    """How files are read; for a stream, the events' fields get the names that it reads.

    Raises:
        ConfigError: options contradict each other, or the stream does not read flat events.
    """
    time_field, series_field = "time", "series"
    if stream is not None:
        _check_wide(name, stream)
        events = stream.events
        if len(events.series) > 1 or "." in events.series[0] + events.time.field:
            raise ConfigError(
                f"stream {name!r} reads nested fields or several series fields, and rows of files are flat "
                "with one; send such events with a program of your own"
            )
        series_field = events.series[0]
        if events.time.format != "record":
            time_field = events.time.field
    return FileOptions(
        paths=paths,
        time_column=time_column,
        time_format=time_format,
        series_column=series_column,
        series=series,
        value_columns=values or None,
        time_field=time_field,
        series_field=series_field,
        on_error=on_error,
    )
