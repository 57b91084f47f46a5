"""The gate: whether a challenger becomes the champion, and why, in one sentence and in numbers.

Contenders judge the same replayed days, once as they were and once with known faults in them, and
reconstruct the same held-out rows. A challenger is promoted only within the bounds that stand below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.faults import KINDS
from models.intervals import Estimate, difference_of_rates, difference_of_shares, excess, rate, share
from models.reference import Drift, drifted
from models.trial import Alarm, Extent, HeldOut, Trial
from pipeline.ports import Float64s, Scorer

FALSE_ALARMS_MORE: Final = 0.25
"""Share of the false alarms of today that there may be more: about what people notice."""
FALSE_ALARMS_FEW: Final = 5.0
"""And so many over the whole replay, where that is more: of a few more or less, chance tells most."""
FOUND_FEWER: Final = 0.05
"""Share of all faults that may be found fewer: one in twenty; two hundred faults can tell that."""
HELD_OUT_MORE: Final = 0.10
"""Share by which the error on held-out rows may be higher: two seeds of one model differ by less."""

DRIFTED_MOST: Final = 0.05
"""Share of the series that may have drifted from the pinned reference: more is no matter of a few series,
whose models, new regimes or polluted, must not hold back those of all others."""

CHALLENGER, CHAMPION = "challenger", "champion"

Measure = Literal["false alarms", "faults found", "held-out error"]
Verdict = Literal["within", "worse", "open"]


@dataclass(frozen=True, slots=True)
class Found:
    """Faults that were found, out of how many, and the interval of the share."""

    faults: int
    of: int
    share: Estimate | None


@dataclass(frozen=True, slots=True)
class Figures:
    """What one contender did.

    Attributes:
        false_alarms: alerts outside confirmed anomalies in the replay without faults.
        a_day: the same to a day and series.
        found: in the replay with faults, over all kinds.
        by_kind: the same of each kind.
        held_out_error: mean over held-out windows, in spreads of the rows; None where there are no windows.
        raised: times the stream's own lines; above 1 for a baseline that alarms more than the challenger,
            for what it finds counts at equally many alarms.
    """

    false_alarms: int
    a_day: Estimate | None
    found: Found
    by_kind: dict[str, Found]
    held_out_error: float | None
    raised: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a challenger compares with one contender by one measure.

    Attributes:
        against: the other's role.
        worse_by: how much worse the challenger is: false alarms more to a day and series, share of the faults
            that it misses more, or share by which its error is higher. None where nothing can be told.
        bound: how much worse it may be.
        verdict: ``within`` the bound to the end of the interval; ``worse``, beyond it and surely worse;
            ``open``: there is too little data to tell.
    """

    against: str
    measure: Measure
    worse_by: Estimate | None
    bound: float
    verdict: Verdict

    @classmethod
    def of(cls, against: str, measure: Measure, worse_by: Estimate | None, bound: float) -> Comparison:
        """The comparison with its verdict."""
        verdict: Verdict = "open"
        if worse_by is None:
            return cls(against, measure, worse_by, bound, verdict)
        if worse_by.high <= bound:
            verdict = "within"
        elif worse_by.low > 0 and worse_by.value > bound:
            verdict = "worse"
        return cls(against, measure, worse_by, bound, verdict)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the gate says.

    Attributes:
        promoted: whether the challenger may become the champion.
        sentence: why, for people.
        contenders: what each did, by role.
        comparisons: the challenger with each of the others.
        drifted: series that have moved away from the pinned reference.
        referenced: how many series were held against it.
        series_days: how much of the replay counts, in days of one series.
        extent: what was looked at, and out of how much.

    Raises:
        ValueError: figures are missing, as they may be in a bundle from elsewhere.
    """

    promoted: bool
    sentence: str
    contenders: dict[str, Figures]
    comparisons: tuple[Comparison, ...]
    drifted: tuple[Drift, ...]
    referenced: int
    series_days: float
    extent: Extent

    def __post_init__(self) -> None:
        roles = {CHALLENGER, *(each.against for each in self.comparisons)}
        whole = all(each.by_kind.keys() == set(KINDS) for each in self.contenders.values())
        if not (whole and roles <= self.contenders.keys()):
            raise ValueError("figures of a contender or a kind of fault are missing")

    @property
    def moved(self) -> bool:
        """Whether too many series have drifted from the pinned reference for anything to be promoted."""
        return len(self.drifted) > DRIFTED_MOST * self.referenced

    def is_worse_than(self, role: str) -> bool:
        """Whether the challenger is surely worse than the contender of a role by some measure."""
        return any(each.against == role and each.verdict == "worse" for each in self.comparisons)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values; a figure of which nothing is known is null."""
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """What came of one contender's runs; ``found`` bool[faults], ``errors`` float64[blocks of windows]."""

    alarms: list[Alarm]
    found: NDArray[np.bool_]
    errors: Float64s
    raised: float = 1.0


