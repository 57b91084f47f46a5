"""What is measured on: made-up readings, two trained bundles, and the settings of a measurement."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from models import Registry, SeriesRows, train
from models.spec import model_spec
from pipeline.config import Config, Scope
from producers.synthetic import Synthetic, SyntheticOptions

WINDOW = 32
STACKED = 1_000
SCOPES: Final[dict[str, Scope]] = {"shared": "global", "stacked": "series"}
"""The streams, which differ by who shares a network: all series, or none of the ``STACKED``."""

MOST_SERIES = 2_000_000
_TRAINING_ROWS, _TRAINING_STEPS = 512, 50
_EVERY_S = 10.0
_FAULTS = ("spike", "level_shift", "drift", "stuck", "noise", "lost_phase")
"""All but silence, which would change the number of records."""


@dataclass(frozen=True, slots=True)
class Readings:
    """Readings of series in turn, with a fault for every tenth series behind the warm-up.

    Attributes:
        rows: of each series; a row is a record.
    """

    rows: int
    series: int = STACKED
    features: int = 4

    @classmethod
    def about(cls, records: int, series: int = STACKED, features: int = 4) -> Readings:
        """So many records or a few more, and enough rows to fill every window twice."""
        return cls(max(-(-records // series), 2 * WINDOW), series, features)

    @property
    def records(self) -> int:
        """All records of the topic."""
        return self.series * self.rows

    @property
    def warm(self) -> int:
        """Records until every window is full."""
        return self.series * WINDOW

    @property
    def scored(self) -> int:
        """Records that get a score."""
        return self.records - self.series * (WINDOW - 1)

    @property
    def options(self) -> SyntheticOptions:
        """What is made up; the rhythm is seen twice by training."""
        return SyntheticOptions(
            series=self.series,
            features=self.features,
            rows=self.rows,
            every_s=_EVERY_S,
            day_s=_EVERY_S * _TRAINING_ROWS / 2,
            faults=self.series // 10 if self.rows > _TRAINING_ROWS else 0,
            kinds=_FAULTS,
            clean_rows=2 * WINDOW,
        )


def settings(namespace: str, topic: str, bus: str, folder: Path, features: int = 4) -> Config:
    """One measurement's configuration: in a namespace of its own it finds no state and no position."""
    stream = {
        "topic": topic,
        "events": {
            "features": list(Synthetic(SyntheticOptions(features=features)).features),
            "max_series": MOST_SERIES,
        },
        "model": {"window": WINDOW},
        "training": {"steps": _TRAINING_STEPS},
    }
    return Config.model_validate(
        {
            "namespace": namespace,
            "bus": bus,
            "state": f"embedded:///{folder / 'state'}",
            "registry": str(folder / f"models-{features}"),
            "snapshots": str(folder / "snapshots"),
            "streams": dict.fromkeys(SCOPES, stream),
        }
    )


def write(config: Config, path: Path) -> Path:
    """Write a configuration for another process to read; JSON is YAML."""
    path.write_text(json.dumps(config.model_dump(mode="json", by_alias=True, exclude_unset=True)))
    return path


def teach(config: Config) -> None:
    """Train a bundle of few steps for each stream, as large as any; those that are there are kept."""
    features = len(config.stream("shared").feature_names)
    rows = _history(features)
    for name, scope in SCOPES.items():
        if Registry(config.registry).bundles(name):
            continue
        bundle = train(
            rows,
            model_spec(config.stream(name)),
            source={"rows": "made up"},
            created_at="2026-01-01T00:00:00Z",
            scope=scope,
            max_models=STACKED,
        )
        Registry(config.registry).save(name, bundle)


def bundle_id(config: Config, stream: str) -> str:
    """The one bundle that a stream has."""
    [found] = Registry(config.registry).bundles(stream)
    return found


def _history(features: int) -> dict[str, SeriesRows]:
    """The first rows of each series, before any fault."""
    made = Synthetic(Readings(_TRAINING_ROWS, features=features).options)
    values = np.concatenate([values for _, values in made.blocks()])
    segment = np.zeros(len(values), np.int32)
    return {name: SeriesRows(values[:, number], segment) for number, name in enumerate(made.series)}
