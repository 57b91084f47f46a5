"""``offbeat retrain``: the retrainer of a stream, in the foreground, or one training now."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from offbeat.cli.options import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    Seconds,
    StreamArgument,
    chosen_stream,
    load_config,
    print_json,
)
from offbeat.cli.roles import MetricsPort, Teller, retried, serving, stop_with_parent
from offbeat.cli.stopping import GRACE_S, Stop, stopping
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from consumers.attempt import Outcome
    from consumers.retrainer import Status
    from pipeline.config import Config

_ASKED = "somebody asked for it"


def retrain(
    *,
    stream: StreamArgument = None,
    config: ConfigFile = DEFAULT_CONFIG,
    once: Annotated[bool, typer.Option("--once", help="Train now, and end.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --once: put the new model to use whatever the gate says.")
    ] = False,
    why: Annotated[
        str | None, typer.Option("--why", help="The reason, for the audit log; --force needs one.")
    ] = None,
    seconds: Seconds = None,
    metrics_port: MetricsPort = None,
    json: Json = False,
) -> None:
    """Keep a stream's model fresh: train one when it is due, and put it to use if the gate finds it no worse.

    A stream without a model trains as soon as it has enough rows, and then every `training.every`. Several
    may run: one trains a stream at a time. Stops in order on Ctrl-C or SIGTERM; nothing half-made is used.
    """
    loaded = load_config(config)
    name = chosen_stream(loaded, stream)
    if force and not (once and why):
        raise ConfigError("--force puts a model to use against the gate: it takes --once, and a --why to log")
    if why and not once:
        raise ConfigError("--why is the reason of one training; it takes --once")
    with stopping(grace_s=GRACE_S) as stop:
        stop_with_parent(stop)
        stop.after(seconds)
        teller = Teller(f"{name}/retrain", _sentence, json=json)
        if once:
            _once(loaded, name, stop, teller, why or _ASKED, force=force, json=json)
        else:
            retried(
                lambda: _work(loaded, name, stop, teller, metrics_port),
                stop,
                teller.notice,
                once=seconds is not None,
            )


def _once(
    config: Config, name: str, stop: Stop, teller: Teller[Status], why: str, *, force: bool, json: bool
) -> None:
    from consumers.retrainer import Retrainer
    from offbeat import app
    from offbeat.controls import who

    opened = app.open_retrainer(
        config, name, who("offbeat retrain"), should_stop=stop, notice=teller.notice, wait=stop.wait
    )
    with opened as parts:
        outcome = Retrainer(parts, teller.on_status).once(why, force=why if force else None)
    if json:
        print_json({"event": "outcome", "stream": name, **dataclasses.asdict(outcome)})
        return
    for each in filter(None, (outcome.refused, outcome)):
        _tell(each, name)


def _tell(outcome: Outcome, name: str) -> None:
    bundle = outcome.bundle_id[:12]
    typer.echo(outcome.why)
    if outcome.promoted:
        typer.echo(f"bundle {bundle} is in use for stream {name!r} now")
    else:
        typer.echo(
            f"bundle {bundle} is kept, and not in use: `offbeat models show {name} {bundle}` has figures; "
            f"`offbeat models promote {name} {bundle} --why ...` puts it to use all the same"
        )


def _work(config: Config, name: str, stop: Stop, teller: Teller[Status], port: int | None) -> None:
    from consumers import retrainer
    from offbeat import app
    from offbeat.controls import who

    with ExitStack() as opened:
        parts = opened.enter_context(
            app.open_retrainer(
                config, name, who("offbeat retrain"), should_stop=stop, notice=teller.notice, wait=stop.wait
            )
        )
        nothing = retrainer.Status("starting")
        opened.enter_context(
            serving(lambda: retrainer.StatusCollector(name, lambda: teller.status or nothing), port)
        )
        status = retrainer.run(parts, on_status=teller.on_status)
    teller.tell(dataclasses.replace(status, doing="stopped", message="", fraction=None, next_at=None))


def _sentence(status: Status, told: str) -> str:
    """A status for people, without the message that they were told last."""
    done = "" if status.fraction is None else f" {status.fraction:.0%}"
    message = "" if status.message in {"", told} else f": {status.message}"
    used = f"{status.bundle_id[:12]} in use" if status.bundle_id else "no model yet"
    return f"{status.doing}{done}{message} ({used}, {status.promoted} promoted, {status.refused} refused)"


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(
        epilog="Examples: `offbeat retrain`; `offbeat retrain pumps --once`; "
        '`offbeat retrain pumps --once --force --why "the new pumps run hotter"`'
    )(retrain)
