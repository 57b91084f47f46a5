"""``offbeat produce``: this machine's metrics, recorded files or made-up readings into a topic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offbeat.cli.columns import counted
from offbeat.cli.meter import meter
from offbeat.cli.options import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    Seconds,
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
from offbeat.cli.stopping import Stop, stopping
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import Stream
    from pipeline.ports import Broker, Producer
    from pipeline.records import Send
    from producers.pacing import Pace, Progress, ShouldStop
    from producers.synthetic import Label

group = typer.Typer(no_args_is_help=True, help="Write events into a topic.")

StreamName = Annotated[
    str | None,
    typer.Option(
        "--stream", "-s", metavar="NAME", help="Write into the topic of this stream; checks that it fits."
    ),
]
Topic = Annotated[
    str | None, typer.Option("--topic", metavar="NAME", help="Write into this topic instead of a stream's.")
]
BusUrl = Annotated[
    str | None,
    typer.Option("--bus", metavar="URL", help="With --topic: the bus, instead of the configured one."),
]
Partitions = Annotated[
    int,
    typer.Option("--partitions", metavar="N", min=1, max=10_000, help="Of the topic, if it has to be made."),
]
Events = Annotated[
    int | None, typer.Option("--events", metavar="N", min=1, help="Stop after so many events.")
]
Rate = Annotated[
    float | None, typer.Option("--rate", metavar="N", help="Events a second; default: as fast as possible.")
]
Speed = Annotated[
    float | None,
    typer.Option("--speed", metavar="X", help="At the recorded pace, so many times as fast; 1 is real time."),
]


@dataclass(frozen=True, slots=True)
class Target:
    """Where events go.

    Attributes:
        bus, topic: the place.
        stream: the stream that reads it, None when a bare topic was named.
        name: of that stream.
        partitions: of the topic, if it has to be made.
    """

    bus: str
    topic: str
    stream: Stream | None
    name: str
    partitions: int

    @classmethod
    def of(
        cls, config: Path, stream: str | None, topic: str | None, bus: str | None, partitions: int
    ) -> Target:
        """What the options say.

        Raises:
            ConfigError: they contradict each other, or the configuration is wrong.
        """
        if topic is not None:
            if stream is not None:
                raise ConfigError("both --stream and --topic were given; give one of them")
            return cls(bus or load_config(config).bus, topic, None, "", partitions)
        if bus is not None:
            raise ConfigError(
                "--bus goes with --topic: name the topic, or leave --bus out to use the stream's"
            )
        loaded = load_config(config)
        name = chosen_stream(loaded, stream)
        found = loaded.stream(name)
        return cls(loaded.bus, found.topic, found, name, partitions)

    def check(self, what: str, time_field: str, series_field: str, columns: Iterable[str]) -> None:
        """See that the stream can read events with these fields.

        Raises:
            ConfigError: it cannot; the message says which setting does not fit.
        """
        from offbeat.fitting import check_events

        if self.stream is not None:
            check_events(
                self.name,
                self.stream,
                what,
                time_field=time_field,
                series_field=series_field,
                columns=columns,
            )


class _Counted:
    """A producer that counts, and stops short at ``most``."""

    def __init__(self, inner: Producer, most: int | None) -> None:
        self._inner, self._most = inner, most
        self.sent = 0

    @property
    def full(self) -> bool:
        """Whether ``most`` were sent."""
        return self._most is not None and self.sent >= self._most

    def send(self, sends: Iterable[Send]) -> None:
        """See :class:`pipeline.ports.Producer`."""
        chosen = list(sends)
        if self._most is not None:
            chosen = chosen[: self._most - self.sent]
        self._inner.send(chosen)
        self.sent += len(chosen)

    def flush(self) -> None:
        """See :class:`pipeline.ports.Producer`."""
        self._inner.flush()


@dataclass(frozen=True, slots=True)
class Bounds:
    """When to stop, and how to say what was sent."""

    seconds: float | None
    events: int | None
    json: bool


Run = Callable[["Producer", "ShouldStop", "Callable[[Progress], None]"], object]


def _produce(target: Target, bounds: Bounds, run: Run) -> int:
    """Send until done, bounded or interrupted; says what was sent, and returns it."""
    from offbeat import app
    from pipeline.records import TopicSpec

    with stopping() as stop, app.open_bus(target.bus) as broker:
        made = broker.admin().create([TopicSpec(target.topic, target.partitions)])
        if made:
            typer.echo(
                f"made the topic {target.topic} with {counted(target.partitions, 'partition')}", err=True
            )
        began = time.monotonic()
        counter = _Counted(broker.producer(), bounds.events)
        stop.after(bounds.seconds)
        _metered(counter, stop, bounds, run)
        _report(target, counter.sent, time.monotonic() - began, broker, json=bounds.json)
        return counter.sent


def _metered(counter: _Counted, stop: Stop, bounds: Bounds, run: Run) -> None:
    with meter() as show:

        def on_progress(progress: Progress) -> None:
            total = min(filter(None, (progress.total, bounds.events)), default=None)
            fraction = None if total is None else min(counter.sent / total, 1.0)
            if bounds.seconds:
                fraction = max(fraction or 0, min(progress.elapsed_s / bounds.seconds, 1.0))
            rate = counter.sent / max(progress.elapsed_s, 1e-3)
            show("sending", fraction, f"{counter.sent:,} events, {rate:,.0f}/s")

        run(counter, lambda: stop() or counter.full, on_progress)


def _report(target: Target, sent: int, seconds: float, broker: Broker, *, json: bool) -> None:
    partitions = broker.admin().describe().topics.get(target.topic, target.partitions)
    if json:
        print_json(
            {"topic": target.topic, "partitions": partitions, "sent": sent, "seconds": round(seconds, 3)}
        )
    else:
        typer.echo(
            f"sent {sent:,} events to {target.topic} ({counted(partitions, 'partition')}) in {seconds:.1f} s"
        )


def _pace(rate: float | None, speed: float | None) -> Pace:
    from producers.pacing import Fastest, PerSecond, Recorded

    if rate is not None and speed is not None:
        raise ConfigError("both --rate and --speed were given; give one of them")
    if rate is not None:
        return PerSecond(rate)
    return Recorded(speed) if speed is not None else Fastest()


@group.command(epilog="Example: `offbeat produce host --stream host --seconds 60`")
def host(
    *,
    stream: StreamName = None,
    topic: Topic = None,
    bus: BusUrl = None,
    partitions: Partitions = 1,
    config: ConfigFile = DEFAULT_CONFIG,
    per_second: Annotated[
        float, typer.Option("--per-second", metavar="N", help="Readings a second, up to 100.")
    ] = 15.0,
    name: Annotated[
        str | None,
        typer.Option("--host", metavar="NAME", help="The name in the events; default: this machine's."),
    ] = None,
    seconds: Seconds = None,
    events: Events = None,
    json: Json = False,
) -> None:
    """Send this machine's own metrics, until stopped (Ctrl-C).

    An event is one JSON object: time, host, cpu, cpu_max, cpu_system, memory, ctx_switches, interrupts,
    disk, net.
    """
    from producers import host as machine

    target = Target.of(config, stream, topic, bus, partitions)
    reader = machine.HostReader()
    target.check("this machine", "time", "host", [feature.name for feature in reader.features])
    for note in reader.notes:
        typer.echo(note, err=True)
    _produce(
        target,
        Bounds(seconds, events, json),
        lambda producer, should_stop, on_progress: machine.produce(
            producer,
            target.topic,
            per_second=per_second,
            host=name,
            reader=reader,
            should_stop=should_stop,
            on_progress=on_progress,
        ),
    )


@group.command(epilog="Example: `offbeat produce files 'data/*.csv' --stream pumps --speed 60`")
def files(
    *,
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="CSV, JSONL or Parquet files, or patterns.")
    ],
    stream: StreamName = None,
    topic: Topic = None,
    bus: BusUrl = None,
    partitions: Partitions = 1,
    config: ConfigFile = DEFAULT_CONFIG,
    time_column: TimeColumn = None,
    time_format: TimeFormat = "auto",
    series_column: SeriesColumn = None,
    series: SeriesName = None,
    values: Values = None,
    on_error: OnError = OnBadRow.STOP,
    rate: Rate = None,
    speed: Speed = None,
    seconds: Seconds = None,
    events: Events = None,
    json: Json = False,
) -> None:
    """Send the rows of files as events, merged by time; a record's timestamp is its event's time.

    An event is one JSON object: the time in epoch seconds, the series, and the columns of numbers.
    """
    from offbeat.fitting import file_options
    from producers import files as recorded
    from producers import layouts

    target = Target.of(config, stream, topic, bus, partitions)
    options = file_options(
        target.name,
        target.stream,
        paths,
        time_column=time_column,
        time_format=time_format,
        series_column=series_column,
        series=series,
        values=values,
        on_error=on_error.value,
    )
    pace = _pace(rate, speed)
    found = layouts.inspect(options)
    for layout in found:
        target.check(str(layout.path), options.time_field, options.series_field, layout.value_columns)
    tell_layouts(found)

    def run(producer: Producer, should_stop: ShouldStop, on_progress: Callable[[Progress], None]) -> None:
        report = recorded.produce(
            producer, target.topic, options, pace=pace, should_stop=should_stop, on_progress=on_progress
        )
        tell_bad_rows(report)

    _produce(target, Bounds(seconds, events, json), run)


@group.command(
    epilog="Example: `offbeat produce synthetic --stream units --series 20 --faults 5 --labels faults.jsonl`"
)
def synthetic(
    *,
    stream: StreamName = None,
    topic: Topic = None,
    bus: BusUrl = None,
    partitions: Partitions = 1,
    config: ConfigFile = DEFAULT_CONFIG,
    series: Annotated[int, typer.Option("--series", metavar="N", help="Number of series.")] = 10,
    features: Annotated[int, typer.Option("--features", metavar="N", help="Number of features.")] = 4,
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="Rows of each series.")] = 1_440,
    every: Annotated[
        float, typer.Option("--every", metavar="S", help="Seconds between two rows of a series.")
    ] = 60.0,
    start: Annotated[
        str, typer.Option("--start", metavar="TIME", help="Time of the first row.")
    ] = "2026-01-01",
    faults: Annotated[
        int, typer.Option("--faults", metavar="N", help="Number of faults, over all series.")
    ] = 0,
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help="Only faults of this kind; may be given several times."),
    ] = None,
    clean_rows: Annotated[
        int,
        typer.Option("--clean-rows", metavar="N", help="Rows at the start of each series without faults."),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="What all randomness follows from.")] = 0,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE", help="Write where the faults stand, as JSONL.")
    ] = None,
    rate: Rate = None,
    speed: Speed = None,
    seconds: Seconds = None,
    events: Events = None,
    json: Json = False,
) -> None:
    """Send made-up readings of many series with a daily rhythm, and faults at known places.

    An event is one JSON object: time (epoch seconds), series, temperature, pressure, vibration, power, ...
    """
    from producers import synthetic as made_up
    from producers.faults import FAULTS

    target = Target.of(config, stream, topic, bus, partitions)
    options = made_up.SyntheticOptions(
        series=series,
        features=features,
        rows=rows,
        every_s=every,
        start=parsed_time(start, "--start").timestamp(),
        faults=faults,
        clean_rows=clean_rows,
        seed=seed,
        kinds=kinds or tuple(FAULTS),
    )
    found = made_up.Synthetic(options)
    target.check("offbeat produce synthetic", "time", "series", found.features)
    if labels is not None:
        _write_labels(labels, found.labels)
    pace = _pace(rate, speed)
    _produce(
        target,
        Bounds(seconds, events, json),
        lambda producer, should_stop, on_progress: made_up.produce(
            producer, target.topic, options, pace=pace, should_stop=should_stop, on_progress=on_progress
        ),
    )


def _write_labels(path: Path, labels: list[Label]) -> None:
    from producers.synthetic import write_labels

    try:
        write_labels(path, labels)
    except OSError as error:
        raise ConfigError(
            f"{path}: the labels cannot be written ({error.strerror}); name another file"
        ) from error


def add_to(cli: typer.Typer) -> None:
    """Register the commands."""
    cli.add_typer(group, name="produce")
