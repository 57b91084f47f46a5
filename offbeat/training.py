"""From a topic range or files to a stream's bundle: read, train, keep, promote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from models import ModelSpec, Progress, StackScorer, train
from offbeat import app
from offbeat.history import Batches, History, Part, file_source, gather, topic_bounds, topic_source
from pipeline.config import Config
from pipeline.control import Standing
from pipeline.detect import Detector
from pipeline.errors import TooFewRows
from pipeline.ports import Reader
from pipeline.records import TopicPartition
from producers import files
from producers.files import FileOptions, FilesReport, Layout


@dataclass(frozen=True, slots=True)
class Step:
    """How far training is.

    Attributes:
        phase: ``reading`` or ``training``.
        fraction: of this phase, 0 to 1; None when its length is not known.
        detail: figures for people.
    """

    phase: str
    fraction: float | None
    detail: str


OnStep = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from.

    Attributes:
        batches: opens each partition's records.
        records: how many there are, None when it is not known.
        described: the same for the bundle's manifest, as JSON values.
    """

    batches: Sequence[Batches]
    records: int | None
    described: dict[str, object]


@dataclass(frozen=True, slots=True)
class SeriesLearned:
    """One series of a trained bundle.

    Attributes:
        own_model: whether it has a model of its own, else the shared fallback judges it.
        rows: it was learned from.
        error, error_sd: mean and standard deviation of the error on rows held out.
    """

    series: str
    own_model: bool
    rows: int
    error: float
    error_sd: float


@dataclass(frozen=True, slots=True)
class Learned:
    """What came of training; ``frozen`` rows were left out because silences say so."""

    stream: str
    bundle_id: str
    predecessor: str | None
    records: int
    rows: int
    rows_limit: int
    frozen: int
    bins: dict[str, int]
    spec: ModelSpec
    series: list[SeriesLearned]
    fallback_error: float
    fallback_error_sd: float


def from_topic(
    reader: Reader, config: Config, stream: str, since: datetime | None, until: datetime | None
) -> Source:
    """A stream's own topic, by the timestamps of its records.

    Raises:
        NotFound: the topic does not exist.
        BusDown: the bus cannot be reached.
    """
    topic = config.stream(stream).topic
    bounds = topic_bounds(reader, topic, _ms(since), _ms(until))
    return Source(
        [topic_source(reader, TopicPartition(topic, number), each) for number, each in bounds.items()],
        sum(each.end_offset - each.first_offset for each in bounds.values()),
        {
            "topic": topic,
            "topic_id": next(iter(bounds.values())).topic_id,
            "partitions": {
                str(number): {"first_offset": each.first_offset, "next_offset": each.end_offset}
                for number, each in bounds.items()
            },
        },
    )


def _ms(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)


def from_files(found: Sequence[Layout], options: FileOptions, report: FilesReport) -> Source:
    """Files, read as `offbeat produce files` reads them; ``report`` is of the last time they were read."""

    def events() -> Iterator[files.Event]:
        report.bad_rows, report.out_of_order = 0, 0
        report.bad_rows_shown.clear()
        return files.events(found, options, report)

    return Source([file_source(events)], None, {"files": [str(each.path) for each in found]})


def learn(
    config: Config,
    stream: str,
    source: Source,
    part: Part,
    on_step: OnStep,
    *,
    freezes: Sequence[Standing],
    promote: Callable[[str], str | None],
) -> Learned:
    """Train a stream's models on a source, keep the bundle and hand its id to ``promote``.

    Rows within windows of ``freezes`` are left out. ``promote`` makes it the champion and returns the id of
    its predecessor.

    Raises:
        TooFewRows: there is not enough history yet; nothing was changed.
        ConfigError: the network's shape does not make sense.
        BusDown, InputError: while reading.
    """
    settings = config.stream(stream)
    spec = app.model_spec(settings)
    detector = Detector(config.namespace, stream, settings)
    history = gather(detector, source.batches, part, freezes, _reading(source, part, on_step))
    try:
        bundle = train(
            history.series,
            spec,
            source={**source.described, "first": part.first, "rows_a_series": history.rows_limit},
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            scope=settings.model.scope,
            max_models=settings.model.max_models,
            on_progress=lambda progress: on_step(_training(progress)),
        )
    except TooFewRows as error:
        raise _said(stream, history, error) from None
    registry = app.registry(config)
    bundle_id = registry.save(stream, bundle)
    predecessor = promote(bundle_id)

    names = sorted(history.series)
    found = StackScorer(bundle).assign(names)
    fallback = bundle.calibration[-1]
    return Learned(
        stream=stream,
        bundle_id=bundle_id,
        predecessor=predecessor,
        records=history.records,
        rows=history.rows,
        rows_limit=history.rows_limit,
        frozen=history.frozen,
        bins=history.bins,
        spec=bundle.manifest.spec,
        series=[
            SeriesLearned(
                name,
                own_model=bool(model < len(bundle.hashes)),
                rows=len(history.series[name].segment),
                error=float(calibration[0]),
                error_sd=float(calibration[1]),
            )
            for name, model, calibration in zip(names, found.model, found.calibration, strict=True)
        ],
        fallback_error=float(fallback[0]),
        fallback_error_sd=float(fallback[1]),
    )


def _reading(source: Source, part: Part, on_step: OnStep) -> Callable[[int], None]:
    passes = 1 if part.first == 1 else 2
    total = None if source.records is None else max(passes * source.records, 1)
    done = 0

    def read(records: int) -> None:
        nonlocal done
        done += records
        fraction = None if total is None else min(done / total, 1.0)
        on_step(Step("reading", fraction, f"{done // passes:,} records"))

    return read


def _training(progress: Progress) -> Step:
    detail = f"{progress.finished} of {progress.networks} models, held-out loss {progress.held_out_loss:.3f}"
    return Step("training", progress.fraction, detail)


def _said(stream: str, history: History, error: TooFewRows) -> TooFewRows:
    """The same with the stream, and with the records and rows that could not be used, where there are any."""
    unread = history.bins.get("dead_lettered", 0) + history.bins.get("corrupt", 0)
    why = f" ({unread:,} of {history.records:,} records could not be read)" if unread else ""
    if history.frozen:
        why += f" ({history.frozen:,} rows are frozen by silences)"
    return TooFewRows(f"stream {stream!r}{why}: {error}", have=error.have, need=error.need)
