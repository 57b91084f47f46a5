"""Text in columns: as wide as its cells, whatever the terminal, so that it can be searched and cut."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def print_columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headers; a header that begins with a space stands over numbers, set to the right."""
    cells = [[header.strip() for header in headers], *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        set_out = [
            cell.rjust(width) if header.startswith(" ") else cell.ljust(width)
            for cell, width, header in zip(row, widths, headers, strict=True)
        ]
        typer.echo("  ".join(set_out).rstrip())


def counted(count: int, noun: str) -> str:
    """``1 partition``, ``2 partitions``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
