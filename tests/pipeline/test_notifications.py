"""What is told: its words, its record, and that it is the published one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipeline.notifications import (
    Event,
    IncidentKind,
    Measured,
    Member,
    Notification,
    incident_id,
    measured,
    published,
    ranked,
    stream_title,
    title,
)
from pipeline.records import RecordBatch, TopicPartition

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "notification.schema.json"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHAKING = Measured(name="vibration", unit="mm/s", observed=8.123456, expected=2.2)


def member(series: str, **more: Any) -> Member:  # noqa: ANN401
    made: dict[str, Any] = {
        "id": f"id of {series}", "series": series, "labels": {}, "state": "firing",
        "reason": "error above its threshold", "severity": "warning", "peak_score": 1.5, "started_at": NOON,
        "feature": SHAKING,
    }  # fmt: skip
    return Member(**made | more)


def notification(*alerts: Member, **more: Any) -> Notification:  # noqa: ANN401
    made: dict[str, Any] = {
        "id": incident_id("test", "pumps", "anomaly", "first"), "sequence": 2, "event": "changed",
        "namespace": "test", "stream": "pumps", "kind": "anomaly", "severity": "critical", "at": NOON,
        "started_at": NOON, "title": "something", "count": len(alerts), "open": len(alerts),
        "alerts": list(alerts), "members": [each.id for each in alerts], "acknowledged_by": None,
        "after_silence": False,
    }  # fmt: skip
    return Notification(**made | more)


OVER: dict[str, Any] = {"state": "resolved", "reason": "recovered"}


@pytest.mark.parametrize(
    ("kind", "event", "alerts", "says"),
    [
        ("anomaly", "opened", [member("p7")], "p7 of pumps is anomalous: vibration 8.123 mm/s, expected 2.2"),
        (
            "anomaly", "opened", [member("p7"), member("p1"), member("p2", **OVER)],
            "2 series of pumps are anomalous, worst p7: vibration 8.123 mm/s, expected 2.2",
        ),
        ("anomaly", "changed", [member("p7", feature=None)], "p7 of pumps is now anomalous"),
        ("anomaly", "repeated", [member("p7", feature=None)], "p7 of pumps is still anomalous"),
        (
            "anomaly", "resolved", [member("p7", **OVER), member("p1", **OVER)],
            "2 series of pumps are no longer anomalous, worst p7: vibration 8.123 mm/s, expected 2.2",
        ),
        (
            "silent", "opened", [member("p7", feature=None), member("p8")],
            "2 series of pumps are silent, such as p7",
        ),
        (
            "silent", "resolved", [member("p7", feature=None, state="resolved", reason="gone")],
            "p7 of pumps is gone, after sending nothing for too long",
        ),
        (
            "anomaly", "opened", [member("p7"), member("p7", id="another")],
            "p7 of pumps is anomalous: vibration 8.123 mm/s, expected 2.2",
        ),
        ("silent", "resolved", [], "series of pumps are no longer silent"),
    ],
)  # fmt: skip
def test_a_title_says_it_in_one_sentence(
    kind: IncidentKind, event: Event, alerts: list[Member], says: str
) -> None:
    assert title("pumps", kind, event, alerts, after_silence=False) == says


def test_a_title_says_that_a_silence_has_ended() -> None:
    told = title("pumps", "anomaly", "opened", [member("p7", feature=None)], after_silence=True)

    assert told == "p7 of pumps is still anomalous after a silence"


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ("opened", "no record of pumps since 2026-03-01 12:00:00 UTC: the whole stream is silent"),
        ("repeated", "still no record of pumps since 2026-03-01 12:00:00 UTC: the whole stream is silent"),
        ("resolved", "records of pumps come again; there was none since 2026-03-01 12:00:00 UTC"),
    ],
)
def test_a_title_of_a_whole_stream(event: Event, says: str) -> None:
    assert stream_title("pumps", event, NOON) == says


def test_values_are_written_with_the_digits_that_matter() -> None:
    assert [measured(12_345.6, "W"), measured(0.12345, ""), measured(-2.0, "°C")] == [
        "12,346 W",
        "0.1235",
        "-2 °C",
    ]


def test_the_worst_that_is_open_stands_first() -> None:
    alerts = [
        member("over", severity="critical", peak_score=9, **OVER),
        member("mild", peak_score=1.1),
        member("silent", peak_score=None),
        member("bad", severity="critical", peak_score=2.5),
        member("wild", peak_score=1.9),
    ]

    assert [each.series for each in ranked(alerts)] == ["bad", "wild", "mild", "silent", "over"]


def test_an_incident_has_the_same_id_for_every_notifier_and_for_ever() -> None:
    assert incident_id("offbeat", "pumps", "anomaly", "a") == "ba2d5bf3ea7180eebe29c1356f7e1548"
    parts = [("n", "s", "anomaly", "a"), ("m", "s", "anomaly", "a"), ("n", "t", "anomaly", "a")]
    parts += [("n", "s", "silent", "a"), ("n", "s", "anomaly", "b")]
    assert len({incident_id(*each) for each in parts}) == len(parts)  # type: ignore[arg-type]


class TestRecord:
    def test_it_is_keyed_by_its_incident_and_carries_cloudevents_attributes(self) -> None:
        told = notification(member("p7"))

        send = told.send("offbeat.notifications")

        assert (send.topic, send.key) == ("offbeat.notifications", told.id.encode())
        assert Notification.model_validate_json(send.value or b"") == told
        headers = {name: value.decode() for name, value in send.headers}
        assert headers == {
            "ce_specversion": "1.0",
            "ce_id": f"{told.id}.2",
            "ce_type": "offbeat.incident.changed",
            "ce_source": "/test/pumps",
            "ce_subject": "anomaly",
            "ce_time": "2026-03-01T12:00:00+00:00",
            "content-type": "application/json",
        }

    def test_it_fits_its_published_schema(self) -> None:
        schema = json.loads(SCHEMA.read_text(encoding="utf-8"))

        jsonschema.validate(json.loads(notification(member("p7")).model_dump_json()), schema)

    def test_it_can_be_told_with_less(self) -> None:
        less = notification(member("p7")).with_less()

        assert less is not None
        assert (less.alerts, less.count, less.members) == ([], 1, ["id of p7"])
        assert less.with_less() is None

    def test_what_is_no_notification_is_counted(self) -> None:
        told = notification(member("p7"))
        values = [told.model_dump_json().encode(), b"{}", None]
        batch = RecordBatch.of(TopicPartition("told", 0), 5, [(None, value, 0) for value in values])

        assert published(batch, Notification) == ([(0, told)], 2)
