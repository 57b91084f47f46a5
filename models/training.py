"""From the history of many series to a bundle: who gets a network, scaling, fitting, calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from models.autoencoder import Autoencoder, ModelSpec
from models.bundle import CANARY_WINDOWS, Bundle, Canary, seal, series_hash
from models.fitting import Check, Lesson, fit
from models.samples import (
    Pool,
    SeriesRows,
    Split,
    evenly,
    pool,
    split,
    usable_rows,
    window_starts,
    windows_at,
)
from models.scaling import Scaling
from models.stack import Stack
from pipeline.config import TRAINING_WINDOWS
from pipeline.errors import TooFewRows
from pipeline.ports import Errors, Float64s, Windows

MAX_SERIES_MODELS: Final = 1_000
"""Series with a network of their own, by default; those with the longest history get them."""

_CALIBRATION_WINDOWS: Final = 1_024
_NETWORKS_AT_ONCE: Final = 256  # bounds memory; networks do not know of each other
_FALLBACK_KEY: Final = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far training is.

    Attributes:
        fraction: of the work there is at most, 0 to 1.
        finished: networks that are done.
        networks: all of them, the fallback included.
        first: the first of those at work, which are numbered in the bundle's order.
        check: how they are doing.
    """

    fraction: float
    finished: int
    networks: int
    first: int
    check: Check

    @property
    def held_out_loss(self) -> float:
        """Mean over the networks at work, each in its best moment so far."""
        return float(self.check.best_loss.mean())


def rows_needed(spec: ModelSpec) -> int:
    """Usable rows a series needs for a network of its own, and all series together for a fallback."""
    return TRAINING_WINDOWS * spec.window_rows


