"""What the benchmark runs on: made-up readings on a bus, two trained bundles, and their settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models import Registry, SeriesRows, train
from offbeat.app import input_topics, model_spec, open_bus
from pipeline.config import Config
from producers.synthetic import Synthetic, SyntheticOptions, produce

SERIES, FEATURES, WINDOW = 1_000, 4, 32
SCOPES = {"shared": 0, "stacked": SERIES}
"""The streams, which differ by the number of series that have a model of their own."""

_TRAINING_ROWS, _TRAINING_STEPS = 512, 50
_EVERY_S = 10.0
_FAULTS = ("spike", "level_shift", "drift", "stuck", "noise", "lost_phase")
"""All but silence, which would change the number of records."""


@dataclass(frozen=True, slots=True)
class Readings:
    """Readings of ``SERIES`` series in turn, with a fault for every tenth series behind the warm-up.

    Attributes:
        rows: of each series; a row is a record.
    """

    rows: int

    @property
    def records(self) -> int:
        """All records of the topic."""
        return SERIES * self.rows

    @property
    def options(self) -> SyntheticOptions:
        """What is made up; the rhythm is seen twice by training."""
        return SyntheticOptions(
            series=SERIES,
            features=FEATURES,
            rows=self.rows,
            every_s=_EVERY_S,
            day_s=_EVERY_S * _TRAINING_ROWS / 2,
            faults=SERIES // 10 if self.rows > _TRAINING_ROWS else 0,
            kinds=_FAULTS,
            clean_rows=2 * WINDOW,
        )


def settings(namespace: str, bus: str, folder: Path) -> Config:
    """One measurement's configuration: in a namespace of its own it finds no state and no position."""
    stream = {
        "topic": topic(namespace),
        "events": {"features": list(Synthetic(SyntheticOptions(features=FEATURES)).features)},
        "model": {"window": WINDOW},
        "training": {"steps": _TRAINING_STEPS},
    }
    return Config.model_validate(
        {
            "namespace": namespace,
            "bus": bus,
            "state": f"embedded:///{folder / 'state'}",
            "registry": str(folder / "models"),
            "snapshots": str(folder / "snapshots"),
            "streams": dict.fromkeys(SCOPES, stream),
        }
    )


def topic(namespace: str) -> str:
    """The input topic that all measurements of a run share: their namespaces differ behind a dot."""
    return f"{namespace.partition('.')[0]}.readings"


def fill(config: Config, readings: Readings) -> None:
    """Make the input topic, of one partition, and write the readings into it."""
    with open_bus(config.bus) as broker:
        broker.admin().create(input_topics(config, list(SCOPES), partitions=1))
        produce(broker.producer(), topic(config.namespace), readings.options)


def teach(config: Config) -> None:
    """Train a bundle of few steps for each stream, as large as any."""
    rows = _history()
    for name, models in SCOPES.items():
        bundle = train(
            rows,
            model_spec(config.stream(name)),
            source={"rows": "made up"},
            created_at="2026-01-01T00:00:00Z",
            max_series_models=models,
        )
        Registry(config.registry).save(name, bundle)


def bundle_id(config: Config, stream: str) -> str:
    """The one bundle that a stream has."""
    [found] = Registry(config.registry).bundles(stream)
    return found


def _history() -> dict[str, SeriesRows]:
    """The first rows of each series, before any fault."""
    made = Synthetic(Readings(_TRAINING_ROWS).options)
    values = np.concatenate([values for _, values in made.blocks()])
    segment = np.zeros(len(values), np.int32)
    return {name: SeriesRows(values[:, number], segment) for number, name in enumerate(made.series)}
