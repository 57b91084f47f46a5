"""``offbeat config``: check a configuration, put it in force, or get one to begin with."""

from __future__ import annotations

import json as json_lines
from typing import Annotated

import typer

from offbeat.cli.columns import counted
from offbeat.cli.options import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    chosen_stream,
    load_config,
    print_json,
)

group = typer.Typer(no_args_is_help=True, help="Check a configuration, put it in force, or begin one.")


@group.command(epilog="Example: `offbeat config check --config /etc/offbeat/offbeat.yaml`")
def check(*, config: ConfigFile = DEFAULT_CONFIG, json: Json = False) -> None:
    """Check a configuration; every mistake is told with its file, line and path."""
    loaded = load_config(config)
    if json:
        print_json(loaded.model_dump(mode="json", by_alias=True))
        return
    typer.echo(f"{config} is good: {counted(len(loaded.streams), 'stream')}")
    for name, stream in loaded.streams.items():
        typer.echo(
            f"  {name}: topic {stream.topic}, features {', '.join(stream.feature_names)}, "
            f"{stream.transforms}, windows of {stream.model.window} rows, "
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


@group.command(
    epilog="Examples: `offbeat config apply`; `offbeat config apply pumps --yes --why 'fewer false alarms'`"
)
def apply(
    *,
    streams: Annotated[
        list[str] | None, typer.Argument(metavar="[STREAM]...", help="Only these streams; default: all.")
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    why: Annotated[
        str, typer.Option("--why", metavar="TEXT", help="The reason, kept with the change for ever.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Put the configuration's streams in force: workers take the change up between two batches.

    The difference is shown first. Each stream's section is a policy, known by the hash of its content, and is
    written to the control topic with who, when and why.
    """
    from offbeat import app
    from offbeat.controls import Control, difference, who
    from pipeline.control import policy_sha, settings_of
    from pipeline.errors import OffbeatError

    loaded = load_config(config)
    names = [chosen_stream(loaded, name) for name in streams or loaded.streams]
    with app.open_bus(loaded.bus) as broker:
        control = Control(loaded, broker, who("offbeat config apply"))
        view, changed = control.view(), dict[str, str | None]()
        for name in names:
            before, settings = view.policies.get(name), settings_of(loaded.stream(name))
            if before == policy_sha(settings):
                if not json:
                    typer.echo(f"{name}: in force already")
                continue
            changed[name] = before
            if not json:
                typer.echo(difference(name, view.settings[before] if before else None, settings))
        if changed and not (yes or json or _agreed(len(changed))):
            typer.echo("nothing was changed; --yes does not ask", err=True)
            raise typer.Exit(1)
        for name, before in changed.items():
            if control.view().policies.get(name) != before:
                raise OffbeatError(
                    f"stream {name!r}: another policy was applied meanwhile; look at the difference again"
                )
            sha = control.apply(name, why)
            if json:
                print_json({"stream": name, "policy": sha, "before": before})
            else:
                typer.echo(f"{name}: policy {sha[:12]} is in force")


def _agreed(streams: int) -> bool:
    """Whether a person says yes; no answer is none."""
    try:
        return typer.confirm(f"Put {counted(streams, 'stream')} in force?")
    except typer.Abort:
        return False


def add_to(cli: typer.Typer) -> None:
    """Register the commands."""
    cli.add_typer(group, name="config")