def train(
    rows: Mapping[str, SeriesRows],
    spec: ModelSpec,
    *,
    source: Mapping[str, object],
    created_at: str,
    max_series_models: int = MAX_SERIES_MODELS,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Bundle:
    """Train a network for each series with enough rows, and the shared fallback on all series.

    The fallback sees windows under one pooled scaling, as it will when it meets a series that has none.
    The result depends on the rows, the spec and ``max_series_models`` alone.

    Args:
        rows: history by series name; values float64[n, F] with F features as in ``spec``.
        spec: the network.
        source: where the rows come from, JSON values; kept in the manifest.
        created_at: ISO 8601; kept in the manifest.
        max_series_models: bound on networks besides the fallback.
        on_progress: called every 50 steps; what it raises ends training.

    Raises:
        TooFewRows: all series together do not have enough rows.
        ValueError: columns do not fit the spec, or values are not finite.
    """
    _check(rows, spec)
    splits = {name: split(each.segment, spec.window_rows) for name, each in sorted(rows.items())}
    names = [name for name, parts in splits.items() if len(parts.train)]
    pooled = pool([rows[name] for name in names], [splits[name] for name in names], spec.window_rows)
    own = {series_hash(name): name for name in _own_model(rows, spec, max_series_models)}
    hashes = np.array(sorted(own), np.uint64)
    ordered = [own[int(key)] for key in hashes]

    fits = [Scaling.fit(rows[name].values[: _training_end(splits[name], spec)]) for name in ordered]
    scaling = Scaling.join([*fits, Scaling.fit(pooled.train.reshape(-1, len(spec.features)))])
    lessons = [
        Lesson(
            _generator(spec, series_hash(name)),
            scaling.apply(model, rows[name].values),
            splits[name].train,
            splits[name].held_out,
        )
        for model, name in enumerate(ordered)
    ]
    lessons.append(_pooled_lesson(pooled, spec, scaling))
    network = _train_all(lessons, spec, on_progress)

    stack = Stack(network, scaling)
    held_out = [
        windows_at(rows[name].values, evenly(splits[name].held_out, _CALIBRATION_WINDOWS), spec.window_rows)
        for name in ordered
    ]
    held_out.append(pooled.held_out)
    calibration = np.stack([_calibrate(stack.score(windows_of(raw, i))) for i, raw in enumerate(held_out)])
    return seal(
        spec,
        network=network,
        scaling=scaling,
        calibration=calibration,
        hashes=hashes,
        canary=_canary(stack, held_out),
        source=source,
        created_at=created_at,
    )


def _check(rows: Mapping[str, SeriesRows], spec: ModelSpec) -> None:
    """Refuse what cannot be trained on, before any work is done."""
    for name, each in rows.items():
        if each.values.shape != (len(each.segment), len(spec.features)):
            raise ValueError(
                f"series {name!r} has values {each.values.shape}, "
                f"not ({len(each.segment)}, {len(spec.features)})"
            )
        if not np.isfinite(each.values).all():
            raise ValueError(f"series {name!r} has values that are not finite; leave such rows out")
    windows = sum(len(window_starts(each.segment, spec.window_rows)) for each in rows.values())
    have = windows + spec.window_rows - 1 if windows else 0
    need = rows_needed(spec)
    if have < need:
        raise TooFewRows(
            f"found {have} of {need} rows to train on, over {len(rows)} series with windows of "
            f"{spec.window_rows} rows (each gap and each further series costs {spec.window_rows - 1}); "
            "wait for more rows or choose a smaller window",
            have=have,
            need=need,
        )


def _own_model(rows: Mapping[str, SeriesRows], spec: ModelSpec, bound: int) -> list[str]:
    """The series with networks of their own: enough rows, longest history first, then by name."""
    length = {name: usable_rows(each.segment, spec.window_rows) for name, each in rows.items()}
    enough = [name for name in rows if length[name] >= rows_needed(spec)]
    return sorted(enough, key=lambda name: (-length[name], name))[:bound]


def _training_end(parts: Split, spec: ModelSpec) -> int:
    """One past the last row that training sees."""
    return int(parts.train[-1]) + spec.window_rows


def _generator(spec: ModelSpec, key: int) -> np.random.Generator:
    """A network's own randomness: the same whoever is trained beside it."""
    return np.random.default_rng([spec.seed, key])


def _pooled_lesson(pooled: Pool, spec: ModelSpec, scaling: Scaling) -> Lesson:
    """The fallback's lesson: its windows laid end to end."""
    both = np.concatenate([pooled.train, pooled.held_out]).reshape(-1, len(spec.features))
    starts = np.arange(len(pooled.train) + len(pooled.held_out)) * spec.window_rows
    return Lesson(
        _generator(spec, _FALLBACK_KEY),
        scaling.apply(-1, both),
        starts[: len(pooled.train)],
        starts[len(pooled.train) :],
    )


def _train_all(
    lessons: Sequence[Lesson], spec: ModelSpec, on_progress: Callable[[Progress], None]
) -> Autoencoder:
    """Train in blocks of networks, for memory's sake."""
    blocks = [lessons[i : i + _NETWORKS_AT_ONCE] for i in range(0, len(lessons), _NETWORKS_AT_ONCE)]
    trained: list[Autoencoder] = []
    before = 0
    for number, block in enumerate(blocks):

        def report(check: Check, number: int = number, before: int = before) -> None:
            fraction = (number + check.share) / len(blocks)
            on_progress(Progress(fraction, before + check.finished, len(lessons), before, check))

        trained.append(fit(block, spec, report))
        before += len(block)
    parts = zip(*(each.tensors() for each in trained), strict=True)
    return Autoencoder.of([torch.cat(part) for part in parts])


def windows_of(raw: Float64s, model: int) -> Windows:
    """Raw windows float64[n, W, F] as the detect step hands them over."""
    anchor = raw[:, -1].copy()
    largest = float(np.finfo(np.float32).max)
    with np.errstate(over="ignore"):  # differences near the end of float64 are clipped like any other
        tail = (raw - anchor[:, None]).clip(-largest, largest).astype(np.float32)
    return Windows(tail, anchor, np.full(len(raw), model, np.int32))


def _calibrate(errors: Errors) -> Float64s:
    """Moments of held-out errors, float64[5], as in :class:`pipeline.ports.Calibrated`.

    A few held-out windows can be all alike; the deviation is kept from 0 by a share of the mean, or the
    first live row that is a little different would stand many deviations above it.
    """
    moments = []
    for each in (errors.window, errors.last):
        mean = each.mean()
        moments += [mean, max(each.std(), 0.05 * mean + 1e-6)]
    return np.array([*moments, len(errors.window)])


def _canary(stack: Stack, held_out: Sequence[Float64s]) -> Canary:
    """A few windows and their errors, over models evenly spaced, the fallback among them."""
    models = np.unique(np.linspace(0, len(held_out) - 1, CANARY_WINDOWS).round().astype(np.int64))[::-1]
    parts = [windows_of(held_out[model][:1], model) for model in models]
    windows = Windows(
        np.concatenate([part.tail for part in parts]),
        np.concatenate([part.anchor for part in parts]),
        np.concatenate([part.model for part in parts]),
    )
    errors = stack.score(windows)
    return Canary(windows, np.stack([errors.window, errors.last], axis=1))
