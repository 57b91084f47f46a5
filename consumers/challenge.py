"""A challenger: trained on a stream's past, and judged by the gate beside the champion."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from consumers.shadow import shadow
from models import Bundle, Registry, StackScorer, learning
from models.baselines import baselines
from models.bundle import attach
from models.episodes import LeftOut
from models.gate import CHALLENGER, CHAMPION, Ruling, gate
from models.history import Batches, Part, recent_ms
from models.learning import Source, Step
from models.spec import check_fits, model_spec
from models.trial import Trial
from pipeline.config import Config, Stream
from pipeline.control import ControlView
from pipeline.detect import Detector
from pipeline.errors import BundleError, NotFound
from pipeline.figures import lasting
from pipeline.ports import Reader, Scorer
from pipeline.records import RecordBatch

REPORT: Final = "report.json"


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What a challenger is made and judged from.

    Attributes:
        config: of the installation.
        detector: of the stream, under the settings in force.
        view: what people decided.
        reader: of the bus.
        registry: where the champion is.
        idle: waits so many seconds.
        pace: called with the number of records of each batch that was read; what it raises ends the work.
        on_step: told how far the work is; what it raises ends the work.
    """

    config: Config
    detector: Detector
    view: ControlView
    reader: Reader
    registry: Registry
    idle: Callable[[float], object]
    pace: Callable[[int], None]
    on_step: Callable[[Step], None]


@dataclass(frozen=True, slots=True, eq=False)
class Challenge:
    """What came of it.

    Attributes:
        bundle: the challenger, with the ruling in its report; nobody keeps it yet.
        ruling: the gate's.
        champion: id of the bundle that was in use then.
        remark: what the ruling does not say, or empty.
    """

    bundle: Bundle
    ruling: Ruling
    champion: str | None
    remark: str

    @property
    def why(self) -> str:
        """The ruling's sentence and the remark, for the audit log."""
        return "; ".join(filter(None, (self.remark, self.ruling.sentence)))


def challenge(past: Past, created_at: datetime) -> Challenge:
    """Train a challenger and let the gate judge it; nothing is kept or changed.

    A champion that is damaged, or does not fit the stream's settings any more, judges nothing: the challenger
    is judged as a first model is.

    Raises:
        TooFewRows: there is not enough history.
        ConfigError: the network's shape does not make sense.
        BusDown, Unreadable, StoreDown: the bus or the registry failed; trying again can help.
    """
    detector, view = past.detector, past.view
    stream, name = detector.stream, detector.name
    source = _source(past, stream.training.history)
    decisions = view.decisions(name, view.decided(name))
    left_out = LeftOut.of(past.config, name, past.reader, view)
    taught = learning.learn(
        detector,
        model_spec(stream),
        source,
        Part(stream.training.rows),
        past.on_step,
        left_out=left_out,
        created_at=created_at.isoformat(timespec="milliseconds"),
    )
    champion, remark = champion_of(past.registry, name, stream, view)
    pinned, doubt = _pinned(past)
    remark = "; ".join(filter(None, (remark, doubt)))
    shadowed = None
    if champion is not None and stream.training.shadow:
        shadowed = _shadow(past, StackScorer(taught.bundle), champion)
        remark = "; ".join(filter(None, (remark, _shadow_told(shadowed))))
    replay = _source(past, stream.training.replay)  # with what came since training
    judged = 0

    def on_records(records: int) -> None:
        nonlocal judged
        judged += records
        past.on_step(Step("judging", None, f"{judged:,} records gone through"))

    trial = Trial(
        detector, replay.batches, decisions=decisions, known=left_out.episodes, on_records=on_records
    )
    others = baselines(taught.history.series, taught.bundle.manifest.spec) if champion is None else {}
    ruling = gate(trial, StackScorer(taught.bundle), champion=champion, baselines=others, reference=pinned)
    more = {"gate": ruling.as_json()} | ({} if shadowed is None else {"shadow": shadowed})
    return Challenge(_reporting(taught.bundle, more), ruling, view.champions.get(name), remark)


def paced(batches: Batches, pace: Callable[[int], None]) -> Batches:
    """The same batches; ``pace`` is called with the number of records of each before it is handed on."""

    def at_that_pace() -> Iterator[RecordBatch]:
        for batch in batches():
            pace(len(batch))
            yield batch

    return at_that_pace


def champion_of(
    registry: Registry, name: str, stream: Stream, view: ControlView
) -> tuple[Scorer | None, str]:
    """The champion of a stream under its settings; None where there is none, or with why it cannot be used.

    Raises:
        StoreDown: the registry cannot be reached.
    """
    bundle, remark = _usable(registry, name, stream, view.champions.get(name), "champion")
    return None if bundle is None else StackScorer(bundle), remark


def _pinned(past: Past) -> tuple[Bundle | None, str]:
    """The pinned reference of a stream; None where there is none, or with why it cannot be used."""
    name = past.detector.name
    bundle_id = past.view.pinned.get(name)
    return _usable(past.registry, name, past.detector.stream, bundle_id, "pinned reference")


def _usable(
    registry: Registry, name: str, stream: Stream, bundle_id: str | None, role: str
) -> tuple[Bundle | None, str]:
    if bundle_id is None:
        return None, ""
    try:
        bundle = registry.load(name, bundle_id)
        check_fits(bundle.manifest.spec, bundle_id, name, stream)
    except (NotFound, BundleError) as error:
        return None, f"the {role} cannot be compared with ({error})"
    return bundle, ""


def _source(past: Past, length_s: float) -> Source:
    """What came of the stream in so long before its newest record, read no faster than is allowed."""
    topic = past.detector.stream.topic
    since_ms = recent_ms(past.reader, topic, length_s)
    source = learning.from_topic(past.reader, topic, since_ms, None)
    return replace(source, batches=[paced(each, past.pace) for each in source.batches])


def _shadow(past: Past, challenger: Scorer, champion: Scorer) -> dict[str, Any]:
    return shadow(
        past.detector,
        past.reader,
        {CHALLENGER: challenger, CHAMPION: champion},
        past.detector.stream.training.shadow,
        idle=past.idle,
        pace=past.pace,
        on_share=lambda share, rows: past.on_step(Step("shadowing", share, f"{rows:,} rows in silence")),
    )


def _shadow_told(shadowed: dict[str, Any]) -> str:
    did = ", ".join(f"{role} {each['alerts']}" for role, each in shadowed["contenders"].items())
    lasted = lasting((shadowed["last_ns"] - shadowed["first_ns"]) / 1e9)
    return f"alerts in {lasted} of shadow: {did}"


def _reporting(bundle: Bundle, more: dict[str, Any]) -> Bundle:
    """The same model; its report says more."""
    report = json.loads(bundle.reports.get(REPORT, b"{}")) | more
    return attach(bundle, {**bundle.reports, REPORT: json.dumps(report, indent=1).encode()})
