"""What a series costs: a real worker's memory and Redis with windows filled by real records, from Kafka.

The window itself (32 rows of 4 features as float32) is taken off: it is what was asked for.
"""

from __future__ import annotations

import shutil
import threading
import time
from itertools import pairwise
from typing import Any

import psutil
from place import Place
from workers import Process, committed, wait_until

from offbeat import app
from offbeat.app import open_bus
from offbeat.benchmark.installation import WINDOW, Readings
from offbeat.benchmark.passes import promote
from pipeline.config import Config
from pipeline.errors import OffbeatError
from pipeline.records import TopicPartition
from pipeline.series import Layout, PartitionState
from pipeline.state.snapshots import FolderSnapshots

SCOPE = "shared"
ROWS = WINDOW + 1
"""Records of a series: its window is full, and one row more has been scored and kept."""
LEAST_RECORDS = 640_000
"""The worker's buffers are as full with few series as with many."""
FREE_BYTES, FREE_DISK_BYTES = 3_000, 10_000
"""About so much a series, with all that stands around the worker."""


def run(place: Place) -> dict[str, Any]:
    """Measure each number of series; the smallest is what the others are held against."""
    place.teach()
    measured = {series: _with(place, series) for series in place.sizes.memory_series}
    first = min(measured)
    window = WINDOW * 4 * 4
    report: dict[str, Any] = {"worker_bytes_per_series": {}, "redis_bytes_per_series": {}}
    for series, found in measured.items():
        if series == first:
            continue
        for key, what in (
            ("worker_bytes_per_series", "worker_bytes"),
            ("redis_bytes_per_series", "redis_bytes"),
        ):
            more = (found[what] - measured[first][what]) / (series - first)
            report[key][str(series)] = more - window
    for key, values in report.items():
        report[key] = {SCOPE: values[str(max(measured))], "by_series": values}
    return report | {"memory": {str(series): found for series, found in measured.items()}}


def _with(place: Place, series: int) -> dict[str, Any]:
    readings = Readings(max(ROWS, -(-min(LEAST_RECORDS, place.sizes.sweep_records) // series)), series)
    _must_fit(place, series)
    topic = f"memory-{series}"
    config = place.make(topic)
    place.say(f"{series:,} series: {readings.records:,} records, read while they are written")
    promote(config, SCOPE)
    found: dict[str, Any] = {"series": series, "records": readings.records}
    with app.open_state(config) as state, open_bus(config.bus) as broker:
        before = state.ping().used_memory
        read = committed(broker, config, SCOPE)
        worker = Process.detect(place, config, SCOPE, 0)
        try:
            wait_until(lambda: worker.status.get("doing") == "live", "the worker to start", [worker])
            began = time.perf_counter()
            filling = threading.Thread(target=place.write, args=(topic, readings), daemon=True)
            filling.start()
            wait_until(
                lambda: read() >= readings.records, "the worker to read all of it", [worker], patience_s=900
            )
            filling.join()
            found["end_to_end_s"] = time.perf_counter() - began
            found["records_per_s"] = readings.records / found["end_to_end_s"]
            found["worker_cpu_s_per_million"] = worker.cpu_s / readings.records * 1e6
            found["worker_bytes"] = worker.memory_bytes
        finally:
            began = time.perf_counter()
            worker.close()
        found["stop_s"] = time.perf_counter() - began
        found["redis_bytes"] = state.ping().used_memory - before
        found["takeover_s"] = _takeover(place, config, series)
        found |= _timed(config, state.store(namespace=config.namespace, stream=SCOPE))
    return found


def _takeover(place: Place, config: Config, series: int) -> float:
    """A new worker, from its start until it is live with every series: the program's own start included."""
    began = time.perf_counter()
    worker = Process.detect(place, config, SCOPE, 0)
    try:
        wait_until(lambda: worker.status.get("series", 0) >= series, "the state to be taken over", [worker])
        return time.perf_counter() - began
    finally:
        worker.close()


def _timed(config: Config, store: Any) -> dict[str, float]:  # noqa: ANN401 - a store of the state server
    """Loading a whole state, writing it, and a snapshot of it, one by one."""
    stream, times = config.stream(SCOPE), [time.perf_counter()]
    partition = TopicPartition(stream.topic, 0)
    claim = store.claim(partition)
    state = PartitionState.unpack(Layout.of(stream), claim.rows)
    if state is None:
        raise OffbeatError(f"what is stored of {partition} is no state of this version")
    times.append(time.perf_counter())
    store.put(store.claim(partition), 0, state.next_offset, state.pack(whole=True), whole=True)
    times.append(time.perf_counter())
    snapshots = FolderSnapshots(config.snapshots, namespace=config.namespace, stream=SCOPE)
    snapshots.save(partition, state.topic_id, state.next_offset, state.clock_ns, state.pack(whole=True))
    times.append(time.perf_counter())
    names = ("load_s", "checkpoint_s", "snapshot_s")
    return {name: after - before for name, (before, after) in zip(names, pairwise(times), strict=True)}


def _must_fit(place: Place, series: int) -> None:
    """Say what is missing before anything is filled."""
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(place.folder).free
    if memory < series * FREE_BYTES or disk < series * FREE_DISK_BYTES:
        raise OffbeatError(
            f"{series:,} series need about {series * FREE_BYTES / 1e9:.0f} GB of memory and "
            f"{series * FREE_DISK_BYTES / 1e9:.0f} GB under {place.folder}; there are {memory / 1e9:.0f} and "
            f"{disk / 1e9:.0f}: give --series fewer, or set TMPDIR"
        )
