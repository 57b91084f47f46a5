"""When a stream trains: what was decided before, and how many rows there are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from consumers.due import NEVER, Growth, due
from pipeline.control import Begun, Champion, ControlView, Record, Refused, send
from pipeline.records import RecordBatch, TopicPartition

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY_S = 86_400.0


def view(*records: Record) -> ControlView:
    made = ControlView()
    sends = [send(each, "control") for each in records]
    made.take(RecordBatch.of(TopicPartition("control", 0), 0, [(each.key, each.value, 0) for each in sends]))
    return made


def said(hours: float, stream: str = "pumps") -> dict[str, object]:
    return {"stream": stream, "at": START + timedelta(hours=hours), "who": "a test", "why": "to see"}


def promoted(hours: float, bundle: str, before: str | None = None, stream: str = "pumps") -> Champion:
    return Champion(**said(hours, stream), bundle=bundle, predecessor=before)


def refused(hours: float, stream: str = "pumps", fence: int = 1) -> Refused:
    return Refused(**said(hours, stream), bundle="b9", fence=fence)


def hours_until(made: ControlView, every_s: float = DAY_S) -> float:
    return (due(made, "pumps", every_s).at_s - START.timestamp()) / 3_600


def test_a_stream_of_which_nothing_was_decided_trains_at_once() -> None:
    assert due(view(), "pumps", 0).at_s == 0
    assert due(view(promoted(1, "b1", stream="fans"), refused(2, "fans")), "pumps", DAY_S).at_s == 0


def test_it_trains_again_so_long_after_the_last_decision_promoted_or_refused() -> None:
    assert hours_until(view(promoted(1, "b1"))) == 25
    assert hours_until(view(promoted(1, "b1"), refused(7))) == 31
    assert hours_until(view(promoted(1, "b1"), refused(7), promoted(8, "b2", "b1"))) == 32
    assert hours_until(view(refused(7))) == 31


def test_a_training_that_never_came_to_a_decision_is_due_again() -> None:
    assert hours_until(view(promoted(1, "b1"), Begun(**said(25), fence=3))) == 25


def test_it_never_trains_by_itself_where_every_is_zero_and_something_was_decided() -> None:
    assert due(view(promoted(1, "b1")), "pumps", 0).at_s == NEVER


DECISIONS = st.lists(
    st.tuples(
        st.sampled_from(["promoted", "refused", "begun"]),
        st.floats(0, 1_000),
        st.sampled_from(["pumps", "fans"]),
        st.integers(1, 4),
    ),
    max_size=12,
)


@given(DECISIONS, st.floats(1, 1e6))
def test_only_what_counts_for_the_stream_puts_the_next_training_off(
    decisions: list[tuple[str, float, str, int]], every_s: float
) -> None:
    records: list[Record] = []
    champions: dict[str, str] = {}
    counted, fence = list[float](), 0
    for n, (what, hours, stream, token) in enumerate(decisions):
        if what == "promoted":
            records.append(promoted(hours, f"b{n}", champions.get(stream), stream))
            champions[stream] = f"b{n}"
        elif what == "refused":
            records.append(refused(hours, stream, token))
        else:
            records.append(Begun(**said(hours, stream), fence=token))
        if stream == "pumps":
            if what == "promoted" or (what == "refused" and token >= fence):
                counted.append(hours)
            fence = max(fence, token if what != "promoted" else 0)

    found = due(view(*records), "pumps", every_s)

    assert found.at_s == (0 if not counted else (START + timedelta(hours=max(counted))).timestamp() + every_s)


class TestGrowth:
    """Reading a topic costs time; whether it is worth while is told from its number of records."""

    def test_a_topic_is_worth_reading_when_each_record_would_make_a_row(self) -> None:
        growth = Growth(512)

        assert not growth.enough(511)
        assert growth.enough(512)

    def test_after_training_knows_better_it_waits_in_proportion(self) -> None:
        growth = Growth(512)
        growth.short(1_000, rows=500, have=256, need=512)

        assert not growth.enough(1_511)
        assert growth.enough(1_512)  # a row in two records

    # However little was missing, and however often: a topic is not read again for every record.
    @given(st.integers(1, 10**9), st.integers(0, 511), st.integers(0, 10**6))
    def test_it_always_waits_for_some_more_and_not_for_ever(self, records: int, have: int, more: int) -> None:
        growth = Growth(512)
        rows = min(have + more, records)
        growth.short(records, rows=rows, have=min(have, rows), need=512)

        assert not growth.enough(records)
        assert not growth.enough(int(1.04 * records))
        assert growth.enough(2 * records + 512 * records // max(rows, 1) + 1)

    def test_it_says_how_far_it_is_and_how_long_it_takes(self) -> None:
        growth = Growth(512)

        assert growth.told(0, 50.0) == "0 of 512 rows at best; no rate yet"
        told = growth.told(256, 50.0 + 4 * 60)
        assert told == "256 of 512 rows at best; about 4 min more at the present rate"
        growth.short(600, rows=300, have=200, need=512)
        assert growth.told(800, 50.0 + 800) == "300 of 512 rows; about 7 min more at the present rate"
