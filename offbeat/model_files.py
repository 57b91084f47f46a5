"""Files through a bundle's models: rows to codes, codes to windows, rows to what is left of them.

Tables are CSV or Parquet with named columns; arrays are NPY, with the columns in the model's order and
nothing beside them. Places count from 0, as in NumPy and pandas.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models import Codec
from models.codec import UNSEEN
from models.samples import window_starts
from pipeline.errors import ConfigError, InputError, NotFound, TooFewRows
from pipeline.ports import Float64s
from producers import layouts, tables

SERIES_COLUMN: Final = "series"
"""The column that names the series, unless another is given."""

_ARRAY: Final = ".npy"
_FORMS: Final = (".csv", ".tsv", ".parquet", ".pq", _ARRAY)
_WINDOWS_AT_ONCE: Final = 16_384  # windows share rows in the file, and no longer where they are scaled

Columns = dict[str, Collection[object]]


@dataclass(frozen=True, slots=True)
class Naming:
    """Which series the rows of a file belong to.

    Attributes:
        series: of all rows; None where a column tells.
        column: that tells; None: ``SERIES_COLUMN`` where the file has it, else nobody knows.
    """

    series: str | None = None
    column: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What a file holds.

    Attributes:
        values: float64[n, columns], or an array's windows float64[n, W, F].
        series: of each of the n; empty where nobody knows.
    """

    values: Float64s
    series: Sequence[str]


def check_form(path: Path) -> None:
    """See that a file's suffix is one that is read and written here.

    Raises:
        ConfigError: it is another.
    """
    if path.suffix.lower() not in _FORMS:
        raise ConfigError(
            f"{path}: {path.suffix or 'no suffix'} is no format of rows and codes; give a name that ends in "
            ".csv, .parquet or .npy"
        )


def encode(codec: Codec, source: Path, to: Path, naming: Naming) -> int:
    """Write the code of every window of a file of rows; returns how many there are.

    A table has the columns ``row`` (at which the window ends), ``series`` where it is known, and ``code_0``
    and so on; an array is float32[n, code].

    Raises:
        NotFound, InputError: the file is not there, or not of that form.
        TooFewRows: no series has a whole window.
    """
    cut = _Cut.of(codec, _read(source, codec.spec.features, naming), source)
    codes = np.concatenate([codec.encode(windows, series) for windows, series in cut.blocks()])
    _write(to, codes, {"row": cut.row, **_told(cut.series)}, _code_columns(codec))
    return len(codes)


def decode(codec: Codec, source: Path, to: Path, naming: Naming) -> int:
    """Write the window of every code of a file, as :func:`encode` wrote them; returns how many there are.

    Raises:
        NotFound, InputError: the file is not there, or not of that form.
    """
    table = _read(source, _code_columns(codec), naming)
    if table.values.shape[1:] != (codec.code,):
        raise InputError(
            f"{source}: an array {_shape(table.values)}; codes of this model are [n, {codec.code}], as "
            "`offbeat models encode` writes them"
        )
    windows = codec.decode(table.values.astype(np.float32), table.series or UNSEEN)
    write_windows(codec, windows, to, table.series)
    return len(windows)


def reconstruct(codec: Codec, source: Path, to: Path, naming: Naming) -> int:
    """Write the newest row of every window as its model restores it; returns how many there are.

    That is what a detector expects of the row. A table has the columns ``row``, ``series`` where it is known,
    the features, ``error`` (of the window) and ``last_error`` (of this row alone); an array has the features
    and the two errors side by side, float64[n, F + 2].

    Raises:
        NotFound, InputError: the file is not there, or not of that form.
        TooFewRows: no series has a whole window.
    """
    cut = _Cut.of(codec, _read(source, codec.spec.features, naming), source)
    parts = []
    for windows, series in cut.blocks():
        restored = codec.reconstruct(windows, series)
        errors = restored.errors
        parts.append(np.column_stack([restored.windows[:, -1], errors.window, errors.last]))
    names = [*codec.spec.features, "error", "last_error"]
    _write(to, np.concatenate(parts), {"row": cut.row, **_told(cut.series)}, names)
    return len(cut.row)


