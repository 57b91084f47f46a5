"""Times as files write them: detected where they are plain, refused with the value where they are not."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers import times

NOON = datetime(2026, 3, 9, 12, 14, 36, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cell", "time_format"),
    [
        ("2026-03-09T12:14:36Z", "iso"),
        ("2026-03-09 12:14:36", "iso"),
        ("2026-03-09T13:14:36+01:00", "iso"),
        (" 2026-03-09 12:14:36.000 ", "iso"),
        (datetime(2026, 3, 9, 12, 14, 36), "iso"),  # noqa: DTZ001 - as Parquet gives it
        (NOON.astimezone(timezone(timedelta(hours=-5))), "iso"),
        ("1773058476", "s"),
        ("1773058476.0", "s"),
        (1773058476, "s"),
        ("1773058476000", "ms"),
        (1773058476000000, "us"),
        ("1773058476000000000", "ns"),
    ],
)
def test_the_format_is_detected(cell: object, time_format: str) -> None:
    assert times.detect(cell) == time_format
    assert times.parser(time_format)(cell) == NOON.timestamp()


def test_a_date_is_its_midnight() -> None:
    midnight = datetime(2026, 3, 9, tzinfo=UTC).timestamp()

    assert times.parser("iso")("2026-03-09") == midnight
    assert times.parser("iso")(date(2026, 3, 9)) == midnight


def test_a_pattern_reads_other_formats() -> None:
    assert times.parser("%d/%m/%Y %H:%M:%S")("09/03/2026 12:14:36") == NOON.timestamp()


@given(st.datetimes(datetime(1974, 1, 1), datetime(2200, 1, 1)), st.sampled_from(sorted(times.UNITS)))  # noqa: DTZ001 - naive on purpose
def test_every_time_of_this_age_is_told_apart(at: datetime, unit: str) -> None:
    seconds = at.replace(tzinfo=UTC).timestamp()
    number = round(seconds * times.UNITS[unit])

    assert times.detect(number) == times.detect(str(number)) == unit
    assert times.parser(unit)(str(number)) == pytest.approx(seconds, abs=1)
    assert times.parser(times.detect(at.isoformat()))(at.isoformat()) == seconds


@pytest.mark.parametrize("cell", ["17", 0, "-1773058476", "yesterday", "", None, "nan", "1e30", True])
def test_what_is_no_plain_time_is_not_guessed(cell: object) -> None:
    with pytest.raises(ValueError, match=r"epoch|time"):
        times.detect(cell)


@pytest.mark.parametrize(
    ("time_format", "cell"),
    [
        ("iso", "1773058476"),
        ("s", "2026-03-09"),
        ("ms", None),
        ("s", ""),
        ("s", "nan"),
        ("s", "inf"),
        ("s", "-5"),
        ("ns", "x"),
        ("%d/%m/%Y", "2026-03-09"),
    ],
)
def test_another_format_is_refused_with_its_value(time_format: str, cell: object) -> None:
    with pytest.raises(ValueError, match="empty" if not cell else str(cell)):
        times.parser(time_format)(cell)


@pytest.mark.parametrize(
    ("name", "known"), [("auto", True), ("ns", True), ("%Y", True), ("hours", False), ("", False)]
)
def test_formats_are_known_by_name(name: str, known: bool) -> None:  # noqa: FBT001 - a parameter
    assert times.is_format(name) is known
