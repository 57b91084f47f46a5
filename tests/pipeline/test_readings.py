"""Bytes to columns: what can be read, and a reason a person understands for what cannot."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from feeding import PARTITION, Event, Feed, S, batch, metric, reading, stream

from pipeline.config import Stream
from pipeline.readings import Decoder, Readings
from pipeline.records import RecordBatch
from pipeline.series import Layout, PartitionState


def decode(settings: Stream, *events: Event, stamp_s: float = 2e9) -> Readings:
    state = PartitionState(Layout.of(settings))
    return Decoder(settings).decode(batch(events, stamps_s=[stamp_s] * len(events)), state)


def reasons(settings: Stream, *events: Event, stamp_s: float = 2e9) -> list[str]:
    return [one.reason for one in decode(settings, *events, stamp_s=stamp_s).rejected]


class TestTime:
    @pytest.mark.parametrize(
        ("form", "time", "expected_ns"),
        [
            ("s", 1_700_000_000, 1_700_000_000 * S),
            ("s", 1_700_000_000.25, 1_700_000_000 * S + S // 4),
            ("ms", 1_700_000_000_001, 1_700_000_000_001_000_000),
            ("ns", 1_700_000_000_000_000_001, 1_700_000_000_000_000_001),
            ("iso", "2023-11-14T22:13:20Z", 1_700_000_000 * S),
            ("iso", "2023-11-14T23:13:20.000001+01:00", 1_700_000_000 * S + 1_000),
            ("iso", "2023-11-14 22:13:20", 1_700_000_000 * S),
            ("record", "not read", 2_000_000_000 * S),
            ("s", -1_000, -1_000 * S),
        ],
    )
    def test_every_format_becomes_nanoseconds(self, form: str, time: object, expected_ns: int) -> None:
        readings = decode(stream(time={"format": form}), {"series": "a", "time": time, "x": 1})

        assert readings.rejected == []
        assert readings.columns.time_ns.tolist() == [expected_ns]

    @pytest.mark.parametrize(
        ("form", "time"),
        [
            ("s", 1e300),
            ("s", -3e9),
            ("ms", 4.2e12),
            ("ns", 10**25),
            ("ns", -(10**19)),
            ("iso", "0001-01-01T00:00:00+23:59"),
            ("iso", "9999-12-31T23:59:59-23:59"),
        ],
    )
    def test_a_time_that_does_not_fit_is_refused(self, form: str, time: object) -> None:
        settings = stream(time={"format": form})

        assert reasons(settings, {"series": "a", "time": time, "x": 1}) == [
            "its time is outside the years 1900 to 2099"
        ]

    def test_a_records_own_timestamp_is_held_to_the_same_years(self) -> None:
        settings = stream(time={"format": "record"})
        odd = RecordBatch.of(PARTITION, 0, [(None, b'{"series": "a", "x": 1}', 1 << 62)])

        readings = Decoder(settings).decode(odd, PartitionState(Layout.of(settings)))

        assert [one.reason for one in readings.rejected] == ["its time is outside the years 1900 to 2099"]

    def test_a_wild_record_timestamp_does_not_overflow_the_bound_on_the_future(self) -> None:
        settings = stream()
        odd = RecordBatch.of(PARTITION, 0, [(None, b'{"series": "a", "time": 5, "x": 1}', 5 * 10**16)])

        readings = Decoder(settings).decode(odd, PartitionState(Layout.of(settings)))

        assert readings.rejected == []
        assert readings.columns.limit_ns[0] > 0

    def test_a_time_ahead_of_its_records_timestamp_is_refused_beyond_ahead(self) -> None:
        settings = stream(ahead="10s")

        assert reasons(settings, reading("a", 110), stamp_s=100) == []
        assert reasons(settings, reading("a", 110.001), stamp_s=100) == [
            "its time is over 10 s ahead of its record's timestamp"
        ]

    def test_the_extremes_of_time_run_through_every_rule_without_overflow(self) -> None:
        feed = Feed(stream(every="1h", silent_after="1d", forget_after="3650d", ahead="3650d"))

        feed.each(reading("a", -2_208_988_800), reading("a", 4_102_444_799), reading("b", 0))

        assert feed.bins == {"warming": 1, "pending": 1, "late": 1}

    def test_without_silent_after_no_hole_is_silence(self) -> None:
        feed = Feed(stream(ahead="3650d"))

        feed.each(reading("a", -2_208_988_800), reading("b", 4_102_444_799))

        assert feed.alerts == []


class TestSeries:
    def test_one_field_names_a_series_as_it_is(self) -> None:
        feed = Feed(stream())

        feed.send(reading("a/b%", 0))

        assert "a/b%" in feed.state.index

    def test_several_fields_are_joined_and_what_joins_them_is_escaped(self) -> None:
        feed = Feed(stream(series=["site", "device.id"]))

        feed.send(
            {"site": "a/b", "device": {"id": "c"}, "time": 0, "x": 1},
            {"site": "a", "device": {"id": "b/c"}, "time": 0, "x": 1},
            {"site": "50%", "device": {"id": 7}, "time": 0, "x": 1},
        )

        assert [name for name in feed.state.names if name] == ["a%2Fb/c", "a/b%2Fc", "50%25/7"]

    def test_a_number_names_the_same_series_as_its_digits(self) -> None:
        feed = Feed(stream())

        feed.send(reading("7", 0), {"series": 7, "time": 1, "x": 1})

        assert feed.bins == {"warming": 1, "scored": 1}

    @pytest.mark.parametrize("name", ["", "a\x1fb", "line\nbreak", "x" * 501])
    def test_a_key_that_nobody_can_read_is_refused(self, name: str) -> None:
        assert (
            reasons(stream(), reading(name, 0), reading(name, 1), reading("x" * 500, 2))
            == ["its series key is not 1 to 500 printable characters"] * 2
        )

    def test_labels_are_those_of_the_first_event(self) -> None:
        feed = Feed(stream(labels=["site", "rack", "hot", "none"]))

        feed.each(
            reading("a", 0, site="north\x1fpole", rack=7, hot=1.5), reading("a", 1, site="south", rack=8)
        )

        assert feed.state.labels[feed.state.index["a"]] == ("north pole", "7", "1.5", "")

    def test_labels_are_those_of_the_record_that_began_the_life_that_an_alert_is_about(self) -> None:
        events = [
            reading("a", 0, site="north"),
            reading("b", 100, site="west"),
            reading("a", 101, site="south"),
            reading("b", 150, site="east"),
        ]
        settings = stream(labels=["site"], silent_after="30s", forget_after="90s")
        whole, single = Feed(settings), Feed(settings)

        whole.send(*events)
        single.each(*events)

        for feed in (whole, single):
            of_a = [(alert.reason, alert.labels["site"]) for alert in feed.alerts if alert.series == "a"]
            assert of_a == [("no events", "north"), ("gone", "north"), ("no events", "south")]

    def test_a_record_over_the_limit_gives_no_labels(self) -> None:
        feed = Feed(stream(labels=["site"], max_series=1, forget_after="90s"))

        feed.send(
            reading("a", 0, site="north"),
            reading("b", 1, site="west"),
            reading("b", 91, site="west"),
            reading("b", 92, site="south"),
        )

        assert feed.state.labels[feed.state.index["b"]] == ("south",)

    def test_a_series_whose_records_are_all_refused_takes_no_slot(self) -> None:
        feed = Feed(stream(missing="reject"))

        feed.send(reading("a", 0, None))

        assert feed.state.names == []


class TestValues:
    def test_paths_reach_into_nested_objects(self) -> None:
        settings = stream(
            time={"field": "meta.at.s"},
            series="meta.id",
            features={"cpu": {"path": "load.cpu"}, "disk": {"path": "load.disk.used"}},
        )
        event = {"meta": {"id": "a", "at": {"s": 5}}, "load": {"cpu": 0.5, "disk": {"used": 3}}, "more": []}

        columns = decode(settings, event).columns

        assert columns.values.tolist() == [[0.5, 3.0]]
        assert columns.time_ns.tolist() == [5 * S]

    def test_null_and_absent_features_are_missing(self) -> None:
        columns = decode(stream(features=["x", "y"]), {"series": "a", "time": 0, "x": None}).columns

        assert np.isnan(columns.values).all()

    def test_narrow_events_hold_one_value(self) -> None:
        settings = stream(kind="narrow", every="10s", features={"cpu": {"path": "system.cpu"}, "mem": {}})

        readings = decode(settings, metric("a", 1, "mem", 5.0), metric("a", 1, "system.cpu", 2.0))

        assert readings.columns.metric.tolist() == [1, 0]
        assert readings.columns.values.tolist() == [[5.0], [2.0]]

    def test_a_metric_that_is_no_feature_is_refused(self) -> None:
        settings = stream(kind="narrow", every="10s")

        assert reasons(settings, metric("a", 1, "unheard")) == [
            "its metric is no feature of this stream; name it, or filter it out"
        ]


class TestUnreadable:
    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (None, "it has no value"),
            (b"", "it is not JSON: Input data was truncated"),
            (b"{", "it is not JSON: Input data was truncated"),
            (b"<xml/>", "it is not JSON: JSON is malformed: invalid character (byte 0)"),
            (b"[1]", "a field is wrong: Expected `object`, got `array`"),
            (b'{"series": "a", "x": 1}', "a field is wrong: Object missing required field `time`"),
            (b'{"time": 0, "x": 1}', "a field is wrong: Object missing required field `series`"),
            (
                b'{"series": "a", "time": "0", "x": 1}',
                "a field is wrong: Expected `float`, got `str` - at `$.time`",
            ),
            (
                b'{"series": "a", "time": 0, "x": "1"}',
                "a field is wrong: Expected `float | null`, got `str` - at `$.x`",
            ),
            (
                b'{"series": "a", "time": 0, "x": 1e999}',
                "a field is wrong: Number out of range - at `$.x`",
            ),
            (
                b'{"series": "a", "time": 0, "x": NaN}',
                "it is not JSON: JSON is malformed: invalid character (byte 32)",
            ),
            (b'{"series": "\xff", "time": 0, "x": 1}', "it is not UTF-8: invalid start byte"),
            (b'{"series": "a", "deep": ' + b"[" * 100_000, "it is not JSON: it is nested too deeply"),
        ],
    )
    def test_the_reason_says_what_is_wrong_in_words(self, value: bytes | None, reason: str) -> None:
        assert reasons(stream(), value) == [reason]

    def test_a_record_over_max_bytes_is_refused_unread(self) -> None:
        small, large = reading("a", 0), reading("a", 1, note="x" * 100)

        assert reasons(stream(max_bytes=100), small, large) == [
            f"it is {len(json.dumps(large))} bytes, over `max_bytes`"
        ]

    def test_the_rest_of_the_batch_is_read_and_reasons_stand_in_order(self) -> None:
        events: list[Any] = [reading("a", 0), b"?", reading("a", 1e11), None, reading("a", 1), reading("", 2)]

        readings = decode(stream(), *events)

        assert [one.row for one in readings.rejected] == [1, 2, 3, 5]
        assert readings.columns.slot.tolist() == [0, -1, 0, -1]
        assert readings.columns.offset.tolist() == [0, 2, 4, 5]

    def test_an_empty_batch_is_no_batch(self) -> None:
        for form in ("s", "ms", "ns", "iso", "record"):
            assert len(decode(stream(time={"format": form})).columns.slot) == 0
