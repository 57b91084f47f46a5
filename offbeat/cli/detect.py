"""``offbeat detect``: one worker, in the foreground."""

from __future__ import annotations

import dataclasses
import gc
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
)
from offbeat.cli.roles import MetricsPort, Teller, retried, serving, stop_with_parent
from offbeat.cli.stopping import GRACE_S, Stop, stopping

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from pipeline.config import Config
    from pipeline.status import Processed, Status


def _sentence(status: Status, told: str) -> str:
    """A status for people, without the message that they were told last."""
    read = sum(status.bins.values())
    bins = ", ".join(f"{name} {count:,}" for name, count in status.bins.items() if count)
    message = "" if status.message in {"scoring", status.doing, told} else f" ({status.message})"
    return (
        f"{status.doing}{message}: {read:,} records read"
        + (f" ({bins})" if bins else "")
        + f", {status.lag:,} to go, {status.series:,} series, {status.alerts:,} alerts"
        + (f", {status.dead_letters:,} dead letters" if status.dead_letters else "")
    )


def detect(
    *,
    stream: StreamArgument = None,
    config: ConfigFile = DEFAULT_CONFIG,
    slot: Annotated[
        int | None,
        typer.Option(
            "--slot",
            metavar="N",
            min=0,
            max=9_999,
            help="This worker's number; default: the first that is free.",
        ),
    ] = None,
    seconds: Seconds = None,
    until_idle: Annotated[
        float | None,
        typer.Option(
            "--until-idle",
            metavar="S",
            min=0,
            help="Stop when all is read and nothing came for so many seconds.",
        ),
    ] = None,
    metrics_port: MetricsPort = None,
    json: Json = False,
) -> None:
    """Watch a stream: read its topic, score, publish alerts. One worker; start several for more.

    Stops in order on Ctrl-C or SIGTERM: the batch is finished, committed and checkpointed, within 10 s.
    A second Ctrl-C ends it at once; nothing is lost, what was not committed is read again.
    """
    from offbeat import slots

    loaded = load_config(config)
    name = chosen_stream(loaded, stream)
    with stopping(grace_s=GRACE_S) as stop, slots.hold(loaded, name, slot) as number:
        stop_with_parent(stop)
        teller = Teller(f"{name}/{number}", _sentence, json=json)
        stop.after(seconds)
        bounded = seconds is not None or until_idle is not None
        retried(
            lambda: _work(
                loaded, name, number, stop=stop, teller=teller, until_idle_s=until_idle, port=metrics_port
            ),
            stop,
            teller.notice,
            once=bounded,
        )


def _work(
    config: Config,
    name: str,
    slot: int,
    *,
    stop: Stop,
    teller: Teller[Status],
    until_idle_s: float | None,
    port: int | None,
) -> None:
    from consumers import detector
    from offbeat import app
    from offbeat.show import line

    def observe(processed: Processed) -> None:
        for alert in processed.outputs.alerts:
            teller.say("alert", {"alert": alert.model_dump(mode="json")}, f"ALERT {line(alert)}")

    with ExitStack() as opened:
        parts = opened.enter_context(
            app.open_parts(config, name, slot, observe=observe, notice=teller.notice, wait=stop.wait)
        )
        opened.enter_context(serving(lambda: _collector(name, teller), port))
        # What has been imported and opened is no garbage: looking through it took a batch 60 to 100 ms.
        gc.collect()
        gc.freeze()
        status = detector.run(parts, should_stop=stop, on_status=teller.on_status, until_idle_s=until_idle_s)
    teller.tell(dataclasses.replace(status, doing="stopped", message="stopped"))


def _collector(name: str, teller: Teller[Status]) -> Collector:
    from pipeline.metrics import StatusCollector
    from pipeline.status import Status

    nothing = Status("starting", "starting")
    return StatusCollector(name, lambda: teller.status or nothing)


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(
        epilog="Examples: `offbeat detect`; `offbeat detect pumps --until-idle 3`; "
        "`offbeat detect pumps --json | jq .`"
    )(detect)
