"""What each column of a file is for, found from its first rows and the user's options, and said to them."""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.errors import ConfigError, InputError, NotFound
from producers import tables, times

SAMPLE_ROWS = 100
"""Rows that a file's layout is found from."""

_TIME_NAMES = ("time", "timestamp", "@timestamp", "datetime", "date", "ts")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """How files are read.

    Attributes:
        paths: files, or patterns as of a shell (``**`` goes down folders).
        time_column: by default the first named like a time (``time``, ``timestamp``, ``date``, ...).
        time_format: ``auto``, ``iso``, ``s``, ``ms``, ``us``, ``ns`` or a pattern of ``strptime``.
        series_column: the column that names the series; by default the one with the event's own name for it.
        series: the series of every row; with no such column either it is the file's name without its suffix.
        value_columns: by default every column of numbers besides time and series.
        time_field, series_field: what the event calls its time and series.
        on_error: ``stop`` at the first row that cannot be read, or ``skip`` and count it.

    Raises:
        ConfigError: options contradict each other.
    """

    paths: Sequence[str | Path]
    time_column: str | None = None
    time_format: str = times.AUTO
    series_column: str | None = None
    series: str | None = None
    value_columns: Sequence[str] | None = None
    time_field: str = "time"
    series_field: str = "series"
    on_error: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        if self.series is not None and self.series_column is not None:
            raise ConfigError("both a series and a series column were given; give one of them")
        if not times.is_format(self.time_format):
            raise ConfigError(
                f"{self.time_format!r} is no time format; give {times.AUTO}, {times.FORMATS_HINT}"
            )
        if self.on_error not in {"stop", "skip"}:
            raise ConfigError(f"on_error is {self.on_error!r}; give stop or skip")
        if self.time_field == self.series_field:
            raise ConfigError(f"time and series would both be the field {self.time_field!r}; name them apart")


@dataclass(frozen=True, slots=True)
class Layout:
    """What was found in one file.

    Attributes:
        path: the file.
        kind: ``csv``, ``jsonl`` or ``parquet``.
        time_column, time_format: where the time stands, and how it is written.
        series_column: the column of the series, None where ``series`` is that of every row.
        series: the series of every row.
        value_columns: the features.
        left_out: columns that are none of these.
        first_time: epoch seconds of the first row that could be read, in the sample.
    """

    path: Path
    kind: str
    time_column: str
    time_format: str
    series_column: str | None
    series: str | None
    value_columns: tuple[str, ...]
    left_out: tuple[str, ...]
    first_time: float

    def __str__(self) -> str:
        series = f"series from {self.series_column!r}" if self.series_column else f"series {self.series!r}"
        left_out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{self.path}: time from {self.time_column!r} ({self.time_format}), {series}, "
            f"values: {', '.join(self.value_columns)}{left_out}"
        )


class Reading(NamedTuple):
    """What one row says: time in epoch seconds, series, and its values in the layout's order."""

    time: float
    series: str
    values: list[float | None]


def number(cell: object) -> float | None:
    """A cell as a number; an empty one, null and NaN are None.

    Raises:
        ValueError: it is something else, infinity included.
    """
    if cell is None or cell == "":
        return None
    if isinstance(cell, bool) or (not hasattr(cell, "__float__") and not isinstance(cell, str)):
        raise ValueError(f"{cell!r} is not a number")
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"{cell!r} is not a number") from None
    if value in {float("inf"), float("-inf")}:
        raise ValueError(f"{cell!r} is not a finite number")
    return None if value != value else value  # noqa: PLR0124 - only NaN differs from itself


def reader(layout: Layout) -> Callable[[tables.Row], Reading]:
    """What turns a file's rows into readings; it raises ValueError, naming column and value."""
    seconds = times.parser(layout.time_format)

    def read(row: tables.Row) -> Reading:
        if row.problem:
            raise ValueError(row.problem)
        column = layout.time_column
        try:
            at = seconds(row.cells.get(column))
            if column := layout.series_column or "":
                series = _series(row.cells.get(column))
            else:
                series = layout.series or ""
            values = []
            for column in layout.value_columns:
                values.append(number(row.cells.get(column)))
        except ValueError as error:
            raise ValueError(f"column {column!r}: {error}") from None
        return Reading(at, series, values)

    return read


