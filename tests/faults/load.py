"""What workers are killed over: readings, bundles that judge them, and what people decide meanwhile.

Everything comes of one seed. Bursts are so far from calm that no score comes within a hundredth of its line.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from models import ModelSpec, Registry, SeriesRows, train
from models.spec import model_spec
from pipeline import config
from pipeline.records import Send

STREAM = "machines"
PARTITIONS = 2
SERIES, ROWS, EVERY_S = 24, 1_600, 10
STORED = 100
"""Records of a partition that are produced at once: the SQLite bus hands out whole stored batches."""
TEXT = """
namespace: {namespace}
bus: {bus}
state: {state}
registry: {registry}
snapshots: {folder}/snapshots
streams:
  machines:
    topic: {namespace}.readings
    events:
      features: [load, heat]
      every: 20s
      late: {late}
      silent_after: 1000s
      forget_after: 1500s
      max_bytes: {max_bytes}
    model: {{window: 8}}
    threshold: {{k: {k}}}
    alerts: {{recovery: {recovery}}}
"""
POLICIES: Sequence[dict[str, object]] = (
    {"late": "40s", "k": 12, "recovery": 3},
    {"late": "60s", "k": 12, "recovery": 5},  # other rows: alerts end and every series begins anew
)
MAX_BYTES = 1_020_000
"""Little enough for a longer record to fit into Kafka."""
SILENT = {5: [(300, 420)], 8: [(100, 300), (900, 1_100)], 9: [(100, 300), (900, 1_100)]}
"""Rows that series leave out: the first falls silent, the others are gone after a while, and come again."""
CHANGES = 8
"""Decisions in the course of the load: another bundle and another policy by turns."""


def settings_text(
    namespace: str, bus: str, folder: Path, registry: Path, policy: int, state: str | None = None
) -> str:
    """The configuration of an installation under a policy; ``state`` of None is an embedded server."""
    state = state or f"embedded:///{folder}/state"
    return TEXT.format(
        namespace=namespace,
        bus=bus,
        state=state,
        folder=folder,
        registry=registry,
        max_bytes=MAX_BYTES,
        **POLICIES[policy],
    )


def sends(topic: str, partitions: int = PARTITIONS) -> Iterator[Send]:
    """The records, in order: stragglers, duplicates, silences, and some that cannot be read."""
    random_ = random.Random(7)
    for i in range(SERIES * ROWS):
        row, series = divmod(i, SERIES)
        load, heat = _values(random_, row, series)
        time = 1.7e9 + EVERY_S * row - random_.choice([0, 0, 0, 10, 20, 300])
        if series in SILENT and any(first < row < end for first, end in SILENT[series]):
            continue
        event = {"time": time, "series": f"s{series}", "load": load, "heat": heat}
        if i % 331 == 0:
            event["load"] = "hot"
        if i % 101 == 0:
            event["heat"] = None
        value = b"not JSON" if i % 997 == 0 else msgspec.json.encode(event)
        yield Send(topic, None, value, timestamp_ms=1_750_000_000_000, partition=series % partitions)


def _values(random_: random.Random, row: int, series: int) -> tuple[float, float]:
    """A slow wave, and now and then a burst."""
    load = math.sin(row / 7 + series) + random_.gauss(0, 0.05)
    burst = row > 60 and (row + 11 * series) % 90 < 6
    return load + (200 if burst else 0), -load


def learn(registry: Path) -> tuple[str, str]:
    """Train two bundles into a registry; returns their ids."""
    settings = config.parse(settings_text("training", "sqlite://", registry, registry, 0))
    spec = model_spec(settings.stream(STREAM))
    random_ = random.Random(1)
    rows = {
        f"s{series}": SeriesRows(
            np.array([_calm(random_, row, series) for row in range(150)]), np.zeros(150, np.int32)
        )
        for series in range(SERIES)
    }
    first, second = (
        Registry(settings.registry).save(
            STREAM,
            train(
                rows,
                ModelSpec(spec.features, spec.window_rows, transforms=spec.transforms, steps=60, seed=seed),
                source={},
                created_at="2026",
            ),
        )
        for seed in (0, 1)
    )
    return first, second


def _calm(random_: random.Random, row: int, series: int) -> tuple[float, float]:
    """A row of the grid: the mean of two readings."""
    load = math.sin((2 * row + 0.5) / 7 + series) + random_.gauss(0, 0.035)
    return load, -load
