"""How a command ends: one clear sentence and an exit code, never a traceback that nobody asked for."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from pipeline.errors import OffbeatError

UNEXPECTED, INTERRUPTED = 70, 130


class Front(TyperGroup):
    """The group of all commands; the one place where errors become sentences."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own context and result
        """Run the chosen command."""
        debug = ctx.params.get("debug", False)
        try:
            return super().invoke(ctx)
        except OffbeatError as error:
            if debug:
                traceback.print_exc()
            complain(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from None
        except Exception as error:
            if hasattr(error, "exit_code"):  # typer's own: a wrong option, an orderly exit
                raise
            if debug:
                traceback.print_exc()
            complain(f"offbeat failed unexpectedly ({type(error).__name__}: {error}); {_kept_where()}")
            raise typer.Exit(UNEXPECTED) from None


def complain(message: str) -> None:
    """Say on standard error what is wrong."""
    typer.secho("error: ", fg=typer.colors.RED, bold=True, err=True, nl=False)
    typer.echo(message, err=True)


def _kept_where() -> str:
    """Keep the traceback of the exception at hand, and say where it is."""
    try:
        descriptor, name = tempfile.mkstemp(prefix="offbeat-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            traceback.print_exc(file=file)
    except OSError:
        return "run it again as `offbeat --debug ...` to see the traceback"
    return f"this is a bug: please report it with the traceback in {Path(name)}"
