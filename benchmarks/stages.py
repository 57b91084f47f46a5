"""The stages that are measured; each one does all that the stage before it does, and one thing more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from installation import SERIES, WINDOW, bundle_id, topic

from offbeat.app import StreamModels, open_bus, open_parts
from offbeat.controls import Control, who
from pipeline.config import Config
from pipeline.detect import Detector
from pipeline.loop import MAX_RECORDS, POLL_S, Worker
from pipeline.ports import Errors, Scorer, Windows
from pipeline.readings import Decoder
from pipeline.records import RecordBatch
from pipeline.series import Layout, PartitionState
from pipeline.testing import FakeScorer

_QUIET_S = 60.0
"""A bus that brings nothing for so long has failed."""

Stage = Callable[[Config, str, int], Iterator[int]]
"""Reads so many records of a stream and yields after each poll how many it has read."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one pass took, from the first poll behind the warm-up on: seconds of the clock, and of the CPU."""

    records: int
    wall_s: float
    cpu_s: float

    @property
    def records_per_s(self) -> float:
        """Records in a second of the clock."""
        return self.records / self.wall_s

    @property
    def cpu_s_per_million(self) -> float:
        """CPU seconds of this process, all its threads, for a million records."""
        return self.cpu_s / self.records * 1e6


def measure(progress: Iterator[int]) -> Taken:
    """Run a pass to its end, counted from where every series' window is full."""
    warm = next(done for done in progress if done >= SERIES * WINDOW)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    done = warm
    for read in progress:
        done = read
    return Taken(done - warm, time.perf_counter() - wall_s, time.process_time() - cpu_s)


def consume(config: Config, stream: str, records: int) -> Iterator[int]:
    """Poll columns as a member of a group."""
    for _, done in _batches(config, stream, records):
        yield done


def decode(config: Config, stream: str, records: int) -> Iterator[int]:
    """And decode the events to columns."""
    settings = config.stream(stream)
    decoder, state = Decoder(settings), PartitionState(Layout.of(settings))
    for batch, done in _batches(config, stream, records):
        decoder.decode(batch, state)
        yield done


def windows(config: Config, stream: str, records: int) -> Iterator[int]:
    """And align rows, fill windows, and judge them: the detect step but for the reconstruction."""
    yield from _detect(config, stream, records, _Unscored())


def detect(config: Config, stream: str, records: int) -> Iterator[int]:
    """And reconstruct every window: the whole detect step."""
    scorer = StreamModels(config, stream).scorer(bundle_id(config, stream), config.stream(stream))
    yield from _detect(config, stream, records, scorer)


def whole(config: Config, stream: str, records: int) -> Iterator[int]:
    """And commit alerts and positions, and checkpoint the state: a worker, to its orderly end."""
    with open_bus(config.bus) as broker:
        Control(config, broker, who("make bench")).promote(stream, bundle_id(config, stream), "measured")
    with open_parts(config, stream, slot=0, notice=print) as parts:
        worker = Worker(parts)
        done, deadline = 0, time.monotonic() + _QUIET_S
        while done < records:
            worker.turn()
            read = sum(worker.status().bins.values())
            if read == done and time.monotonic() > deadline:
                raise RuntimeError(f"the worker stands at {done} of {records} records: {worker.status()}")
            if read > done:
                done, deadline = read, time.monotonic() + _QUIET_S
                yield done
        worker.stop()
        scored = worker.status().bins["scored"]
        yield done
    if scored != records - SERIES * (WINDOW - 1):
        raise RuntimeError(f"{scored} of {records} records were scored; the others: {worker.status().bins}")


class _Unscored(FakeScorer):
    """Finds every window usual, at no cost."""

    def score(self, windows: Windows) -> Errors:
        zeros = np.zeros(len(windows))
        return Errors(zeros, zeros)


def _detect(config: Config, stream: str, records: int, scorer: Scorer) -> Iterator[int]:
    detector = Detector(config.namespace, stream, config.stream(stream))
    state = detector.fresh("", 0)
    for batch, done in _batches(config, stream, records):
        detector.step(state, batch, scorer)
        yield done


def _batches(config: Config, stream: str, records: int) -> Iterator[tuple[RecordBatch, int]]:
    """Batches as a worker gets them, each with the number of records read so far."""
    done, deadline = 0, time.monotonic() + _QUIET_S
    with open_bus(config.bus) as broker:
        member = broker.bus(
            group=config.group(stream),
            topics=[topic(config.namespace)],
            transactional_id=config.transactional_id(stream, 0),
        )
        while done < records:
            polled = member.poll(MAX_RECORDS, POLL_S)
            for assigned in polled.assigned:
                member.seek(assigned.partition, assigned.first_offset)
            for batch in polled.batches:
                done += len(batch)
                deadline = time.monotonic() + _QUIET_S
                yield batch, done
            if time.monotonic() > deadline:
                raise RuntimeError(f"the bus brought {done} of {records} records and then nothing")
