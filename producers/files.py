"""Recorded readings from CSV, JSONL and Parquet files as events, merged by time, at any pace."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from pipeline.errors import InputError
from pipeline.ports import Producer
from pipeline.records import Send
from producers import layouts, tables
from producers.layouts import FileOptions, Layout
from producers.pacing import Chunk, Clock, Fastest, OnProgress, Pace, ShouldStop, Sleep, deliver, never

__all__ = ["BadRow", "Event", "FileOptions", "FilesReport", "Layout", "events", "merge_by_time", "produce"]

BAD_ROWS_SHOWN = 20
_CHUNK_ROWS = 2_000


class BadRow(NamedTuple):
    """A row that could not be read."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.reason}"


class Event(NamedTuple):
    """One event: its time in epoch seconds, its series, and the JSON object."""

    time: float
    series: str
    value: bytes


_T = TypeVar("_T", bound=tuple[float, *tuple[object, ...]])


@dataclass(slots=True)
class FilesReport:
    """What came of the files.

    Attributes:
        series: events sent, by series.
        bad_rows: rows that could not be read and were skipped.
        bad_rows_shown: the first of them.
        out_of_order: rows whose time is before that of the row above them in the same file.
    """

    series: dict[str, int] = field(default_factory=dict)
    bad_rows: int = 0
    bad_rows_shown: list[BadRow] = field(default_factory=list)
    out_of_order: int = 0


def merge_by_time(sources: Sequence[tuple[float, Callable[[], Iterator[_T]]]]) -> Generator[_T, None, None]:
    """Merge streams by the time that each item starts with; the order within a stream is kept.

    A source is the time of its first item and what opens it. It is opened when its turn comes, so that a
    thousand files of a day each are never open at once. Sorted streams give a sorted whole; equal times
    come in the order of the sources.
    """
    heap: list[tuple[float, int, _T | None, Iterator[_T] | None]] = [
        (first_time, index, None, None) for index, (first_time, _) in enumerate(sources)
    ]
    heapq.heapify(heap)
    while heap:
        _, index, item, stream = heap[0]
        if stream is None:
            stream = sources[index][1]()
        if item is not None:
            yield item
        following = next(stream, None)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (following[0], index, following, stream))


def events(
    found: Sequence[Layout], options: FileOptions, report: FilesReport
) -> Generator[Event, None, None]:
    """The events of files, merged by time; bad and disordered rows are counted in ``report``.

    Raises:
        InputError: a row cannot be read (unless it is to be skipped), or a file changed under way.
    """
    return merge_by_time(
        [
            (layout.first_time, lambda layout=layout: _events_of(layout, options, report))  # type: ignore[misc]
            for layout in found
        ]
    )


def _events_of(layout: Layout, options: FileOptions, report: FilesReport) -> Iterator[Event]:
    read = layouts.reader(layout)
    encode = msgspec.json.Encoder().encode
    last_time = layout.first_time
    with closing(tables.rows(layout.path)) as rows:
        for row in rows:
            try:
                at, series, values = read(row)
            except ValueError as error:
                _count_bad(BadRow(layout.path, row.line, str(error)), options, report)
                continue
            report.out_of_order += at < last_time
            last_time = at
            event = {options.time_field: at, options.series_field: series}
            yield Event(at, series, encode(event | dict(zip(layout.value_columns, values, strict=True))))


def _count_bad(bad: BadRow, options: FileOptions, report: FilesReport) -> None:
    if options.on_error == "stop":
        raise InputError(f"{bad}; mend it, or skip rows that cannot be read")
    report.bad_rows += 1
    if report.bad_rows <= BAD_ROWS_SHOWN:
        report.bad_rows_shown.append(bad)


def produce(
    producer: Producer,
    topic: str,
    options: FileOptions,
    *,
    pace: Pace | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop = never,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> FilesReport:
    """Send what files hold, merged by time, as ``{"time": epoch seconds, "series": name, column: value}``.

    The key of a record is its series, its timestamp the event's time; an empty cell is null. Memory does
    not grow with the files.

    Args:
        producer: where they go.
        topic: its name, with the namespace's prefix.
        options: the files and how they are read.
        pace: when events leave; by default as fast as possible.
        on_progress: called after each group of events.
        should_stop: asked before each group and several times a second.
        clock: seconds that never step back.
        sleep: waits for so many seconds.

    Raises:
        NotFound: no such file, or no such topic.
        InputError, ConfigError: see :func:`producers.layouts.inspect`; a row cannot be read.
        BusDown, BusFull: from the producer.
    """
    report = FilesReport()
    keys: Counter[bytes | None] = Counter()
    with closing(events(layouts.inspect(options), options, report)) as merged:
        deliver(
            _chunks(merged, topic),
            producer,
            pace or Fastest(),
            on_sent=lambda sends: keys.update(send.key for send in sends),
            on_progress=on_progress,
            should_stop=should_stop,
            clock=clock,
            sleep=sleep,
        )
    report.series = {key.decode(): count for key, count in keys.items() if key is not None}
    return report


def _chunks(merged: Iterator[Event], topic: str) -> Iterator[Chunk]:
    while group := list(islice(merged, _CHUNK_ROWS)):
        yield Chunk(
            [event.time for event in group],
            [
                Send(topic, event.series.encode(), event.value, (), round(event.time * 1000))
                for event in group
            ],
        )
