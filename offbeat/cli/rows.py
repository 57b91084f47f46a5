"""How files are read: the options of every command that takes files, and what was found in them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from producers.files import FilesReport
    from producers.layouts import Layout

_SHOWN = 5


class OnBadRow(StrEnum):
    """What happens at a row that cannot be read."""

    STOP = "stop"
    SKIP = "skip"


TimeColumn = Annotated[
    str | None,
    typer.Option("--time-column", metavar="COLUMN", help="Default: the first that is named like a time."),
]
TimeFormat = Annotated[
    str,
    typer.Option(
        "--time-format",
        metavar="FORMAT",
        help="auto, iso, s, ms, us, ns, or a pattern such as '%d/%m/%Y %H:%M'.",
    ),
]
SeriesColumn = Annotated[
    str | None,
    typer.Option(
        "--series-column",
        metavar="COLUMN",
        help="The column that names the series; default: the one called as the stream's field is.",
    ),
]
SeriesName = Annotated[
    str | None,
    typer.Option(
        "--series",
        metavar="NAME",
        help="One series for all rows; default, without such a column: the file's name.",
    ),
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--value",
        metavar="COLUMN",
        help="A column of values; may be given several times; default: all of numbers.",
    ),
]
OnError = Annotated[OnBadRow, typer.Option("--on-error", help="At a row that cannot be read.")]


def tell_layouts(found: Sequence[Layout]) -> None:
    """Say what each column was taken for."""
    for layout in found[:_SHOWN]:
        typer.echo(str(layout), err=True)
    if len(found) > _SHOWN:
        typer.echo(f"... and {len(found) - _SHOWN} more files", err=True)


def tell_bad_rows(report: FilesReport) -> None:
    """Say what was skipped and what stands out of order."""
    for bad in report.bad_rows_shown[:_SHOWN]:
        typer.echo(f"skipped {bad}", err=True)
    if report.bad_rows > _SHOWN:
        typer.echo(f"skipped {report.bad_rows:,} rows in all", err=True)
    if report.out_of_order:
        typer.echo(
            f"{report.out_of_order:,} rows stand before the row above them in time; without a grid they are "
            "late or duplicates to a detector",
            err=True,
        )
