"""What a bundle tells of its training: what it was learned from, what not and why, and how well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from models.gate import Ruling

_MUCH_HELD: Final = 0.2


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of rows; see :class:`models.history.Account`.

    Attributes:
        short: of those learned: in stretches shorter than a window, which teach nothing.
    """

    rows: int
    learned: int
    thinned: int
    frozen: int
    alerts: int
    normal: int
    over: int
    short: int


@dataclass(frozen=True, slots=True)
class FeatureLine:
    """One feature.

    Attributes:
        constant_series: series in which it never changed in the rows learned from, of all ``series``.
        held: the share of rows in which it was missing and held its last value.
    """

    name: str
    unit: str
    constant_series: int
    series: int
    held: float


@dataclass(frozen=True, slots=True)
class SeriesLine:
    """One series.

    Attributes:
        model: whose it is: ``own``, or that of a ``cohort`` or, as the ``fallback``, of all series.
        first_at, last_at: event times of the rows it was learned from; None where there are none.
        stretches: that these rows stand in.
        error, error_sd: mean and standard deviation on rows held out.
        line: the error where its threshold starts.
        above: the share of its held-out windows above it; None where it has none.
        constant: features that never changed.
        held: share of rows in which a feature was missing, by feature, above 0.
    """

    series: str
    model: str
    counts: Counts
    first_at: datetime | None
    last_at: datetime | None
    stretches: int
    error: float
    error_sd: float
    line: float
    above: float | None
    constant: tuple[str, ...]
    held: dict[str, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """Losses at each check, of a network or the mean of those still learning."""

    name: str
    train: list[float | None]
    held_out: list[float | None]


@dataclass(frozen=True, slots=True)
class Errors:
    """Held-out windows of all series by their score: error over the line where their threshold starts.

    Attributes:
        edges: of the bins; the last one holds all higher scores as well.
        counts: windows in each.
        windows, above: how many there are, and how many of them are above the line.
    """

    edges: list[float]
    counts: list[int]
    windows: int
    above: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """One feature of a window, oldest row first."""

    name: str
    unit: str
    contribution: float
    observed: list[float]
    expected: list[float]


@dataclass(frozen=True, slots=True)
class Worst:
    """A held-out window that was reconstructed badly; ``at`` is the event time of its newest row."""

    series: str
    at: datetime
    score: float
    features: list[Drawn]


@dataclass(frozen=True, slots=True)
class Report:
    """All that a person asks of a training; times are event times.

    Attributes:
        gate: the gate's ruling; None where it was not asked.
        champion: kind and id of the one that it contended with; empty where it was a first model.
        why: it was put to use or not, as the control record of a gate's decision says it.
        shadow: what the contenders did in a shadow, as JSON values, where there was one.
    """

    stream: str
    created_at: str
    kind: str
    window_rows: int
    layers: tuple[int, ...]
    records: int
    bins: dict[str, int]
    rows_limit: int
    first_at: datetime | None
    last_at: datetime | None
    counts: Counts
    features: list[FeatureLine]
    series_count: int
    own_models: int
    cohorts: int
    series: list[SeriesLine]
    curves: list[Curve]
    errors: Errors
    worst: list[Worst]
    gate: Ruling | None = None
    champion: str = ""
    why: str = ""
    shadow: dict[str, Any] | None = None

    def json(self) -> bytes:
        """The report as JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def remarks(self) -> Iterator[str]:
        """What a person should know, in sentences."""
        for each in self.features:
            yield from _about_feature(each)
        counts = self.counts
        if counts.over:
            yield (
                f"{counts.over:,} rows were learned from although an alert was raised there: at most a fifth "
                "of a series is left out, because where more is out of the ordinary, that is ordinary now"
            )
        if self.series_count and not self.own_models and not self.cohorts:
            yield (
                "no series has rows enough for a model of its own: the shared model judges all of them, less "
                "sharply"
            )
        if counts.short:
            yield (
                f"{counts.short:,} rows stand in stretches shorter than a window of {self.window_rows} rows "
                "and teach nothing"
            )


def _about_feature(each: FeatureLine) -> Iterator[str]:
    if each.series and each.constant_series == each.series:
        yield (
            f"{each.name} never changed in the rows learned from, in any series: a change by a thousandth of "
            "its value will count as a whole standard deviation; leave it out where it says nothing"
        )
    elif each.constant_series:
        yield (
            f"{each.name} never changed in the rows learned from in {each.constant_series:,} of "
            f"{each.series:,} series: there a thousandth of its value will count as a standard deviation"
        )
    if each.held > _MUCH_HELD:
        yield f"{each.name} is missing in {each.held:.0%} of the rows, where its last value is taken to hold"
