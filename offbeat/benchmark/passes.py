"""One pass over a topic, and what it took: consuming alone, and a worker to its orderly end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from offbeat.app import open_bus, open_parts
from offbeat.benchmark.installation import Readings, bundle_id
from offbeat.controls import Control
from pipeline.config import Config
from pipeline.errors import BusDown, OffbeatError
from pipeline.loop import MAX_RECORDS, POLL_S, Worker
from pipeline.records import RecordBatch

QUIET_S = 60.0
"""A bus that brings nothing for so long has failed."""


@dataclass(frozen=True, slots=True)
class Job:
    """One pass: a stream of a configuration over the readings in its topic, of any number of partitions."""

    config: Config
    stream: str
    readings: Readings
    max_records: int = MAX_RECORDS


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


def measure(progress: Iterator[int], warm: int) -> Taken:
    """Run a pass to its end, counted from where every series' window is full."""
    began = next(done for done in progress if done >= warm)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    done = began
    for read in progress:
        done = read
    return Taken(done - began, time.perf_counter() - wall_s, time.process_time() - cpu_s)


def batches(job: Job) -> Iterator[tuple[RecordBatch, int]]:
    """Batches as a worker gets them, each with the number of records read so far."""
    done, deadline = 0, time.monotonic() + QUIET_S
    with open_bus(job.config.bus) as broker:
        member = broker.bus(
            group=job.config.group(job.stream),
            topics=[job.config.stream(job.stream).topic],
            transactional_id=job.config.transactional_id(job.stream, 0),
        )
        while done < job.readings.records:
            polled = member.poll(job.max_records, POLL_S)
            for assigned in polled.assigned:
                member.seek(assigned.partition, assigned.first_offset)
            for batch in polled.batches:
                done += len(batch)
                deadline = time.monotonic() + QUIET_S
                yield batch, done
            if time.monotonic() > deadline:
                raise BusDown(
                    f"the bus brought {done:,} of {job.readings.records:,} records and then nothing for "
                    f"{QUIET_S:g} s; look at it with `offbeat doctor`"
                )


def consume(job: Job) -> Iterator[int]:
    """Poll columns as a member of a group."""
    for _, done in batches(job):
        yield done


def promote(config: Config, stream: str) -> None:
    """Put the stream's one bundle in force."""
    with open_bus(config.bus) as broker:
        Control(config, broker, "offbeat bench").promote(stream, bundle_id(config, stream), "measured")


def whole(job: Job) -> Iterator[int]:
    """A worker from its first poll to its orderly end: commits, alerts and checkpoints included.

    Raises:
        OffbeatError: it stood still, or did not score every row behind the warm-up.
    """
    promote(job.config, job.stream)
    with open_parts(job.config, job.stream, slot=0) as parts:
        parts.max_records = job.max_records
        worker = Worker(parts)
        done, deadline = 0, time.monotonic() + QUIET_S
        while done < job.readings.records:
            worker.turn()
            read = sum(worker.status().bins.values())
            if read == done and time.monotonic() > deadline:
                raise OffbeatError(
                    f"the worker stands at {done:,} of {job.readings.records:,} records: {worker.status()}"
                )
            if read > done:
                done, deadline = read, time.monotonic() + QUIET_S
                yield done
        worker.stop()
        bins = worker.status().bins
        yield done
    if bins["scored"] != job.readings.scored:
        raise OffbeatError(f"{bins['scored']:,} of {job.readings.scored:,} rows were scored; all: {bins}")
