"""``offbeat alerts``: what was published, read from the alerts topic itself."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from offbeat.cli.columns import print_columns
from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, load_config
from offbeat.cli.stopping import stopping
from pipeline.errors import NotFound

if TYPE_CHECKING:
    from pathlib import Path

    from offbeat.stored_alerts import StoredAlerts
    from pipeline.alerts import Alert

group = typer.Typer(no_args_is_help=True, help="Read the alerts that were published.")


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


@contextmanager
def _stored(config: Path) -> Iterator[StoredAlerts]:
    from offbeat import app
    from offbeat.stored_alerts import StoredAlerts

    loaded = load_config(config)
    with app.open_bus(loaded.bus) as broker:
        stored = StoredAlerts(broker.reader(), loaded.alerts_topic)
        yield stored
        if stored.unreadable:
            typer.echo(
                f"{stored.unreadable} records of {loaded.alerts_topic} are damaged, or no alerts that this "
                "version reads",
                err=True,
            )


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
    seconds: Annotated[
        float | None, typer.Option("--seconds", metavar="S", min=0, help="Stop after so long.")
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Show the last alerts, then each new one as it comes, until stopped (Ctrl-C)."""
    from offbeat.stored_alerts import Wanted

    wanted = Wanted(stream, series, kind, state)
    with stopping() as stop, _stored(config) as stored:
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
    from offbeat.show import LIST_HEADERS, list_row
    from offbeat.stored_alerts import Wanted

    wanted = Wanted(stream, series, kind, state)
    with _stored(config) as stored:
        revisions = _revisions(stored)
    found = [each for each in revisions.values() if wanted(each[-1])]
    found.sort(key=lambda each: (each[-1].started_at, each[-1].id))
    if json:
        for each in found[-limit:]:
            typer.echo(each[-1].model_dump_json())
    elif found:
        print_columns(LIST_HEADERS, [list_row(each) for each in found[-limit:]])
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

    With --json each revision is one line, the oldest first.
    """
    with _stored(config) as stored:
        revisions = _revisions(stored)
    if alert_id == "last" and revisions:
        found = [max(revisions, key=lambda key: (revisions[key][-1].started_at, key))]
    else:
        found = [key for key in revisions if key.startswith(alert_id)]
    if len(found) != 1:
        several = (
            f"{len(found)} alerts have ids that begin with" if found else "there is no alert with the id"
        )
        raise NotFound(f"{several} {alert_id!r}; `offbeat alerts list` shows them (the id stands last)")
    if json:
        for revision in revisions[found[0]]:
            typer.echo(revision.model_dump_json())
    else:
        _show(revisions[found[0]])


def _revisions(stored: StoredAlerts) -> dict[str, list[Alert]]:
    """The revisions of each alert, the oldest first."""
    revisions: dict[str, dict[int, Alert]] = {}
    for alert in stored.past():
        revisions.setdefault(alert.id, {})[alert.revision] = alert
    return {key: [found[number] for number in sorted(found)] for key, found in revisions.items()}


def _print(alert: Alert, *, json: bool) -> None:
    from offbeat.show import line

    typer.echo(alert.model_dump_json() if json else line(alert))


def _show(revisions: list[Alert]) -> None:
    from offbeat.show import facts, measured, picture

    for name, text in facts(revisions):
        typer.echo(f"{name:<14} {text}")
    first = revisions[0]
    if not first.features:
        return
    typer.echo("\nThe window when it fired, newest row last; above as observed, below as expected:\n")
    rows = []
    for each in first.features:
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


def add_to(cli: typer.Typer) -> None:
    """Register the commands."""
    cli.add_typer(group, name="alerts")
