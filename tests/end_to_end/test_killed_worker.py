"""A worker killed in the middle of its work and started again loses nothing and doubles nothing."""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
import uuid
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models import ModelSpec, Registry, SeriesRows, StackScorer, train
from offbeat import app
from offbeat.controls import Control
from pipeline import config
from pipeline.alerts import Alert, DeadLetter
from pipeline.bus import connect
from pipeline.detect import Detector
from pipeline.records import RecordBatch, Send, TopicPartition, TopicSpec
from pipeline.series import PartitionState
from pipeline.state import connect as connect_state

WORKER = Path(__file__).with_name("worker.py")
RECORDS, SERIES, BATCH = 24_000, 30, 500
KILLED_AT = (2_000, 3_000, 2_500)
"""Rows that the first, second and third worker score before they are killed; the fourth finishes."""
TEXT = """
namespace: {namespace}
bus: {bus}
state: embedded:///{folder}/state
registry: {folder}/models
snapshots: {folder}/snapshots
streams:
  machines:
    topic: {topic}
    events: {{features: [load, heat], every: 2s, late: 4s, silent_after: 100s}}
    model: {{window: 8}}
    threshold: {{k: 4}}
"""


@dataclass
class Place:
    """An installation of its own on a bus."""

    path: Path
    settings: config.Config

    @property
    def topic(self) -> str:
        return self.settings.stream("machines").topic


def values(random_: random.Random, row: int, series: int) -> tuple[float, float]:
    """A slow wave, and now and then a burst."""
    load = math.sin(row / 7 + series) + random_.gauss(0, 0.1)
    return load + (6 if (row + 11 * series) % 170 < 4 and row > 60 else 0), -load


def events() -> list[bytes]:
    """Out of order within the lateness, with duplicates, bad records, silences and stragglers."""
    random_ = random.Random(7)
    made = []
    for i in range(RECORDS):
        row, series = divmod(i, SERIES)
        load, heat = values(random_, row, series)
        if series == 5 and 300 < row < 420:
            load, series = 0.0, 6
        time = 1.7e9 + row - random_.choice([0, 0, 0, 1, 2, 30])
        event = {"time": time, "series": f"s{series}", "load": load, "heat": heat}
        made.append(b"not JSON" if i % 997 == 0 else msgspec.json.encode(event))
    return made


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    bus = f"sqlite:///{tmp_path}/bus.db"
    if request.param == "kafka":
        bus = f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
    unique = uuid.uuid4().hex[:8]
    text = TEXT.format(namespace=f"n{unique}", bus=bus, folder=tmp_path, topic=f"t{unique}")
    path = tmp_path / "offbeat.yaml"
    path.write_text(text)
    settings = config.parse(text)
    with closing(connect(bus)) as broker:
        topics = [*app.input_topics(settings, ["machines"], 2), *app.output_topics(settings)]
        broker.admin().create([TopicSpec(one.name, one.partitions) for one in topics])
        producer = broker.producer()
        topic = settings.stream("machines").topic
        producer.send(
            Send(topic, None, value, timestamp_ms=1_750_000_000_000, partition=hash_of(value))
            for value in events()
        )
        producer.flush()
    learn(settings)
    return Place(path, settings)


def hash_of(value: bytes) -> int:
    """A series keeps to one of the two partitions."""
    return 0 if value == b"not JSON" else int(msgspec.json.decode(value)["series"][1:]) % 2


def learn(settings: config.Config) -> None:
    random_ = random.Random(1)
    rows = {
        f"s{series}": SeriesRows(
            np.array([values(random_, row, series) for row in range(60)]), np.zeros(60, np.int32)
        )
        for series in range(SERIES)
    }
    spec = app.model_spec(settings.stream("machines"))
    short = ModelSpec(spec.features, spec.window_rows, transforms=spec.transforms, steps=60)
    bundle_id = Registry(settings.registry).save("machines", train(rows, short, source={}, created_at="2026"))
    with closing(connect(settings.bus)) as broker:
        Control(settings, broker, "a test").promote("machines", bundle_id, "to be killed with")


