"""``offbeat train``: learn a stream's models from what its topic, or files, hold."""

from __future__ import annotations

import time
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
    from models.history import Part
    from offbeat.training import Learned
    from pipeline.config import Config
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
            help="At most so many rows of a series: the newest fifth of them, and slices before; "
            "default: training.rows.",
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

    Rows that silences freeze are left out, and rows of alerts that nobody called false or normal.
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
    from models.episodes import LeftOut
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
                left_out=LeftOut.of(config, name, broker.reader(), control.view()),
                promote=lambda bundle_id: control.promote(name, bundle_id, f"trained on {paths}"),
            )
    tell_bad_rows(report)
    return learned


def _from_topic(
    config: Config, name: str, part: Part, since: datetime | None, until: datetime | None
) -> Learned:
    from models.episodes import LeftOut
    from offbeat import app, training
    from offbeat.controls import Control, who

    with app.open_bus(config.bus) as broker:
        app.require_input(config, name, broker)
        control = Control(config, broker, who("offbeat train"))
        with meter() as show:
            reader = broker.reader()
            source = training.from_topic(reader, config, name, part, since=since, until=until)
            return training.learn(
                config,
                name,
                source,
                part,
                lambda step: show(step.phase, step.fraction, step.detail),
                left_out=LeftOut.of(config, name, reader, control.view()),
                promote=lambda bundle_id: control.promote(name, bundle_id, "trained on the stream's topic"),
            )


def _tell(learned: Learned, seconds: float) -> None:
    """What was learned, as a person would ask for it."""
    report = learned.report
    counts, layers = report.counts, "-".join(map(str, report.layers))
    typer.echo(
        f"learned from {counts.learned:,} rows of {report.series_count:,} series "
        f"({report.records:,} records) in {seconds:.0f} s"
    )
    unused = [f"{count:,} {_LOST[name]}" for name, count in report.bins.items() if name in _LOST]
    unused += [
        f"{counted(rows, 'row')} {why}"
        for rows, why in (
            (counts.frozen, "that silences froze"),
            (counts.alerts, "of alerts"),
            (counts.thinned, f"beyond the {report.rows_limit:,} that are taken of a series"),
        )
        if rows
    ]
    if unused:
        typer.echo("not used: " + ", ".join(unused))
    if counts.normal:
        rows = counted(counts.normal, "row")
        typer.echo(f"used although an alert was raised: {rows} that people called normal")
    cohorts = f", {counted(report.cohorts, 'cohort')} of series that share one" if report.cohorts else ""
    typer.echo(
        f"models: {report.own_models:,} series with a model of their own{cohorts}, one shared model for all "
        f"others; windows of {report.window_rows} rows x {len(report.features)} features, layers {layers}"
    )
    _tell_errors(learned)
    for remark in report.remarks():
        typer.echo(f"note: {remark}", err=True)
    before = f" (before: {learned.predecessor[:12]})" if learned.predecessor else ""
    typer.echo(f"report: {learned.where}/report.html")
    typer.echo(f"bundle {learned.bundle_id[:12]} is in use for stream {report.stream!r} now{before}")


def _tell_errors(learned: Learned) -> None:
    """The errors of the first series, and of the shared model."""
    report = learned.report
    typer.echo("error on rows held out (where thresholds start):")
    shown = report.series[:_SERIES_SHOWN]
    width = max([len(each.series) for each in shown] + [len(_SHARED)])
    for each in shown:
        typer.echo(
            f"  {each.series:<{width}}  {each.counts.learned:>9,} rows  {_MODELS[each.model]:<12}  "
            f"{each.error:.4f} ± {each.error_sd:.4f}"
        )
    if report.series_count > len(shown):
        typer.echo(f"  ... and {report.series_count - len(shown):,} more series")
    typer.echo(
        f"  {_SHARED:<{width}}  {'':>9}       {'':<12}  "
        f"{learned.fallback_error:.4f} ± {learned.fallback_error_sd:.4f}"
    )


def _as_json(learned: Learned, seconds: float) -> dict[str, Any]:
    """The report without its pictures, and where it lies."""
    import msgspec

    value: dict[str, Any] = msgspec.to_builtins(learned)
    report: dict[str, Any] = value.pop("report")
    for pictured in ("curves", "errors", "worst"):
        del report[pictured]
    return report | value | {"seconds": round(seconds, 3)}


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(
        epilog="Examples: `offbeat train`; `offbeat train pumps --first 0.15`; "
        "`offbeat train pumps --from 2026-03-01 --to 2026-03-08`; `offbeat train pumps --files 'past/*.csv'`"
    )(train)
