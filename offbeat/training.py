"""From a topic range or files to a stream's bundle: read, train, keep, promote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from models import ModelSpec, StackScorer, learning
from models.bundle import Owner
from models.history import Batches, Part
from models.learning import OnStep, Source
from models.spec import model_spec
from offbeat import app
from pipeline.config import Config
from pipeline.control import Standing
from pipeline.detect import Detector
from pipeline.ports import Reader
from pipeline.records import RecordBatch, TopicPartition
from producers import files
from producers.files import FileOptions, FilesReport, Layout

_FILE_RECORDS = 5_000


@dataclass(frozen=True, slots=True)
class SeriesLearned:
    """One series of a trained bundle.

    Attributes:
        network: that judges it: its own, its cohort's, or the shared fallback's.
        rows: it was learned from.
        error, error_sd: mean and standard deviation of the error on rows held out.
    """

    series: str
    network: Owner
    rows: int
    error: float
    error_sd: float


@dataclass(frozen=True, slots=True)
class Learned:
    """What came of training.

    Attributes:
        frozen: rows left out because silences say so.
        cohorts: networks that several series share, besides the fallback's.
    """

    stream: str
    bundle_id: str
    predecessor: str | None
    records: int
    rows: int
    rows_limit: int
    frozen: int
    bins: dict[str, int]
    spec: ModelSpec
    cohorts: int
    series: list[SeriesLearned]
    fallback_error: float
    fallback_error_sd: float


def from_topic(
    reader: Reader, config: Config, stream: str, since: datetime | None, until: datetime | None
) -> Source:
    """A stream's own topic, by the timestamps of its records.

    Raises as :func:`models.learning.from_topic`.
    """
    return learning.from_topic(reader, config.stream(stream).topic, _ms(since), _ms(until))


def _ms(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)


def from_files(found: Sequence[Layout], options: FileOptions, report: FilesReport) -> Source:
    """Files, read as `offbeat produce files` reads them; ``report`` is of the last time they were read."""

    def events() -> Iterator[files.Event]:
        report.bad_rows, report.out_of_order = 0, 0
        report.bad_rows_shown.clear()
        return files.events(found, options, report)

    return Source([_records(events)], None, {"files": [str(each.path) for each in found]})


def _records(events: Callable[[], Iterator[files.Event]]) -> Batches:
    """Events of files as the records that `offbeat produce files` would make of them."""

    def batches() -> Iterator[RecordBatch]:
        partition, offset, opened = TopicPartition("files", 0), 0, events()
        while group := list(islice(opened, _FILE_RECORDS)):
            records = [(event.series.encode(), event.value, round(event.time * 1000)) for event in group]
            yield RecordBatch.of(partition, offset, records)
            offset += len(group)

    return batches


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
    taught = learning.learn(
        Detector(config.namespace, stream, settings),
        model_spec(settings),
        source,
        part,
        on_step,
        freezes=freezes,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    bundle, history = taught.bundle, taught.history
    bundle_id = app.registry(config).save(stream, bundle)
    predecessor = promote(bundle_id)

    names = sorted(history.series)
    found = StackScorer(bundle).assign(names)
    fallback, owners = bundle.calibration[-1], bundle.owners()
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
        cohorts=bundle.manifest.networks - 1 - owners.count("own"),
        series=[
            SeriesLearned(
                name,
                network=owners[model],
                rows=len(history.series[name].segment),
                error=float(calibration[0]),
                error_sd=float(calibration[1]),
            )
            for name, model, calibration in zip(names, found.model, found.calibration, strict=True)
        ],
        fallback_error=float(fallback[0]),
        fallback_error_sd=float(fallback[1]),
    )