def gate(
    trial: Trial,
    challenger: Scorer,
    *,
    champion: Scorer | None,
    baselines: Mapping[str, Scorer],
    reference: Bundle | None = None,
    same_kind: bool = True,
) -> Ruling:
    """Let a challenger contend with the champion, or with ``baselines`` by name where there is none yet.

    Errors on held-out rows are held against it where the champion is of the ``same_kind`` of model alone.

    A later model is promoted when it is within the bounds by every measure. Of the first one it is enough
    that it is not surely worse than a baseline: the other choice is to watch nothing. No model is promoted on
    rows of which too many series have drifted from ``reference``, a bundle that somebody pinned.
    """
    held_out = trial.held_out()
    runs = {CHALLENGER: _contend(trial, challenger, held_out, None)}
    others = baselines if champion is None else {CHAMPION: champion}
    most = len(runs[CHALLENGER].alarms) if champion is None else None
    runs |= {role: _contend(trial, scorer, held_out, most) for role, scorer in others.items()}
    counts, days = trial.days([each.alarms for each in runs.values()])
    alarms = dict(zip(runs, counts, strict=True))
    comparisons = [
        comparison
        for role in others
        for comparison in _compare(
            role, runs, alarms, days, seed=trial.stream.training.seed, errors=same_kind and role == CHAMPION
        )
    ]
    figures = {role: _figures(trial, each, float(days.sum())) for role, each in runs.items()}
    drifts = [] if reference is None else drifted(reference, trial.rows())
    noticed = [each for each in drifts if each.noticed]
    good_enough = {"within", "open"} if champion is None else {"within"}
    trusted = len(noticed) <= DRIFTED_MOST * len(drifts)
    if trusted:
        sentence = _sentence(figures, comparisons, float(days.sum()), first=champion is None)
    else:
        sentence = f"refused: {_moved(noticed, len(drifts))}, where {DRIFTED_MOST:.0%} are allowed"
    return Ruling(
        promoted=trusted and all(each.verdict in good_enough for each in comparisons),
        sentence=sentence,
        contenders=figures,
        comparisons=tuple(comparisons),
        drifted=tuple(noticed),
        referenced=len(drifts),
        series_days=float(days.sum()),
        extent=trial.extent,
    )


def _contend(trial: Trial, scorer: Scorer, held_out: HeldOut, most: int | None) -> _Runs:
    """Run one contender, its lines raised so far that it alarms about ``most`` times."""
    errors, alarms, raised = held_out.errors(scorer), trial.alarms(scorer), 1.0
    if most is not None and len(alarms) > most:
        raised = max(1.0, sorted((alarm.peak for alarm in alarms), reverse=True)[most]) * (1 + 1e-6)
        alarms = trial.alarms(scorer, raised=raised)
    return _Runs(alarms, trial.found(scorer, raised=raised), errors, raised)


def _compare(
    role: str,
    runs: Mapping[str, _Runs],
    alarms: Mapping[str, Float64s],
    days: Float64s,
    *,
    seed: int,
    errors: bool,
) -> Iterator[Comparison]:
    """The challenger with the contender of a role; ``errors`` of models of one kind are compared alone.

    Reconstruction is a means, and two kinds of model that find as much need not be good at it alike.
    """
    mine, other = runs[CHALLENGER], runs[role]
    most = max(FALSE_ALARMS_MORE * float(alarms[role].sum()), FALSE_ALARMS_FEW)
    more = difference_of_rates(alarms[CHALLENGER], alarms[role], days, seed)
    yield Comparison.of(role, "false alarms", more, most / max(float(days.sum()), 1e-9))
    yield Comparison.of(role, "faults found", difference_of_shares(other.found, mine.found), FOUND_FEWER)
    if errors:
        yield Comparison.of(role, "held-out error", excess(mine.errors, other.errors, seed), HELD_OUT_MORE)


