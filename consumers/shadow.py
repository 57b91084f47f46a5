"""A shadow: champion and challenger judge the live stream from its end on, and nobody is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.detect import Detector
from pipeline.ports import Reader, Scorer
from pipeline.reading import READ_RECORDS
from pipeline.records import RecordBatch, TopicPartition
from pipeline.series import PartitionState

SERIES: Final = 1_000
"""Series whose errors and scores are kept apart; of the others only the alerts are counted."""
QUANTILES: Final = (0.5, 0.95, 0.99)
IDLE_S: Final = 1.0
"""Between two looks at a stream that stands still."""

_EDGES: Final = np.geomspace(1e-4, 1e4, 257)  # a quantile is known to 7 %


@dataclass(slots=True, eq=False)
class Contender:
    """What one of the two did.

    Attributes:
        rows: judged.
        alerts: anomalies that it would have told of.
        counts: int64[2, 257] by series, its errors and its scores between the edges.
    """

    scorer: Scorer
    states: dict[TopicPartition, PartitionState]
    rows: int = 0
    alerts: set[str] = field(default_factory=set)
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def take(self, detector: Detector, batch: RecordBatch) -> list[int]:
        """Judge a batch; returns the first and the last event time of the rows it made, or nothing."""
        state, times = self.states[batch.partition], list[int]()
        outputs = detector.step(state, batch, self.scorer)
        self.alerts |= {each.id for each in outputs.changes if each.alert == "anomaly"}
        for scores in outputs.scores:
            self.rows += len(scores.slot)
            times += [int(scores.time_ns.min()), int(scores.time_ns.max())] if len(scores.slot) else []
            both = np.searchsorted(_EDGES, (scores.error, scores.score), side="right")
            bins = both.clip(1, len(_EDGES) - 1)
            for slot in np.unique(scores.slot).tolist():
                self._count(state.names[slot] or "", bins[:, scores.slot == slot])
        return [min(times), max(times)] if times else []

    def _count(self, series: str, bins: NDArray[np.int64]) -> None:
        if series in self.counts or len(self.counts) < SERIES:
            counts = self.counts.setdefault(series, np.zeros((2, len(_EDGES)), np.int64))
            counts += [np.bincount(each, minlength=len(_EDGES)) for each in bins]

    def told(self) -> dict[str, Any]:
        """The same as JSON values, errors and scores by their quantiles."""
        errors, scores = (
            {
                series: [float(_EDGES[np.searchsorted(each.cumsum(), q * each.sum())]) for q in QUANTILES]
                for series, each in ((name, counts[kept]) for name, counts in sorted(self.counts.items()))
            }
            for kept in range(2)
        )
        return {"rows": self.rows, "alerts": len(self.alerts), "errors": errors, "scores": scores}


def shadow(
    detector: Detector,
    reader: Reader,
    contenders: Mapping[str, Scorer],
    length_s: float,
    *,
    idle: Callable[[float], object],
    pace: Callable[[int], None],
    on_share: Callable[[float, int], None],
) -> dict[str, Any]:
    """Let contenders judge the stream from its end on, until its event time is ``length_s`` further.

    They begin with empty windows, both, and keep everything to themselves.

    Args:
        detector: of the stream.
        reader: of the bus.
        contenders: scorers by role.
        length_s: of event time, from the first judged row on.
        idle: waits so many seconds where nothing came.
        pace: called with the number of records of each batch; what it raises ends the shadow.
        on_share: told which share is done, and how many rows were judged; also while nothing comes.

    Returns:
        JSON values: ``first_ns`` and ``last_ns`` of event time, and of each contender by role how many rows
        it judged, how many alerts it would have told of, and for up to a thousand series the quantiles of its
        errors and its scores named in ``quantiles``.

    Raises:
        NotFound, BusDown, Unreadable: from the bus.
    """
    topic = detector.stream.topic
    ends = {TopicPartition(topic, n): each for n, each in reader.bounds(topic).items()}
    at = {partition: each.end_offset for partition, each in ends.items()}
    runs = {
        role: Contender(
            scorer, {each: detector.fresh(ends[each].topic_id, offset) for each, offset in at.items()}
        )
        for role, scorer in contenders.items()
    }
    first_ns, last_ns = 0, 0
    while not first_ns or last_ns - first_ns < length_s * 1e9:
        read = 0
        for partition, offset in at.items():
            batch = reader.read(partition, offset, READ_RECORDS, 0.0)
            at[partition] = batch.next_offset
            if len(batch):
                pace(len(batch))
                times = [time for run in runs.values() for time in run.take(detector, batch)]
                first_ns = first_ns or min(times, default=0)
                last_ns = max([last_ns, *times])
                read += len(batch)
        rows = next(iter(runs.values())).rows
        on_share(min((last_ns - first_ns) / max(length_s * 1e9, 1), 1.0), rows)
        if not read:
            idle(IDLE_S)
    told = {role: run.told() for role, run in runs.items()}
    return {"first_ns": first_ns, "last_ns": last_ns, "quantiles": list(QUANTILES), "contenders": told}
