"""Damage on a broker's disk, as a user meets it: a stop until it is mended, or a range that is told."""

from __future__ import annotations

import json
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from disks import Disk, overwrite, places
from installation import Installation, Program, wait_until
from kafka import KafkaProducer

from pipeline.alerts import DeadLetter
from pipeline.bus.kafka import KafkaBroker
from pipeline.records import TopicPartition

pytestmark = pytest.mark.kafka
NAMESPACE = "damage"
STREAM = """
  sensors:
    topic: {topic}
    events: {{series: series, features: [x]}}
    model: {{window: 2}}
"""


class Site:
    """An installation on a Kafka broker, with 80 records in batches of 10, of which one is damaged."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.disk, self.topic = disk, disk.topic()
        self.folder = folder
        producer = KafkaProducer(bootstrap_servers=disk.bootstrap, linger_ms=1_000)
        for start in range(0, 80, 10):
            for number in range(start, start + 10):
                event = {"time": 1_700_000_000 + number, "series": "pump", "x": number % 7}
                producer.send(self.topic, key=b"pump", value=json.dumps(event).encode(), partition=0)
            producer.flush()
        producer.close()
        [self.segment] = disk.segments(self.topic)
        self.place = places(self.segment)[20] + 80
        self.before = overwrite(self.segment, self.place, b"#")

    def under(self, policy: str) -> Installation:
        """The installation, its bus set to a policy; ``namespace`` is the topic's own."""
        bus = f"kafka://{self.disk.bootstrap}?corrupt={policy}"
        installation = Installation(self.folder)
        installation.configure(STREAM.format(topic=self.topic), bus=bus, namespace=self.topic)
        installation.ok("topics", "create")
        return installation

    def letters(self) -> list[DeadLetter]:
        with closing(KafkaBroker(f"kafka://{self.disk.bootstrap}")) as broker:
            at = TopicPartition(f"{self.topic}.dead-letters", 0)
            batch = broker.reader().read(at, 0, 100, 5.0)
            return [DeadLetter.model_validate_json(batch.value(row) or b"") for row in range(len(batch))]


@pytest.fixture
def site(tmp_path: Path, disk: Disk) -> Site:
    return Site(tmp_path, disk)


def bins(line: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in line["bins"].items() if count}


def test_skipped_damage_is_counted_and_named_and_all_else_is_worked_on(site: Site) -> None:
    installation = site.under("skip")

    last = installation.json("detect", "--until-idle", "1")[-1]

    assert last["doing"] == "stopped"
    assert bins(last) == {"waiting_model": 70, "corrupt": 10}
    [letter] = site.letters()
    assert (letter.offset, letter.last_offset, letter.count) == (20, 29, 10)
    assert letter.reason == "the stored batch is damaged: its checksum does not fit"

    replayed = json.loads(installation.run("replay", "--json").stderr)
    assert {name: count for name, count in replayed["bins"].items() if count} == bins(last)
    assert replayed["records"] == 80

    again = installation.json("detect", "--until-idle", "1")[-1]
    assert bins(again) == bins(last)
    assert len(site.letters()) == 1


def test_a_worker_stands_at_damage_until_it_is_mended_and_loses_nothing(site: Site) -> None:
    installation = site.under("stop")
    worker = Program(installation, "detect")
    try:
        wait_until(lambda: worker.said(doing="stopped at damage"), "it stops at the damage")
        stood = worker.said(doing="stopped at damage")[-1]
        [said] = [
            line["message"] for line in worker.said(event="notice") if "cannot be read" in line["message"]
        ]
        assert said.startswith(
            f"{site.topic}[0] cannot be read at offset 20: its checksum does not fit; restore"
        )
        assert stood["message"] == said
        assert (bins(stood), stood["lag"]) == ({"waiting_model": 20}, 60)
        assert installation.run("replay").exit_code == 4

        overwrite(site.segment, site.place, site.before)
        wait_until(lambda: worker.said(doing="waiting for a model", lag=0), "it goes on")
        worker.process.send_signal(signal.SIGTERM)

        assert worker.process.wait(10) == 0
        assert bins(worker.lines()[-1]) == {"waiting_model": 80}
        assert site.letters() == []
    finally:
        worker.end()


# However the bus is set: what stands there says how records were judged.
@pytest.mark.parametrize("which", ["control", "sensors.journal"])
def test_damage_in_the_control_topic_or_the_journal_is_never_skipped(site: Site, which: str) -> None:
    overwrite(site.segment, site.place, site.before)
    installation = site.under("skip")
    installation.ok("detect", "--until-idle", "1")
    [segment] = site.disk.segments(f"{site.topic}.{which}")
    [first, *_] = places(segment).values()
    overwrite(segment, first + 80, b"#")

    refused = installation.run("replay")

    assert refused.exit_code == 4
    assert f"{site.topic}.{which}[0] cannot be read from offset 0" in refused.output
    assert "it is never skipped" in refused.output
