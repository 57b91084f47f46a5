"""``offbeat doctor``: what is there, what is missing, and what to do about it."""

from __future__ import annotations

import dataclasses

import typer

from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, load_config, print_json

NEEDS_MENDING = 1
_COLOURS = {"ok": typer.colors.GREEN, "note": typer.colors.YELLOW, "mend": typer.colors.RED}


def doctor(*, config: ConfigFile = DEFAULT_CONFIG, json: Json = False) -> None:
    """Look an installation over: bus, state, topics, keys, lag and models, and what to do about each.

    Exits with 1 when something needs mending.
    """
    from offbeat.doctor import Level, examine

    loaded = load_config(config)
    counts = dict.fromkeys(Level, 0)
    for finding in examine(loaded):
        counts[finding.level] += 1
        if json:
            print_json(dataclasses.asdict(finding))
            continue
        typer.secho(f"{finding.level:<4}", fg=_COLOURS[finding.level], nl=False)
        typer.echo(f"  {finding.about}: {finding.found}")
        if finding.remedy:
            typer.echo(f"      {finding.remedy}")
    if not json:
        typer.echo(f"{counts[Level.OK]} good, {counts[Level.NOTE]} to know, {counts[Level.MEND]} to mend")
    if counts[Level.MEND]:
        raise typer.Exit(NEEDS_MENDING)


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(
        epilog="Examples: `offbeat doctor`; `offbeat doctor --json | jq 'select(.level == \"mend\")'`"
    )(doctor)
