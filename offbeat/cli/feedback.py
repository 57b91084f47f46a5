"""``offbeat alerts ack|confirm|false-alarm|accept`` and ``summary``: what people say of alerts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offbeat.cli.columns import print_columns
from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, load_config, print_json
from offbeat.cli.stored import alerts_so_far, stored_alerts

if TYPE_CHECKING:
    from pipeline.control import Verdict

AlertIds = Annotated[
    list[str],
    typer.Argument(
        metavar="ID",
        help="Their ids, or the beginnings of them; `last` is the latest one.",
        show_default=False,
    ),
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, kept with it for ever.")]


def ack(*, ids: AlertIds, why: Why = "", config: ConfigFile = DEFAULT_CONFIG, json: Json = False) -> None:
    """Say that somebody looks after alerts: they are not told again while they are open."""
    _say("ack", ids, why, config, json=json)


def confirm(*, ids: AlertIds, why: Why = "", config: ConfigFile = DEFAULT_CONFIG, json: Json = False) -> None:
    """Say that alerts were right; it takes back that they were called false alarms."""
    _say("confirm", ids, why, config, json=json)


def false_alarm(
    *, ids: AlertIds, why: Why = "", config: ConfigFile = DEFAULT_CONFIG, json: Json = False
) -> None:
    """Say that alerts were wrong: each raises the line of its stream by `alerts.raise_by`.

    All of a stream raise it by no more than `alerts.raise_most`; `confirm` takes it back.
    """
    _say("false alarm", ids, why, config, json=json)


def accept(*, ids: AlertIds, why: Why = "", config: ConfigFile = DEFAULT_CONFIG, json: Json = False) -> None:
    """Say that what the alerts' series do now is their new normal.

    Their open alerts close, and their thresholds start again from what they do then.
    """
    _say("accept", ids, why, config, json=json)


def summary(
    *,
    stream: Annotated[
        str | None, typer.Option("--stream", "-s", metavar="NAME", help="Only of this stream.")
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Count alerts, and what was said of them, by stream, and show how far false alarms raised its line.

    Alerts are counted as long as their topic keeps them, 30 days; what was said is counted for ever.
    """
    from offbeat import app
    from offbeat.controls import standing
    from offbeat.feedback import summary as summed

    loaded = load_config(config)
    with app.open_bus(loaded.bus) as broker:
        revisions, view = alerts_so_far(loaded, broker), standing(loaded, broker)
    found = [each for each in summed(loaded.streams, view, revisions) if stream in {None, each.stream}]
    if not found:
        loaded.stream(stream or "")
    if json:
        for each in found:
            print_json(dataclasses.asdict(each))
        return
    headers = [
        "stream",
        " alerts",
        " open",
        " critical",
        " silenced",
        " acked",
        " confirmed",
        " false alarms",
    ]
    print_columns(
        [*headers, " accepted", "line"],
        [
            [
                each.stream,
                *(
                    f"{count:,}"
                    for count in (
                        each.alerts,
                        each.open,
                        each.critical,
                        each.silenced,
                        each.acked,
                        each.confirmed,
                        each.false_alarms,
                        each.accepted,
                    )
                ),
                str(each.rise),
            ]
            for each in found
        ],
    )


def _say(verdict: Verdict, ids: list[str], why: str, config: Path, *, json: bool) -> None:
    from offbeat import app
    from offbeat.controls import Control, who
    from offbeat.feedback import SAID, Rise, check, effect
    from offbeat.stored_alerts import as_it_stands, chosen

    loaded = load_config(config)
    with app.open_bus(loaded.bus) as broker:
        with stored_alerts(loaded, broker) as stored:
            revisions = stored.revisions()
        alerts = {each[-1].id: as_it_stands(each) for each in (chosen(revisions, name) for name in ids)}
        for alert in alerts.values():
            check(alert, verdict)
        control = Control(loaded, broker, who(f"offbeat alerts {verdict.replace(' ', '-')}"))
        for alert in alerts.values():
            said, view = control.feedback(alert, verdict, why)
            rise = Rise.of(view, alert.stream)
            if json:
                print_json({**said.model_dump(mode="json"), "rise": dataclasses.asdict(rise)})
            else:
                typer.echo(
                    f"{alert.id[:12]} ({alert.stream}, {alert.series}) is {SAID[verdict]}: "
                    f"{effect(alert, verdict, rise)}"
                )


def add_to(group: typer.Typer) -> None:
    """Register the commands under ``offbeat alerts``."""
    for name, command, example in (
        ("ack", ack, "offbeat alerts ack 1f0c2a --why 'on my way'"),
        ("confirm", confirm, "offbeat alerts confirm last --why 'the bearing was hot'"),
        ("false-alarm", false_alarm, "offbeat alerts false-alarm 1f0c2a 9d41b7"),
        ("accept", accept, "offbeat alerts accept last --why 'a bigger pump since today'"),
        ("summary", summary, "offbeat alerts summary"),
    ):
        group.command(name, epilog=f"Example: `{example}`")(command)
