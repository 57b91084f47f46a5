"""A small trained bundle: two series of two features, each with a model of its own, and the fallback."""

from __future__ import annotations

import numpy as np
import pytest

from models import Bundle, ModelSpec, SeriesRows, train

SPEC = ModelSpec(features=("load", "heat"), window_rows=8, seed=3, steps=400)


def waves(seed: int, level: float, rows: int = 400) -> SeriesRows:
    """A noisy sine and its delayed double, around a level."""
    random = np.random.default_rng(seed)
    angle = np.arange(rows) * 2 * np.pi / 12
    values = np.stack([np.sin(angle), 2 * np.sin(angle - 1)], axis=1) + random.normal(0, 0.05, (rows, 2))
    return SeriesRows(values + level, np.zeros(rows, np.int32))


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return SPEC


@pytest.fixture(scope="session")
def history() -> dict[str, SeriesRows]:
    return {"pump-1": waves(1, 10), "pump-2": waves(2, 500), "newcomer": waves(3, 10, rows=40)}


@pytest.fixture(scope="session")
def bundle(history: dict[str, SeriesRows]) -> Bundle:
    source = {"topic_id": "t1", "partitions": {"0": [0, 840]}}
    return train(history, SPEC, source=source, created_at="2026-01-01T00:00:00Z")
