"""Makes the report of a training, from the bundle, what it was learned from, and how the losses fell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.history import Account, History
from models.losses import Losses
from models.report import Counts, Curve, Drawn, Errors, FeatureLine, Report, SeriesLine, Worst
from models.samples import SeriesRows, as_windows, evenly, split, windows_at
from models.scorer import StackScorer
from pipeline.alerts import timestamp
from pipeline.companions import ERROR_AT_ONE
from pipeline.config import Stream
from pipeline.policy import judge_policy
from pipeline.ports import Float32s, Float64s, Windows
from pipeline.records import Int64s
from pipeline.series import Layout
from pipeline.thresholds import BINS, line, start

SERIES: Final = 1_000
"""Series that a report has lines of; the sums are over all."""

_MOST_WINDOWS: Final = 1 << 20  # that are looked at, over all series
_MOST_VALUES: Final = 1 << 24  # of the windows of one series
_WORST: Final = 6
_WORST_FEATURES: Final = 3
_CURVES: Final = 3  # of the networks that did worst
_BINS: Final = 50
_SHOWN_SCORE: Final = 3.0  # higher ones share the last bin


def make(bundle: Bundle, history: History, losses: Losses, name: str, stream: Stream) -> Report:
    """The report of a bundle that was trained on ``history`` for the stream ``name`` with its settings."""
    return _Training(bundle, history, stream).report(losses, name)


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Held-out windows of one series and model: their first rows int64[n], and their scores float64[n]."""

    series: str
    model: int
    starts: Int64s
    score: Float64s


