"""A challenger: trained on a stream's past, and judged by the gate beside the champion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from consumers.shadow import shadow
from models import Bundle, Registry, StackScorer, learning
from models.baselines import EWMA_Z, PCA, EwmaZ, linear
from models.episodes import LeftOut
from models.gate import CHALLENGER, CHAMPION, Ruling, gate
from models.history import Batches, Part, recent_ms
from models.learning import Source, Step, Taught
from models.spec import check_fits, model_spec
from models.trial import MAX_RECORDS, Trial
from pipeline.config import Config, Stream
from pipeline.control import ControlView
from pipeline.detect import Detector
from pipeline.errors import BundleError, NotFound
from pipeline.figures import lasting
from pipeline.ports import Reader, Scorer
from pipeline.records import RecordBatch


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
        why: the ruling's sentence and what it does not say, for the audit log.
        stand_in: PCA, where a first model was refused that is worse, and the gate let PCA pass.
    """

    bundle: Bundle
    ruling: Ruling
    champion: str | None
    why: str
    stand_in: Challenge | None = None


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
    remarks, shadowed = [remark, doubt], None
    if champion is not None and stream.training.shadow:
        shadowed = _shadow(past, StackScorer(taught.bundle), StackScorer(champion))
        remarks.append(_shadow_told(shadowed))
    replay = _source(past, stream.training.replay)  # with what came since training
    judged, whole = 0, replay.records or 0
    runs = 2 * (2 if champion is not None else 3)
    total = whole + runs * min(whole, MAX_RECORDS)

    def on_records(records: int) -> None:
        nonlocal judged
        judged += records
        share = judged / total if judged < total else None  # some runs are repeated
        past.on_step(Step("judging", share, f"{judged:,} records gone through"))

    trial = Trial(
        detector, replay.batches, decisions=decisions, known=left_out.episodes, on_records=on_records
    )
    if champion is None:
        return _first(past, taught, trial, pinned, remarks)
    ruling = gate(
        trial,
        StackScorer(taught.bundle),
        champion=StackScorer(champion),
        baselines={},
        reference=pinned,
        same_kind=champion.manifest.spec.kind == taught.bundle.manifest.spec.kind,
    )
    return _judged(past, taught, ruling, [*remarks, ruling.sentence], champion=champion, shadowed=shadowed)


def _first(past: Past, taught: Taught, trial: Trial, pinned: Bundle | None, remarks: list[str]) -> Challenge:
    """The first model contends with PCA and the value alone; where PCA is better, that has its turn.

    A stream is watched by the best there is, and by nobody only where the value alone is better.
    """
    manifest = taught.bundle.manifest
    control = learning.teach(
        past.detector,
        linear(manifest.spec),
        taught.history,
        manifest.source,
        lambda _: past.on_step(Step("judging", None, f"{PCA} to compare with")),
        created_at=manifest.created_at,
    )
    pca, value = StackScorer(control.bundle), EwmaZ(taught.history.series)
    others: dict[str, Scorer] = {PCA: pca, EWMA_Z: value}
    ruling = gate(trial, StackScorer(taught.bundle), champion=None, baselines=others, reference=pinned)
    said = [*remarks, ruling.sentence]
    if ruling.promoted or not ruling.is_worse_than(PCA):
        return _judged(past, taught, ruling, said)
    second = gate(trial, pca, champion=None, baselines={EWMA_Z: value}, reference=pinned)
    if not second.promoted:
        return _judged(past, taught, ruling, [*said, f"{PCA} in its stead: {second.sentence}"])
    refused = _judged(past, taught, ruling, [*said, f"{PCA} passed in its stead"])
    serves = (
        f"{PCA} serves until a model of kind {manifest.spec.kind} is no worse "
        f"({refused.bundle.sha[:12]} was refused)"
    )
    return replace(refused, stand_in=_judged(past, control, second, [*remarks, serves, second.sentence]))


def _judged(
    past: Past,
    taught: Taught,
    ruling: Ruling,
    said: list[str],
    *,
    champion: Bundle | None = None,
    shadowed: dict[str, Any] | None = None,
) -> Challenge:
    why = "; ".join(filter(None, said))
    other = "" if champion is None else f"{champion.manifest.spec.kind} {champion.sha[:12]}"
    bundle = learning.judged(taught, ruling, why, champion=other, shadow=shadowed)
    return Challenge(bundle, ruling, past.view.champions.get(past.detector.name), why)


def paced(batches: Batches, pace: Callable[[int], None]) -> Batches:
    """The same batches; ``pace`` is called with the number of records of each before it is handed on."""

    def at_that_pace() -> Iterator[RecordBatch]:
        for batch in batches():
            pace(len(batch))
            yield batch

    return at_that_pace


def champion_of(
    registry: Registry, name: str, stream: Stream, view: ControlView
) -> tuple[Bundle | None, str]:
    """The champion of a stream under its settings; None where there is none, or with why it cannot be used.

    Raises:
        StoreDown: the registry cannot be reached.
    """
    return _usable(registry, name, stream, view.champions.get(name), "champion")


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
