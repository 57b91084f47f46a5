"""What is published: ids that every worker agrees on, headers, and letters that can be read back."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
from feeding import PARTITION, Feed, batch, reading, stream

from pipeline.alerts import LETTER_BYTES, Alert, DeadLetter, alert_id, timestamp
from pipeline.records import RecordBatch

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "alert.schema.json"


def some_alerts() -> list[Alert]:
    """An anomaly and a silence, each fired and resolved."""
    feed = Feed(stream(features=["x"], labels=["site"], silent_after="30s", rules={"recovery": 1}))
    values = [(0, 1.0), (1, 50.0), (2, 1.0), (3, 1.0)]
    feed.send(*(reading("a", t, x, site="north") for t, x in values))
    feed.each(reading("b", 50), reading("a", 51))
    assert [(alert.kind, alert.state) for alert in feed.alerts] == [
        ("anomaly", "firing"),
        ("anomaly", "resolved"),
        ("silent", "firing"),
        ("silent", "resolved"),
    ]
    return feed.alerts


class TestIds:
    def test_an_id_is_the_same_for_every_worker_and_for_ever(self) -> None:
        assert alert_id("offbeat", "pumps", "a", "anomaly", 5) == "266334601823759271caa57676b14bc4"

    def test_everything_that_tells_alerts_apart_is_in_their_id(self) -> None:
        parts = [("n", "s", "a", "anomaly", 5), ("m", "s", "a", "anomaly", 5), ("n", "t", "a", "anomaly", 5)]
        parts += [("n", "s", "b", "anomaly", 5), ("n", "s", "a", "silent", 5), ("n", "s", "a", "anomaly", 6)]

        assert len({alert_id(*part) for part in parts}) == len(parts)

    def test_revisions_share_the_id(self) -> None:
        fired, resolved, silent, _ = some_alerts()

        assert fired.id == resolved.id != silent.id


def test_an_event_time_is_utc_to_the_microsecond() -> None:
    assert timestamp(1_700_000_000_123_456_789) == datetime(2023, 11, 14, 22, 13, 20, 123_456, UTC)
    assert timestamp(-1) == datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)


class TestAlert:
    def test_it_is_keyed_by_its_id_and_carries_cloudevents_attributes(self) -> None:
        _, resolved, *_ = some_alerts()

        send = resolved.send("offbeat.alerts")

        assert (send.topic, send.key) == ("offbeat.alerts", resolved.id.encode())
        assert dict(send.headers) == {
            "ce_specversion": b"1.0",
            "ce_id": f"{resolved.id}.2".encode(),
            "ce_type": b"offbeat.alert.resolved",
            "ce_source": b"/test/machines",
            "ce_subject": b"a",
            "ce_time": b"1970-01-01T00:00:02+00:00",
            "content-type": b"application/json",
        }

    def test_it_reads_back_as_it_was(self) -> None:
        for alert in some_alerts():
            value = alert.send("t").value

            assert value is not None
            assert Alert.model_validate_json(value) == alert

    def test_it_is_as_the_published_schema_says(self) -> None:
        schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
        for alert in some_alerts():
            value = alert.send("t").value

            assert value is not None
            jsonschema.validate(json.loads(value), schema)

    def test_labels_come_with_it(self) -> None:
        assert [alert.labels for alert in some_alerts()] == [{"site": "north"}] * 4

    def test_any_series_name_fits_its_headers(self) -> None:
        feed = Feed(stream(silent_after="30s"))
        feed.each(reading("Pumpe 7 / Süd", 0), reading("b", 50))

        [alert] = feed.alerts
        assert dict(alert.send("t").headers)["ce_subject"].decode() == "Pumpe 7 / Süd"


class TestDeadLetter:
    def letter(self, key: bytes | None, value: bytes | None) -> DeadLetter:
        records = RecordBatch.of(PARTITION, 7, [(key, value, 5_000)])
        return DeadLetter.of("machines", records, 0, "it is not JSON")

    def test_it_holds_bytes_position_and_reason(self) -> None:
        letter = self.letter(b"k", b"\xff\x00")

        assert (letter.stream, letter.partition, letter.offset, letter.last_offset, letter.count) == (
            "machines",
            PARTITION,
            7,
            7,
            1,
        )
        assert (letter.timestamp_ms, letter.reason) == (5_000, "it is not JSON")
        assert (letter.key, letter.value, letter.value_bytes) == (b"k", b"\xff\x00", 2)

    def test_any_bytes_read_back_as_they_were(self) -> None:
        for letter in (self.letter(b"\xfe", bytes(range(256))), self.letter(None, None)):
            send = letter.send("offbeat.dead-letters")

            assert send.key == b"readings[0]"
            assert send.value is not None
            assert DeadLetter.model_validate_json(send.value) == letter

    def test_bytes_are_base64_for_other_readers(self) -> None:
        value = self.letter(None, b"\xff\xfe\xfd").send("t").value

        assert value is not None
        assert base64.urlsafe_b64decode(json.loads(value)["value"]) == b"\xff\xfe\xfd"

    def test_a_large_record_is_cut_so_that_its_letter_fits(self) -> None:
        letter = self.letter(b"k" * (LETTER_BYTES + 1), b"v" * (LETTER_BYTES + 1))

        assert letter.value_bytes == LETTER_BYTES + 1
        assert letter.key is not None
        assert letter.value is not None
        assert len(letter.key) == len(letter.value) == LETTER_BYTES
        sent = letter.send("t").value
        assert sent is not None
        assert len(sent) < 1_000_000

    def test_a_record_without_a_value_is_told_from_an_empty_one(self) -> None:
        feed = Feed(stream())

        feed.take(batch([None, b""]))

        assert [(letter.value, letter.value_bytes) for letter in feed.dead_letters] == [
            (None, None),
            (b"", 0),
        ]
