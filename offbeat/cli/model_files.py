"""``offbeat models encode | decode | reconstruct | generate``: files through a stream's models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offbeat.cli.columns import counted
from offbeat.cli.models import chosen_bundle, opened
from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, StreamArgument
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from models import Codec
    from offbeat.model_files import Naming

Source = Annotated[Path, typer.Option("--in", metavar="FILE", help="CSV, Parquet or NPY, by its suffix.")]
To = Annotated[Path, typer.Option("--out", metavar="FILE", help="CSV, Parquet or NPY, by its suffix.")]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="BUNDLE", help="Its id, or the first digits; default: the one in use."),
]
SeriesName = Annotated[
    str | None, typer.Option("--series", metavar="NAME", help="All of it belongs to this series.")
]
SeriesColumn = Annotated[
    str | None,
    typer.Option(
        "--series-column", metavar="COLUMN", help="The column that names the series; default: 'series'."
    ),
]


def encode(
    *,
    stream: StreamArgument = None,
    source: Source,
    to: To,
    model: Model = None,
    series: SeriesName = None,
    series_column: SeriesColumn = None,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Compress the windows of a file of rows to codes: a code for each row that a window ends at.

    Rows are values of the model's features, one series after the other or mixed. Series that training has
    not seen, and rows without one, go through the shared model.
    """
    from offbeat import model_files

    naming = _naming(series, series_column)
    codec = _codec(config, stream, model, to)
    count = model_files.encode(codec, source, to, naming)
    _tell(
        f"wrote {counted(count, 'code')} of {counted(codec.code, 'number')} to {to}; each is of the "
        f"{codec.spec.window_rows} rows that end at its row of {source}, counted from 0"
    )


def decode(
    *,
    stream: StreamArgument = None,
    source: Source,
    to: To,
    model: Model = None,
    series: SeriesName = None,
    series_column: SeriesColumn = None,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Restore the window of each code of a file, in the features' own units."""
    from offbeat import model_files

    naming = _naming(series, series_column)
    codec = _codec(config, stream, model, to)
    count = model_files.decode(codec, source, to, naming)
    _tell(f"wrote {counted(count, 'window')} of {counted(codec.spec.window_rows, 'row')} to {to}")


def reconstruct(
    *,
    stream: StreamArgument = None,
    source: Source,
    to: To,
    model: Model = None,
    series: SeriesName = None,
    series_column: SeriesColumn = None,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Write each row of a file as the model expects it, with the error of its window and its own."""
    from offbeat import model_files

    naming = _naming(series, series_column)
    codec = _codec(config, stream, model, to)
    count = model_files.reconstruct(codec, source, to, naming)
    _tell(
        f"wrote {counted(count, 'row')} with their errors to {to}; the first "
        f"{codec.spec.window_rows - 1} rows of each series have no whole window yet"
    )


def generate(
    *,
    stream: StreamArgument = None,
    to: To,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Windows to make.")] = 10,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Another one makes others.")] = 0,
    series: Annotated[
        str, typer.Option("--series", metavar="NAME", help="Like this one's; default: the shared model's.")
    ] = "",
    model: Model = None,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Make up windows that look like those that a variational model was trained on."""
    from offbeat.model_files import write_windows

    codec = _codec(config, stream, model, to)
    windows = codec.generate(count, seed, series)
    write_windows(codec, windows, to, [series] * count if series else ())
    _tell(f"wrote {counted(count, 'window')} of {counted(codec.spec.window_rows, 'row')} to {to}")


def _tell(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _naming(series: str | None, column: str | None) -> Naming:
    from offbeat.model_files import Naming

    if series is not None and column is not None:
        raise ConfigError("both --series and --series-column were given; give one of them")
    return Naming(series, column)


def _codec(config: Path, stream: str | None, bundle: str | None, to: Path) -> Codec:
    """Of the bundle that was named, or of the stream's champion."""
    from models import Codec
    from offbeat.model_files import check_form

    check_form(to)
    with opened(config, stream, "encode") as at:
        return Codec(at.registry.load(at.stream, chosen_bundle(at, bundle)))


def add_to(models: typer.Typer) -> None:
    """Register the commands."""
    models.command(
        epilog="Examples: `offbeat models encode pumps --in rows.csv --out codes.csv`; "
        "`offbeat models encode --in rows.npy --out codes.npy --series pump-1`"
    )(encode)
    models.command(epilog="Example: `offbeat models decode pumps --in codes.csv --out windows.parquet`")(
        decode
    )
    models.command(
        epilog="Example: `offbeat models reconstruct pumps --in rows.parquet --out expected.parquet`"
    )(reconstruct)
    models.command(
        epilog="Example: `offbeat models generate pumps --count 100 --seed 7 --series pump-1 --out made.csv`"
    )(generate)
