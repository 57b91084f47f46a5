"""A stream's replayed days for tests: records of waves, and the rows that training made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np

from models import SeriesRows
from models.history import Batches
from pipeline.config import Stream
from pipeline.records import RecordBatch, TopicPartition

FEATURES = ("load", "heat")
EVERY_S = 60.0
START_S = 1_767_225_600.0
PARTITION = TopicPartition("readings", 0)


def stream(*, rules: object = None, **events: object) -> Stream:
    """Two features, windows of eight rows, alerts that end after a window."""
    return Stream.model_validate(
        {
            "topic": PARTITION.topic,
            "events": {"features": list(FEATURES), **events},
            "model": {"window": 8},
            "threshold": {"policy": "ewma"},
            "alerts": {"recovery": 8, **(rules or {})},  # type: ignore[dict-item]
        }
    )


def times_ns(rows: int) -> np.ndarray:
    """int64[rows]: when rows are."""
    return ((START_S + EVERY_S * np.arange(rows)) * 1e9).astype(np.int64)


def source(
    values: Mapping[str, np.ndarray], *, partition: TopicPartition = PARTITION, batch: int = 1_000
) -> Batches:
    """Wide events of some series float64[n, F], the series in turn; NaN rows are never sent."""
    records = []
    for row in range(max(map(len, values.values()))):
        at = START_S + EVERY_S * row
        for name, each in values.items():
            if row < len(each) and not np.isnan(each[row]).all():
                event = {"series": name, "time": at, **dict(zip(FEATURES, each[row].tolist(), strict=False))}
                records.append((name.encode(), json.dumps(event).encode(), round(at * 1_000)))

    def batches() -> Iterator[RecordBatch]:
        for first in range(0, len(records), batch):
            yield RecordBatch.of(partition, first, records[first : first + batch])

    return batches


def history(values: Mapping[str, np.ndarray]) -> dict[str, SeriesRows]:
    """The same as training sees it."""
    return {name: SeriesRows(each, np.zeros(len(each), np.int32)) for name, each in values.items()}
