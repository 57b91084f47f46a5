"""From records to a trained bundle: read a stream's past, learn from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.blocks import Progress
from models.bundle import Bundle, attach
from models.episodes import LeftOut
from models.gate import Ruling
from models.history import Batches, History, Part, gather, topic_bounds, topic_source
from models.losses import Curves
from models.manifest import REPORT_FILES
from models.page import html
from models.report import Report
from models.reporting import make
from models.spec import ModelSpec
from models.training import train
from pipeline.detect import Detector
from pipeline.errors import TooFewRows
from pipeline.figures import lasting
from pipeline.ports import Reader
from pipeline.records import TopicPartition


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


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """What came of learning.

    Attributes:
        bundle: which nobody keeps or uses yet; it holds the report.
        history: what it was learned from.
        report: how it came about.
    """

    bundle: Bundle
    history: History
    report: Report


def from_topic(reader: Reader, topic: str, since_ms: int | None, until_ms: int | None) -> Source:
    """A topic's records whose timestamps lie from ``since_ms`` to before ``until_ms``.

    Raises:
        NotFound: the topic does not exist.
        BusDown: the bus cannot be reached.
    """
    bounds = topic_bounds(reader, topic, since_ms, until_ms)
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


def learn(
    detector: Detector,
    spec: ModelSpec,
    source: Source,
    part: Part,
    on_step: OnStep,
    *,
    left_out: LeftOut,
    created_at: str,
) -> Taught:
    """Train a stream's models on a source.

    What of ``left_out`` is not learned from, :func:`models.history.gather` says.
    The same records, settings and seed give the same bundle on one machine. What ``on_step`` raises ends the
    work.

    Raises:
        TooFewRows: there is not enough history yet.
        ConfigError: there is no such device as the settings ask for.
        BusDown, InputError: while reading.
    """
    history = gather(
        detector,
        source.batches,
        part,
        left_out,
        _reading(source, part, on_step),
    )
    described = {**source.described, "first": part.first, "rows_a_series": history.rows_limit}
    return teach(detector, spec, history, described, on_step, created_at=created_at)


def teach(
    detector: Detector,
    spec: ModelSpec,
    history: History,
    described: Mapping[str, object],
    on_step: OnStep,
    *,
    created_at: str,
) -> Taught:
    """Train a stream's models on rows that were read; raises as :func:`learn`.

    ``described`` says for the manifest where they come from, as JSON values.
    """
    curves = Curves()

    def on_progress(progress: Progress) -> None:
        curves.add(progress)
        on_step(_training(progress))

    try:
        bundle = train(
            history.series,
            spec,
            source=described,
            created_at=created_at,
            scope=detector.stream.model.scope,
            max_models=detector.stream.model.max_models,
            device=detector.stream.training.device,
            threads=detector.stream.training.threads,
            on_progress=on_progress,
        )
    except TooFewRows as error:
        raise _said(spec, detector.name, history, error) from None
    report = make(bundle, history, curves.losses(), detector.name, detector.stream)
    return Taught(_reporting(bundle, report), history, report)


def judged(
    taught: Taught, ruling: Ruling, why: str, *, champion: str = "", shadow: dict[str, Any] | None = None
) -> Bundle:
    """The bundle with a report that says how the gate judged it; see :class:`models.report.Report`."""
    report = replace(taught.report, gate=ruling, champion=champion, why=why, shadow=shadow)
    return _reporting(taught.bundle, report)


def _reporting(bundle: Bundle, report: Report) -> Bundle:
    return attach(bundle, dict(zip(REPORT_FILES, (report.json(), html(report)), strict=True)))


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
    done = progress.networks if progress.fraction >= 1 else progress.finished
    detail = (
        f"{done} of {progress.networks} models done, loss {progress.loss:.3f}, "
        f"on rows held out {progress.held_out_loss:.3f}"
    )
    return Step("training", progress.fraction, detail)


def _said(spec: ModelSpec, stream: str, history: History, error: TooFewRows) -> TooFewRows:
    """The same with the stream, how long it takes yet, and what could not be used, where there is any."""
    rate, account, width = history.rate, history.account, spec.window_rows
    more = f"; about {lasting((error.need - error.have) / rate)} more at the present rate" if rate else ""
    bins = history.bins
    unread = bins.get("dead_lettered", 0) + bins.get("corrupt", 0)
    stale = bins.get("late", 0) + bins.get("duplicate", 0)
    why = [f"{len(history.accounts):,} series with windows of {width} rows"]
    why += [f"each gap and each further series costs {width - 1}"]
    why += [f"{unread:,} of {history.records:,} records could not be read"] * (unread > 0)
    why += [f"{stale:,} of {history.records:,} records came too late or twice"] * (stale > 0)
    why += [f"{account.frozen:,} rows are frozen by silences"] * (account.frozen > 0)
    why += [f"{account.alerts:,} rows are left out because of alerts"] * (account.alerts > 0)
    return TooFewRows(
        f"stream {stream!r} has {error.have:,} of {error.need:,} rows to train on{more} ({'; '.join(why)}); "
        "wait for more rows or choose a smaller window",
        have=error.have,
        need=error.need,
        rows=error.rows,
        rate=rate,
    )
