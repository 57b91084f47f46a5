"""Options that many commands share, and what they stand for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import Config

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration.", show_default=True)
]
DEFAULT_CONFIG = Path("offbeat.yaml")
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Seconds = Annotated[float | None, typer.Option("--seconds", metavar="S", min=0, help="Stop after so long.")]
StreamArgument = Annotated[
    str | None,
    typer.Argument(metavar="[STREAM]", help="Its name; may be left out where there is only one."),
]


def load_config(path: Path) -> Config:
    """Read the configuration; raises ConfigError as :func:`pipeline.config.load`."""
    from pipeline.config import load

    return load(path)


def chosen_stream(config: Config, name: str | None) -> str:
    """The stream that was named, or the only one there is.

    Raises:
        ConfigError: there is none of that name, or several and none was named.
    """
    if name is None:
        if len(config.streams) > 1:
            raise ConfigError(
                f"which stream? The configuration has {', '.join(config.streams)}; name one of them"
            )
        return next(iter(config.streams))
    config.stream(name)
    return name


def parsed_time(text: str, option: str) -> datetime:
    """An ISO 8601 time as given; without a zone it is UTC.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} is {text!r}; give an ISO 8601 time, such as 2026-03-01T12:00 (UTC unless it says)"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def print_json(value: Any, *, err: bool = False) -> None:  # noqa: ANN401 - any JSON value
    """One JSON value on one line, of standard output or of standard error."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=str), err=err)
