"""The decision trace of one row, kept by a detect step that is otherwise the one all share."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.alerts import (
    DeadLetter,
    FeatureEvidence,
    Joined,
    Severity,
    Source,
    State,
    alert_id,
    severity,
    timestamp,
)
from pipeline.align import FILL, ROW
from pipeline.config import AlertRules, Direction, Ewma, Joint, Quantile, Static
from pipeline.control import ControlLog, Standing
from pipeline.detect import Detector, Imposed, Outputs, _Piece
from pipeline.episodes import FIRES, FIRING, PENDING, frozen
from pipeline.journal import InForce
from pipeline.judge import Verdicts, judge
from pipeline.kernels import Row
from pipeline.ownership import Shelf
from pipeline.policy import NEVER, SIGN
from pipeline.ports import Float32s, Models, Scorer, Windows
from pipeline.records import RecordBatch
from pipeline.series import Arrays, PartitionState
from pipeline.silences import Matchers
from pipeline.thresholds import ACCEPTED, BINS, CARRIED, joined_line, line, start, start_again

Rule = Literal["below", "trivial", "waits", "quiet", "stale", "fires", "open", "recovers", "ends"]
RULES: tuple[Rule, ...] = (
    "below",
    "trivial",
    "waits",
    "quiet",
    "stale",
    "fires",
    "open",
    "recovers",
    "ends",
)
"""By their codes, see :func:`pipeline.episodes.step`."""
_DIRECTION: dict[int, Direction] = {SIGN[name]: name for name in ("both", "above", "below")}


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Line(_Told):
    """The threshold as the row met it, before it learned from it."""

    value: Annotated[float, Field(description="the window's error, or the joined score, that was the line")]
    last_value: Annotated[float, Field(description="the same for the last row's own error")]
    policy: Annotated[Ewma | Quantile | Static | Joint, Field(discriminator="policy")]
    mean: Annotated[float | None, Field(description="rolling mean of the error; only of `ewma` and `joint`")]
    sd: Annotated[float | None, Field(description="rolling standard deviation; only of these")]
    quantile: Annotated[float | None, Field(description="the rolling quantile; only `quantile` has one")]
    rows: Annotated[int | None, Field(description="rows they rest on, those of the calibration included")]
    raised: Annotated[float, Field(description="what false alarms multiply the line by")]
    grown: Annotated[
        float | None, Field(description="by how much the series' own alerts raise it; only `joint` has it")
    ]
    false_alarms: int
    accepted: Annotated[bool, Field(description="somebody accepted a new normal, which begins with this row")]
    carried: Annotated[
        bool, Field(description="the first row under another model, to which the series came calm")
    ]


class Deviation(_Told):
    """How far the value that has most to do with the error was from what was expected, and what is asked."""

    feature: str
    unit: str
    by: Annotated[float, Field(description="observed minus expected")]
    least: float
    direction: Direction
    enough: bool


class Episode(_Told):
    """Where a series stands between two rows."""

    state: Literal["none", "pending", "firing"]
    since: Annotated[datetime | None, Field(description="first row of the pending or open episode")]
    above_since: Annotated[datetime | None, Field(description="since when it is judged anomalous")]
    calm_since: Annotated[datetime | None, Field(description="first of the `rows` towards recovery")]
    quiet_until: Annotated[datetime | None, Field(description="end of `refractory`")]
    rows: Annotated[int, Field(description="rows counted towards `for`, or towards `recovery`")]
    peak_score: float | None


class AlertState(_Told):
    """An alert as a row left it, or as it was at a time."""

    id: str
    kind: Literal["anomaly", "silent"]
    state: State
    revision: int
    severity: Severity
    started_at: datetime


class SilenceAt(_Told):
    """A silence that held at a row's time, and which window of it."""

    id: str
    mode: Literal["mute", "freeze"]
    who: str
    why: str
    start: datetime
    end: datetime
    matchers: Matchers


