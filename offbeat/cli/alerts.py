"""``offbeat alerts``: what was published, read from the alerts topic itself."""

from __future__ import annotations

import sys
from collections import deque
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from offbeat.cli import feedback
from offbeat.cli.columns import print_columns, print_features
from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, Seconds, load_config, print_json
from offbeat.cli.stopping import stopping
from offbeat.cli.stored import stored_alerts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.alerts import Alert
    from pipeline.control import Feedback, Standing
    from pipeline.silences import Span

group = typer.Typer(
    no_args_is_help=True, help="Read the alerts that were published, and say what they are worth."
)


class Kind(StrEnum):
    """What an alert is about."""

    ANOMALY = "anomaly"
    SILENT = "silent"


class State(StrEnum):
    """Whether an alert is over."""

    FIRING = "firing"
    RESOLVED = "resolved"


StreamName = Annotated[
    str | None, typer.Option("--stream", "-s", metavar="NAME", help="Only of this stream.")
]
SeriesName = Annotated[str | None, typer.Option("--series", metavar="NAME", help="Only of this series.")]
KindName = Annotated[Kind | None, typer.Option("--kind", help="Only of this kind.")]
StateName = Annotated[State | None, typer.Option("--state", help="Only in this state.")]


@group.command(epilog="Example: `offbeat alerts tail --stream pumps --state firing`")
def tail(
    *,
    stream: StreamName = None,
    series: SeriesName = None,
    kind: KindName = None,
    state: StateName = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", min=0, help="Of the past, to begin with.")
    ] = 10,
    seconds: Seconds = None,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Show the last alerts, then each new one as it comes, until stopped (Ctrl-C)."""
    from offbeat import app
    from offbeat.stored_alerts import Wanted

    wanted, loaded = Wanted(stream, series, kind, state), load_config(config)
    with stopping() as stop, app.open_bus(loaded.bus) as broker, stored_alerts(loaded, broker) as stored:
        stop.after(seconds)
        for alert in deque(filter(wanted, stored.past()), lines):
            _print(alert, json=json)
        sys.stdout.flush()
        for alert in filter(wanted, stored.following(stop)):
            _print(alert, json=json)
            sys.stdout.flush()


@group.command("list", epilog="Example: `offbeat alerts list --state firing --json | jq .series`")
def list_alerts(
    *,
    stream: StreamName = None,
    series: SeriesName = None,
    kind: KindName = None,
    state: StateName = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="At most so many, the latest.")
    ] = 50,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """List alerts in the order in which they started, each as it stands now."""
    from offbeat import app
    from offbeat.controls import standing
    from offbeat.feedback import of_alert
    from offbeat.show import LIST_HEADERS, list_row
    from offbeat.stored_alerts import Wanted

    wanted, loaded = Wanted(stream, series, kind, state), load_config(config)
    with app.open_bus(loaded.bus) as broker, stored_alerts(loaded, broker) as stored:
        revisions, view = stored.revisions(), standing(loaded, broker)
    found = [each for each in revisions.values() if wanted(each[-1])]
    found.sort(key=lambda each: (each[-1].started_at, each[-1].id))
    if json:
        for each in found[-limit:]:
            typer.echo(each[-1].model_dump_json())
    elif found:
        print_columns(LIST_HEADERS, [list_row(each, of_alert(view, each[-1].id)) for each in found[-limit:]])
    if not found:
        typer.echo("no alerts" + (" that fit" if revisions else " yet"), err=True)
    elif len(found) > limit:
        typer.echo(f"the latest {limit} of {len(found):,} alerts; --limit shows more", err=True)


@group.command(epilog="Examples: `offbeat alerts show 1f0c2a`; `offbeat alerts show last`")
def show(
    *,
    alert_id: Annotated[
        str, typer.Argument(metavar="ID", help="Its id, or the beginning of it; `last` is the latest one.")
    ],
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Show all of one alert: its scores, each feature as observed and expected, and the window around it.

    What people said of it, and the silences whose windows it reached into, are shown as well.
    """
    from offbeat import app
    from offbeat.controls import standing
    from offbeat.feedback import of_alert
    from offbeat.silencing import silences_of
    from offbeat.stored_alerts import as_it_stands, chosen

    loaded = load_config(config)
    with app.open_bus(loaded.bus) as broker, stored_alerts(loaded, broker) as stored:
        revisions, view = chosen(stored.revisions(), alert_id), standing(loaded, broker)
    said = of_alert(view, revisions[-1].id)
    silences = silences_of(as_it_stands(revisions), view.silences.values(), datetime.now(UTC))
    if json:
        print_json(
            {
                "revisions": [each.model_dump(mode="json") for each in revisions],
                "feedback": [each.model_dump(mode="json") for each in said],
                "silences": [
                    {**each.record.model_dump(mode="json"), "window": [start.isoformat(), end.isoformat()]}
                    for each, (start, end) in silences
                ],
            }
        )
    else:
        _show(revisions, said, silences)


def _print(alert: Alert, *, json: bool) -> None:
    from offbeat.show import line

    typer.echo(alert.model_dump_json() if json else line(alert))


def _show(
    revisions: Sequence[Alert], said: Sequence[Feedback], silences: Sequence[tuple[Standing, Span]]
) -> None:
    from offbeat.show import facts

    for name, text in facts(revisions, said, silences):
        typer.echo(f"{name:<14} {text}")
    first = revisions[0]
    if not first.features:
        return
    typer.echo("\nThe window when it fired, newest row last; above as observed, below as expected:\n")
    print_features(first.features)


def add_to(cli: typer.Typer) -> None:
    """Register the commands."""
    feedback.add_to(group)
    cli.add_typer(group, name="alerts")
