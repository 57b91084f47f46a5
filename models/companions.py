"""What a bundle knows for the companions: how its training rows leave them, so that no series starts cold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.samples import SeriesRows
from models.scaling import Scaling
from pipeline.companions import PROTOTYPES, SCALARS, Companions, Parts, Scratch, Seeds, go_over, weights
from pipeline.ports import Float64s

_POOLED_ROWS: Final = 1_000
"""As so many rows of its own, the levels of all series count for one that is new."""


def learn(scaling: Scaling, series: Sequence[SeriesRows], pooled: Float64s, window_rows: int) -> Companions:
    """The companions of each model after its rows, those of the fallback last.

    A series not seen before begins with the levels of all, which soon give way to its own, and with an empty
    memory of shapes.

    Args:
        scaling: of the M models.
        series: the rows of the M - 1 models that are a series' own.
        pooled: rows of all series, float64[n, F].
        window_rows: of the windows that will be judged.
    """
    features = pooled.shape[1]
    parts = Parts.all(window_rows, features)
    seeds = Seeds.blank(scaling.median, scaling.spread, parts)
    begin = seeds.begin
    rooms = np.zeros(parts.shapes, np.float32), Scratch.room(window_rows, features)
    begin.level[:-1] = 0.0
    begin.scalars["level_rows"][:-1] = 0.0
    for model, each in enumerate(series):
        go_over(begin, model, each.values, each.segment, seeds, model, *weights(features), *rooms)
        for ring in (begin.apart, begin.rare):  # a new life begins its rings at their first place
            ring[model] = np.roll(ring[model], -int(begin.scalars["turn"][model, 0]))
    fallback = Seeds(scaling.median[-1:], scaling.spread[-1:], Companions.empty(1, parts))
    apart = np.arange(len(pooled), dtype=np.int32)
    go_over(fallback.begin, 0, pooled, apart, fallback, 0, *weights(features), *rooms)
    scaled = scaling.apply(len(series), pooled).astype(np.float64)
    begin.level[-1, 0::3], begin.level[-1, 1::3] = scaled.mean(axis=0), scaled.var(axis=0)
    counts = fallback.begin.counts[0].astype(np.int64)
    begin.counts[-1] = counts * _POOLED_ROWS // max(int(counts.sum()), _POOLED_ROWS)
    return begin


def layout(models: int, window_rows: int, features: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of each of their tensors."""
    tensors = to_tensors(Companions.empty(0, Parts.all(window_rows, features)))
    return {name: (each.dtype.name, (models, each.shape[1])) for name, each in tensors.items()}


def to_tensors(companions: Companions) -> dict[str, NDArray[Any]]:
    """Them as plain arrays, by name."""
    scalars = companions.scalars.view(np.float64).reshape(-1, len(SCALARS))
    arrays = companions._asdict() | {"scalars": scalars}
    return {f"companions.{name}": each for name, each in arrays.items()}


def of_tensors(tensors: dict[str, NDArray[Any]]) -> Companions:
    """The same, the other way.

    Raises:
        ValueError: they are none.
    """
    found = Companions(**{name: tensors[f"companions.{name}"] for name in Companions._fields})
    found = found._replace(scalars=found.scalars.view(np.dtype((np.record, SCALARS))))
    stored = found.scalars["stored"]
    if not ((stored >= 0) & (stored <= PROTOTYPES)).all():
        raise ValueError("its memories of shapes hold more prototypes than there is room for")
    if not (found.level[:, 1::3] >= 0).all():
        raise ValueError("a variance of its levels is below 0")
    if not (found.scalars["shape_variance"] >= 0).all():
        raise ValueError("a variance of its shapes is below 0")
    return found
