"""A small trained bundle: two series of two features, each with a model of its own, and the fallback."""

from __future__ import annotations

import pytest
from machines import SPEC, waves

from models import Bundle, ModelSpec, SeriesRows, train


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
