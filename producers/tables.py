"""Rows of CSV, JSONL and Parquet files, one at a time, with the line they stand on; and files of columns."""

from __future__ import annotations

import csv
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from pipeline.errors import ConfigError, InputError

CSV, JSONL, PARQUET = "csv", "jsonl", "parquet"
_KINDS = {
    ".csv": CSV,
    ".tsv": CSV,
    ".txt": CSV,
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".parquet": PARQUET,
    ".pq": PARQUET,
}
_DELIMITERS = (",", ";", "\t")
_LONGEST_LINE = 1 << 20
_PARQUET_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        line: its line in the file, from 1; in Parquet its row, from 1.
        cells: column to cell: text from CSV, else what the file holds.
        problem: why it could not be read; ``cells`` is empty then.
    """

    line: int
    cells: Mapping[str, object]
    problem: str | None = None


def kind_of(path: Path) -> str:
    """The format of a file by its suffix.

    Raises:
        InputError: the suffix is none that is known.
    """
    try:
        return _KINDS[path.suffix.lower()]
    except KeyError:
        raise InputError(f"{path}: {path.suffix or 'no suffix'} is not one of {', '.join(_KINDS)}") from None


def rows(path: Path) -> Generator[Row, None, None]:
    """The rows of a file in its order, with memory bounded whatever its size.

    Raises:
        InputError: the file cannot be opened or is not of its suffix's format.
        ConfigError: it is Parquet and pyarrow is not installed.
    """
    read = {CSV: _csv_rows, JSONL: _jsonl_rows, PARQUET: _parquet_rows}[kind_of(path)]
    try:
        yield from read(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def delimiter_of(path: Path) -> str:
    """The delimiter of a CSV file: the one of comma, semicolon and tab that most splits its first line.

    Raises:
        OSError: the file cannot be opened.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline(_LONGEST_LINE)
    return max(_DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))


def _csv_rows(path: Path) -> Iterator[Row]:
    mark = delimiter_of(path)
    # A byte that is not UTF-8 spoils the cell it stands in, not the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file, delimiter=mark)
        try:
            header = [name.strip() for name in next(lines, [])]
        except csv.Error as error:
            raise InputError(f"{path}, line 1: not CSV ({error})") from error
        _check_header(path, header)
        while True:
            try:
                for cells in lines:
                    if len(cells) == len(header):
                        yield Row(lines.line_num, dict(zip(header, cells, strict=True)))
                    elif cells:
                        problem = f"{len(cells)} cells under a header of {len(header)}"
                        yield Row(lines.line_num, {}, problem)
            except csv.Error as error:
                yield Row(lines.line_num, {}, f"not CSV ({error})")
            else:
                return


def _check_header(path: Path, header: Sequence[str]) -> None:
    if header and all(map(_is_number, header)):
        raise InputError(f"{path}, line 1: all numbers; add a first line that names the columns")
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise InputError(f"{path}, line 1: columns named twice: {', '.join(map(repr, sorted(twice)))}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _jsonl_rows(path: Path) -> Iterator[Row]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    with path.open("rb") as file:
        for number, line in enumerate(_bounded_lines(file), 1):
            if line is None:
                yield Row(number, {}, f"longer than {_LONGEST_LINE} bytes")
            elif line.strip():
                try:
                    yield Row(number, decode(line))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    yield Row(number, {}, f"not a JSON object ({error})")


def _bounded_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines, None in place of one that is too long."""
    while line := file.readline(_LONGEST_LINE):
        too_long = len(line) == _LONGEST_LINE and not line.endswith(b"\n")
        yield None if too_long else line
        while too_long and line and not line.endswith(b"\n"):
            line = file.readline(_LONGEST_LINE)


def _parquet_rows(path: Path) -> Iterator[Row]:
    pa, pq = _pyarrow(path, "reading")
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for cells in _plain_times(batch, pa).to_pylist():
                    number += 1
                    yield Row(number, cells)
    except pa.ArrowException as error:
        raise InputError(f"{path}, after row {number}: not readable as Parquet ({error})") from error


def _pyarrow(path: Path, doing: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional, and slow to import
        import pyarrow.parquet as pq  # noqa: PLC0415 - the same
    except ImportError:
        raise ConfigError(
            f"{path}: {doing} Parquet needs pyarrow; install it with: pip install 'offbeat[parquet]'"
        ) from None
    return pa, pq


def _plain_times(batch: Any, pa: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
    """The batch with every timestamp as UTC microseconds, which Python's datetime can hold."""
    fields = [
        field.with_type(pa.timestamp("us")) if pa.types.is_timestamp(field.type) else field
        for field in batch.schema
    ]
    return pa.Table.from_batches([batch]).cast(pa.schema(fields), safe=False)


def write(path: Path, columns: Mapping[str, Collection[object]]) -> None:
    """Write columns of equal length into a new CSV or Parquet file, by its suffix; one that is there goes.

    Raises:
        InputError: the file cannot be written, or its suffix is another.
        ConfigError: it is Parquet and pyarrow is not installed.
    """
    kind = kind_of(path)
    if kind == JSONL:
        raise InputError(f"{path}: results are written as CSV or Parquet; give a name that ends so")
    try:
        if kind == PARQUET:
            pa, pq = _pyarrow(path, "writing")
            pq.write_table(pa.table(dict(columns)), path)
            return
        with path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            lines.writerow(columns)
            lines.writerows(zip(*columns.values(), strict=True))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def sample(path: Path, size: int) -> list[Row]:
    """The first ``size`` rows; raises as :func:`rows`."""
    with closing(rows(path)) as found:
        return list(islice(found, size))
