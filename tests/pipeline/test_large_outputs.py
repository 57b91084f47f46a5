"""Outputs that their topics do not take: they come with less in them, and the stream goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest
from working import NORMAL, ODD, START_S, STREAM, TOPIC, Plant, Running, plant_at

from consumers.replayer import Parts, Replayer, compare
from pipeline.alerts import Alert, DeadLetter
from pipeline.bus import sqlite_outbox
from pipeline.errors import Refused
from pipeline.journal import Transitions

BAD = b"not JSON, and longer than what is left of a letter without it" * 10


@pytest.fixture
def plant(valkey_url: str) -> Iterator[Plant]:
    with plant_at(valkey_url) as made:
        yield made


def size(output: Alert | DeadLetter) -> int:
    return output.send("t").size


def without_evidence(alerts: list[Alert]) -> list[Alert]:
    return [alert.model_copy(update={"features": []}) for alert in alerts]


def largest(alerts: list[Alert], times: int) -> int:
    """The bytes of the largest alert once so much has been taken out of it."""
    for _ in range(times):
        alerts = [less for alert in alerts if (less := alert.with_less()) is not None]
    return max(map(size, alerts))


@pytest.mark.parametrize("steps", [1, 2])
def test_an_alert_that_its_topic_does_not_take_comes_with_less_evidence(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    plant.produce(NORMAL, NORMAL, ODD)
    expected, *_ = plant.uninterrupted()
    limit = largest(expected, steps)
    monkeypatch.setattr(sqlite_outbox, "RECORD_BYTES", limit)

    running = plant.worker().read_all().later(5)
    plant.produce(NORMAL, NORMAL, NORMAL, NORMAL, ODD)
    running.read_all().later(5)

    more, *_ = plant.uninterrupted()
    assert len(more) > len(expected)
    found = plant.alerts()
    assert without_evidence(found) == without_evidence(more)
    assert [bool(alert.features) for alert in found] == [steps == 1] * len(more)
    assert not any(feature.window_observed for feature in found[0].features)
    assert all(size(alert) <= limit for alert in found)
    assert plant.committed() == plant.sent
    assert len([told for told in running.notices if "less evidence is published" in told]) == 1
    assert running.clock.waited == []


def test_a_dead_letter_that_its_topic_does_not_take_comes_without_its_bytes(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.produce(NORMAL, BAD, NORMAL)
    _, [letter], _ = plant.uninterrupted()
    monkeypatch.setattr(sqlite_outbox, "RECORD_BYTES", size(letter) - 1)

    plant.worker().read_all().later(5)

    assert plant.letters() == [letter.model_copy(update={"key": None, "value": None})]
    assert letter.value_bytes == len(BAD)


@pytest.fixture
def labelled(valkey_url: str) -> Iterator[Plant]:
    """Two series with an alert each, fired and resolved; a label makes those of the second one larger."""
    with plant_at(valkey_url, events={"features": ["x"], "labels": ["site"]}) as made:
        for series, site in ("a", "north"), ("b", "s" * 250):
            made.produce(
                *(
                    json.dumps({"series": series, "time": START_S + n, "x": x, "site": site}).encode()
                    for n, x in enumerate([NORMAL, NORMAL, ODD, NORMAL, NORMAL])
                )
            )
        yield made


def limited(plant: Plant) -> Running:
    """A worker whose topic takes the alerts of the first series, and none of the second."""
    whole, *_ = plant.uninterrupted()
    small, large = (without_evidence([each for each in whole if each.series == one]) for one in "ab")
    running = plant.worker()
    running.bus.most[plant.config.alerts_topic] = limit = max(map(size, small))
    assert limit < min(map(size, large))
    return running


def test_an_alert_that_is_too_large_without_evidence_is_a_dead_letter_and_no_other_is(
    labelled: Plant,
) -> None:
    whole, *_ = labelled.uninterrupted()
    running = limited(labelled).read_all().later(1)

    topic, alerts = labelled.config.alerts_topic, without_evidence(whole)
    assert labelled.alerts() == [alert for alert in alerts if alert.series == "a"]
    refused = [alert for alert in alerts if alert.series == "b"]
    for letter, alert in zip(labelled.letters(), refused, strict=True):
        assert letter.reason == (
            f"alert {alert.id} revision {alert.revision} ({alert.state}) of series b has {size(alert)} bytes "
            f"without its evidence, more than {topic} takes"
        )
        assert (letter.key, letter.offset) == (alert.id.encode(), alert.source.offset)
        assert Alert.model_validate_json(letter.value or b"") == alert
    [entry] = [entry for entry in labelled.journal() if isinstance(entry, Transitions)]
    assert [change.id for change in entry.changes] == [alert.id for alert in whole]
    status = running.status
    assert (status.alerts, status.dead_letters, status.cut) == (len(whole) - 2, 2, len(whole))
    assert labelled.committed() == labelled.sent
    assert running.clock.waited == []


def test_a_replay_finds_no_difference_in_what_was_lessened(labelled: Plant) -> None:
    limited(labelled).read_all().later(1)
    broker, shelf = labelled.broker, labelled.desk.shelf
    made = Parts(labelled.config, STREAM, broker.reader(), broker.admin(), labelled.snapshots(), shelf)

    [[replay], _] = Replayer(made).prepare({0: broker.reader().bounds(TOPIC)[0]})
    replayed = [alert for read in replay.run() for alert in read.alerts]

    assert replayed == labelled.uninterrupted()[0]
    compared = compare([replay], labelled.alerts())
    assert (compared.same, compared.unpublished, compared.differences) == (4, 2, [])


def test_whoever_takes_over_after_a_refused_commit_comes_to_the_same_and_counts_once(labelled: Plant) -> None:
    first = limited(labelled).turn()
    first.bus.before_commit = lambda: setattr(
        first.bus, "before_commit", lambda: first.bus.failing.append(gone)
    )
    gone = Refused("another one took over")
    first.turn()
    assert "another one took over" in first.notices[-1]
    first.leave()

    second = limited(labelled).read_all().later(1)

    assert (first.status.cut, second.status.cut) == (0, 4)
    assert Counter(alert.id for alert in labelled.alerts()) | Counter(
        (letter.key or b"").decode() for letter in labelled.letters()
    ) == Counter(alert.id for alert in labelled.uninterrupted()[0])


def test_what_has_nothing_to_leave_out_is_waited_for_until_its_topic_takes_it(plant: Plant) -> None:
    plant.produce(NORMAL, BAD)
    _, expected, _ = plant.uninterrupted()
    running, topic = plant.worker(), plant.config.dead_letters_topic
    running.bus.most[topic] = 100
    seen = []

    def raised() -> None:
        seen.append(running.status)
        running.bus.most.clear()

    running.clock.on_wait = raised
    running.read_all().later(5)

    [status] = seen
    assert status.doing == "waiting for the bus"
    assert f"for {topic} is too large" in status.message
    assert [letter.reason for letter in plant.letters()] == [letter.reason for letter in expected]
    assert plant.committed() == plant.sent
