"""Text in columns: as wide as its cells, whatever the terminal, so that it can be searched and cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pipeline.alerts import FeatureEvidence


def print_columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headers; a header that begins with a space stands over numbers, set to the right."""
    cells = [[header.strip() for header in headers], *([plain(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        set_out = [
            cell.rjust(width) if header.startswith(" ") else cell.ljust(width)
            for cell, width, header in zip(row, widths, headers, strict=True)
        ]
        typer.echo("  ".join(set_out).rstrip())


def plain(text: str) -> str:
    """Text from elsewhere, without anything that a terminal would act on."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def counted(count: int, noun: str) -> str:
    """``1 partition``, ``2 partitions``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def print_features(features: Iterable[FeatureEvidence]) -> None:
    """Print features with their share of an error and their windows, observed over expected."""
    from offbeat.show import picture
    from pipeline.figures import measured

    rows = []
    for each in features:
        observed, expected = picture(each)
        figures = [
            f"{each.contribution:.0%}",
            measured(each.observed, each.unit),
            measured(each.expected, each.unit),
        ]
        rows.append([each.name, *figures, observed])
        if expected:  # only the first features come with their windows
            rows.append(["", "", "", "", expected])
    print_columns(["feature", " share", " observed", " expected", "window"], rows)
