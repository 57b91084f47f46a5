"""``offbeat topics``: the topics that an installation needs."""

from __future__ import annotations

from typing import Annotated

import typer

from offbeat.cli.columns import counted, print_columns
from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, load_config, print_json

group = typer.Typer(no_args_is_help=True, help="Make and list topics.")


@group.command(epilog="Examples: `offbeat topics create`; `offbeat topics create pumps --partitions 12`")
def create(
    *,
    streams: Annotated[
        list[str] | None, typer.Argument(metavar="[STREAM]...", help="Only the topics of these streams.")
    ] = None,
    partitions: Annotated[
        int,
        typer.Option(
            "--partitions", metavar="N", min=1, max=10_000, help="Of an input topic that has to be made."
        ),
    ] = 1,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Make the topics that are missing: of streams their input and journals, and those that they share.

    Topics that exist stay as they are. Input, journals and control are kept for ever, all others 30 days.
    """
    from offbeat import app

    loaded = load_config(config)
    names = streams or list(loaded.streams)
    specs = [*app.input_topics(loaded, names, partitions), *app.output_topics(loaded)]
    with app.open_bus(loaded.bus) as broker:
        admin = broker.admin()
        made = admin.create(specs)
        journals = app.journal_topics(loaded, names, broker)
        made += admin.create(journals)
        specs += journals
    if json:
        print_json({"made": made, "there_already": [spec.name for spec in specs if spec.name not in made]})
        return
    for spec in specs:
        if spec.name in made:
            typer.echo(f"made {spec.name} with {counted(spec.partitions, 'partition')}")
        else:
            typer.echo(f"{spec.name} is there already")


@group.command("list", epilog="Example: `offbeat topics list`")
def list_topics(*, config: ConfigFile = DEFAULT_CONFIG, json: Json = False) -> None:
    """List the topics of the bus, and what each is for in this installation."""
    from offbeat import app

    loaded = load_config(config)
    roles = {
        loaded.control_topic: "control",
        loaded.alerts_topic: "alerts",
        loaded.notifications_topic: "notifications",
        loaded.dead_letters_topic: "dead letters",
    }
    for name, stream in loaded.streams.items():
        roles[loaded.journal_topic(name)] = f"journal of {name}"
        roles[stream.topic] = ", ".join(filter(None, [roles.get(stream.topic), f"input of {name}"]))
    with app.open_bus(loaded.bus) as broker:
        topics = broker.admin().describe().topics
        reader = broker.reader()
        found = []
        for name in sorted({*topics, *roles}):
            bounds = reader.bounds(name).values() if name in topics else ()
            records = sum(each.end_offset - each.first_offset for each in bounds)
            found.append((name, topics.get(name), records, roles.get(name, "")))
    if json:
        for name, partitions, records, role in found:
            print_json({"topic": name, "partitions": partitions, "records": records, "role": role or None})
        return
    print_columns(
        ["topic", " partitions", " records", "what it is"],
        [
            [name, "missing" if partitions is None else str(partitions), f"{records:,}", role]
            for name, partitions, records, role in found
        ],
    )
    if any(partitions is None for _, partitions, *_ in found):
        typer.echo("`offbeat topics create` makes those that are missing", err=True)


def add_to(cli: typer.Typer) -> None:
    """Register the commands."""
    cli.add_typer(group, name="topics")
