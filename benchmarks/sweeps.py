"""The rate of the whole path on Kafka against what it depends on, with one shared model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from place import Place, spread
from stages import replay
from workers import Process, committed, wait_until

from offbeat.app import open_bus
from offbeat.benchmark.installation import Readings
from offbeat.benchmark.passes import Job, Taken, measure, promote, whole

Pass = Callable[[], Taken]
BASE = "base"
WORKERS = (1, 2)
WORKED_PARTITIONS = 4


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement of a sweep: ``what`` is varied, to ``value``."""

    what: str
    value: int | str
    take: Pass


def run(place: Place) -> dict[str, Any]:
    """Measure every point once in each round."""
    points = _points(place)
    rounds: list[dict[tuple[str, int | str], Taken]] = []
    for number in range(place.sizes.sweep_rounds):
        place.say(f"round {number + 1} of {place.sizes.sweep_rounds}: {len(points)} points")
        rounds.append({(point.what, point.value): point.take() for point in points})
    rates: dict[str, dict[str, Any]] = {}
    for point in points:
        passes = [one[point.what, point.value] for one in rounds]
        rates.setdefault(point.what, {})[str(point.value)] = {
            "records_per_s": spread([one.records_per_s for one in passes]),
            "cpu_s_per_million": spread([one.cpu_s_per_million for one in passes]),
        }
    skew = [one["skew", "even"].records_per_s / one["skew", "one series"].records_per_s for one in rounds]
    return {"rates": rates, "skew_ratio": spread(skew)}


def _points(place: Place) -> list[Point]:
    """Fill the topics, and say what is measured on each."""
    sizes = place.sizes
    even = Readings.about(sizes.sweep_records)
    place.teach()
    place.say(f"filling topics with {even.records:,} records each")
    place.fill(BASE, even)
    points = [Point("batch", batch, _whole(place, BASE, even, max_records=batch)) for batch in sizes.batches]
    for series in sizes.series:
        readings = Readings.about(sizes.sweep_records, series)
        place.fill(f"series-{series}", readings)
        points.append(Point("series", series, _whole(place, f"series-{series}", readings)))
    for features in sizes.features:
        readings = Readings.about(sizes.sweep_records, features=features)
        place.teach(features)
        place.fill(f"features-{features}", readings)
        points.append(Point("features", features, _whole(place, f"features-{features}", readings)))
    for partitions in sizes.partitions:
        place.fill(f"partitions-{partitions}", even, partitions=partitions)
        points.append(Point("partitions", partitions, _whole(place, f"partitions-{partitions}", even)))
    for name in sizes.compressions:
        place.fill(f"compression-{name}", even, compression=name)
        points.append(Point("compression", name, _whole(place, f"compression-{name}", even)))
    one = Readings.about(sizes.sweep_records, series=1)
    place.fill("skewed", one)
    numbers = count()
    return [
        *points,
        *(
            Point("workers", workers, lambda workers=workers: _worked(place, workers, next(numbers)))
            for workers in WORKERS
        ),
        Point("replay", "shared", lambda: _replayed(place, even)),
        Point("skew", "even", _whole(place, BASE, even)),
        Point("skew", "one series", _whole(place, "skewed", one)),
    ]


def _whole(place: Place, topic: str, readings: Readings, **more: int) -> Pass:
    def take() -> Taken:
        config = place.config(topic, features=readings.features)
        return measure(whole(Job(config, "shared", readings, **more)), readings.warm)

    return take


def _replayed(place: Place, readings: Readings) -> Taken:
    job = Job(place.config(BASE), "shared", readings)
    for _ in whole(job):
        pass
    return measure(replay(job), readings.warm)


def _worked(place: Place, workers: int, number: int) -> Taken:
    """Real workers, stopped while the topic is filled behind their backs, then let go all at once."""
    topic = f"workers-{number}"
    config = place.make(topic, partitions=WORKED_PARTITIONS)
    warm, rest = Readings.about(0), Readings.about(place.sizes.sweep_records)
    with open_bus(config.bus) as broker:
        promote(config, "shared")
        place.write(topic, warm)
        processes = [Process.detect(place, config, "shared", slot) for slot in range(workers)]
        try:
            read = committed(broker, config, "shared")
            wait_until(lambda: read() >= warm.records, "the workers to read the first windows", processes)
            share = WORKED_PARTITIONS // workers
            wait_until(
                lambda: all(each.partitions == share for each in processes),
                "the partitions to be shared",
                processes,
            )
            for each in processes:
                os.kill(each.pid, signal.SIGSTOP)
            place.write(topic, rest)
            cpu_s = sum(each.cpu_s for each in processes)
            began, end = read(), read() + rest.records
            wall_s = time.perf_counter()
            for each in processes:
                os.kill(each.pid, signal.SIGCONT)
            wait_until(lambda: read() >= end, "the workers to read the rest", processes)
            return Taken(
                end - began, time.perf_counter() - wall_s, sum(each.cpu_s for each in processes) - cpu_s
            )
        finally:
            for each in processes:
                each.close()