def _series(cell: object) -> str:
    series = "" if cell is None else str(cell).strip()
    if not series:
        raise ValueError("the series is empty")
    if not series.isprintable():  # bytes that were not UTF-8, line breaks
        raise ValueError(f"{series!r} is no name for a series")
    return series


def inspect(options: FileOptions) -> list[Layout]:
    """The layout of every file that holds rows, in the order of their paths.

    Raises:
        NotFound: a path or pattern matches no file.
        InputError: a file cannot be read, lacks a column, or no file holds a row.
        ConfigError: a value column would take the name of the time or the series field.
    """
    layouts = [layout for path in _files(options.paths) if (layout := _layout(path, options))]
    if not layouts:
        raise InputError(f"{', '.join(map(str, options.paths))}: no file holds a row")
    return layouts


def _files(paths: Iterable[str | Path]) -> list[Path]:
    found: dict[Path, None] = {}  # in order, each once
    for path in map(str, paths):
        there = Path(path).exists()
        matches = [path] if there else sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - also absolute
        files = [Path(match) for match in matches if Path(match).is_file()]
        if not files:
            raise NotFound(f"{path}: no such file; give a file or a pattern such as 'data/*.csv'")
        found |= dict.fromkeys(files)
    return list(found)


def _layout(path: Path, options: FileOptions) -> Layout | None:
    sample = tables.sample(path, SAMPLE_ROWS)
    rows = [row for row in sample if not row.problem]
    if not rows:
        if sample:
            raise InputError(f"{path}, line {sample[0].line}: {sample[0].problem}")
        return None
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    time_column = options.time_column or _time_column(path, columns)
    series_column = options.series_column
    if series_column is None and options.series is None and options.series_field in columns:
        series_column = options.series_field
    for column in (time_column, series_column, *(options.value_columns or ())):
        if column is not None and column not in columns:
            raise InputError(f"{path}: no column {column!r}; it has {', '.join(columns)}")
    time_format, first_time = _time_of(path, rows, time_column, options.time_format)
    values = options.value_columns or _value_columns(path, columns, rows, {time_column, series_column})
    if taken := {options.time_field, options.series_field}.intersection(values):
        raise ConfigError(
            f"{path}: the column {taken.pop()!r} has the name of the event's time or series field; "
            "choose other names for these fields"
        )
    constant = None if series_column else options.series or path.stem
    used = {time_column, series_column, *values}
    left_out = tuple(column for column in columns if column not in used)
    return Layout(
        path,
        tables.kind_of(path),
        time_column,
        time_format,
        series_column,
        constant,
        tuple(values),
        left_out,
        first_time,
    )


def _time_column(path: Path, columns: Sequence[str]) -> str:
    by_name = {column.lower(): column for column in reversed(columns)}
    for name in _TIME_NAMES:
        if name in by_name:
            return by_name[name]
    raise InputError(f"{path}: which column is the time? None is named like one; it has {', '.join(columns)}")


def _time_of(path: Path, rows: Sequence[tables.Row], column: str, time_format: str) -> tuple[str, float]:
    """The format of the times and the first of them."""
    problem = ""
    for row in rows:
        cell = row.cells.get(column)
        try:
            found = times.detect(cell) if time_format == times.AUTO else time_format
            return found, times.parser(found)(cell)
        except ValueError as error:
            problem = problem or f"{path}, line {row.line}, column {column!r}: {error}"
    raise InputError(f"{problem}; state the time format: {times.FORMATS_HINT}")


def _value_columns(
    path: Path, columns: Sequence[str], rows: Sequence[tables.Row], used: Collection[str | None]
) -> list[str]:
    """The named columns, besides those used, of which all cells are numbers or empty and one is a number."""
    text = tables.kind_of(path) == tables.CSV
    found = [
        column
        for column in columns
        if column and column not in used and _is_numeric([row.cells.get(column) for row in rows], text=text)
    ]
    if not found:
        raise InputError(f"{path}: no column of numbers besides the time; it has {', '.join(columns)}")
    return found


def _is_numeric(cells: Sequence[object], *, text: bool) -> bool:
    try:
        found = [number(cell) for cell in cells if text or not isinstance(cell, str)]
    except ValueError:
        return False
    return len(found) == len(cells) and any(value is not None for value in found)
