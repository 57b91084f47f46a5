"""The short form: a minute against somebody's own bus, in topics of its own that are deleted at the end."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from offbeat.app import input_topics, open_bus, open_state, output_topics
from offbeat.benchmark.installation import SCOPES, STACKED, Readings, settings, teach, write
from offbeat.benchmark.live import CLEAN_ROWS, AlertWatch, LiveReadings, percentiles
from offbeat.benchmark.passes import Job, Taken, consume, measure, promote, whole
from pipeline.config import Config
from pipeline.errors import ConfigError, OffbeatError
from pipeline.ports import Broker
from pipeline.records import Send
from producers.synthetic import produce

ROUNDS = 3
RATE = 1_000
LIVE_S = 10.0
SPIKES_PER_S = 20
FREE_BYTES = 1 << 30
PATIENCE_S = 60.0
_TICK_S = 0.01
_LAST_ALERTS_S = 1.0
Say = Callable[[str], None]


def run(config: Config, records: int, say: Say) -> dict[str, Any]:
    """Measure the bus of a configuration; nothing is left of it, also when this is interrupted.

    Args:
        config: only its bus is used.
        records: about so many are written and read.
        say: told in a sentence what is being done.

    Raises:
        ConfigError: the bus lives in this process alone.
        OffbeatError: there is no room, or what the bus raises.
    """
    if config.bus == "sqlite://":
        raise ConfigError("the bus sqlite:// lives in one process; a worker of its own could not read it")
    readings = Readings.about(records)
    with tempfile.TemporaryDirectory(prefix="offbeat-bench-") as name, open_bus(config.bus) as broker:
        folder, server = Path(name), broker.admin().describe().server
        _must_have_room(folder)
        with _own_topics(broker, config.bus, say) as prefix:
            found = _passes(
                broker, settings(prefix, f"{prefix}.readings", config.bus, folder), folder, readings, say
            )
            live = settings(f"{prefix}.live", f"{prefix}.live.readings", config.bus, folder)
            found["latency"] = _latency(broker, live, folder, say)
    return {"bus": config.bus.partition("?")[0], "server": server, "records": readings.records, **found}


@contextmanager
def _own_topics(broker: Broker, bus: str, say: Say) -> Iterator[str]:
    """A prefix that no topic has; whatever has it at the end is deleted."""
    prefix = f"offbeat-bench-{uuid.uuid4().hex[:8]}"
    say(f"topics {prefix}.* are made on {bus.partition('?')[0]}, and deleted at the end")
    try:
        yield prefix
    finally:
        admin = broker.admin()
        made = [name for name in admin.describe().topics if name.startswith(f"{prefix}.")]
        try:
            admin.delete(made)
        except OffbeatError as error:
            say(f"could not delete them ({error}); delete the topics {prefix}.* yourself")
        else:
            say(f"deleted the {len(made)} topics {prefix}.*")


def _must_have_room(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        raise OffbeatError(
            f"{folder.parent} has {free / 1e6:,.0f} MB free, and the models and the state of a run need "
            f"{FREE_BYTES / 1e6:,.0f}; make room, or set TMPDIR to another folder"
        )


def _passes(broker: Broker, config: Config, folder: Path, readings: Readings, say: Say) -> dict[str, Any]:
    """Consuming alone, and a whole worker with one model and with a thousand, in turn; the median of each."""
    topic = config.stream("shared").topic
    broker.admin().create(input_topics(config, [*SCOPES], partitions=1))
    say(f"writing {readings.records:,} records of {readings.series:,} series")
    began = time.perf_counter()
    produce(broker.producer(), topic, readings.options)
    written_s = time.perf_counter() - began
    say(f"training {STACKED:,} small models, and one")
    teach(config)
    taken: dict[str, list[Taken]] = {name: [] for name in ("consume", *SCOPES)}
    for number in range(ROUNDS):
        say(f"reading them, round {number + 1} of {ROUNDS}: consume alone, one model, {STACKED:,} models")
        one = settings(f"{config.namespace}.{number}", topic, config.bus, folder)
        taken["consume"].append(measure(consume(Job(one, "shared", readings)), readings.warm))
        for scope in SCOPES:
            taken[scope].append(measure(whole(Job(one, scope, readings)), readings.warm))
    middle = {name: sorted(each, key=lambda one: one.wall_s)[ROUNDS // 2] for name, each in taken.items()}
    return {
        "produce_records_per_s": readings.records / written_s,
        "consume": _figures(middle["consume"]),
        "whole_path": {scope: _figures(middle[scope]) for scope in SCOPES},
    }


def _figures(taken: Taken) -> dict[str, float]:
    return {"records_per_s": taken.records_per_s, "cpu_s_per_million": taken.cpu_s_per_million}


def _latency(broker: Broker, config: Config, folder: Path, say: Say) -> dict[str, Any]:
    """From produce to alert at a modest rate, through a worker in a process of its own."""
    broker.admin().create([*input_topics(config, ["shared"], partitions=1), *output_topics(config)])
    promote(config, "shared")
    say(f"{LIVE_S:g} s at {RATE:,} records/s, for the time from produce to alert")
    with open_state(config), _worker(config, folder) as worker:
        live = _Live(config, broker)
        live.fill(lambda: _must_run(worker, folder))
        used = psutil.Process(worker.pid)
        before, began_s = sum(used.cpu_times()[:2]), time.time()
        after_ms = live.send()
        core = (sum(used.cpu_times()[:2]) - before) / (time.time() - began_s)
    if not after_ms:
        raise OffbeatError(
            f"no alert came within {LIVE_S:g} s at {config.bus}; look at it with `offbeat doctor`"
        )
    return {"records_per_s": RATE, "core": core, **percentiles(after_ms)}


class _Live:
    """A producer of readings of now, and a subscriber of the alerts that come of them."""

    def __init__(self, config: Config, broker: Broker) -> None:
        self._config, self._broker = config, broker
        self._topic = config.stream("shared").topic
        self._readings = LiveReadings(STACKED)
        self._producer = broker.producer()

    def fill(self, check: Callable[[], None]) -> None:
        """Write what fills the windows, and wait until the worker has read it."""
        history = self._readings.history(time.time())
        self._producer.send(Send(self._topic, key, value) for key, value in history)
        self._producer.flush()
        admin, group = self._broker.admin(), self._config.group("shared")
        deadline = time.monotonic() + PATIENCE_S
        while sum(admin.committed(group, self._topic).values()) < CLEAN_ROWS * STACKED:
            check()
            if time.monotonic() > deadline:
                raise OffbeatError(
                    f"the worker did not read {CLEAN_ROWS * STACKED:,} records within {PATIENCE_S:g} s; "
                    "look at the bus with `offbeat doctor`"
                )
            time.sleep(_TICK_S)

    def send(self) -> list[float]:
        """Send at the rate, some of them spikes; how long their alerts took, in milliseconds."""
        over = threading.Event()
        with open_bus(self._config.bus) as other:
            watch = AlertWatch(other.reader(), self._config.alerts_topic)
            watching = threading.Thread(target=_watched, args=(watch, over), daemon=True)
            watching.start()
            try:
                self._pace()
                time.sleep(_LAST_ALERTS_S)
            finally:
                over.set()
                watching.join()
            return [each.after_ms for each in watch.seen]

    def _pace(self) -> None:
        began, sent, spikes = time.perf_counter(), 0, 0
        while (passed_s := time.perf_counter() - began) < LIVE_S:
            sends = []
            for _ in range(sent, int(passed_s * RATE)):
                key, value, spike = self._readings.next(time.time(), spike=spikes < passed_s * SPIKES_PER_S)
                sends.append(Send(self._topic, key, value))
                spikes += spike
            sent += len(sends)
            self._producer.send(sends)
            self._producer.flush()
            time.sleep(_TICK_S)


def _watched(watch: AlertWatch, over: threading.Event) -> None:
    while not over.is_set():
        watch.look(0.1)


@contextmanager
def _worker(config: Config, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``offbeat detect`` as a child that is gone at the end."""
    path = write(config, folder / "offbeat.yaml")
    command = [
        sys.executable,
        "-P",
        "-m",
        "offbeat",
        "detect",
        "shared",
        "--config",
        str(path),
        "--slot",
        "0",
    ]
    with (folder / "worker.out").open("wb") as out:
        child = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            yield child
        finally:
            child.terminate()
            child.wait()


def _must_run(worker: subprocess.Popen[bytes], folder: Path) -> None:
    if worker.poll() is not None:
        said = (folder / "worker.out").read_text(errors="replace").strip().splitlines()[-3:]
        raise OffbeatError(f"the worker ended with {worker.returncode}: {' '.join(said)}")
