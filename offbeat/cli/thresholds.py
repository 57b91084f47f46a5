"""``offbeat thresholds``: the rolling thresholds as the state store holds them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from offbeat.cli.columns import print_columns
from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, chosen_stream, load_config, print_json
from pipeline.errors import NotFound

if TYPE_CHECKING:
    from offbeat.peek import Peeked, Row

group = typer.Typer(no_args_is_help=True, help="Look at the rolling thresholds.")


@group.callback()
def _group() -> None:
    """Look at the rolling thresholds."""


@group.command(epilog="Examples: `offbeat thresholds show pumps`; `offbeat thresholds show pumps unit-07`")
def show(
    *,
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="The stream.")],
    series: Annotated[str | None, typer.Argument(metavar="[SERIES]", help="One series, in full.")] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many series.")] = 100,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Show the threshold of every series of a stream, or all that is known of one.

    It is read from the state store, as of the last checkpoint (a few seconds ago).
    """
    from offbeat import app
    from offbeat.controls import Control, who
    from offbeat.peek import peek

    loaded = load_config(config)
    name = chosen_stream(loaded, stream)
    with app.open_bus(loaded.bus) as broker:
        view = Control(loaded, broker, who("offbeat thresholds")).view()
    with app.open_state(loaded) as server:
        store = server.store(namespace=loaded.namespace, stream=name)
        peeked = peek(store, name, loaded.stream(name), view)
    for partition in peeked.unreadable:
        typer.echo(
            f"{partition}: what is stored is of another version, or of a policy that is not known; the next "
            "worker rebuilds it",
            err=True,
        )
    rows = [row for row in peeked.rows if series in {None, row.series}]
    if series is not None and not rows:
        raise NotFound(_no_such(name, series, peeked))
    if json:
        for row in rows[:limit]:
            print_json(dataclasses.asdict(row) | {"partition": str(row.partition)})
    elif series is not None:
        for row in rows:
            _tell(row)
    else:
        _table(rows[:limit])
    if series is None and not rows:
        typer.echo(
            f"nothing is stored of stream {name!r} yet; a worker writes it (`offbeat detect {name}`)",
            err=True,
        )
    elif len(rows) > limit:
        typer.echo(f"{limit} of {len(rows):,} series; --limit shows more, or name one", err=True)


def _no_such(stream: str, series: str, peeked: Peeked) -> str:
    if not peeked.rows:
        return f"nothing is stored of stream {stream!r} yet; a worker writes it (`offbeat detect {stream}`)"
    known = ", ".join(row.series for row in peeked.rows[:8])
    more = f" and {len(peeked.rows) - 8:,} more" if len(peeked.rows) > 8 else ""
    return f"stream {stream!r} has no series {series!r} in the store; it has {known}{more}"


def _tell(row: Row) -> None:
    from pipeline.figures import number

    said = {
        "series": row.series,
        "labels": ", ".join(f"{name}={value}" for name, value in row.labels.items()) or "none",
        "stored at": f"{row.partition} offset {row.next_offset}",
        "model": row.bundle or "none yet",
        "last reading": f"{row.last_time:%Y-%m-%d %H:%M:%S.%f UTC}" + (" (silent now)" if row.silent else ""),
        "newest row": ", ".join(f"{name} {number(value)}" for name, value in row.values.items())
        or "none yet",
        "window": f"{row.window_filled} of {row.window_rows} rows",
        "learned from": f"{row.rows:,} rows judged (those of the model's calibration included)",
        "error": f"{row.mean:.4g} ± {row.sd:.4g} (last row alone: {row.last_mean:.4g} ± {row.last_sd:.4g})",
        "threshold": "none before the next judged row" if row.threshold is None else f"{row.threshold:.4g}",
        "episode": row.episode,
    }
    if row.known is not None and row.rows:
        known = row.known
        levels = ", ".join(f"{name} {mean:.3g} ± {sd:.3g}" for name, (mean, sd) in known.levels.items())
        said["level"] = f"{levels or 'off'} (spreads from the model's median)"
        shapes = f"error {known.shapes_mean:.4g} ± {known.shapes_sd:.4g}"
        said["shapes"] = (
            f"{known.prototypes} remembered, {shapes}" if known.prototypes else "none yet, or off"
        )
        if known.levels_seen is not None:
            said["rarity"] = f"levels of {known.levels_seen:,} rows counted"
        said["threshold"] += " for the joined score"
        if known.grown >= 0.005:
            said["threshold"] += f" (raised {known.grown:.0%} by its own alerts)"
    if row.raised != 1.0:
        said["threshold"] += f" (raised {row.raised - 1:.0%} by false alarms)"
    if row.episode_since is not None and row.peak is not None:
        said["episode"] += f" since {row.episode_since:%Y-%m-%d %H:%M:%S UTC}, peak score {row.peak:.2f}"
    if row.quiet_until is not None and row.quiet_until > row.last_time:
        said["quiet until"] = f"{row.quiet_until:%Y-%m-%d %H:%M:%S UTC} (refractory)"
    for name, text in said.items():
        typer.echo(f"{name:<14} {text}")


def _table(rows: list[Row]) -> None:
    if not rows:
        return
    # With a joined score the line is that score's, and no bound of the error beside it.
    of = " joined line" if rows[0].known is not None else " threshold"
    headers = ["series", " rows", " error", " sd", of, "episode", " window", "last reading (UTC)"]
    print_columns(
        headers,
        [
            [
                row.series,
                f"{row.rows:,}",
                f"{row.mean:.4g}" if row.rows else "-",
                f"{row.sd:.4g}" if row.rows else "-",
                "-" if row.threshold is None else f"{row.threshold:.4g}",
                "silent" if row.silent else row.episode,
                f"{row.window_filled}/{row.window_rows}",
                f"{row.last_time:%Y-%m-%d %H:%M:%S}",
            ]
            for row in rows
        ],
    )


def add_to(cli: typer.Typer) -> None:
    """Register the commands."""
    cli.add_typer(group, name="thresholds")
