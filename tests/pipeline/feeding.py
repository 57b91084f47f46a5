"""A stream, its records and its detect step, for tests that read like the rule they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np

from pipeline.alerts import Alert, DeadLetter
from pipeline.config import Stream
from pipeline.detect import Detector, Outputs
from pipeline.ports import Scorer
from pipeline.records import RecordBatch, TopicPartition
from pipeline.series import PartitionState
from pipeline.testing import FakeScorer

PARTITION = TopicPartition("readings", 0)
S = 1_000_000_000
"""One second in nanoseconds."""
COMPILED = not numba.config.DISABLE_JIT
"""Coverage looks at the kernels uncompiled, where they are a hundred times slower."""

Event = Mapping[str, Any] | bytes | None


def stream(*, window: int = 2, rules: object = None, threshold: object = None, **events: object) -> Stream:
    """One feature ``x``, windows of two rows, and a line at 1.4 where errors are 1; unless told otherwise."""
    return Stream.model_validate(
        {
            "topic": PARTITION.topic,
            "events": {"features": ["x"], **events},
            "model": {"window": window},
            "threshold": threshold or {"policy": "ewma", "k": 4},
            "alerts": rules or {},
        }
    )


def reading(series: str, time: float, x: float | None = 1.0, **more: object) -> dict[str, Any]:
    """A wide event."""
    return {"series": series, "time": time, "x": x, **more}


def metric(series: str, time: float, name: str, value: float = 1.0) -> dict[str, Any]:
    """A narrow event."""
    return {"series": series, "time": time, "metric": name, "value": value}


def encoded(event: Event) -> bytes | None:
    return json.dumps(event).encode() if isinstance(event, Mapping) else event


def batch(
    events: Sequence[Event], *, first_offset: int = 0, stamps_s: Sequence[float] | None = None
) -> RecordBatch:
    """Records stamped with their own time, or with ``stamps_s``."""
    if stamps_s is None:
        stamps_s = [event.get("time", 0) if isinstance(event, Mapping) else 0 for event in events]
    records = [
        (None, encoded(event), round(stamp * 1_000)) for event, stamp in zip(events, stamps_s, strict=True)
    ]
    return RecordBatch.of(PARTITION, first_offset, records)


@dataclass
class Feed:
    """One partition of a stream and what came of it."""

    stream: Stream
    scorer: Scorer | None = field(default_factory=FakeScorer)
    alerts: list[Alert] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.detector = Detector("test", "machines", self.stream)
        self.state: PartitionState = self.detector.fresh("topic-1", 0)
        if self.scorer is not None:
            self.state.adopt(self.scorer, "bundle-1")

    def send(self, *events: Event, stamp_s: float | None = None) -> Outputs:
        """One batch."""
        stamps = None if stamp_s is None else [stamp_s] * len(events)
        return self.take(batch(events, first_offset=self.state.next_offset, stamps_s=stamps))

    def each(self, *events: Event) -> None:
        """A batch for each event."""
        for event in events:
            self.send(event)

    def take(self, records: RecordBatch) -> Outputs:
        outputs = self.detector.step(self.state, records, self.scorer)
        self.alerts += outputs.alerts
        self.dead_letters += outputs.dead_letters
        return outputs

    @property
    def bins(self) -> dict[str, int]:
        """The bins that are not empty."""
        return {name: count for name, count in self.state.counters.named().items() if count}

    @property
    def reasons(self) -> list[str]:
        return [letter.reason for letter in self.dead_letters]

    def row(self, series: str) -> np.void:
        row: np.void = self.state.rows[self.state.index[series]]
        return row

    def window(self, series: str) -> list[list[float]]:
        """The rows in a series' window."""
        rows: list[list[float]] = self.state.window(self.state.index[series]).tolist()
        return rows
