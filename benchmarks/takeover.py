"""How long a killed worker's partition stands still, with the default settings.

Real ``offbeat detect`` processes, SIGKILL, and the time until the group's committed position moves again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from place import Place, spread
from workers import HERE, Process, committed, wait_until

from offbeat.app import open_bus, open_state
from offbeat.benchmark.installation import STACKED
from offbeat.benchmark.live import CLEAN_ROWS
from offbeat.benchmark.passes import promote
from pipeline.config import Config

SCOPE = "shared"
RATE = 2_000
SETTLED_S = 3
LONG_S = 3_600.0
"""The producer goes on until it is stopped."""


def run(place: Place) -> dict[str, Any]:
    """Each kind of death as often as asked for."""
    place.teach()
    kinds: dict[str, Callable[[Place, Config, Callable[[], int]], float]] = {
        "restarted_in_its_slot": _restarted,
        "taken_over_by_another": _taken_over,
        "killed_mid_transaction": _mid_transaction,
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(place.sizes.takeovers):
        for kind, take in kinds.items():
            place.say(f"{kind.replace('_', ' ')}, {number + 1} of {place.sizes.takeovers}")
            taken[kind].append(_measured(place, f"takeover-{kind}-{number}", take))
    return {"takeover_s": {kind: spread(seconds) for kind, seconds in taken.items()}}


def _measured(place: Place, topic: str, take: Callable[[Place, Config, Callable[[], int]], float]) -> float:
    config = place.make(topic)
    with open_state(config), open_bus(config.bus) as broker:  # a state server that outlives the worker
        promote(config, SCOPE)
        command = [HERE / "paced.py", place.servers, place.topic(topic), str(RATE), "0", str(LONG_S)]
        producer = Process.start(place, topic, command)
        try:
            wait_until(lambda: bool(producer.said), "the producer to start", [producer])
            producer.tell("go")
            return take(place, config, committed(broker, config, SCOPE))
        finally:
            producer.kill()
            producer.close()


def _restarted(place: Place, config: Config, read: Callable[[], int]) -> float:
    """A supervisor starts it again at once."""
    worker = _at_work(place, config, read)
    worker.kill()
    died, at = time.perf_counter(), read()
    return _moved(Process.detect(place, config, SCOPE, 0), read, died, at)


def _taken_over(place: Place, config: Config, read: Callable[[], int]) -> float:
    """It dies between two transactions; another worker stands by."""
    return _taken_over_after(signal.SIGUSR2, place, config, read)


def _mid_transaction(place: Place, config: Config, read: Callable[[], int]) -> float:
    """It dies with alerts and positions written and not committed; another worker stands by."""
    return _taken_over_after(signal.SIGUSR1, place, config, read)


def _taken_over_after(death: signal.Signals, place: Place, config: Config, read: Callable[[], int]) -> float:
    worker = _at_work(place, config, read, program=[HERE / "cut.py"])
    other = _standing_by(place, config, read)
    worker.die_at(death)
    died, at = time.perf_counter(), read()
    return _moved(other, read, died, at)


def _at_work(place: Place, config: Config, read: Callable[[], int], **more: Any) -> Process:  # noqa: ANN401 - as Process.detect
    worker = Process.detect(place, config, SCOPE, 0, **more)
    wait_until(lambda: read() > CLEAN_ROWS * STACKED, "the worker to read what is there", [worker])
    return worker


def _standing_by(place: Place, config: Config, read: Callable[[], int]) -> Process:
    other = Process.detect(place, config, SCOPE, 1)
    wait_until(lambda: other.status.get("doing") == "standing by", "the other worker to stand by", [other])
    settled = read() + SETTLED_S * RATE
    wait_until(lambda: read() > settled, "the group to go on with both", [other])
    return other


def _moved(worker: Process, read: Callable[[], int], died: float, at: int) -> float:
    try:
        wait_until(lambda: read() > at, "the position to move again", [worker])
        return time.perf_counter() - died
    finally:
        worker.close()
