"""``offbeat explain``: why a row was judged as it was, and why a record was not."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from offbeat.cli.columns import counted, print_features
from offbeat.cli.meter import meter
from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, chosen_stream, load_config, parsed_time
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from consumers.tracer import Trace


def explain(
    *,
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="The stream.")],
    series: Annotated[str, typer.Argument(metavar="SERIES", help="The series.")],
    at: Annotated[str, typer.Option("--at", metavar="TIME", help="Event time: ISO 8601, or epoch seconds.")],
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Say why a row was judged as it was, or why it was not judged.

    It answers for every record that is still in the topic; without one at that time it is about the newest
    one before. It rests on topic, journal and snapshots, as `offbeat replay` does, and writes nothing.
    """
    from consumers.explainer import Explainer
    from offbeat import app

    loaded = load_config(config)
    name, time = chosen_stream(loaded, stream), _time(at)
    records = 0
    with app.open_replay(loaded, name) as parts, meter() as show:

        def on_records(count: int) -> None:
            nonlocal records
            records += count
            show("reading", None, counted(records, "record"))

        trace = Explainer(parts, on_records).explain(series, time)
    if json:
        typer.echo(trace.model_dump_json())
    else:
        _tell(trace)


def _time(text: str) -> datetime:
    """An event time, as given.

    Raises:
        ConfigError: it is none.
    """
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        return parsed_time(text, "--at")
    try:
        return datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"--at is {text}, which is no time in epoch seconds; are they milliseconds? Give seconds, or ISO "
            "8601 such as 2026-03-01T12:00"
        ) from None


def _tell(trace: Trace) -> None:
    from offbeat.explanation import facts, sentences

    typer.echo("\n".join(sentences(trace)))
    if trace.judgement is not None:
        typer.echo("\nThe window, newest row last; above as observed, below as expected:\n")
        print_features(trace.judgement.features)
    typer.echo()
    for name, text in facts(trace):
        typer.echo(f"{name:<14} {text}")


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(
        epilog="Examples: `offbeat explain pumps unit-07 --at 2026-03-01T12:03:20`; "
        "`offbeat explain pumps unit-07 --at 1772366600 --json | jq .judgement.line`"
    )(explain)