def run(place: Place, *, until: int | None) -> None:
    """Let a worker work to the end, or kill it once it has scored so many rows."""
    command = [sys.executable, str(WORKER), str(place.path), "machines", str(BATCH)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            word, _, count = line.partition(" ")
            if until is not None and word == "read" and int(count) >= until:
                process.kill()
        process.wait()
        assert process.returncode == (0 if until is None else -signal.SIGKILL)


def read_all(place: Place, topic: str) -> list[bytes]:
    with closing(connect(place.settings.bus)) as broker:
        reader, found = broker.reader(), []
        for partition, bounds in reader.bounds(topic).items():
            offset = bounds.first_offset
            while offset < bounds.end_offset:
                batch = reader.read(TopicPartition(topic, partition), offset, 5_000, 1.0)
                found += [batch.value(row) or b"" for row in range(len(batch))]
                offset = batch.next_offset
        return found


def uninterrupted(place: Place) -> tuple[list[Alert], list[DeadLetter], dict[TopicPartition, PartitionState]]:
    """What one detect step over each whole partition gives."""
    settings, alerts, letters, states = place.settings, [], [], {}
    scorer = StackScorer(registry_bundle(settings))
    with closing(connect(settings.bus)) as broker:
        reader = broker.reader()
        for number, bounds in reader.bounds(place.topic).items():
            partition = TopicPartition(place.topic, number)
            step = Detector(settings.namespace, "machines", settings.stream("machines"))
            state = states[partition] = step.fresh(bounds.topic_id, 0)
            state.adopt(scorer, registry_id(settings))
            while state.next_offset < bounds.end_offset:
                batch: RecordBatch = reader.read(partition, state.next_offset, 5_000, 1.0)
                outputs = step.step(state, batch, scorer)
                alerts += outputs.alerts
                letters += outputs.dead_letters
    return alerts, letters, states


def registry_id(settings: config.Config) -> str:
    [champion] = Registry(settings.registry).bundles("machines")
    return champion


def registry_bundle(settings: config.Config):  # noqa: ANN201 - the model's own type
    return Registry(settings.registry).load("machines", registry_id(settings))


def test_nothing_is_lost_or_doubled(place: Place) -> None:
    """Three kills; alerts, dead letters and state equal those of an uninterrupted run."""
    alerts, letters, states = uninterrupted(place)
    assert len(alerts) > 40
    assert {alert.kind for alert in alerts} == {"anomaly", "silent"}

    for rows in KILLED_AT:
        run(place, until=rows)
    run(place, until=None)

    published = [Alert.model_validate_json(value) for value in read_all(place, place.settings.alerts_topic)]
    buried = [
        DeadLetter.model_validate_json(value) for value in read_all(place, place.settings.dead_letters_topic)
    ]
    assert Counter((one.id, one.revision) for one in published) == Counter(
        (one.id, one.revision) for one in alerts
    )
    assert Counter((one.partition, one.offset) for one in buried) == Counter(
        (one.partition, one.offset) for one in letters
    )
    assert_states(place, states)


def assert_states(place: Place, states: dict[TopicPartition, PartitionState]) -> None:
    with closing(connect_state(place.settings.state)) as server:
        store = server.store(namespace=place.settings.namespace, stream="machines")
        for partition, expected in states.items():
            stored = store.claim(partition).rows
            assert stored is not None
            state = PartitionState.unpack(expected.layout, stored)
            assert state is not None
            assert state.counters.named() == expected.counters.named()
            assert state.next_offset == expected.next_offset
            for series, slot in expected.index.items():
                row, other = expected.rows[slot], state.rows[state.index[series]]
                for name in expected.rows.dtype.names or ():
                    assert row[name] == pytest.approx(other[name], rel=1e-5), (series, name)
                assert np.array_equal(expected.series.tail[slot], state.series.tail[state.index[series]])