class _Training:
    """What is asked of one training."""

    def __init__(self, bundle: Bundle, history: History, stream: Stream) -> None:
        self._bundle, self._history, self._stream = bundle, history, stream
        self._spec, self._scorer = bundle.manifest.spec, StackScorer(bundle)
        self._names = sorted(history.accounts)
        self._constant = {
            name: _constant(rows, self._spec.window_rows) for name, rows in history.series.items()
        }

    def report(self, losses: Losses, name: str) -> Report:
        history, account = self._history, self._history.account
        shown = [self._names[i] for i in evenly(np.arange(len(self._names)), SERIES)]
        lines = _lines(self._scorer.assign(shown).calibration, self._stream)
        judged = list(self._judged(shown, lines))
        first = [int(each[0]) for each in history.time_ns.values()]
        last = [int(each[-1]) for each in history.time_ns.values()]
        return Report(
            stream=name,
            created_at=self._bundle.manifest.created_at,
            kind=self._spec.kind,
            window_rows=self._spec.window_rows,
            layers=self._spec.widths(),
            records=history.records,
            bins={bin_: count for bin_, count in history.bins.items() if count},
            rows_limit=history.rows_limit,
            first_at=timestamp(min(first)) if first else None,
            last_at=timestamp(max(last)) if last else None,
            counts=_counts(account, sum(map(self._short, self._names))),
            features=list(self._features(account)),
            series_count=len(self._names),
            own_models=self._bundle.owners().count("own"),
            cohorts=self._bundle.manifest.networks - 1 - self._bundle.owners().count("own"),
            series=list(self._series(shown, lines, {each.series: each for each in judged})),
            curves=list(self._curves(losses)),
            errors=_errors(judged),
            worst=list(self._worst(judged)),
        )

    def _judged(self, names: Sequence[str], lines: Float64s) -> Iterator[_Judged]:
        """Some windows of each series that training did not see."""
        values = self._spec.window_rows * len(self._spec.features)
        most = max(min(_MOST_WINDOWS // max(len(names), 1), _MOST_VALUES // values), 1)
        for name, model, at in zip(names, self._scorer.assign(names).model, lines, strict=True):
            if name not in self._history.series:
                continue
            rows = self._history.series[name]
            starts = evenly(split(rows.segment, self._spec.window_rows).held_out, most)
            if len(starts):
                errors = self._scorer.score(self._windows(name, int(model), starts))
                yield _Judged(name, int(model), starts, errors.window / at)

    def _windows(self, name: str, model: int, starts: Int64s) -> Windows:
        raw = windows_at(self._history.series[name].values, starts, self._spec.window_rows)
        return as_windows(raw, np.full(len(raw), model, np.int32))

    def _features(self, account: Account) -> Iterator[FeatureLine]:
        held = sum((each.held for each in self._history.accounts.values()), np.zeros(1, np.int64))
        for i, name in enumerate(self._spec.features):
            yield FeatureLine(
                name,
                self._stream.events.features[name].unit,
                sum(bool(each[i]) for each in self._constant.values()),
                len(self._constant),
                _share(held[i], account),
            )

    def _series(
        self, names: Sequence[str], lines: Float64s, judged: dict[str, _Judged]
    ) -> Iterator[SeriesLine]:
        found, history, owners = self._scorer.assign(names), self._history, self._bundle.owners()
        for name, model, calibration, at in zip(names, found.model, found.calibration, lines, strict=True):
            account, times = history.accounts[name], history.time_ns.get(name)
            own = judged.get(name)
            yield SeriesLine(
                series=name,
                model=owners[model],
                counts=_counts(account, self._short(name)),
                first_at=None if times is None else timestamp(int(times[0])),
                last_at=None if times is None else timestamp(int(times[-1])),
                stretches=0 if times is None else len(np.unique(history.series[name].segment)),
                error=float(calibration[0]),
                error_sd=float(calibration[1]),
                line=float(at),
                above=None if own is None else float((own.score >= 1).mean()),
                constant=tuple(itertools.compress(self._spec.features, self._constant.get(name, ()))),
                held={
                    feature: _share(held, account)
                    for feature, held in zip(self._spec.features, account.held, strict=True)
                    if held
                },
            )

    def _short(self, name: str) -> int:
        """Rows of a series in stretches that are shorter than a window."""
        if name not in self._history.series:
            return 0
        lengths = np.bincount(self._history.series[name].segment)
        return int(lengths[lengths < self._spec.window_rows].sum())

    def _curves(self, losses: Losses) -> Iterator[Curve]:
        """Of the mean over networks, of those that did worst on rows held out, and of the fallback."""
        train, held_out = losses.train, losses.held_out
        fallback = train.shape[1] - 1
        if fallback:
            learning = np.isfinite(train).sum(axis=1)
            yield Curve("mean", *(_numbers(np.nansum(each, axis=1) / learning) for each in (train, held_out)))
        network = self._bundle.network_of[self._scorer.assign(self._names).model]
        named = dict(zip(network[::-1].tolist(), reversed(self._names), strict=True))
        users = np.bincount(network, minlength=fallback + 1)
        best = np.nanmin(held_out[:, :fallback], axis=0)
        for number in [*np.argsort(-best, kind="stable")[:_CURVES].tolist(), fallback]:
            name = named[number] if number < fallback else "shared model"
            if number < fallback and users[number] > 1:
                name += f" and {users[number] - 1:,} others"
            yield Curve(name, _numbers(train[:, number]), _numbers(held_out[:, number]))

    def _worst(self, judged: Sequence[_Judged]) -> Iterator[Worst]:
        """The windows with the highest scores, one of a series, the worst first."""
        for each in sorted(judged, key=lambda each: (-float(each.score.max()), each.series))[:_WORST]:
            at = int(each.score.argmax())
            why = self._scorer.explain(self._windows(each.series, each.model, each.starts[at : at + 1]))
            newest = each.starts[at] + self._spec.window_rows - 1
            when = timestamp(int(self._history.time_ns[each.series][newest]))
            order = np.argsort(-why.contribution[0], kind="stable")[:_WORST_FEATURES]
            drawn = [
                Drawn(
                    self._spec.features[i],
                    self._stream.events.features[self._spec.features[i]].unit,
                    float(why.contribution[0, i]),
                    why.observed[0, :, i].tolist(),
                    why.expected[0, :, i].tolist(),
                )
                for i in order
            ]
            yield Worst(each.series, when, float(each.score[at]), drawn)


def _lines(calibration: Float64s, stream: Stream) -> Float64s:
    """float64[n]: the errors where thresholds start, as the detect step starts them.

    Where errors are joined with their companions it is what makes a joined score of 1 alone.
    """
    arrays, policy = Layout.of(stream).arrays(1), judge_policy(stream)
    if policy.joint_line:
        policy = policy._replace(k=ERROR_AT_ONE)
    row, sketch = arrays.rows[0], arrays.sketch[0]
    found = np.empty(len(calibration))
    for i, each in enumerate(calibration):
        start(row, sketch, each, policy)
        found[i] = line(row["error_mean"], row["error_variance"], sketch[:BINS], policy)
    return found


def _constant(rows: SeriesRows, window_rows: int) -> NDArray[np.bool_]:
    """bool[F]: which features have one value in all rows that training sees."""
    train = split(rows.segment, window_rows).train
    seen = rows.values[: int(train[-1]) + window_rows] if len(train) else rows.values
    constant: NDArray[np.bool_] = seen.min(axis=0) == seen.max(axis=0)
    return constant


def _counts(account: Account, short: int) -> Counts:
    return Counts(
        rows=account.rows,
        learned=account.learned,
        thinned=account.thinned,
        frozen=account.frozen,
        alerts=account.alerts,
        normal=account.normal,
        over=account.over,
        short=short,
    )


def _share(count: int, account: Account) -> float:
    return float(count / max(account.rows - account.frozen, 1))


def _numbers(values: Float32s | Float64s) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _errors(judged: Sequence[_Judged]) -> Errors:
    scores = np.concatenate([np.zeros(0), *(each.score for each in judged)])
    top = min(max(float(scores.max(initial=0.0)), 1.2), _SHOWN_SCORE)
    counts, edges = np.histogram(scores.clip(0, top), _BINS, (0.0, top))
    return Errors(edges.tolist(), counts.tolist(), len(scores), int(np.count_nonzero(scores >= 1)))