def _figures(trial: Trial, runs: _Runs, series_days: float) -> Figures:
    kinds = np.array([fault.kind for fault in trial.faults], object)
    return Figures(
        false_alarms=len(runs.alarms),
        a_day=rate(len(runs.alarms), series_days),
        found=_found(runs.found),
        by_kind={kind: _found(runs.found[kinds == kind]) for kind in KINDS},
        held_out_error=float(runs.errors.mean()) if len(runs.errors) else None,
        raised=runs.raised,
    )


def _found(found: NDArray[np.bool_]) -> Found:
    count = int(found.sum())
    return Found(count, len(found), share(count, len(found)))


def _sentence(
    figures: Mapping[str, Figures], comparisons: Sequence[Comparison], series_days: float, *, first: bool
) -> str:
    """Why, for people: what decided, or all of it where nothing stood against the challenger."""
    worse = [each for each in comparisons if each.verdict == "worse"]
    unsure = [each for each in comparisons if each.verdict == "open"]
    if worse:
        return f"refused: {_told(figures, worse)}"
    if unsure and not first:
        return f"the champion stays, there is too little data to tell: {_told(figures, unsure)}"
    done = [f"{role} {_done(each)}" for role, each in figures.items()]
    start = f"promoted{' as the first model' if first else ''}: in {series_days:.3g} days of one series"
    doubt = (
        f"; too little data to tell them apart by all measures: {_told(figures, unsure)}" if unsure else ""
    )
    return f"{start} {'; '.join(done)}{doubt}"


def _moved(noticed: Sequence[Drift], of: int) -> str:
    worst = max(noticed, key=lambda each: each.beyond)
    farthest = ", ".join(f"{name} by {level:+.1f}" for name, level in worst.features.items())
    return (
        f"{len(noticed)} of {of} series have drifted from the pinned reference, {worst.series} by "
        f"{worst.level:+.1f} of its spreads (farthest {farthest or 'none'}), {worst.spread:.2g} times its "
        f"spread, and {worst.error:.2g} times its error"
    )


def _done(figures: Figures) -> str:
    alarms = "1 false alarm" if figures.false_alarms == 1 else f"{figures.false_alarms} false alarms"
    found = f"{figures.found.faults} of {figures.found.of} faults found"
    return f"{alarms}, {found}, held-out error {_error(figures)}"


def _error(figures: Figures) -> str:
    return "unknown" if figures.held_out_error is None else f"{figures.held_out_error:.3f}"


def _told(figures: Mapping[str, Figures], comparisons: Sequence[Comparison]) -> str:
    said = [_compared(figures[CHALLENGER], figures[each.against], each) for each in comparisons]
    return "; ".join(dict.fromkeys(said))


def _compared(mine: Figures, other: Figures, comparison: Comparison) -> str:
    """One comparison with its interval and its bound, in hundredths where it is of shares."""
    role, scale, by = comparison.against, 100.0, comparison.worse_by
    if by is None:
        return f"of {comparison.measure} nothing can be told"
    if comparison.measure == "false alarms":
        scale, unit = 1.0, "more a day and series"
        said = f"{mine.false_alarms} false alarms, {role} {other.false_alarms}"
    elif comparison.measure == "faults found":
        unit = "points fewer"
        said = f"{mine.found.faults} of {mine.found.of} faults found, {role} {other.found.faults}"
    else:
        unit = "% more"
        said = f"held-out error {_error(mine)}, {role} {_error(other)}"
    value, low, high, most = (f"{scale * each:.3g}" for each in (by.value, by.low, by.high, comparison.bound))
    return f"{said} ({value} {unit}, between {low} and {high}, where {most} are allowed)"
