"""``offbeat notify``: the notifier, in the foreground."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from offbeat.cli.columns import counted
from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, Seconds, load_config
from offbeat.cli.roles import Teller, retried, stop_with_parent
from offbeat.cli.stopping import GRACE_S, Stop, stopping

if TYPE_CHECKING:
    from consumers.notifier import Status
    from pipeline.config import Config
    from pipeline.notifications import Notification


def notify(
    *,
    config: ConfigFile = DEFAULT_CONFIG,
    seconds: Seconds = None,
    json: Json = False,
) -> None:
    """Decide what people are told: incidents of all streams, silences, repeats. One works, others stand by.

    What is told is written to the notifications topic (`offbeat notifications tail`). Stops in order on
    Ctrl-C or SIGTERM; a second one ends it at once; nothing is lost or told twice either way.
    """
    loaded = load_config(config)
    with stopping(grace_s=GRACE_S) as stop:
        stop_with_parent(stop)
        teller = Teller("notify/0", _sentence, json=json)
        stop.after(seconds)
        retried(lambda: _work(loaded, stop, teller), stop, teller.notice, once=seconds is not None)


def _work(config: Config, stop: Stop, teller: Teller[Status]) -> None:
    from consumers import notifier
    from offbeat import app
    from offbeat.told import line

    def observe(told: Notification) -> None:
        teller.say("notification", {"notification": told.model_dump(mode="json")}, f"TOLD {line(told)}")

    with app.open_notifier(config, observe=observe, notice=teller.notice, wait=stop.wait) as parts:
        status = notifier.run(parts, should_stop=stop, on_status=teller.on_status)
    teller.tell(dataclasses.replace(status, doing="stopped", message=""))


def _sentence(status: Status, told: str) -> str:
    """A status for people, without the message that they were told last."""
    message = f" ({status.message})" if status.message not in {"", told} else ""
    parts = [
        f"{counted(status.open, 'incident')} open",
        f"{counted(status.waiting, 'alert')} to be told",
        f"{status.held:,} held back",
        counted(status.told, "notification"),
    ]
    if status.unreadable:
        parts.append(f"{counted(status.unreadable, 'record')} unreadable")
    return f"{status.doing}{message}: {', '.join(parts)}"


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(epilog="Examples: `offbeat notify`; `offbeat notify --json | jq .`")(notify)
