"""``offbeat bench``: what this machine and this bus can do, in a minute."""

from __future__ import annotations

import signal
from typing import Annotated, Any

import typer

from offbeat.cli.columns import print_columns
from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, load_config, print_json


def bench(
    *,
    config: ConfigFile = DEFAULT_CONFIG,
    records: Annotated[
        int,
        typer.Option(
            "--records", metavar="N", min=64_000, max=50_000_000, help="About so many are written and read."
        ),
    ] = 400_000,
    json: Json = False,
) -> None:
    """Measure the bus of the configuration: rates, CPU, and the time from an event to its alert.

    Made-up readings go into topics of its own (offbeat-bench-*), which are deleted at the end, also after
    Ctrl-C; streams, models and state of the configuration are not touched. State is kept in an embedded
    server meanwhile. Takes about a minute.
    """
    from offbeat.benchmark.short import run

    loaded = load_config(config)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was made is deleted
    try:
        found = run(loaded, records, lambda text: typer.echo(text, err=True))
    finally:
        signal.signal(signal.SIGTERM, before)
    if json:
        print_json(found)
    else:
        _tell(found)


def _tell(found: dict[str, Any]) -> None:
    alone, scopes, live = found["consume"], found["whole_path"], found["latency"]
    typer.echo(
        f"\n{found['server']} at {found['bus']}, {found['records']:,} records, one process, one partition\n"
    )
    print_columns(
        ["", " records/s", " CPU s per million", " to consuming"],
        [
            _row("consume", alone, alone),
            _row("whole path, one shared model", scopes["shared"], alone),
            _row("whole path, 1,000 models", scopes["stacked"], alone),
        ],
    )
    rate, alerts = f"{live['records_per_s']:,} records/s", f"{live['alerts']:,} alerts"
    typer.echo(f"\nfrom produce to committed alert, at {rate}, of {alerts}\n")
    milliseconds = [f"{live[each]:.0f}" for each in ("p50_ms", "p99_ms", "max_ms")]
    print_columns(
        [" median ms", " 99th percentile", " slowest", " of a core, the worker"],
        [[*milliseconds, f"{live['core']:.2f}"]],
    )


def _row(name: str, figures: dict[str, float], alone: dict[str, float]) -> list[str]:
    rate = figures["records_per_s"]
    share = rate / alone["records_per_s"]
    return [name, f"{round(rate, -3):,.0f}", f"{figures['cpu_s_per_million']:.2f}", f"{share:.2f}"]


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(epilog="Examples: `offbeat bench`; `offbeat bench --records 2000000 --json | jq .latency`")(
        bench
    )
