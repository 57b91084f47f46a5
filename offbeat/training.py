"""From a topic range or files to a stream's bundle: read, train, keep, promote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from models import learning
from models.episodes import LeftOut
from models.history import Batches, Part, recent_ms
from models.learning import OnStep, Source
from models.report import Report
from models.spec import model_spec
from offbeat import app
from pipeline.config import Config
from pipeline.detect import Detector
from pipeline.ports import Reader
from pipeline.records import RecordBatch, TopicPartition
from producers import files
from producers.files import FileOptions, FilesReport, Layout

_FILE_RECORDS = 5_000


@dataclass(frozen=True, slots=True)
class Learned:
    """What came of training.

    Attributes:
        bundle_id: of the new champion.
        predecessor: that of the one before, if any.
        where: the folder of the bundle, its report included.
        report: how it came about.
        fallback_error, fallback_error_sd: of the shared model on rows held out.
    """

    bundle_id: str
    predecessor: str | None
    where: str
    report: Report
    fallback_error: float
    fallback_error_sd: float


def from_topic(
    reader: Reader,
    config: Config,
    stream: str,
    part: Part,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Source:
    """A stream's own topic, by the timestamps of its records.

    Where neither a beginning nor a first share is asked for it reaches ``training.history`` back. Raises as
    :func:`models.learning.from_topic`.
    """
    settings = config.stream(stream)
    since_ms, until_ms = _ms(since), _ms(until)
    if since_ms is None and part.first == 1:
        since_ms = recent_ms(reader, settings.topic, settings.training.history, until_ms)
    return learning.from_topic(reader, settings.topic, since_ms, until_ms)


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
    left_out: LeftOut,
    promote: Callable[[str], str | None],
) -> Learned:
    """Train a stream's models on a source, keep the bundle and hand its id to ``promote``.

    ``promote`` makes it the champion and returns the id of its predecessor.

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
        left_out=left_out,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    registry, fallback = app.registry(config), taught.bundle.calibration[-1]
    bundle_id = registry.save(stream, taught.bundle)
    return Learned(
        bundle_id=bundle_id,
        predecessor=promote(bundle_id),
        where=registry.where(stream, bundle_id),
        report=taught.report,
        fallback_error=float(fallback[0]),
        fallback_error_sd=float(fallback[1]),
    )
