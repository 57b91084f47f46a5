"""From a reading's ``produce`` to its alert, as a subscriber sees it: readings of now, and a watch on alerts.

The time in an event is that of the call that sends it, so an alert says itself when its row was produced.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from offbeat.benchmark.installation import Readings
from pipeline.alerts import Alert
from pipeline.ports import Reader
from pipeline.records import TopicPartition
from producers.synthetic import Synthetic

_CYCLE_ROWS = 256
"""Rows until the rhythm begins again: the values are made once, and sent round and round."""
CLEAN_ROWS = 64
"""Rows of a series between two of its spikes: its episode is over, and its window clean again."""
_SPIKE = 100.0
"""Times the usual value, in every feature: models that were trained for a moment have their lines high."""
_READ = 1_000


class LiveReadings:
    """Readings of ``series`` in turn, endless; some of them spikes that raise an alert."""

    def __init__(self, series: int) -> None:
        made = Synthetic(Readings(_CYCLE_ROWS, series).options)
        self.series = series
        self._keys = [name.encode() for name in made.series]
        names, values = made.features, np.concatenate([values for _, values in made.blocks()])
        self._usual = _bodies(self._keys, names, values)
        self._spikes = _bodies(self._keys, names, values[:1] * _SPIKE)
        self._spiked_at = [0] * series
        self._sent = 0

    def next(self, now_s: float, *, spike: bool) -> tuple[bytes, bytes, bool]:
        """Key and value of the next reading, at ``now_s``; and whether it is a spike.

        A spike that is asked for comes with the next series that had none for ``CLEAN_ROWS`` rows.
        """
        row, number = divmod(self._sent, self.series)
        self._sent += 1
        spike = spike and row - self._spiked_at[number] > CLEAN_ROWS
        if spike:
            self._spiked_at[number] = row
            body = self._spikes[number]
        else:
            body = self._usual[(self._sent - 1) % len(self._usual)]
        return self._keys[number], b'{"time":%.6f,%b' % (now_s, body), spike

    def history(self, until_s: float) -> Iterator[tuple[bytes, bytes]]:
        """Rows of the time before ``until_s``: what fills the windows."""
        for row in range(CLEAN_ROWS, 0, -1):
            for _ in range(self.series):
                key, value, _ = self.next(until_s - row, spike=False)
                yield key, value


def _bodies(
    keys: Sequence[bytes], names: Sequence[str], values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
) -> list[bytes]:
    """The events but for their beginning with the time, row by row."""
    encode = msgspec.json.Encoder().encode
    return [
        b'"series":"%b",%b' % (key, encode(dict(zip(names, cells, strict=True)))[1:])
        for row in values.tolist()
        for key, cells in zip(keys, row, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Seen:
    """An alert as a subscriber saw it: when, and how long after its row was produced."""

    at_s: float
    after_ms: float


class AlertWatch:
    """Follows a topic of alerts from where it ends now; only first revisions count: they are what fired."""

    def __init__(self, reader: Reader, topic: str) -> None:
        self._reader, self._partition = reader, TopicPartition(topic, 0)
        self._next_offset = reader.bounds(topic)[0].end_offset
        self.seen: list[Seen] = []

    def look(self, timeout_s: float) -> None:
        """Take in what came, within ``timeout_s`` when nothing had."""
        batch = self._reader.read(self._partition, self._next_offset, _READ, timeout_s)
        now_s = time.time()
        self._next_offset = batch.next_offset
        for row in range(len(batch)):
            alert = Alert.model_validate_json(batch.value(row) or b"")
            if alert.revision == 1:
                self.seen.append(Seen(now_s, 1_000 * (now_s - alert.at.timestamp())))

    def between(self, began_s: float, ended_s: float) -> list[float]:
        """How long alerts took whose rows were produced within a time, in milliseconds."""
        return [each.after_ms for each in self.seen if began_s <= each.at_s - each.after_ms / 1_000 < ended_s]


def percentiles(after_ms: Sequence[float]) -> dict[str, float]:
    """The median, the 99th and 99.9th percentile, the slowest and how many there were."""
    if not after_ms:
        return {"alerts": 0}
    p50, p99, p999 = np.percentile(after_ms, [50, 99, 99.9], method="higher")
    return {
        "alerts": len(after_ms),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "p999_ms": float(p999),
        "max_ms": float(max(after_ms)),
    }
