"""The command line: ``offbeat COMMAND``; every command loads what it needs only when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from offbeat.cli import (
    alerts,
    bench,
    config,
    demo,
    detect,
    doctor,
    explain,
    model_files,
    models,
    notifications,
    notify,
    produce,
    replay,
    retrain,
    run,
    silences,
    thresholds,
    topics,
    train,
)
from offbeat.cli.errors import Front

__all__ = ["cli", "main"]

cli = typer.Typer(
    cls=Front,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Start with `offbeat demo`, or with `offbeat config example > offbeat.yaml`.",
)


def _version(asked: bool) -> None:  # noqa: FBT001 - typer calls it
    if asked:
        from importlib.metadata import version

        typer.echo(f"offbeat {version('offbeat')}")
        raise typer.Exit


@cli.callback()
def _front(
    *,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="OFFBEAT_DEBUG", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Watch streams of events, and say what is off."""
    del debug, version  # the group reads the one, a callback has answered the other


for module in (
    demo,
    produce,
    train,
    retrain,
    detect,
    notify,
    run,
    alerts,
    notifications,
    silences,
    replay,
    explain,
    models,
    thresholds,
    topics,
    config,
    doctor,
    bench,
):
    module.add_to(cli)
model_files.add_to(models.group)


def main() -> None:
    """The entry point of the program ``offbeat``."""
    cli(prog_name="offbeat")
