"""``offbeat notifications``: what was told, read from the notifications topic itself."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, Seconds, load_config
from offbeat.cli.stopping import stopping
from pipeline.errors import NotFound

if TYPE_CHECKING:
    from pipeline.notifications import Notification
    from pipeline.records import RecordBatch

group = typer.Typer(no_args_is_help=True, help="Read what was told.")

_READ_RECORDS = 2_000
_LOOK_S = 0.2


@group.command(epilog="Example: `offbeat notifications tail --stream pumps`")
def tail(
    *,
    stream: Annotated[
        str | None, typer.Option("--stream", "-s", metavar="NAME", help="Only of this stream.")
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", min=0, help="Of the past, to begin with.")
    ] = 10,
    seconds: Seconds = None,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Show the last notifications, then each new one as it comes, until stopped (Ctrl-C).

    Below each stand its worst alerts.
    """
    from offbeat import app
    from pipeline.notifications import Notification, published
    from pipeline.reading import stretch
    from pipeline.records import TopicPartition

    loaded, unreadable = load_config(config), 0

    def wanted(batch: RecordBatch) -> Iterator[Notification]:
        nonlocal unreadable
        found, bad = published(batch, Notification)
        unreadable += bad
        return (each for _, each in found if stream in {None, each.stream})

    with stopping() as stop, app.open_bus(loaded.bus) as broker:
        reader, at = broker.reader(), TopicPartition(loaded.notifications_topic, 0)
        try:
            bounds = reader.bounds(at.topic)[0]
        except NotFound as error:
            raise NotFound(f"{error}; the notifier makes it when it starts (`offbeat notify`)") from error
        stop.after(seconds)
        past = stretch(reader, at, bounds.first_offset, bounds.end_offset)
        _print(deque((each for batch in past for each in wanted(batch)), lines), json=json)
        next_offset = bounds.end_offset
        while not stop():
            batch = reader.read(at, next_offset, _READ_RECORDS, _LOOK_S)
            next_offset = batch.next_offset
            _print(wanted(batch), json=json)
    if unreadable:
        typer.echo(
            f"{unreadable} records of {at.topic} are damaged, or no notifications that this version reads",
            err=True,
        )


def _print(told: Iterable[Notification], *, json: bool) -> None:
    from offbeat.told import lines

    for each in told:
        typer.echo(each.model_dump_json() if json else "\n".join(lines(each)))
    sys.stdout.flush()


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.add_typer(group, name="notifications")
