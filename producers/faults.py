"""Named faults: what each does to the rows of a series, and where they are placed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

Float64s = NDArray[np.float64]

_APART_ROWS = 40
"""Between one fault of a series and the next."""

_TRIES = 1_000


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault by index: rows ``[first, end)`` of one series.

    Attributes:
        number: counts the faults of a run, and seeds what is random in one.
        kind: one of ``FAULTS``.
        series: index of the series.
        features: indices of the features it changes.
        sign: 1 or -1, upwards or downwards.
        first, end: its rows.
    """

    number: int
    kind: str
    series: int
    features: tuple[int, ...]
    sign: float
    first: int
    end: int


class Span(NamedTuple):
    """What a fault finds in the rows it changes, ``[r, F]`` over its own features.

    Attributes:
        clean: float64[r, F], the rows without the fault.
        held: float64[F], the fault's first row.
        antiphase: float64[r, F], what half a day away would add to the rows.
        draws: float64[r, F], normal noise of the fault's own.
        swing: float64[F], the amplitude of the daily rhythm.
        grown: float64[r, 1], the part of the fault that has passed, above 0 and up to 1.
        sign: 1 or -1.
    """

    clean: Float64s
    held: Float64s
    antiphase: Float64s
    draws: Float64s
    swing: Float64s
    grown: Float64s
    sign: float


class Kind(NamedTuple):
    """How many rows a fault lasts, least and most, and what it makes of them."""

    least_rows: int
    most_rows: int
    change: Callable[[Span], Float64s]


FAULTS = {
    "spike": Kind(1, 3, lambda span: span.clean + span.sign * 4 * span.swing),
    "level_shift": Kind(30, 90, lambda span: span.clean + span.sign * 2 * span.swing),
    "drift": Kind(60, 180, lambda span: span.clean + span.sign * 3 * span.swing * span.grown),
    "stuck": Kind(30, 90, lambda span: np.broadcast_to(span.held, span.clean.shape)),
    "noise": Kind(30, 90, lambda span: span.clean + span.swing * span.draws),
    "lost_phase": Kind(60, 180, lambda span: span.clean + span.antiphase),
    "silence": Kind(30, 90, lambda span: np.full_like(span.clean, np.nan)),
}
"""The faults by name; a silent row, NaN in all features, is never sent."""


def place(
    count: int,
    kinds: Sequence[str],
    *,
    series: int,
    features: int,
    first_row: int,
    rows: int,
    rng: np.random.Generator,
) -> list[Fault]:
    """Place ``count`` faults, the kinds in turn, at random in rows ``[first_row, rows)`` of some series.

    Raises:
        ConfigError: there is no room for them all, a few rows apart.
    """
    placed: list[Fault] = []
    taken: dict[int, list[Fault]] = {}
    for number in range(count):
        kind = kinds[number % len(kinds)]
        length = int(rng.integers(FAULTS[kind].least_rows, FAULTS[kind].most_rows + 1))
        some = rng.choice(features, size=int(rng.integers(1, max(1, features // 2) + 1)), replace=False)
        changed = tuple(range(features)) if kind == "silence" else tuple(sorted(some.tolist()))
        sign = float(rng.choice((-1.0, 1.0)))
        for _ in range(_TRIES if rows - length >= first_row else 0):
            where = int(rng.integers(series))
            first = int(rng.integers(first_row, rows - length + 1))
            if all(
                other.end + _APART_ROWS <= first or first + length + _APART_ROWS <= other.first
                for other in taken.get(where, ())
            ):
                break
        else:
            raise ConfigError(
                f"{count} faults do not fit into {series} series of {rows} rows, {first_row} of them clean; "
                "ask for fewer faults or more rows"
            )
        placed.append(Fault(number, kind, where, changed, sign, first, first + length))
        taken.setdefault(where, []).append(placed[-1])
    return placed
