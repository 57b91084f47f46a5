"""Silences: what they are about, and when they hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.alerts import Alert, FeatureEvidence, Source
from pipeline.control import Silenced, Standing
from pipeline.silences import Matchers, Silence

BERLIN = ZoneInfo("Europe/Berlin")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def at(text: str, zone: ZoneInfo | None = None) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone or UTC)


def silence(start: datetime, lasts: timedelta, rule: str | None = None, **more: Any) -> Silence:  # noqa: ANN401
    utc = start.astimezone(UTC)
    return Silence(matchers=Matchers(), start=start, end=utc + lasts, rrule=rule, **more)


def starts(of: Silence, first: datetime, last: datetime) -> list[str]:
    """When its windows start, in UTC."""
    return [f"{start:%m-%d %H:%M}" for start, _ in of.spans(first, last)]


def standing(of: Silence, expired_at: datetime | None = None) -> Standing:
    said = {"stream": "*", "at": at("2026-01-01"), "who": "mona", "why": "a test"}
    return Standing(Silenced(**said, id="0123456789ab", silence=of), expired_at)


def alert(**fields: Any) -> Alert:  # noqa: ANN401
    evidence = [
        FeatureEvidence(
            name=name,
            unit="",
            observed=1,
            expected=0,
            contribution=share,
            window_observed=[],
            window_expected=[],
        )
        for name, share in (("heat", 0.8), ("flow", 0.2))
    ]
    made: dict[str, Any] = {
        "id": "0" * 32,
        "revision": 1,
        "kind": "anomaly",
        "state": "firing",
        "reason": "error above its threshold",
        "namespace": "offbeat",
        "stream": "pumps",
        "series": "pump-7",
        "labels": {"site": "north"},
        "started_at": at("2026-03-01T12:00"),
        "at": at("2026-03-01T12:00"),
        "severity": "warning",
        "score": 2.0,
        "peak_score": 2.0,
        "error": 1.0,
        "threshold": 0.5,
        "features": evidence,
        "bundle": None,
        "source": Source(topic="pumps", partition=0, offset=0),
    }
    return Alert(**made | fields)


class TestMatchers:
    @pytest.mark.parametrize(
        ("given", "fits"),
        [
            ({}, True),
            ({"stream": "pumps"}, True),
            ({"stream": "pump"}, False),
            ({"stream": "p*s", "series": "pump-?"}, True),
            ({"stream": "fans", "series": "pump-7"}, False),
            ({"series": "PUMP-7"}, False),
            ({"series_regex": r"pump-\d"}, True),
            ({"series_regex": r"pump-"}, False),
            ({"labels": {"site": "n*"}}, True),
            ({"labels": {"site": "n*", "hall": "2"}}, False),
            ({"labels": {"hall": "*"}}, True),
            ({"labels": {"site": "south"}}, False),
        ],
    )
    def test_all_that_is_given_must_fit(self, given: dict[str, Any], *, fits: bool) -> None:
        matchers = Matchers(**given)

        assert matchers.cover("pumps", "pump-7", {"site": "north"}) is fits
        assert matchers.cover_alert(alert()) is fits

    # Brackets are a pattern of their own to the shell, and part of many a name.
    def test_a_name_always_fits_itself(self) -> None:
        assert Matchers(series="disk[0]").cover("s", "disk[0]", {})

    @pytest.mark.parametrize(
        ("given", "fits"),
        [
            ({"feature": "heat"}, True),
            ({"feature": "h*"}, True),
            ({"feature": "flow"}, False),
            ({"severity": "warning"}, True),
            ({"severity": "critical"}, False),
            ({"feature": "heat", "severity": "critical"}, False),
        ],
    )
    def test_alerts_are_chosen_by_their_first_feature_and_severity(
        self, given: dict[str, Any], *, fits: bool
    ) -> None:
        assert Matchers(**given).cover_alert(alert()) is fits

    def test_an_alert_without_features_has_none_that_fits(self) -> None:
        assert not Matchers(feature="*").cover_alert(alert(features=[]))
        assert Matchers(severity="warning").cover_alert(alert(features=[]))

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"series_regex": "("}, "'(' is no regular expression: missing )"),
            ({"series": ""}, "at least 1 character"),
            ({"labels": {"site": ""}}, "at least 1 character"),
            ({"severity": "bad"}, "'warning' or 'critical'"),
            ({"host": "a"}, "Extra inputs are not permitted"),
        ],
    )
    def test_what_is_no_matcher_is_refused(self, given: dict[str, Any], says: str) -> None:
        with pytest.raises(ValidationError) as raised:
            Matchers(**given)

        assert says in str(raised.value)


class TestOneWindow:
    ONCE = silence(at("2026-03-01T12:00"), 2 * HOUR)

    @pytest.mark.parametrize(
        ("first", "last", "holds"),
        [
            ("2026-03-01T12:00", "2026-03-01T12:00", True),
            ("2026-03-01T13:59", "2026-03-01T13:59", True),
            ("2026-03-01T14:00", "2026-03-01T14:00", False),
            ("2026-03-01T11:59", "2026-03-01T11:59", False),
            ("2026-03-01T00:00", "2026-03-02T00:00", True),
        ],
    )
    def test_it_holds_its_start_and_not_its_end(self, first: str, last: str, *, holds: bool) -> None:
        found = self.ONCE.spans(at(first), at(last))

        assert found == ([(at("2026-03-01T12:00"), at("2026-03-01T14:00"))] if holds else [])

    def test_times_are_told_in_utc(self) -> None:
        berlin = silence(at("2026-07-01T12:00", BERLIN), HOUR)

        assert starts(berlin, at("2026-07-01"), at("2026-07-02")) == ["07-01 10:00"]

    # Two times of one zone differ by what its clocks show: on this night 3 hours there, and 4 in truth.
    @pytest.mark.parametrize("rule", [None, "FREQ=YEARLY"])
    def test_a_window_over_a_change_of_the_clocks_is_as_long_as_it_truly_is(self, rule: str | None) -> None:
        night = Silence(
            matchers=Matchers(),
            start=at("2026-10-25T01:00", BERLIN),
            end=at("2026-10-25T04:00", BERLIN),
            rrule=rule,
            zone="Europe/Berlin",
        )

        assert night.spans(at("2026-10-25"), at("2026-10-25")) == [
            (at("2026-10-24T23:00"), at("2026-10-25T03:00"))
        ]
        assert Silence.model_validate_json(night.model_dump_json()) == night


class TestRecurrence:
    def test_it_recurs_from_its_start_on_for_ever(self) -> None:
        sundays = silence(at("2026-03-01T02:00"), 2 * HOUR, "FREQ=WEEKLY;BYDAY=SU")

        assert starts(sundays, at("2026-02-01"), at("2026-03-20")) == [
            "03-01 02:00",
            "03-08 02:00",
            "03-15 02:00",
        ]
        assert starts(sundays, at("2036-03-02"), at("2036-03-03")) == ["03-02 02:00"]

    def test_a_start_that_is_no_day_of_the_rule_is_no_window(self) -> None:
        from_monday = silence(at("2026-03-02T02:00"), HOUR, "FREQ=WEEKLY;BYDAY=SU")

        assert starts(from_monday, at("2026-03-01"), at("2026-03-09")) == ["03-08 02:00"]

    @pytest.mark.parametrize("prefix", ["", "RRULE:", "rrule:"])
    def test_the_rule_may_come_from_a_calendar(self, prefix: str) -> None:
        daily = silence(at("2026-03-01T02:00"), HOUR, f"{prefix}FREQ=DAILY;COUNT=2")

        assert starts(daily, at("2026-01-01"), at("2027-01-01")) == ["03-01 02:00", "03-02 02:00"]

    # RFC 5545 has UNTIL in UTC, and people write dates.
    @pytest.mark.parametrize(
        ("until", "windows"),
        [
            ("20260304T010000Z", 4),  # 02:00 in Berlin, the start of the fourth
            ("20260304T005959Z", 3),
            ("20260304T020000", 4),
            ("20260304", 4),
            ("20260303", 3),
        ],
    )
    def test_until_holds_its_own_moment_and_a_date_its_whole_day(self, until: str, windows: int) -> None:
        nights = silence(
            at("2026-03-01T02:00", BERLIN), HOUR, f"FREQ=DAILY;UNTIL={until}", zone="Europe/Berlin"
        )

        assert len(nights.spans(at("2026-01-01"), at("2027-01-01"))) == windows

    # Two in the morning stays two in the morning.
    @pytest.mark.parametrize(
        ("first", "utc"),
        [
            ("2026-03-28", ["03-28 01:00", "03-29 01:00", "03-30 00:00"]),  # 02:00 does not exist on the 29th
            ("2026-10-24", ["10-24 00:00", "10-25 00:00", "10-26 01:00"]),  # 02:00 comes twice on the 25th
        ],
    )
    def test_wall_time_stays_when_clocks_change(self, first: str, utc: list[str]) -> None:
        nights = silence(at("2026-01-01T02:00", BERLIN), HOUR, "FREQ=DAILY", zone="Europe/Berlin")

        found = starts(nights, at(f"{first}T00:00"), at(f"{first}T00:00") + 2 * DAY + 2 * HOUR)

        assert found == utc

    # 02:30 is not on that night's clocks, and comes out as 03:30, behind the window of 03:00.
    def test_windows_in_the_hour_that_is_skipped_are_in_order_and_none_is_lost(self) -> None:
        half_hours = silence(
            at("2026-03-29T01:00", BERLIN),
            timedelta(minutes=10),
            "FREQ=MINUTELY;INTERVAL=30",
            zone="Europe/Berlin",
        )

        found = starts(half_hours, at("2026-03-29T00:00"), at("2026-03-29T02:00"))

        assert found == ["03-29 00:00", "03-29 00:30", "03-29 01:00", "03-29 01:30", "03-29 02:00"]
        assert starts(half_hours, at("2026-03-29T01:00"), at("2026-03-29T01:05")) == ["03-29 01:00"]

        odd = silence(
            at("2026-03-29T01:50", BERLIN),
            timedelta(minutes=10),
            "FREQ=MINUTELY;INTERVAL=40",
            zone="Europe/Berlin",
        )
        assert starts(odd, at("2026-03-29T01:05"), at("2026-03-29T01:15")) == ["03-29 01:10"]

    # An hour of that night's clocks is missing between its start and the question.
    def test_a_window_over_the_hour_that_is_skipped_is_found_behind_it(self) -> None:
        nights = silence(at("2026-03-01T01:50", BERLIN), HOUR / 2, "FREQ=DAILY", zone="Europe/Berlin")

        assert starts(nights, at("2026-03-29T01:10"), at("2026-03-29T01:10")) == ["03-29 00:50"]

    def test_a_window_that_began_before_is_found(self) -> None:
        weekends = silence(at("2026-03-06T18:00"), timedelta(hours=60), "FREQ=WEEKLY")

        assert starts(weekends, at("2026-03-15T12:00"), at("2026-03-15T12:00")) == ["03-13 18:00"]
        assert starts(weekends, at("2026-03-16T06:00"), at("2026-03-16T06:00")) == []


class TestMistakes:
    @pytest.mark.parametrize(
        ("rule", "says"),
        [
            ("SUNDAYS", "it has no FREQ"),
            ("INTERVAL=2", "it has no FREQ"),
            ("FREQ=FORTNIGHTLY", "invalid 'FREQ': FORTNIGHTLY"),
            ("FREQ=WEEKLY;BYDAY=SO", "invalid 'BYDAY': SO"),
            ("FREQ=DAILY;BYHOUR=25", "hour must be in 0..23"),
            ("FREQ=DAILY;AT=2", "unknown parameter 'AT'"),
            ("FREQ=DAILY;INTERVAL=0", "its INTERVAL is not 1 or more"),
            ("FREQ=DAILY;INTERVAL=-1", "its INTERVAL is not 1 or more"),
            ("FREQ=DAILY;INTERVAL=x", "its INTERVAL is not 1 or more"),
            ("FREQ=DAILY;UNTIL=soon", "invalid 'UNTIL': SOON"),
            ("FREQ=DAILY;COUNT=0", "never comes"),
            ("FREQ=DAILY;UNTIL=20250101", "never comes"),
            ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "never comes"),
            ("FREQ=SECONDLY", "more than 100 times a day"),
            ("FREQ=HOURLY;BYMINUTE=0,10,20,30,40", "more than 100 times a day"),
            ("FREQ=DAILY\nEXDATE:20260302T020000", "one rule, and nothing else of a calendar"),
            ("DTSTART:20200101T000000\nRRULE:FREQ=DAILY", "one rule, and nothing else of a calendar"),
        ],
    )
    def test_a_rule_that_makes_no_sense_is_refused_with_its_reason(self, rule: str, says: str) -> None:
        with pytest.raises(ValidationError) as raised:
            silence(at("2026-03-01T02:00"), HOUR, rule)

        assert says in str(raised.value)
        assert repr(rule) in str(raised.value)

    @pytest.mark.parametrize("zone", ["Berlin", "", "/etc/passwd", "Europe/", "../UTC", "x" * 300, "a\0b"])
    def test_a_zone_that_is_none_is_refused(self, zone: str) -> None:
        with pytest.raises(ValidationError, match="is no time zone; write one such as Europe/Berlin or UTC"):
            silence(at("2026-03-01"), HOUR, zone=zone)

    @pytest.mark.parametrize(
        ("lasts", "says"),
        [(timedelta(0), "not after its start"), (-HOUR, "not after"), (4_000 * DAY, "more than ten years")],
    )
    def test_so_is_an_end_that_is_no_end(self, lasts: timedelta, says: str) -> None:
        with pytest.raises(ValidationError, match=says):
            silence(at("2026-03-01"), lasts)

    def test_a_time_without_a_zone_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="should have timezone info"):
            Silence(matchers=Matchers(), start=datetime(2026, 3, 1), end=datetime(2026, 3, 2))  # noqa: DTZ001

    @pytest.mark.parametrize("matchers", [Matchers(feature="heat"), Matchers(severity="critical")])
    def test_rows_have_neither_a_feature_nor_a_severity_to_freeze_by(self, matchers: Matchers) -> None:
        with pytest.raises(ValidationError, match="`freeze` is about rows"):
            Silence(matchers=matchers, mode="freeze", start=at("2026-03-01"), end=at("2026-03-02"))


class TestAsItStands:
    DAILY = silence(at("2026-03-01T02:00"), 2 * HOUR, "FREQ=DAILY")

    def test_what_was_ended_holds_until_then_and_never_again(self) -> None:
        ended = standing(self.DAILY, at("2026-03-03T03:00"))

        assert ended.spans(at("2026-03-02T03:59"), at("2026-03-10")) == [
            (at("2026-03-02T02:00"), at("2026-03-02T04:00")),
            (at("2026-03-03T02:00"), at("2026-03-03T03:00")),
        ]
        assert ended.active(at("2026-03-03T02:59"))
        assert not ended.active(at("2026-03-03T03:00"))
        assert not ended.over(at("2026-03-03T02:59"))
        assert ended.over(at("2026-03-03T03:00"))

    # What lies behind its early end reaches into nothing that comes later.
    def test_the_rest_of_a_window_that_was_cut_is_none(self) -> None:
        ended = standing(self.DAILY, at("2026-03-03T03:00"))

        assert ended.spans(at("2026-03-03T03:30"), at("2026-03-03T03:45")) == []

    def test_what_was_ended_before_it_began_never_held(self) -> None:
        ended = standing(self.DAILY, at("2026-02-01"))

        assert ended.spans(at("2026-01-01"), at("2027-01-01")) == []
        assert ended.over(at("2026-01-01"))

    @pytest.mark.parametrize(
        ("rule", "moment", "window"),
        [
            (None, "2026-03-01T03:00", "2026-03-01T02:00"),
            (None, "2026-01-01T00:00", "2026-03-01T02:00"),
            (None, "2026-03-01T04:00", None),
            ("FREQ=DAILY", "2026-03-05T03:00", "2026-03-05T02:00"),
            ("FREQ=DAILY", "2026-03-05T04:00", "2026-03-06T02:00"),
            ("FREQ=HOURLY;INTERVAL=2", "2026-03-05T03:00", "2026-03-05T02:00"),
            ("FREQ=DAILY;COUNT=3", "2026-03-03T03:59", "2026-03-03T02:00"),
            ("FREQ=DAILY;COUNT=3", "2026-03-03T04:00", None),
            ("FREQ=DAILY;UNTIL=20260302", "2026-03-02T04:00", None),
            ("FREQ=YEARLY", "2026-03-01T04:00", "2027-03-01T02:00"),
        ],
    )
    def test_its_window_is_that_which_holds_or_the_next_or_none(
        self, rule: str | None, moment: str, window: str | None
    ) -> None:
        made = standing(silence(at("2026-03-01T02:00"), 2 * HOUR, rule))

        found = made.window(at(moment))

        assert (found and found[0]) == (window and at(window))
        assert made.over(at(moment)) is (window is None)


class TestLaidOver:
    """A rule taken to have held before its start."""

    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            ("FREQ=DAILY", ["06-01 02:00", "06-02 02:00", "06-03 02:00"]),
            ("FREQ=DAILY;INTERVAL=2", ["06-01 02:00", "06-03 02:00"]),
            ("FREQ=DAILY;COUNT=1", ["06-01 02:00", "06-02 02:00", "06-03 02:00"]),
            ("FREQ=HOURLY;INTERVAL=20;UNTIL=20260901", ["06-01 02:00", "06-01 22:00", "06-02 18:00"]),
        ],
    )
    def test_its_windows_stand_where_it_would_have_put_them(self, rule: str, expected: list[str]) -> None:
        coming = silence(at("2026-06-11T02:00"), HOUR, rule)

        laid = coming.laid_over(at("2026-06-01T00:00"))

        assert starts(laid, at("2026-06-01"), at("2026-06-03T12:00"))[-len(expected) :] == expected
        assert laid.end - laid.start == HOUR

    # 2026-06-14 is a Sunday; so are the 7th, which would be the wrong one, and the 31st of May.
    def test_every_second_week_stays_the_same_weeks(self) -> None:
        coming = silence(at("2026-06-14T02:00"), HOUR, "FREQ=WEEKLY;INTERVAL=2;BYDAY=SU")

        assert starts(coming.laid_over(at("2026-05-15")), at("2026-05-15"), at("2026-06-13")) == [
            "05-17 02:00", "05-31 02:00"
        ]  # fmt: skip

    def test_days_of_months_stay(self) -> None:
        coming = silence(at("2026-03-31T02:00"), HOUR, "FREQ=MONTHLY")

        assert starts(coming.laid_over(at("2026-01-01")), at("2026-01-01"), at("2026-03-30")) == [
            "01-31 02:00"
        ]

    def test_wall_time_and_length_stay_over_a_change_of_the_clocks(self) -> None:
        summer = silence(at("2026-04-10T02:00", BERLIN), HOUR, "FREQ=DAILY", zone="Europe/Berlin")

        laid = summer.laid_over(at("2026-03-27"))

        assert laid.spans(at("2026-03-27"), at("2026-03-27T12:00")) == [
            (at("2026-03-27T01:00"), at("2026-03-27T02:00"))
        ]

    def test_what_began_before_is_left_as_it_is(self) -> None:
        held = silence(at("2026-01-01T02:00"), HOUR, "FREQ=DAILY")

        assert held.laid_over(at("2026-06-01")) == held


@st.composite
def silences(draw: st.DrawFn) -> tuple[Silence, int, frozenset[int] | None]:
    """A silence in Berlin near a change of its clocks; its rule again as a step in days and weekdays."""
    change = draw(st.sampled_from(["2026-03-29", "2026-10-25"]))
    local = at(change, BERLIN) + timedelta(days=draw(st.integers(-4, 1)), minutes=draw(st.integers(0, 1_439)))
    step, weekdays = draw(st.integers(1, 3)), draw(st.none() | st.frozensets(st.integers(0, 6), min_size=1))
    days = (
        ""
        if weekdays is None
        else ";BYDAY=" + ",".join(["MO", "TU", "WE", "TH", "FR", "SA", "SU"][d] for d in sorted(weekdays))
    )
    step = step if weekdays is None else 1
    lasts = timedelta(minutes=draw(st.integers(1, 3_000)))
    rule = f"FREQ=DAILY;INTERVAL={step}{days}"
    return silence(local, lasts, rule, zone="Europe/Berlin"), step, weekdays


# Day by day and minute by minute, with nothing but the zone's own clocks.
@settings(derandomize=True, deadline=None, max_examples=40)
@given(made=silences(), expired=st.none() | st.integers(-2_000, 6_000))
def test_spans_agree_with_a_look_at_every_minute(
    made: tuple[Silence, int, frozenset[int] | None], expired: int | None
) -> None:
    of, step, weekdays = made
    local = of.start.astimezone(BERLIN).replace(tzinfo=None)
    lasts = of.end - of.start
    windows = []
    for day in range(0, 15, step):
        start = local + timedelta(days=day)
        if weekdays is None or start.weekday() in weekdays:
            utc = start.replace(tzinfo=BERLIN).astimezone(UTC)
            windows.append((utc, utc + lasts))
    ended = None if expired is None else of.start + timedelta(minutes=expired)

    first, last = of.start - DAY, of.start + 4 * DAY
    spans = standing(of, ended).spans(first, last)

    minute = first
    while minute <= last:
        holds = any(start <= minute < end for start, end in windows) and (ended is None or minute < ended)
        assert holds is any(start <= minute < end for start, end in spans), minute
        minute += timedelta(minutes=1)
    assert spans == sorted(spans)
