"""Made-up machines of few and of more features: known faults in them, and false alarms without any.

No line was chosen on them. What real data of several features there is comes from two plants, of 8 and of 38.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from labelled import DAY_NS, DataSet, Float64s, Series, Settings, as_records, train

from models import StackScorer
from models.trial import Trial
from pipeline.detect import Detector
from pipeline.records import RecordBatch

FEATURES = (2, 4, 8, 16)
LEARNED_ROWS, ROWS, EVERY_NS = 6_000, 16_000, 60 * 10**9
SEEDS = (10, 11)

THRESHOLDS: dict[str, Settings] = {
    "as it comes": {},
    "`joint` with `line: 3.25`": {"threshold": {"policy": "joint", "line": 3.25}},
    "`ewma`": {"threshold": {"policy": "ewma"}},
    "`quantile`": {"threshold": {"policy": "quantile"}},
}


def made_up(kept: Path) -> list[dict[str, Any]]:
    """For each number of features and threshold: faults found, by a trial as the gate's, and alarms a day."""
    found = []
    for features in FEATURES:
        data = _machines(features)
        scorer = StackScorer(train(data, None, kept))
        for name, settings in THRESHOLDS.items():
            trial = Trial(Detector("benchmark", data.name, data.stream(settings)), [partial(_lived, data)])
            days = len(data.every) * (ROWS - LEARNED_ROWS) * EVERY_NS / DAY_NS
            found.append(
                {
                    "features": features,
                    "threshold": name,
                    "found": int(trial.found(scorer).sum()),
                    "faults": len(trial.faults),
                    "false_alarms_per_day": len(trial.alarms(scorer)) / days,
                }
            )
    return found


def _lived(data: DataSet) -> Iterator[RecordBatch]:
    """What comes after the rows that were learned from, of all series in order of time."""
    records = [
        (None, each.records.value(row), int(each.records.timestamp_ms[row]))
        for row in range(LEARNED_ROWS, ROWS)
        for each in data.every
    ]
    yield RecordBatch.of(data.every[0].records.partition, 0, records)


def _machines(features: int) -> DataSet:
    name, names = f"made-up-{features}", tuple(f"x{n}" for n in range(features))
    time_ns, every = np.arange(ROWS, dtype=np.int64) * EVERY_NS, []
    for number, kind in enumerate(KINDS):
        for seed in SEEDS:
            values = kind(np.random.default_rng([number, features, seed]), features)
            series = f"{kind.__name__[1:]}-{seed}"
            records, windows = as_records(name, series, names, time_ns, values), np.zeros((0, 2), np.int64)
            every.append(Series(series, records, LEARNED_ROWS, time_ns, values, windows))
    return DataSet(name, names, every)


def _rhythms(random: np.random.Generator, features: int) -> Float64s:
    """Each feature has a rhythm and a noise of its own."""
    turns = np.arange(ROWS)[:, None] / random.uniform(30, 300, features) + random.uniform(0, 1, features)
    return np.sin(2 * np.pi * turns) + random.uniform(0.05, 0.3, features) * random.normal(size=turns.shape)


def _causes(random: np.random.Generator, features: int) -> Float64s:
    """A few slow causes with a rhythm behind all features."""
    causes = max(1, features // 4) + 1
    turns = np.arange(ROWS)[:, None] / random.uniform(200, 1_440, causes) + random.uniform(0, 1, causes)
    slow = _remembered(0.97, 0.1 * random.normal(size=(ROWS, causes)))
    mixed = (np.sin(2 * np.pi * turns) + slow) @ random.normal(size=(causes, features))
    return np.asarray(mixed + 0.2 * random.normal(size=mixed.shape))


def _heavy(random: np.random.Generator, features: int) -> Float64s:
    """A daily rhythm, and noise with heavy tails."""
    turns = np.arange(ROWS)[:, None] / 1_440 + random.uniform(0, 1, features)
    return np.sin(2 * np.pi * turns) + 0.2 * random.standard_t(3, turns.shape)


def _load(random: np.random.Generator, features: int) -> Float64s:
    """Positive and skewed, in proportion to the time of day."""
    load = 1.5 + np.sin(2 * np.pi * np.arange(ROWS)[:, None] / 1_440)
    return load * random.gamma(4, 0.25, (ROWS, features)) * random.uniform(0.5, 2, features)


def _wandering(random: np.random.Generator, features: int) -> Float64s:
    """Each feature wanders by itself."""
    return _remembered(0.9, random.normal(size=(ROWS, features)))


def _switched(random: np.random.Generator, features: int) -> Float64s:
    """All features are on or off together, and noisier when on."""
    changed, on = random.random(ROWS), np.zeros((ROWS, 1))
    for row in range(1, ROWS):
        on[row] = on[row - 1] != (changed[row] < (0.01 if on[row - 1] else 0.02))
    return on * random.uniform(1, 3, features) + 0.15 * (1 + on) * random.normal(size=(ROWS, features))


def _remembered(share: float, steps: Float64s) -> Float64s:
    """Each row keeps a share of the one before."""
    for row in range(1, len(steps)):
        steps[row] += share * steps[row - 1]
    return steps


KINDS: tuple[Callable[[np.random.Generator, int], Float64s], ...] = (
    _rhythms, _causes, _heavy, _load, _wandering, _switched,
)  # fmt: skip
