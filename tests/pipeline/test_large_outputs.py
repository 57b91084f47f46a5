"""Outputs that their topics do not take: they come with less in them, and the stream goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from working import NORMAL, ODD, Plant, plant_at

from pipeline.alerts import Alert, DeadLetter
from pipeline.bus import sqlite_outbox

BAD = b"not JSON, and longer than what is left of a letter without it" * 10


@pytest.fixture
def plant(valkey_url: str) -> Iterator[Plant]:
    with plant_at(valkey_url) as made:
        yield made


def size(output: Alert | DeadLetter) -> int:
    send = output.send("t")
    return len(send.key or b"") + len(send.value or b"")


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


def test_what_has_nothing_to_leave_out_is_waited_for_until_its_topic_takes_it(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.produce(NORMAL, NORMAL, ODD)
    expected, *_ = plant.uninterrupted()
    running = plant.worker().turn()
    monkeypatch.setattr(sqlite_outbox, "RECORD_BYTES", largest(expected, 2) - 1)
    seen = []

    def raised() -> None:
        seen.append(running.status)
        monkeypatch.undo()

    running.clock.on_wait = raised
    running.read_all().later(5)

    [status] = seen
    assert status.doing == "waiting for the bus"
    assert f"for topic '{plant.config.alerts_topic}' is larger than" in status.message
    assert without_evidence(plant.alerts()) == without_evidence(expected)
    assert plant.committed() == plant.sent
