"""``offbeat run``: all workers, the retrainers and the notifier of a small installation, supervised."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, Seconds, load_config, print_json
from offbeat.cli.stopping import stopping


def run(
    *,
    config: ConfigFile = DEFAULT_CONFIG,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, max=64, help="Worker processes of each stream.")
    ] = 1,
    seconds: Seconds = None,
    json: Json = False,
) -> None:
    """Run every stream: `detect` for each stream and slot, `retrain` for each stream, and `notify`.

    Processes that crash are started again.
    Ctrl-C or SIGTERM stops all of them in order; nothing is left running, also when this process is killed.
    """
    from offbeat import app
    from offbeat.supervisor import Child, supervise

    loaded = load_config(config)
    path = str(Path(config).absolute())
    common = ["--config", path, *(["--json"] if json else [])]
    children = [
        Child(f"{name}/{slot}", ["detect", name, "--slot", str(slot), *common])
        for name in loaded.streams
        for slot in range(workers)
    ]
    children += [Child(f"{name}/retrain", ["retrain", name, *common]) for name in loaded.streams]
    children.append(Child("notify/0", ["notify", *common]))

    def notice(message: str) -> None:
        if json:
            print_json({"event": "notice", "worker": "run", "message": message})
        else:
            typer.echo(f"{datetime.now(UTC):%H:%M:%S} run {message}")
        sys.stdout.flush()

    with ExitStack() as opened:
        stop = opened.enter_context(stopping())
        if loaded.state.startswith("embedded:"):  # its owner; the workers join it
            opened.enter_context(app.open_state(loaded))
        stop.after(seconds)
        notice(f"starting {', '.join(child.name for child in children)}")
        supervise(children, stop, notice)
        notice("stopped")


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(
        epilog="Examples: `offbeat run`; `offbeat run --workers 2 --config /etc/offbeat/offbeat.yaml`"
    )(run)
