"""``offbeat config``: check a configuration, or get one to begin with."""

from __future__ import annotations

import json as json_lines

import typer

from offbeat.cli.columns import counted
from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, load_config, print_json

group = typer.Typer(no_args_is_help=True, help="Check a configuration, or write one to begin with.")


@group.command(epilog="Example: `offbeat config check --config /etc/offbeat/offbeat.yaml`")
def check(*, config: ConfigFile = DEFAULT_CONFIG, json: Json = False) -> None:
    """Check a configuration; every mistake is told with its file, line and path."""
    from offbeat.app import transforms

    loaded = load_config(config)
    if json:
        print_json(loaded.model_dump(mode="json", by_alias=True))
        return
    typer.echo(f"{config} is good: {counted(len(loaded.streams), 'stream')}")
    for name, stream in loaded.streams.items():
        typer.echo(
            f"  {name}: topic {stream.topic}, features {', '.join(stream.feature_names)}, "
            f"{transforms(stream)}, windows of {stream.model.window} rows, "
            f"{stream.threshold.policy} threshold"
        )


@group.command(epilog="Example: `offbeat config schema > offbeat.schema.json`")
def schema() -> None:
    """Print the JSON Schema of the configuration; editors use it to complete and to check."""
    from offbeat.schemas import config_schema

    typer.echo(json_lines.dumps(config_schema(), indent=2))


@group.command(epilog="Example: `offbeat config example > offbeat.yaml`")
def example() -> None:
    """Print a configuration with comments, to begin with."""
    from importlib.resources import files

    typer.echo((files("offbeat") / "example.yaml").read_text(encoding="utf-8"), nl=False)


def add_to(cli: typer.Typer) -> None:
    """Register the commands."""
    cli.add_typer(group, name="config")
