"""A stream's model changes on a real Kafka, by the commands that people use; docs/three-days.md in short."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from installation import Installation, Program
from numpy.typing import NDArray

from models import Registry, SeriesRows, train
from models.spec import model_spec
from offbeat import app
from offbeat.stored_alerts import StoredAlerts
from pipeline.alerts import Alert
from pipeline.bus import connect
from pipeline.config import load
from pipeline.control import ControlLog
from pipeline.errors import NotFound
from pipeline.journal import InForce, JournalLog
from pipeline.ports import Broker
from pipeline.records import Send

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

SERIES, PART = 6, 240
"""Each series sends ``PART`` rows between two decisions."""
START, MINUTE = datetime(2026, 3, 2, tzinfo=UTC), timedelta(minutes=1)
DEADLINE_S = 150.0
"""A worker that finds no compiled kernels compiles them first."""
STREAM = """
  plant:
    topic: {topic}
    events: {{features: {{load: {{path: load}}}}}}
    training: {{steps: 300}}
"""


def calm(rows: int, noise: float, seed: int) -> NDArray[np.float64]:
    """float64[rows, SERIES]: a wave of two hours, and noise."""
    at = np.arange(rows)[:, None] / 120 + np.arange(SERIES) / SERIES
    random = np.random.default_rng(seed).normal(size=(rows, SERIES))
    return np.asarray(50 + 10 * np.sin(2 * np.pi * at) + noise * random)


class Plant:
    """An installation whose one stream a worker watches."""

    def __init__(self, folder: Path, broker: Broker, bus: str, state: str) -> None:
        name = f"n{uuid.uuid4().hex[:8]}"
        self.site = Installation(folder).configure(
            STREAM.format(topic=f"{name}.plant"), namespace=name, bus=bus, state=state
        )
        self.config = load(self.site.config)
        self.admin, self.reader, self.producer = broker.admin(), broker.reader(), broker.producer()
        self.admin.create([*app.input_topics(self.config, ["plant"], 1), *app.output_topics(self.config)])
        self.topic, self.sent = self.config.stream("plant").topic, 0
        self.journal = JournalLog(self.reader, self.config.journal_topic("plant"))
        self.control = ControlLog(self.reader, self.config.control_topic)
        self.worker = Program(self.site, "detect", "plant")

    def learn(self, noise: float) -> str:
        """A bundle that learned from rows with so much noise; returns its id."""
        values = calm(1_000, noise, seed=0)
        segment = np.zeros(len(values), np.int32)
        rows = {f"unit-{n}": SeriesRows(values[:, n : n + 1], segment) for n in range(SERIES)}
        bundle = train(rows, model_spec(self.config.stream("plant")), source={}, created_at="2026")
        return Registry(self.config.registry).save("plant", bundle)

    def decide(self, *command: str) -> None:
        """Use the program, and wait until what it decided is in force."""
        self.site.ok("models", *command, "--why", "to see")
        champion = self.control.refresh().champions["plant"]
        self.wait_for(lambda: self.bundles()[-1:] == [champion], "a decision")

    def send(self, values: NDArray[np.float64]) -> None:
        """Send rows that follow those before, and wait until they are committed."""
        for row in values.tolist():
            at = START + self.sent // SERIES * MINUTE
            events = [{"series": f"unit-{n}", "time": at.timestamp(), "load": x} for n, x in enumerate(row)]
            self.producer.send(
                Send(self.topic, b"unit", json.dumps(event).encode(), partition=0) for event in events
            )
            self.sent += len(events)
        self.producer.flush()
        end, group = self.reader.bounds(self.topic)[0].end_offset, self.config.group("plant")
        self.wait_for(lambda: self.admin.committed(group, self.topic).get(0) == end, "the rows to be read")

    def wait_for(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert self.worker.process.poll() is None, self.worker.log.read_text()[-2_000:]
            assert time.monotonic() < deadline, f"waited for {what}: {self.worker.log.read_text()[-800:]}"
            time.sleep(0.05)

    def bundles(self) -> list[str]:
        """What was in force, one after the other."""
        entries = list[InForce]()
        with suppress(NotFound):  # the worker makes the journal when it starts
            entries += [
                each for each in self.journal.entries(0, settled=False)[0] if isinstance(each, InForce)
            ]
        return [bundle for bundle, _ in groupby(entries, lambda each: each.bundle_sha) if bundle]

    def alerts(self) -> list[Alert]:
        """Each alert as it began."""
        found = StoredAlerts(self.reader, self.config.alerts_topic).revisions()
        return [revisions[0] for revisions in found.values()]


@pytest.fixture
def plant(kafka_bootstrap: str, valkey_url: str, tmp_path: Path) -> Iterator[Plant]:
    bus = f"kafka://{kafka_bootstrap}?session_timeout_ms=3000"
    with closing(connect(bus)) as broker:
        made = Plant(tmp_path, broker, bus, valkey_url)
        yield made
        made.worker.end()


# The second model learned from rows a fifth as noisy: what is calm is far above what it was calibrated on.
def test_a_model_is_put_to_use_and_rolled_back_without_an_alert_or_a_record_lost(plant: Plant) -> None:
    first, second = plant.learn(1.0), plant.learn(0.2)
    values = calm(4 * PART, 1.0, seed=1)
    plant.decide("promote", "plant", first)
    plant.send(values[: 2 * PART])

    plant.decide("promote", "plant", second)
    plant.send(values[2 * PART : 3 * PART])
    plant.decide("rollback", "plant")
    plant.send(values[3 * PART :])

    assert plant.bundles() == [first, second, first]
    assert [(each.series, each.started_at, each.bundle, each.peak_score) for each in plant.alerts()] == []

    plant.send(values[:1] + 80)
    plant.send(values[1:PART])
    assert {each.series for each in plant.alerts()} == {f"unit-{n}" for n in range(SERIES)}
    plant.worker.process.terminate()
    plant.worker.process.wait()
    bins = plant.worker.said(event="status")[-1]["bins"]
    assert plant.sent == plant.reader.bounds(plant.topic)[0].end_offset == sum(bins.values())
