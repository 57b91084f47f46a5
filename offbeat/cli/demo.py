"""``offbeat demo``: the whole of it on this machine's own metrics, in two minutes."""

from __future__ import annotations

from typing import Annotated

import typer

from offbeat.cli.options import Json


def demo(
    *,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=20, max=3600, help="How long it learns.")
    ] = 45,
    bus: Annotated[
        str | None,
        typer.Option(
            "--bus", metavar="URL", help="Such as kafka://localhost:9092; default: an embedded one."
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state", metavar="URL", help="Such as redis://localhost:6379; default: an embedded one."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Learn this machine's metrics, cause a burst of load, and show the alert that follows.

    With --json the last line is one object: records_read, bins, alerts. Nothing is left running.
    """
    from offbeat.demo import run

    run(seconds, as_json=json, bus=bus, state=state)


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(epilog="Examples: `offbeat demo`; `offbeat demo --seconds 30 --json | tail -n 1`")(demo)
