"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere; both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

PLAIN_S = 5.0
Show = Callable[[str, float | None, str], None]
"""Called with what is being done, the fraction that is done (None: not known), and figures."""


@contextmanager
def meter() -> Iterator[Show]:
    """Progress, drawn until the context is left."""
    if not sys.stderr.isatty():
        yield _plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as drawn:
        tasks: dict[str, int] = {}

        def show(doing: str, fraction: float | None, figures: str) -> None:
            if doing not in tasks:
                for earlier in tasks.values():
                    drawn.update(earlier, total=1, completed=1)  # type: ignore[arg-type] # an int in disguise
                tasks[doing] = drawn.add_task(doing, total=None, figures="")
            total = None if fraction is None else 1.0
            drawn.update(tasks[doing], total=total, completed=fraction or 0, figures=figures)  # type: ignore[arg-type]

        yield show


def _plain() -> Show:
    said_at, begun = time.monotonic(), dict[str, float]()

    def show(doing: str, fraction: float | None, figures: str) -> None:
        nonlocal said_at
        now = time.monotonic()
        began = begun.setdefault(doing, now)
        if now - said_at >= PLAIN_S:
            said_at = now
            typer.echo(progress(doing, fraction, figures, now - began), err=True)

    return show


def progress(doing: str, fraction: float | None, figures: str, elapsed_s: float) -> str:
    """How far work is and how long it takes yet, as one line; it goes on as it went so far."""
    from pipeline.figures import lasting

    if not fraction:
        return f"{doing}: {figures}"
    left_s = elapsed_s * (1 - fraction) / fraction
    return f"{doing} {fraction:.0%}: {figures}" + (f", about {lasting(left_s)} left" if left_s else "")
