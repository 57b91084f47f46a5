"""``offbeat train``: learn a stream's models from what its topic, or files, hold."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offbeat.cli.columns import counted
from offbeat.cli.meter import meter
from offbeat.cli.options import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    StreamArgument,
    chosen_stream,
    load_config,
    parsed_time,
    print_json,
)
from offbeat.cli.rows import (
    OnBadRow,
    OnError,
    SeriesColumn,
    SeriesName,
    TimeColumn,
    TimeFormat,
    Values,
    tell_bad_rows,
    tell_layouts,
)
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.history import Part
    from offbeat.controls import Control
    from offbeat.training import Learned
    from pipeline.config import Config
    from pipeline.control import Standing
    from producers.layouts import FileOptions

_SERIES_SHOWN = 12
_SHARED = "(any other)"
_MODELS = {"own": "own model", "cohort": "cohort's", "fallback": "shared model"}
_LOST = {
    "dead_lettered": "could not be read",
    "late": "came too late",
    "duplicate": "were duplicates",
    "over_limit": "were of series over the limit",
}


def train(
    *,
    stream: StreamArgument = None,
    config: ConfigFile = DEFAULT_CONFIG,
    since: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="From records of this time on (ISO 8601).")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Up to, and without, records of this time.")
    ] = None,
    first: Annotated[
        float,
        typer.Option(
            "--first", metavar="SHARE", help="Only the first share of each series' rows, such as 0.15."
        ),
    ] = 1.0,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows",
            metavar="N",
            min=64,
            help="At most so many rows of a series, the newest; default: training.rows.",
        ),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--files", metavar="FILE", help="Learn from files instead; may be given several times."),
    ] = None,
    time_column: TimeColumn = None,
    time_format: TimeFormat = "auto",
    series_column: SeriesColumn = None,
    series: SeriesName = None,
    values: Values = None,
    on_error: OnError = OnBadRow.STOP,
    json: Json = False,
) -> None:
    """Train a stream's models, keep them in the registry, and put them to use.

    Rows in the windows of silences with `--mode freeze` are left out.
    A running worker takes the new models up by itself, between two batches.
    """
    loaded = load_config(config)
    name = chosen_stream(loaded, stream)
    if not 0 < first <= 1:
        raise ConfigError(f"--first is {first:g}; give a share above 0 and up to 1, such as 0.15")
    if files and (since or until):
        raise ConfigError("--from and --to choose from a topic; leave them out with --files")
    from models.history import Part

    settings = loaded.stream(name)
    part = Part(rows or settings.training.rows, first)
    began = time.monotonic()
    if files:
        from offbeat.fitting import file_options

        options = file_options(
            name,
            settings,
            files,
            time_column=time_column,
            time_format=time_format,
            series_column=series_column,
            series=series,
            values=values,
            on_error=on_error.value,
        )
        learned = _from_files(loaded, name, options, part)
    else:
        learned = _from_topic(loaded, name, part, _moment(since, "--from"), _moment(until, "--to"))
    if json:
        print_json(_as_json(learned, time.monotonic() - began))
    else:
        _tell(learned, time.monotonic() - began)


def _moment(text: str | None, option: str) -> datetime | None:
    return None if text is None else parsed_time(text, option)


def _from_files(config: Config, name: str, options: FileOptions, part: Part) -> Learned:
    from offbeat import app, training
    from offbeat.controls import Control, who
    from offbeat.fitting import check_events
    from producers import layouts
    from producers.files import FilesReport

    found = layouts.inspect(options)
    for layout in found:
        check_events(
            name,
            config.stream(name),
            str(layout.path),
            time_field=options.time_field,
            series_field=options.series_field,
            columns=layout.value_columns,
        )
    tell_layouts(found)
    report, paths = FilesReport(), ", ".join(map(str, options.paths))
    with app.open_bus(config.bus) as broker:
        control = Control(config, broker, who("offbeat train"))
        with meter() as show:
            source = training.from_files(found, options, report)
            learned = training.learn(
                config,
                name,
                source,
                part,
                lambda step: show(step.phase, step.fraction, step.detail),
                freezes=_freezes(control, name),
                promote=lambda bundle_id: control.promote(name, bundle_id, f"trained on {paths}"),
            )
    tell_bad_rows(report)
    return learned


def _from_topic(
    config: Config, name: str, part: Part, since: datetime | None, until: datetime | None
) -> Learned:
    from offbeat import app, training
    from offbeat.controls import Control, who

    with app.open_bus(config.bus) as broker:
        app.require_input(config, name, broker)
        control = Control(config, broker, who("offbeat train"))
        with meter() as show:
            source = training.from_topic(broker.reader(), config, name, since, until)
            return training.learn(
                config,
                name,
                source,
                part,
                lambda step: show(step.phase, step.fraction, step.detail),
                freezes=_freezes(control, name),
                promote=lambda bundle_id: control.promote(name, bundle_id, "trained on the stream's topic"),
            )


def _freezes(control: Control, name: str) -> Sequence[Standing]:
    """The silences under which nothing of a stream is learned."""
    view = control.view()
    return view.decisions(name, view.decided(name)).freezes


def _tell(learned: Learned, seconds: float) -> None:
    """What was learned, as a person would ask for it."""
    whose = Counter(each.network for each in learned.series)
    cohorts = f", {whose['cohort']:,} in {counted(learned.cohorts, 'cohort')}" if learned.cohorts else ""
    typer.echo(
        f"learned from {learned.rows:,} rows of {len(learned.series):,} series "
        f"({learned.records:,} records) in {seconds:.0f} s"
    )
    unused = [f"{count:,} {_LOST[name]}" for name, count in learned.bins.items() if count and name in _LOST]
    if learned.frozen:
        unused.append(f"{counted(learned.frozen, 'row')} that silences froze")
    if unused:
        typer.echo("not used: " + ", ".join(unused))
    widths = "-".join(map(str, learned.spec.widths()))
    typer.echo(
        f"models: {whose['own']:,} series with a model of their own{cohorts}, "
        "one shared model for all others; "
        f"windows of {learned.spec.window_rows} rows x {len(learned.spec.features)} features, layers {widths}"
    )
    typer.echo("error on rows held out (where thresholds start):")
    shown = learned.series[:_SERIES_SHOWN]
    width = max([len(each.series) for each in shown] + [len(_SHARED)])
    for each in shown:
        typer.echo(
            f"  {each.series:<{width}}  {each.rows:>9,} rows  {_MODELS[each.network]:<12}  "
            f"{each.error:.4f} ± {each.error_sd:.4f}"
        )
    if len(learned.series) > len(shown):
        typer.echo(f"  ... and {len(learned.series) - len(shown):,} more series")
    typer.echo(
        f"  {_SHARED:<{width}}  {'':>9}       {'':<12}  "
        f"{learned.fallback_error:.4f} ± {learned.fallback_error_sd:.4f}"
    )
    before = f" (before: {learned.predecessor[:12]})" if learned.predecessor else ""
    typer.echo(f"bundle {learned.bundle_id[:12]} is in use for stream {learned.stream!r} now{before}")


def _as_json(learned: Learned, seconds: float) -> dict[str, Any]:
    value = dataclasses.asdict(learned)
    value["spec"]["hidden"] = list(learned.spec.hidden or ())
    return value | {"seconds": round(seconds, 3)}


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(
        epilog="Examples: `offbeat train`; `offbeat train pumps --first 0.15`; "
        "`offbeat train pumps --from 2026-03-01 --to 2026-03-08`; `offbeat train pumps --files 'past/*.csv'`"
    )(train)