def write_windows(codec: Codec, windows: Float64s, to: Path, series: Sequence[str] = ()) -> None:
    """Write windows float64[n, W, F]: an array as it is, a table with a line for each of their rows.

    Its columns are ``window`` (its place), ``step`` (the row's place in the window; the last is the newest),
    ``series`` where it is known, and the features.

    Raises:
        InputError: the file cannot be written.
    """
    count, rows, features = windows.shape
    if to.suffix.lower() != _ARRAY:
        windows = windows.reshape(-1, features)
    places = {"window": np.repeat(np.arange(count), rows), "step": np.tile(np.arange(rows), count)}
    each = [name for name in series for _ in range(rows)]
    _write(to, windows, {**places, **_told(each)}, codec.spec.features)


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """The windows of a file, in the order of the rows at which they end.

    Attributes:
        windows: float64[k, W, F], a view of the rows in the order of their series.
        chosen: those that lie within one series, int64[n].
        row: the row of the file at which each of these ends, int64[n]; of an array of windows, its place.
        series: of each of these; empty where nobody knows.
    """

    windows: Float64s
    chosen: NDArray[np.int64]
    row: NDArray[np.int64]
    series: Sequence[str]

    @classmethod
    def of(cls, codec: Codec, table: Table, source: Path) -> _Cut:
        rows, features = codec.spec.window_rows, len(codec.spec.features)
        if table.values.shape[1:] == (rows, features):
            every = np.arange(len(table.values))
            return cls(table.values, every, every, table.series)
        if table.values.shape[1:] != (features,):
            raise InputError(
                f"{source}: an array {_shape(table.values)}; this model takes rows [n, {features}] "
                f"({', '.join(codec.spec.features)}) or windows [n, {rows}, {features}]"
            )
        groups = np.zeros(len(table.values), np.int32)
        if table.series:
            groups = np.unique(np.array(table.series), return_inverse=True)[1].astype(np.int32)
        order = np.argsort(groups, kind="stable")
        starts = window_starts(groups[order], rows)
        if not len(starts):
            longest = int(np.bincount(groups).max())
            raise TooFewRows(
                f"{source}: found {longest} of {rows} rows that a window takes"
                f"{', in the longest of its series' if table.series else ''}; give more rows",
                have=longest,
                need=rows,
                rows=longest,
            )
        ends = order[starts + rows - 1]
        by_end = np.argsort(ends)
        series = [table.series[end] for end in ends[by_end].tolist()] if table.series else ()
        return cls(codec.cut(table.values[order]), starts[by_end], ends[by_end], series)

    def blocks(self) -> Iterator[tuple[Float64s, str | Sequence[str]]]:
        """The windows and their series, some at a time."""
        for first in range(0, len(self.chosen), _WINDOWS_AT_ONCE):
            some = slice(first, first + _WINDOWS_AT_ONCE)
            yield self.windows[self.chosen[some]], self.series[some] or UNSEEN


def _code_columns(codec: Codec) -> list[str]:
    return [f"code_{number}" for number in range(codec.code)]


def _told(series: Sequence[str]) -> Columns:
    return {SERIES_COLUMN: series} if series else {}


def _shape(values: Float64s) -> str:
    return f"[{', '.join(map(str, values.shape))}]"


def _read(path: Path, columns: Sequence[str], naming: Naming) -> Table:
    """The named columns of a table, or a whole array; never empty.

    Raises:
        NotFound, InputError, ConfigError: what is wrong, and where.
    """
    check_form(path)
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    series: list[str] = []
    if path.suffix.lower() == _ARRAY:
        if naming.column is not None:
            raise ConfigError(f"{path}: an array has no columns; name the one series of its rows (--series)")
        values = _array(path)
    else:
        values, series = _table(path, columns, naming)
    if not len(values):
        raise InputError(f"{path}: no rows in it")
    return Table(values, series if naming.series is None else [naming.series] * len(values))


def _array(path: Path) -> Float64s:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not readable as an array of NumPy ({error})") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise InputError(f"{path}: {getattr(values, 'dtype', 'an archive')}; give one array of numbers")
    if not np.isfinite(values).all():
        raise InputError(f"{path}: it holds numbers that are not finite; leave such rows out")
    return values.astype(np.float64)


def _table(path: Path, columns: Sequence[str], naming: Naming) -> tuple[Float64s, list[str]]:
    values: list[list[float]] = []
    series: list[str] = []
    column = naming.column
    for row in tables.rows(path):
        if row.problem:
            raise InputError(f"{path}, line {row.line}: {row.problem}")
        if not values:
            if column is None and naming.series is None and SERIES_COLUMN in row.cells:
                column = SERIES_COLUMN
            _check_columns(path, row.cells, [*columns, *([column] if column else [])])
        values.append([_number(path, row, name) for name in columns])
        if column:
            series.append(str(row.cells[column]))
    return np.array(values, np.float64).reshape(-1, len(columns)), series


def _check_columns(path: Path, cells: Mapping[str, object], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in cells]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(map(repr, missing))}; it has {', '.join(cells)}, and needs "
            f"{', '.join(wanted)}"
        )


def _number(path: Path, row: tables.Row, column: str) -> float:
    try:
        value = layouts.number(row.cells[column])
    except ValueError as error:
        raise InputError(f"{path}, line {row.line}, column {column!r}: {error}") from None
    if value is None:
        raise InputError(f"{path}, line {row.line}, column {column!r}: empty; leave such rows out")
    return value


def _write(to: Path, values: NDArray[Any], beside: Columns, names: Sequence[str]) -> None:
    """An array as it is; or a table of its columns by name, with others beside them."""
    if to.suffix.lower() == _ARRAY:
        try:
            np.save(to, values)
        except OSError as error:
            raise InputError(f"{to}: cannot be written ({error.strerror or error})") from error
        return
    if taken := beside.keys() & set(names):
        raise InputError(
            f"{to}: a feature is called {min(taken)!r}, and so is a column that tells where a line belongs; "
            "write an array (.npy)"
        )
    tables.write(to, {**beside, **{name: values[:, place] for place, name in enumerate(names)}})
