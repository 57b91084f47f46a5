"""From produce to committed alert, at several rates, on Kafka without a grid.

A worker (``offbeat detect``), a producer and a subscriber of the alerts, each a process. An alert's latency
is the time at which the subscriber, who reads committed records only, has it, less the time at which
``produce`` was called for the row that fired it.
"""

from __future__ import annotations

import bisect
import time
from typing import Any

from place import Place
from workers import HERE, Process, committed, wait_until

from offbeat.app import open_bus, output_topics
from offbeat.benchmark.installation import SCOPES, STACKED
from offbeat.benchmark.live import CLEAN_ROWS, AlertWatch, percentiles
from offbeat.benchmark.passes import promote

HELD_RATE, IDLE_RATE = 50_000, 5_000
LOOK_S = 0.05
LAST_ALERTS_S = 1.0


def run(place: Place) -> dict[str, Any]:
    """Measure each rate with each scope, one after the other."""
    place.teach()
    measured: dict[str, dict[str, Any]] = {scope: {} for scope in SCOPES}
    for rate in place.sizes.rates:
        for scope in SCOPES:
            place.say(f"{rate:,} records/s, {scope}")
            measured[scope][str(rate)] = _at(place, scope, rate)
    return {
        "p99_ms_at_50k": {scope: measured[scope][str(HELD_RATE)]["p99_ms"] for scope in SCOPES},
        "core_at_5k": {scope: measured[scope][str(IDLE_RATE)]["core"] for scope in SCOPES},
        "latency": measured,
    }


def _at(place: Place, scope: str, rate: int) -> dict[str, Any]:
    topic = f"latency-{rate}-{scope}"
    config = place.make(topic)
    with open_bus(config.bus) as broker:
        broker.admin().create(output_topics(config))
        promote(config, scope)
        alerts = AlertWatch(broker.reader(), config.alerts_topic)
        producer = Process.start(
            place,
            topic,
            [
                HERE / "paced.py", place.servers, place.topic(topic), str(rate),
                str(place.sizes.quiet_s), str(place.sizes.spiky_s),
            ],
        )  # fmt: skip
        worker = Process.detect(place, config, scope, 0)
        both = [producer, worker]
        try:
            read = committed(broker, config, scope)
            wait_until(lambda: bool(producer.said), "the producer to write what fills the windows", both)
            wait_until(lambda: read() >= CLEAN_ROWS * STACKED, "the worker to read it", both)
            producer.tell("go")
            used: list[tuple[float, float]] = []
            while producer.child.poll() is None:
                alerts.look(LOOK_S)
                used.append((time.time(), worker.cpu_s))
            ended = time.time()
            while time.time() < ended + LAST_ALERTS_S:
                alerts.look(LOOK_S)
            producer.must_run()
            phases = {each.pop("phase"): each for each in producer.said[1:]}
        finally:
            for each in both:
                each.close()
    quiet, spiky = phases["quiet"], phases["spiky"]
    return {
        **percentiles(alerts.between(spiky["began_s"], spiky["ended_s"])),
        "core": _core(used, quiet),
        "core_with_50_alerts_a_second": _core(used, spiky),
        "sent": spiky["sent"],
        "spikes": spiky["spikes"],
        "producer_behind_ms": spiky["behind_ms"],
        "records_per_s": spiky["sent"] / (spiky["ended_s"] - spiky["began_s"]),
    }


def _core(used: list[tuple[float, float]], phase: dict[str, float]) -> float:
    """The share of a core that the worker used in a phase."""
    times = [at for at, _ in used]
    first = min(bisect.bisect_left(times, phase["began_s"]), len(used) - 2)
    last = min(max(bisect.bisect_right(times, phase["ended_s"]) - 1, first + 1), len(used) - 1)
    (began, cpu_before), (ended, cpu_after) = used[first], used[last]
    return (cpu_after - cpu_before) / (ended - began)