class Judgement(_Told):
    """What a row was judged by, and what came of it."""

    error: Annotated[float, Field(description="mean reconstruction error of the window")]
    last_error: Annotated[float, Field(description="of the last row alone")]
    score: Annotated[float, Field(description="error, or joined score, over the line; 1 is the line")]
    last_score: float
    line: Line
    joined: Annotated[Joined | None, Field(description="what the score was made of; only `joint` has it")]
    features: Annotated[list[FeatureEvidence], Field(description="largest contribution first")]
    rule: Rule
    deviation: Annotated[
        Deviation | None, Field(description="None where neither `min_deviation` nor `direction` asks")
    ]
    taught: Annotated[bool, Field(description="whether the threshold learned from the row")]
    frozen_by: Annotated[SilenceAt | None, Field(description="the silence under which it learned nothing")]
    before: Episode
    after: Episode
    alert: Annotated[AlertState | None, Field(description="the alert that it fired, found open or ended")]
    rules: AlertRules


class Trace(_Told):
    """Why a row was judged as it was, or why a record was not judged."""

    schema_version: Literal[1] = 1
    stream: str
    series: str
    labels: dict[str, str]
    asked: datetime
    at: Annotated[datetime, Field(description="of the row; of the record, where it made none")]
    cell_s: Annotated[float | None, Field(description="length of the row's grid cell; None without a grid")]
    found: Annotated[bool, Field(description="whether it is of the time that was asked for")]
    source: Annotated[Source, Field(description="the record behind it")]
    bin: Annotated[str, Field(description="where the record ended, as in docs/bins.md")]
    reason: Annotated[str | None, Field(description="why the record could not be read; the condition `when`")]
    window_filled: int
    window_rows: int
    bundle: str | None
    policy: str
    judgement: Judgement | None
    silent: Annotated[AlertState | None, Field(description="the `silent` alert that was open when asked for")]
    silences: Annotated[list[SilenceAt], Field(description="of this series at that time, as they stand now")]
    exact: Annotated[bool, Field(description="whether the state is the one that live work had")]
    basis: str
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Seen:
    """The row that was looked for; ``filled`` is how many rows its window held."""

    offset: int
    filled: int
    has_model: bool
    judgement: Judgement | None


@dataclass(slots=True)
class Watch:
    """Which row to look for, and what was seen of it.

    Attributes:
        series, time_ns: of the row.
        row: the row, once it was made.
        detector, in_force: of the newest step up to it.
        letters: the dead letters of all steps.
        pushed: rows pushed into the series' window so far.
    """

    series: str
    time_ns: int = NEVER
    row: Seen | None = None
    detector: Detector | None = None
    in_force: InForce | None = None
    letters: list[DeadLetter] = field(default_factory=list)
    pushed: int = 0


class TracingShelf(Shelf):
    """Detect steps that look out for a row."""

    def __init__(
        self, watch: Watch, namespace: str, stream: str, control: ControlLog, models: Models
    ) -> None:
        super().__init__(namespace, stream, control, models)
        self._watch = watch

    def detector(self, policy_sha: str) -> Detector:
        """See :meth:`pipeline.ownership.Shelf.detector`."""
        found = super().detector(policy_sha)
        if not isinstance(found, Tracer):
            found = self._detectors[policy_sha] = Tracer(found, self._watch)
        return found


