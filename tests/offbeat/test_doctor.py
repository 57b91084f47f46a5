"""The doctor names what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from installation import STREAM, Installation
from redis import Redis

from consumers.attempt import training_of
from offbeat import app, doctor
from offbeat.doctor import Level, examine
from pipeline.bus import connect
from pipeline.config import load
from pipeline.control import Begun, Champion, Record, Refused
from pipeline.control import send as control_send
from pipeline.records import Send, TopicSpec

NARROW = """
  sensors:
    topic: sensors
    events: {kind: narrow, series: series, features: [temperature, pressure], every: 1m}
"""


def send(
    installation: Installation, records: Sequence[tuple[bytes | None, object, int]], partitions: int
) -> None:
    """Send ``(key, event, partition)`` to a topic made for them."""
    with closing(connect(f"sqlite:///{installation.folder}/bus.db")) as broker:
        broker.admin().create([TopicSpec("sensors", partitions)])
        producer = broker.producer()
        for n, (key, event, partition) in enumerate(records):
            value = event if isinstance(event, bytes) else msgspec.json.encode(event)
            producer.send([Send("sensors", key, value, (), 1_700_000_000_000 + n, partition)])
        producer.flush()


def reading(series: str, n: int) -> dict[str, object]:
    return {"series": series, "time": 1_700_000_000 + n, "metric": "temperature", "value": 1.0}


def findings(installation: Installation, level: Level) -> list[tuple[str, str]]:
    return [(each.found, each.remedy) for each in examine(load(installation.config)) if each.level is level]


# Metrics of one series in two partitions never meet in a row: the commonest mistake with narrow events.
def test_a_series_in_two_partitions_is_found(installation: Installation) -> None:
    installation.configure(NARROW)
    send(installation, [(b"x", reading("pump-1", n), n % 2) for n in range(10)], partitions=2)

    [(found, remedy)] = findings(installation, Level.MEND)

    assert found == "1 series stand in several partitions ('pump-1' in 0, 1)"
    assert "key each record by its series" in remedy


def test_records_without_keys_are_found_where_there_are_partitions_to_choose_from(
    installation: Installation,
) -> None:
    installation.configure(NARROW)
    send(installation, [(None, reading(f"pump-{n % 2}", n), n % 2) for n in range(10)], partitions=2)

    [(found, _)] = findings(installation, Level.MEND)

    assert found == "10 of the newest 10 records have no key"


def test_records_that_cannot_be_read_are_found_with_the_reason(installation: Installation) -> None:
    installation.configure(NARROW)
    send(installation, [(b"a", reading("a", 0), 0), (b"a", b"not json", 0)], partitions=1)

    [(found, remedy)] = findings(installation, Level.MEND)

    assert found.startswith("1 of the newest 2 records cannot be read: it is not JSON")
    assert "streams.sensors.events" in remedy


def test_a_missing_topic_comes_with_the_command_that_makes_it(installation: Installation) -> None:
    assert findings(installation, Level.MEND) == [
        (
            "its input topic sensors is missing",
            "`offbeat topics create sensors --partitions N`, or mend streams.sensors.topic",
        )
    ]


# Each part is looked at, whatever the others do.
def test_servers_that_do_not_answer_hide_nothing_else(installation: Installation) -> None:
    installation.configure(bus="kafka://127.0.0.1:1", state="redis://127.0.0.1:1/0")

    mend = findings(installation, Level.MEND)

    assert len(mend) == 2
    assert all("127.0.0.1:1" in found and remedy for found, remedy in mend)


def test_a_worker_that_falls_behind_is_found(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.ok("produce", "synthetic", "--features", "2", "--rows", "20")
    installation.ok("detect", "--until-idle", "0.2")
    installation.ok("produce", "synthetic", "--features", "2", "--rows", "20", "--start", "2026-01-02")
    assert ("200 records behind", "") in findings(installation, Level.OK)

    monkeypatch.setattr(doctor, "BEHIND_RECORDS", 100)

    [(found, remedy)] = findings(installation, Level.MEND)
    assert found == "200 records behind"
    assert "add workers, up to one for each of its 1 partition" in remedy


# Training again would end at the same store.
def test_a_registry_that_cannot_be_opened_is_no_damaged_bundle(watched: Installation) -> None:
    before = watched.config.read_text()
    watched.config.write_text(before.replace(f"registry: {watched.folder}/models", "registry: nowhere://x"))
    try:
        [(found, remedy)] = findings(watched, Level.MEND)
    finally:
        watched.config.write_text(before)

    assert "'nowhere://x' cannot be opened" in found
    assert remedy == "see to the store, or mend `registry` in the configuration"


def test_a_damaged_bundle_is_found(watched: Installation) -> None:
    [model] = watched.folder.glob("models/sensors/*/model.safetensors")
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = watched.run("doctor")
    finally:
        model.write_bytes(whole)

    assert done.exit_code == 1
    assert "does not match its hash" in done.stdout
    assert "train again: `offbeat train sensors`" in done.stdout


class TestTraining:
    """What can be known of a retrainer: the lease that it holds while it trains, and its records."""

    @pytest.fixture
    def decide(
        self, installation: Installation, valkey_url: str, redis: Redis
    ) -> Iterator[Callable[[Record], None]]:
        redis.flushall()
        config = load(installation.configure(STREAM, state=valkey_url).config)
        installation.ok("topics", "create")
        with closing(connect(config.bus)) as broker:
            broker.admin().create([TopicSpec(config.control_topic, 1)])
            producer = broker.producer()

            def publish(record: Record) -> None:
                producer.send([control_send(record, config.control_topic)])
                producer.flush()

            yield publish

    def told(self, installation: Installation) -> tuple[str, str]:
        """Level and text of what is said last, which is about training."""
        finding = list(examine(load(installation.config)))[-1]
        return finding.level, finding.found

    @pytest.fixture
    def redis(self, valkey_url: str) -> Iterator[Redis]:
        with Redis.from_url(valkey_url) as client:
            yield client

    @staticmethod
    def said(hours_ago: float) -> dict[str, Any]:
        at = datetime.now(UTC) - timedelta(hours=hours_ago)
        return {"stream": "sensors", "at": at, "who": "ann@host (offbeat retrain)", "why": "due"}

    @pytest.mark.usefixtures("decide")
    def test_a_stream_that_nobody_ever_trained(self, installation: Installation) -> None:
        assert self.told(installation) == (
            Level.NOTE,
            "no training of it has begun yet; nobody trains it now",
        )

    def test_a_stream_whose_training_came_to_nothing(
        self, installation: Installation, decide: Callable[[Record], None]
    ) -> None:
        decide(Begun(**self.said(7), fence=1))
        assert self.told(installation) == (
            Level.NOTE,
            (
                "no training of it led to a model yet; nobody trains it now; the training that began 7 h ago "
                "by ann@host (offbeat retrain) came to no decision"
            ),
        )

        decide(Refused(**self.said(5) | {"why": "it finds less"}, bundle="b1", fence=1))
        assert self.told(installation) == (
            Level.NOTE,
            (
                "no training of it led to a model yet; nobody trains it now; the last one was refused "
                "5 h ago: it finds less"
            ),
        )

    def test_a_model_that_was_not_decided_on_for_long(
        self, installation: Installation, decide: Callable[[Record], None]
    ) -> None:
        decide(Champion(**self.said(100), bundle="b1", predecessor=None))
        told = "its model was decided on 4 d ago, and training.every is 24 h; nobody trains it now"
        assert self.told(installation) == (Level.MEND, told)

        decide(Begun(**self.said(5), fence=1))
        level, found = self.told(installation)
        assert (level, found.removeprefix(told)) == (
            Level.MEND,
            "; the training that began 5 h ago by ann@host (offbeat retrain) came to no decision",
        )

        # A challenger that was refused leaves an old model, and says that somebody is at work.
        decide(Refused(**self.said(47), bundle="b2", fence=1))
        assert self.told(installation) == (
            Level.OK,
            "its model was decided on 47 h ago, and training.every is 24 h",
        )

    def test_a_stream_that_is_being_trained(
        self, installation: Installation, decide: Callable[[Record], None]
    ) -> None:
        config = load(installation.config)
        decide(Champion(**self.said(100), bundle="b1", predecessor=None))
        decide(Begun(**self.said(5), fence=1))

        with app.open_state(config) as server:
            leases = server.leases(namespace=config.namespace)
            lease = leases.take(training_of("sensors"), 60.0)
            assert lease
            found = self.told(installation)
            leases.give(lease)

        assert found == (
            Level.OK,
            "is being trained; that began 5 h ago by ann@host (offbeat retrain)",
        )
        assert self.told(installation)[0] is Level.MEND

    def test_one_that_trains_when_it_is_asked_to_is_left_alone(
        self, installation: Installation, decide: Callable[[Record], None]
    ) -> None:
        installation.config.write_text(installation.config.read_text().replace("{steps: 150}", "{every: 0s}"))
        decide(Champion(**self.said(100), bundle="b1", predecessor=None))

        assert "train" not in self.told(installation)[1].partition("train again")[0]

    # What is not known is not said.
    def test_without_the_state_nobody_is_said_to_be_idle(
        self, installation: Installation, decide: Callable[[Record], None]
    ) -> None:
        decide(Champion(**self.said(100), bundle="b1", predecessor=None))
        config = installation.config.read_text().splitlines()
        installation.config.write_text(
            "\n".join(
                "state: redis://127.0.0.1:1/0" if each.startswith("state:") else each for each in config
            )
        )

        assert self.told(installation) == (
            Level.MEND,
            "its model was decided on 4 d ago, and training.every is 24 h",
        )


def test_findings_are_objects_for_programs(installation: Installation) -> None:
    import json  # noqa: PLC0415

    done = installation.configure(STREAM).run("doctor", "--json")

    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 1
    assert {each["level"] for each in found} == {"ok", "note", "mend"}
    assert all(each.keys() == {"level", "about", "found", "remedy"} for each in found)
