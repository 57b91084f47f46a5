"""From the history of many series to a bundle: who gets a network, scaling, fitting, calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models import companions
from models.blocks import Progress, fit_blocks
from models.bundle import CANARY_WINDOWS, Bundle, Canary, seal, series_hash
from models.cohorts import divide, shape
from models.fitting import device_for
from models.lessons import Lesson
from models.samples import (
    Int64s,
    Pool,
    SeriesRows,
    Split,
    as_windows,
    evenly,
    pool,
    split,
    usable_rows,
    window_starts,
    windows_at,
)
from models.scaling import Scaling
from models.spec import ModelSpec
from models.stack import Stack
from pipeline.companions import Companions
from pipeline.config import TRAINING_WINDOWS, Device, Scope
from pipeline.errors import TooFewRows
from pipeline.ports import Errors, Float32s, Float64s, Windows

_CALIBRATION_WINDOWS: Final = 1_024
_SHAPE_WINDOWS: Final = 64  # by which a series is put into a cohort
_SHARED_KEY: Final = 0  # of networks that no single series names


def rows_needed(spec: ModelSpec) -> int:
    """Usable rows a series needs for a network of its own, and all series together for a fallback."""
    return TRAINING_WINDOWS * spec.window_rows


def train(
    rows: Mapping[str, SeriesRows],
    spec: ModelSpec,
    *,
    source: Mapping[str, object],
    created_at: str,
    scope: Scope = "series",
    max_models: int = 1_000,
    device: Device = "auto",
    threads: int = 1,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Bundle:
    """Train a model for each series with enough rows, and the shared fallback on all series.

    A model is a network with a scaling and a calibration. The last two are always a series' own; who shares
    the network, ``scope`` says. The fallback sees windows under one pooled scaling, as it will when it meets
    a series that has none. The result depends on the rows, the spec, ``scope`` and ``max_models`` alone,
    whatever the threads; another device, like another machine, rounds otherwise.

    Args:
        rows: history by series name; values float64[n, F] with F features as in ``spec``.
        spec: the network.
        source: where the rows come from, JSON values; kept in the manifest.
        created_at: ISO 8601; kept in the manifest.
        scope: which series share a network; see :func:`models.cohorts.divide`.
        max_models: networks of single series at most; see there.
        device: where networks are trained; ``auto`` is a GPU where there is one.
        threads: of the CPU, each of which trains some of the networks.
        on_progress: called by this thread every 50 steps of each; what it raises ends training.

    Raises:
        TooFewRows: all series together do not have enough rows.
        ConfigError: there is no such device.
        ValueError: columns do not fit the spec, or values are not finite.
    """
    _check(rows, spec)
    learned = _Learned.of(rows, spec)
    lengths = np.array([_usable(each, spec) for each in learned.series], np.int64)
    groups = divide(lengths, scope, max_models, learned.look, spec.seed)
    network_of = np.full(len(lengths) + 1, len(groups), np.int32)
    for number, members in enumerate(groups):
        network_of[members] = number
    lessons = [learned.lesson(members) for members in groups]
    network = fit_blocks(
        [*lessons, learned.fallback_lesson()], spec, device_for(device), threads, on_progress
    )

    stack = Stack(network, learned.scaling, network_of)
    errors = (stack.score(learned.held_out(model)) for model in range(len(network_of)))
    return seal(
        spec,
        network=network,
        network_of=network_of,
        scaling=learned.scaling,
        calibration=np.stack([_calibrate(each) for each in errors]),
        companions=learned.companions(),
        hashes=learned.hashes,
        canary=_canary(stack, learned.held_out, len(network_of)),
        source=source,
        created_at=created_at,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Learned:
    """The series with enough rows for a model, by rising hash, and the windows that the fallback sees.

    Models are numbered by their place here; the fallback comes last.
    """

    spec: ModelSpec
    hashes: NDArray[np.uint64]
    series: list[SeriesRows]
    parts: list[Split]
    pooled: Pool
    scaling: Scaling

    @classmethod
    def of(cls, rows: Mapping[str, SeriesRows], spec: ModelSpec) -> _Learned:
        splits = {name: split(each.segment, spec.window_rows) for name, each in sorted(rows.items())}
        some = [name for name, parts in splits.items() if len(parts.train)]
        pooled = pool([rows[name] for name in some], [splits[name] for name in some], spec.window_rows)
        enough = [name for name in some if _usable(rows[name], spec) >= rows_needed(spec)]
        by_hash = {series_hash(name): name for name in enough}
        names = [by_hash[key] for key in sorted(by_hash)]
        seen = [rows[name].values[: int(splits[name].train[-1]) + spec.window_rows] for name in names]
        seen.append(pooled.windows[: pooled.train].reshape(-1, len(spec.features)))
        return cls(
            spec,
            np.array(sorted(by_hash), np.uint64),
            [rows[name] for name in names],
            [splits[name] for name in names],
            pooled,
            Scaling.join([Scaling.fit(each) for each in seen]),
        )

    def look(self, model: int) -> Float32s:
        """What a series looks like to :func:`models.cohorts.divide`."""
        starts = evenly(self.parts[model].train, _SHAPE_WINDOWS)
        windows = windows_at(self.series[model].values, starts, self.spec.window_rows)
        return shape(self.scaling.apply(np.full(len(starts), model), windows))

    def lesson(self, members: Int64s) -> Lesson:
        """Of the network of some models: of one, all that it has; of several, a sample of each."""
        if len(members) == 1:
            model = int(members[0])
            rows = self.scaling.apply(model, self.series[model].values)
            random = self._generator(int(self.hashes[model]))
            return Lesson(random, rows, self.parts[model].train, self.parts[model].held_out)
        series, parts = [self.series[i] for i in members], [self.parts[i] for i in members]
        pooled = pool(series, parts, self.spec.window_rows)
        first = int(self.hashes[members[0]])
        return self._pooled_lesson(pooled, members[pooled.of], self._generator(_SHARED_KEY, first))

    def fallback_lesson(self) -> Lesson:
        """Windows of all series, those without a model of their own as well, in the fallback's units."""
        models = np.full(len(self.pooled.of), len(self.series))
        return self._pooled_lesson(self.pooled, models, self._generator(_SHARED_KEY))

    def held_out(self, model: int) -> Windows:
        """What a model is calibrated on."""
        if model == len(self.series):
            return _of(self.pooled.windows[self.pooled.train :], model)
        starts = evenly(self.parts[model].held_out, _CALIBRATION_WINDOWS)
        return _of(windows_at(self.series[model].values, starts, self.spec.window_rows), model)

    def companions(self) -> Companions:
        """What all rows, those held out as well, leave to the companions of each model."""
        pooled = self.pooled.windows.reshape(-1, len(self.spec.features))
        return companions.learn(self.scaling, self.series, pooled, self.spec.window_rows)

    def _pooled_lesson(self, pooled: Pool, models: Int64s, random: np.random.Generator) -> Lesson:
        """Windows in the units of their models, laid end to end."""
        rows = self.scaling.apply(models, pooled.windows).reshape(-1, len(self.spec.features))
        starts = np.arange(len(models)) * self.spec.window_rows
        return Lesson(random, rows, starts[: pooled.train], starts[pooled.train :])

    def _generator(self, *key: int) -> np.random.Generator:
        """A network's own randomness: the same whoever is trained beside it."""
        return np.random.default_rng([self.spec.seed, *key])


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
            rows=sum(len(each.segment) for each in rows.values()),
        )


def _usable(rows: SeriesRows, spec: ModelSpec) -> int:
    return usable_rows(rows.segment, spec.window_rows)


def _of(raw: Float64s, model: int) -> Windows:
    """Raw windows float64[n, W, F] of one model."""
    return as_windows(raw, np.full(len(raw), model, np.int32))


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


def _canary(stack: Stack, held_out: Callable[[int], Windows], models: int) -> Canary:
    """A few windows and their errors, over models evenly spaced, the fallback among them."""
    chosen = np.unique(np.linspace(0, models - 1, CANARY_WINDOWS).round().astype(np.int64))[::-1]
    parts = [held_out(model) for model in chosen.tolist()]
    windows = Windows(
        np.concatenate([part.tail[:1] for part in parts]),
        np.concatenate([part.anchor[:1] for part in parts]),
        np.concatenate([part.model[:1] for part in parts]),
    )
    errors = stack.score(windows)
    return Canary(windows, np.stack([errors.window, errors.last], axis=1))