class Tracer(Detector):
    """The detect step, which sees of one row what it was judged by."""

    def __init__(self, plain: Detector, watch: Watch) -> None:
        super().__init__(plain.namespace, plain.name, plain.stream)
        self._watch = watch

    def step(
        self,
        state: PartitionState,
        batch: RecordBatch,
        scorer: Scorer | None,
        imposed: Imposed | None = None,
    ) -> Outputs:
        """See :meth:`pipeline.detect.Detector.step`."""
        watch = self._watch
        if watch.row is None:
            slot = state.index.get(watch.series)
            watch.pushed = 0 if slot is None else int(state.rows["pushed"][slot])
            watch.detector, watch.in_force = self, state.in_force
        outputs = super().step(state, batch, scorer, imposed)
        watch.letters += outputs.dead_letters
        return outputs

    def _verdict(self, piece: _Piece, outputs: Outputs) -> None:
        item = self._sought(piece.state) if self._watch.row is None else None
        if item is None:
            super()._verdict(piece, outputs)
            return
        before = copy(piece.state)
        before.series = Arrays._make(array.copy() for array in piece.state.series)
        super()._verdict(piece, outputs)
        judged = self._items.window[item] >= 0
        self._watch.row = Seen(
            offset=int(self._items.offset[item]),
            filled=min(self._watch.pushed, self.layout.window_rows),
            has_model=piece.scorer is not None,
            judgement=self._judgement(piece, item, before) if judged else None,
        )

    def _sought(self, state: PartitionState) -> int | None:
        """Which item is the row, if it is in this piece."""
        items, watch = self._items, self._watch
        n, slot = int(items.size[0]), state.index.get(watch.series, -1)
        for item in np.flatnonzero((items.slot[:n] == slot) & (items.kind[:n] <= FILL)).tolist():
            watch.pushed = 1 if items.fresh[item] else watch.pushed + 1
            if items.kind[item] == ROW and items.time_ns[item] == watch.time_ns:
                return int(item)
        return None

    def _judgement(self, piece: _Piece, item: int, before: PartitionState) -> Judgement:
        """Judge again up to the row, on copies of what stood before this piece, and then the row alone."""
        state, items, policy = piece.state, self._items, self._judge
        slot, window, time_ns = (int(of[item]) for of in (items.slot, items.window, items.time_ns))
        raised = state.decisions.raised(self.stream.alerts)
        deviates, out = self._known(piece, item), self._again(item)
        rows, sketch = before.rows, before.series.sketch

        def go_on(first: int, end: int) -> Row:
            upto, errors = items._replace(size=np.array([end, 0])), piece.errors
            judge(
                rows, sketch, state.calibration, upto, errors.window, errors.last, deviates,
                self._joining(before), policy, raised, np.zeros(2, np.int64), out, first,
            )  # fmt: skip
            return rows[slot]

        met = go_on(0, item)
        found, threshold = _episode(met), self._line(piece, item, met, before)
        after = go_on(item, item + 1)
        at, rule = timestamp(time_ns), RULES[out.rule[item]]
        features = self._evidence(piece.scorer, piece.windows, np.array([window], np.int32))[0]
        silenced = bool(out.silenced[item])
        freezes = (
            each
            for each in state.decisions.freezes
            if self._covers(each.record.silence.matchers, state, slot)
        )
        return Judgement(
            error=float(piece.errors.window[window]),
            last_error=float(piece.errors.last[window]),
            score=float(out.score[item]),
            last_score=float(out.last_score[item]),
            line=threshold,
            joined=self._joined(out.channels[item]),
            features=features,
            rule=rule,
            deviation=self._deviation(features[0], enough=bool(deviates[window])),
            taught=not silenced and not frozen(after, time_ns, policy),
            frozen_by=next(iter(silences_at(freezes, at)), None) if silenced else None,
            before=found,
            after=_episode(after),
            alert=self._alert(after, ended=rule == "ends") if out.rule[item] >= FIRES else None,
            rules=self.stream.alerts,
        )

    def _again(self, item: int) -> Verdicts:
        """Room for the verdicts up to an item, with what was set down before these were made."""
        out = self._verdicts
        return Verdicts.room(item + 1)._replace(
            silenced=out.silenced, imposed=out.imposed, imposed_start_ns=out.imposed_start_ns
        )

    def _known(self, piece: _Piece, item: int) -> NDArray[np.int8]:
        """int8[windows]: whether those of the series up to the row deviate enough; no others are asked."""
        items, windows = self._items, piece.windows
        deviates = np.ones(len(piece.errors.window), np.int8)
        if self._judge.asks_deviation and piece.scorer is not None:
            before = items.window[: item + 1][items.slot[: item + 1] == items.slot[item]]
            mine = before[before >= 0]
            tails: Float32s = windows.tail[mine]
            why = piece.scorer.explain(Windows(tails, windows.anchor[mine], windows.model[mine]))
            deviates[mine] = self._deviations.enough(why)
        return deviates

    def _line(self, piece: _Piece, item: int, met: Row, before: PartitionState) -> Line:
        """The line as :func:`pipeline.judge.judge` holds the row against it."""
        state, policy, settings = piece.state, self._judge, self.stream.threshold
        slot, window = int(self._items.slot[item]), int(self._items.window[item])
        row, sketch = met.copy(), before.series.sketch[slot].copy()
        joint = isinstance(settings, Joint)
        grown = float(before.series.scalars["grown"][slot, 0]) if joint else 0.0
        calibration, window_rows = state.calibration[slot], state.layout.window_rows
        if row.rows == 0.0:
            start(row, sketch, calibration, policy)
        elif row.rows < 0.0:
            error, last = piece.errors.window[window], piece.errors.last[window]
            start_again(row, sketch, calibration, error, last, window_rows, policy)
        raised = state.decisions.raised(self.stream.alerts)
        height = joined_line(row.rows, grown, policy)
        last_height = height
        if not joint:
            height = line(row.error_mean, row.error_variance, sketch[:BINS], policy)
            last_height = line(row.last_mean, row.last_variance, sketch[BINS:], policy)
        rolling = not isinstance(settings, Static)
        moments = rolling and not isinstance(settings, Quantile)
        return Line(
            value=raised * height,
            last_value=raised * last_height,
            policy=settings,
            mean=float(row.error_mean) if moments else None,
            sd=float(row.error_variance) ** 0.5 if moments else None,
            quantile=height / settings.margin if isinstance(settings, Quantile) else None,
            rows=int(row.rows) if rolling else None,
            raised=raised,
            grown=grown if joint else None,
            false_alarms=state.decisions.false_alarms,
            accepted=bool(met.rows == ACCEPTED),
            carried=bool(met.rows == CARRIED),
        )

    def _deviation(self, first: FeatureEvidence, *, enough: bool) -> Deviation | None:
        if not self._judge.asks_deviation:
            return None
        apart = np.subtract(first.window_observed, first.window_expected)
        feature = self.stream.feature_names.index(first.name)
        return Deviation(
            feature=first.name,
            unit=first.unit,
            by=float(apart[np.abs(apart).argmax()]),
            least=float(self._deviations.least[feature]),
            direction=_DIRECTION[int(self._deviations.sign[feature])],
            enough=enough,
        )

    def _alert(self, row: Row, *, ended: bool) -> AlertState:
        start_ns = int(row.start_ns)
        return AlertState(
            id=alert_id(self.namespace, self.name, self._watch.series, "anomaly", start_ns),
            kind="anomaly",
            state="resolved" if ended else "firing",
            revision=int(row.revision),
            severity=severity(float(row.peak), self.stream),
            started_at=timestamp(start_ns),
        )


def silences_at(silences: Iterable[Standing], at: datetime) -> list[SilenceAt]:
    """Those among silences that hold at a moment."""
    return [
        SilenceAt(
            id=each.record.id,
            mode=each.record.silence.mode,
            who=each.record.who,
            why=each.record.why,
            start=start_at,
            end=end_at,
            matchers=each.record.silence.matchers,
        )
        for each in silences
        for start_at, end_at in each.spans(at, at)
        if start_at <= at < end_at
    ]


def _episode(row: Row) -> Episode:
    episode = int(row.episode)
    return Episode(
        state="firing" if episode == FIRING else "pending" if episode == PENDING else "none",
        since=timestamp(int(row.start_ns)) if episode in {FIRING, PENDING} else None,
        above_since=_moment(row.above_ns),
        calm_since=_moment(row.calm_ns) if episode == FIRING and row.run > 0 else None,
        quiet_until=_moment(row.quiet_until_ns),
        rows=int(row.run) if episode in {FIRING, PENDING} else 0,
        peak_score=float(row.peak) if episode in {FIRING, PENDING} else None,
    )


def _moment(time_ns: int) -> datetime | None:
    return None if time_ns == NEVER else timestamp(int(time_ns))
