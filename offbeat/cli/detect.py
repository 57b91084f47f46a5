"""``offbeat detect``: one worker, in the foreground."""

from __future__ import annotations

import dataclasses
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offbeat.cli.options import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    StreamArgument,
    chosen_stream,
    load_config,
    print_json,
)
from offbeat.cli.stopping import GRACE_S, Stop, stopping
from offbeat.supervisor import SUPERVISED
from pipeline.errors import BusDown, StoreDown

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.status import Processed, Status

STATUS_S = 5.0
MOST_RETRY_S = 10.0


class _Teller:
    """Says what a worker does: lines for people, or JSON objects."""

    def __init__(self, who: str, *, json: bool) -> None:
        self._who, self._json = who, json
        self._doing, self._told, self._at = "", "", 0.0
        self.status: Status | None = None

    def on_status(self, status: Status) -> None:
        """A status that is new, or that was not told for a while."""
        self.status = status
        now = time.monotonic()
        if status.doing == self._doing and now - self._at < STATUS_S:
            return
        self._doing, self._at = status.doing, now
        self.tell(status)

    def tell(self, status: Status) -> None:
        """A status."""
        if self._json:
            self._object("status", dataclasses.asdict(status))
        else:
            self._line(_sentence(status, told=self._told))

    def notice(self, message: str) -> None:
        """What a person should know."""
        self._told = message
        if self._json:
            self._object("notice", {"message": message})
        else:
            self._line(message)

    def observe(self, processed: Processed) -> None:
        """The alerts of a committed batch."""
        from offbeat.show import line

        for alert in processed.outputs.alerts:
            if self._json:
                self._object("alert", {"alert": alert.model_dump(mode="json")})
            else:
                self._line(f"ALERT {line(alert)}")

    def _line(self, text: str) -> None:
        typer.echo(f"{datetime.now(UTC):%H:%M:%S} {self._who} {text}")
        sys.stdout.flush()

    def _object(self, event: str, value: dict[str, Any]) -> None:
        print_json({"event": event, "worker": self._who, **value})
        sys.stdout.flush()


def _sentence(status: Status, *, told: str) -> str:
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
    seconds: Annotated[
        float | None, typer.Option("--seconds", metavar="S", min=0, help="Stop after so long.")
    ] = None,
    until_idle: Annotated[
        float | None,
        typer.Option(
            "--until-idle",
            metavar="S",
            min=0,
            help="Stop when all is read and nothing came for so many seconds.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", metavar="PORT", min=1, max=65_535, help="Serve Prometheus metrics on 127.0.0.1."
        ),
    ] = None,
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
        if SUPERVISED in os.environ:
            _stop_with_parent(stop)
        teller = _Teller(f"{name}/{number}", json=json)
        stop.after(seconds)
        bounded = seconds is not None or until_idle is not None
        _retried(
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
    teller: _Teller,
    until_idle_s: float | None,
    port: int | None,
) -> None:
    from consumers import detector
    from offbeat import app

    with ExitStack() as opened:
        parts = opened.enter_context(
            app.open_parts(config, name, slot, observe=teller.observe, notice=teller.notice, wait=stop.wait)
        )
        if port is not None:
            _serve_metrics(opened, name, teller, port)
        # What has been imported and opened is no garbage: looking through it took a batch 60 to 100 ms.
        gc.collect()
        gc.freeze()
        status = detector.run(parts, should_stop=stop, on_status=teller.on_status, until_idle_s=until_idle_s)
    teller.tell(dataclasses.replace(status, doing="stopped", message="stopped"))


def _serve_metrics(opened: ExitStack, name: str, teller: _Teller, port: int) -> None:
    from pipeline import metrics
    from pipeline.status import Status

    nothing = Status("starting", "starting")
    server = metrics.serve(metrics.StatusCollector(name, lambda: teller.status or nothing), port)
    opened.callback(server.server_close)
    opened.callback(server.shutdown)


def _retried(work: Callable[[], None], stop: Stop, notice: Callable[[str], None], *, once: bool) -> None:
    """A worker that has no end waits for its servers to come up; one that has an end says what is missing."""
    pause_s = 1.0
    while not stop():
        try:
            work()
        except (BusDown, StoreDown) as error:
            if once:
                raise
            notice(f"{error}; trying again in {pause_s:g} s")
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, MOST_RETRY_S)
        else:
            return


def _stop_with_parent(stop: Stop) -> None:
    """Stop in order when our supervisor, who holds the other end of standard input, is gone, however."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        stop.asked = True

    threading.Thread(target=watch, daemon=True).start()


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(
        epilog="Examples: `offbeat detect`; `offbeat detect pumps --until-idle 3`; "
        "`offbeat detect pumps --json | jq .`"
    )(detect)
