"""An excerpt of a stream's past that fits into memory: the newest records of evenly chosen series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.bundle import series_hash
from models.history import Batches
from pipeline.detect import Detector
from pipeline.readings import Decoder
from pipeline.records import RecordBatch
from pipeline.series import PartitionState

LEAST_SERIES: Final = 30
"""Where there are too many records, half of the series are left out, and half of those left; at so few of
them the oldest records are, instead: many days of few series tell less than some days of many."""

_ALL: Final = 1 << 64


class Excerpt:
    """The newest records of evenly chosen series of one partition.

    Attributes:
        batches: the records.
        of_records: how many were read.
        of_series: how many series they belong to.
    """

    def __init__(
        self, detector: Detector, source: Batches, most: int, on_records: Callable[[int], None]
    ) -> None:
        """Read a source to its end, and keep about ``most`` records of it; those unreadable are left out.

        ``on_records`` hears of each batch's length. Series are chosen by a hash of their names: the same ones
        every time, whatever else there is.
        """
        self._held = list[tuple[RecordBatch, NDArray[np.uint64]]]()  # with the hash of each record's series
        self._most, self._limit, self._hashes = most, _ALL, np.zeros(0, np.uint64)
        self.of_records = 0
        decoder, state = Decoder(detector.stream), detector.fresh("", 0)
        for batch in source():
            self._add(batch, decoder, state)
            self.of_records += len(batch)
            on_records(len(batch))
        self.batches = [batch for batch, _ in self._held]
        self.of_series = len(self._hashes)

    def _add(self, batch: RecordBatch, decoder: Decoder, state: PartitionState) -> None:
        columns = decoder.decode(batch, state).columns
        names = state.names[len(self._hashes) :]
        fresh = np.array([series_hash(name or "") for name in names], np.uint64)
        self._hashes = np.concatenate([self._hashes, fresh])
        good = columns.slot >= 0
        rows = np.searchsorted(batch.offset, columns.offset[good])
        self._keep(batch, rows, self._hashes[columns.slot[good]])
        while sum(len(each) for each, _ in self._held) > self._most and len(self._held) > 1:
            if np.count_nonzero(self._chosen(self._hashes)) <= LEAST_SERIES:
                del self._held[0]
                continue
            self._limit //= 2
            before, self._held = self._held, []
            for held, hashes in before:
                self._keep(held, np.arange(len(held)), hashes)

    def _chosen(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        return np.asarray(hashes <= np.uint64(self._limit - 1))

    def _keep(self, batch: RecordBatch, rows: NDArray[np.intp], hashes: NDArray[np.uint64]) -> None:
        chosen = self._chosen(hashes)
        rows = rows[chosen]
        if len(rows):
            self._held.append((batch if len(rows) == len(batch) else _only(batch, rows), hashes[chosen]))


def _only(batch: RecordBatch, rows: NDArray[np.intp]) -> RecordBatch:
    """Some records of a batch, in a buffer of their own."""
    records = [(batch.key(row), batch.value(row), int(batch.timestamp_ms[row])) for row in rows.tolist()]
    taken = RecordBatch.of(batch.partition, 0, records)
    return replace(taken, offset=batch.offset[rows], next_offset=batch.next_offset)
