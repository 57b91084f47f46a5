"""Readings to rows: one small example for each rule of docs/bins.md."""

from __future__ import annotations

import pytest
from feeding import Feed, metric, reading, stream

A_DAY = 86_400


def test_a_record_whose_window_is_full_is_scored_and_the_ones_before_it_are_warming() -> None:
    feed = Feed(stream(window=3))

    feed.send(*(reading("a", t) for t in range(5)))

    assert feed.bins == {"warming": 2, "scored": 3}


def test_without_a_bundle_records_wait_for_the_model_while_windows_fill() -> None:
    feed = Feed(stream(window=2), scorer=None)

    feed.send(*(reading("a", t) for t in range(3)))

    assert feed.bins == {"waiting_model": 3}
    assert feed.window("a") == [[1.0], [1.0]]


class TestWithoutAGrid:
    def test_time_must_rise_within_a_series_else_a_record_is_late(self) -> None:
        feed = Feed(stream())

        feed.send(reading("a", 10), reading("a", 9))

        assert feed.bins == {"warming": 1, "late": 1}

    def test_lateness_is_per_series(self) -> None:
        feed = Feed(stream())

        feed.send(reading("a", 1_000), reading("b", 10))

        assert feed.bins == {"warming": 2}

    def test_the_time_that_a_series_already_holds_is_a_duplicate(self) -> None:
        feed = Feed(stream())

        feed.send(reading("a", 10), reading("a", 10, 2.0))

        assert feed.bins == {"warming": 1, "duplicate": 1}
        assert feed.window("a") == [[1.0]]

    def test_a_late_or_duplicate_record_leaves_the_window_as_it_was(self) -> None:
        feed = Feed(stream(window=3))

        feed.send(reading("a", 1, 1.0), reading("a", 2, 2.0), reading("a", 1, 9.0), reading("a", 2, 9.0))

        assert feed.window("a") == [[1.0], [2.0]]

    def test_a_hole_longer_than_the_gap_starts_a_new_window(self) -> None:
        feed = Feed(stream(window=2, gap="5s"))

        feed.send(reading("a", 0), reading("a", 5), reading("a", 11))

        assert feed.bins == {"warming": 2, "scored": 1}
        assert feed.window("a") == [[1.0]]

    def test_without_a_gap_no_hole_ends_the_window(self) -> None:
        feed = Feed(stream(window=2))

        feed.send(reading("a", 0), reading("a", 6 * A_DAY))

        assert feed.bins == {"warming": 1, "scored": 1}


class TestMissingValues:
    def test_hold_keeps_the_last_value_and_counts_the_row_as_gap_filled(self) -> None:
        feed = Feed(stream(features=["x", "y"]))

        feed.send(reading("a", 0, 1.0, y=5.0), reading("a", 1, None, y=6.0), reading("a", 2, 3.0))

        assert feed.window("a") == [[1.0, 6.0], [3.0, 6.0]]
        assert feed.state.counters.gap_filled == 2

    def test_hold_is_bounded_by_the_gap_and_then_the_window_ends(self) -> None:
        feed = Feed(stream(features=["x", "y"], gap="5s", window=2))

        feed.send(
            *(reading("a", t, 1.0, y=1.0 if t == 0 else None) for t in range(0, 9, 2)),
        )

        assert feed.bins == {"warming": 3, "scored": 2}
        assert feed.window("a") == []

    def test_a_feature_never_seen_cannot_be_held(self) -> None:
        feed = Feed(stream(features=["x", "y"]))

        feed.send(reading("a", 0, 1.0), reading("a", 1, 1.0))

        assert feed.bins == {"warming": 2}
        assert feed.window("a") == []

    def test_reject_refuses_the_record(self) -> None:
        feed = Feed(stream(features=["x", "y"], missing="reject"))

        feed.send(reading("a", 0, 1.0, y=None), reading("a", 1, 1.0), reading("a", 2, 1.0, y=1.0))

        assert feed.bins == {"dead_lettered": 2, "warming": 1}
        assert feed.reasons == ["a feature is null or missing, and `missing` is `reject`"] * 2


class TestOnAGrid:
    def test_the_first_record_of_an_open_cell_is_pending_and_the_others_are_merged(self) -> None:
        feed = Feed(stream(every="10s"))

        feed.send(reading("a", 0), reading("a", 1), reading("a", 9))

        assert feed.bins == {"pending": 1, "merged": 2}

    def test_a_cell_closes_once_the_clock_passes_its_end_and_late(self) -> None:
        feed = Feed(stream(every="10s", late="5s"))

        feed.send(reading("a", 0), reading("a", 14))
        still_open = dict(feed.bins)
        feed.send(reading("a", 15))

        assert still_open == {"pending": 2}
        assert feed.bins == {"warming": 1, "pending": 1, "merged": 1}

    def test_the_clock_of_the_partition_closes_the_cells_of_every_series(self) -> None:
        feed = Feed(stream(every="10s", late="0s"))

        feed.send(reading("a", 0), reading("b", 10))

        assert feed.bins == {"warming": 1, "pending": 1}

    def test_a_cell_closed_at_the_end_of_a_batch_is_scored_like_any_other(self) -> None:
        feed = Feed(stream(every="10s", late="0s"))

        feed.send(reading("a", 0), reading("a", 10))
        outputs = feed.send(reading("b", 20))

        assert feed.bins == {"warming": 1, "scored": 1, "pending": 1}
        assert [len(scores.slot) for scores in outputs.scores] == [1]

    def test_a_record_for_a_closed_cell_is_late(self) -> None:
        feed = Feed(stream(every="10s", late="0s"))

        feed.send(reading("a", 0), reading("a", 10), reading("a", 9))

        assert feed.bins == {"warming": 1, "pending": 1, "late": 1}

    def test_a_record_for_a_cell_that_the_clock_has_passed_is_late_even_for_a_new_series(self) -> None:
        feed = Feed(stream(every="10s", late="0s"))

        feed.send(reading("a", 100), reading("b", 5))

        assert feed.bins == {"pending": 1, "late": 1}

    def test_a_series_of_which_all_came_too_late_is_no_series_and_not_silent(self) -> None:
        feed = Feed(stream(every="10s", late="0s", silent_after="30s", max_series=2))

        feed.send(reading("a", 100), reading("b", 5), reading("c", 101))
        feed.send(reading("d", 102))

        assert feed.bins == {"pending": 2, "late": 1, "over_limit": 1}
        assert feed.alerts == []
        assert sorted(filter(None, feed.state.names)) == ["a", "c"]

    def test_records_may_come_out_of_order_within_late(self) -> None:
        feed = Feed(stream(every="10s", late="20s", window=3, combine="last"))

        feed.send(reading("a", 25, 3.0), reading("a", 5, 1.0), reading("a", 15, 2.0), reading("b", 50))

        assert feed.window("a") == [[1.0], [2.0], [3.0]]
        assert feed.bins == {"warming": 2, "scored": 1, "pending": 1}

    def test_the_same_time_in_a_cell_is_a_duplicate(self) -> None:
        feed = Feed(stream(every="10s", combine="sum"))

        feed.send(reading("a", 3, 1.0), reading("a", 3, 1.0), reading("a", 4, 1.0), reading("b", 50))

        assert feed.bins == {"warming": 1, "duplicate": 1, "merged": 1, "pending": 1}
        assert feed.window("a") == [[2.0]]

    @pytest.mark.parametrize(
        ("combine", "expected"), [("mean", 3.0), ("last", 4.0), ("min", 0.0), ("max", 5.0), ("sum", 9.0)]
    )
    def test_the_readings_of_a_cell_become_one(self, combine: str, expected: float) -> None:
        feed = Feed(stream(every="10s", combine=combine, late="0s"))

        # the reading of second 8 is the newest although it does not come last
        feed.send(reading("a", 1, 5.0), reading("a", 8, 4.0), reading("a", 7, 0.0), reading("b", 10))

        assert feed.window("a") == [[expected]]

    def test_empty_cells_within_the_gap_are_filled_by_holding(self) -> None:
        feed = Feed(stream(every="10s", late="0s", window=4))

        feed.send(reading("a", 0, 1.0), reading("a", 30, 2.0), reading("b", 50))

        assert feed.window("a") == [[1.0], [1.0], [1.0], [2.0]]
        assert feed.state.counters.gap_filled == 2
        assert feed.bins == {"warming": 1, "scored": 1, "pending": 1}

    @pytest.mark.parametrize("setting", [{"gap": "20s"}, {"missing": "reject"}])
    def test_a_hole_that_is_not_filled_starts_a_new_window(self, setting: dict[str, str]) -> None:
        feed = Feed(stream(every="10s", late="0s", window=4, **setting))

        feed.send(reading("a", 0, 1.0), reading("a", 30, 2.0), reading("b", 50))

        assert feed.window("a") == [[2.0]]
        assert feed.state.counters.gap_filled == 0

    def test_a_hole_as_long_as_the_window_starts_a_new_one(self) -> None:
        feed = Feed(stream(every="10s", late="0s", window=2, gap="1h"))

        feed.send(reading("a", 0), reading("a", 30), reading("b", 50))

        assert feed.window("a") == [[1.0]]
        assert feed.bins == {"warming": 2, "pending": 1}

    def test_times_before_1970_have_cells_too(self) -> None:
        feed = Feed(stream(every="10s", late="0s"))

        feed.send(reading("a", -11), reading("a", -10), reading("a", -1), reading("a", 0))

        assert feed.bins == {"warming": 1, "scored": 1, "merged": 1, "pending": 1}

    def test_a_reading_may_belong_to_any_of_many_open_cells(self) -> None:
        feed = Feed(stream(every="1s", late="30s", window=2))

        feed.send(*(reading("a", t) for t in reversed(range(31))))

        assert feed.bins == {"pending": 31}


class TestNarrow:
    def test_metrics_of_one_time_make_one_row(self) -> None:
        feed = Feed(stream(kind="narrow", every="10s", late="0s", features=["x", "y"]))

        feed.send(metric("a", 3, "x", 1.0), metric("a", 3, "y", 2.0), metric("b", 10, "x"))

        assert feed.bins == {"warming": 1, "merged": 1, "pending": 1}
        assert feed.window("a") == [[1.0, 2.0]]

    def test_the_same_time_and_metric_is_a_duplicate(self) -> None:
        feed = Feed(stream(kind="narrow", every="10s", late="0s", features=["x", "y"]))

        feed.send(metric("a", 3, "x", 1.0), metric("a", 3, "x", 5.0), metric("a", 3, "y", 2.0))

        assert feed.bins == {"pending": 1, "duplicate": 1, "merged": 1}

    def test_a_metric_missing_from_a_cell_is_held(self) -> None:
        feed = Feed(stream(kind="narrow", every="10s", late="0s", features=["x", "y"]))

        feed.send(
            metric("a", 1, "x", 1.0),
            metric("a", 1, "y", 2.0),
            metric("a", 11, "x", 3.0),
            metric("b", 20, "x"),
        )

        assert feed.window("a") == [[1.0, 2.0], [3.0, 2.0]]

    def test_a_metric_missing_from_a_cell_ends_the_window_where_nothing_is_held(self) -> None:
        feed = Feed(stream(kind="narrow", every="10s", late="0s", features=["x", "y"], missing="reject"))

        feed.send(
            metric("a", 1, "x", 1.0),
            metric("a", 1, "y", 2.0),
            metric("a", 11, "x", 3.0),
            metric("b", 20, "x"),
        )

        assert feed.window("a") == []
        assert feed.bins == {"warming": 2, "merged": 1, "pending": 1}


class TestPartitionClock:
    def test_one_device_with_a_clock_within_ahead_closes_cells_but_makes_no_neighbour_late_without_a_grid(
        self,
    ) -> None:
        feed = Feed(stream(ahead="60s"))

        feed.send(reading("fast", 160), reading("a", 100), stamp_s=100)
        feed.send(reading("a", 101), stamp_s=101)

        assert feed.bins == {"warming": 2, "scored": 1}

    def test_a_device_further_ahead_than_allowed_moves_no_clock(self) -> None:
        feed = Feed(stream(every="10s", late="0s", ahead="60s"))

        feed.send(reading("a", 100), reading("wrong", 161), reading("a", 101), stamp_s=100)

        assert feed.bins == {"pending": 1, "dead_lettered": 1, "merged": 1}
        assert feed.reasons == ["its time is over 60 s ahead of its record's timestamp"]

    def test_a_device_whose_clock_is_slow_is_not_late_without_a_grid(self) -> None:
        feed = Feed(stream())

        feed.send(reading("a", 1_000), reading("slow", 1), reading("slow", 2))

        assert feed.bins == {"warming": 2, "scored": 1}


SILENT = {"silent_after": "30s", "forget_after": "100s"}


class TestSilence:
    def test_a_series_quiet_for_silent_after_raises_an_alert_from_that_time(self) -> None:
        feed = Feed(stream(**SILENT))

        feed.send(reading("a", 0), reading("b", 29))
        before = list(feed.alerts)
        feed.send(reading("b", 35))

        assert before == []
        [alert] = feed.alerts
        assert (alert.kind, alert.state, alert.reason, alert.series) == ("silent", "firing", "no events", "a")
        assert (alert.started_at.timestamp(), alert.revision, alert.source.offset) == (30, 1, 0)

    def test_its_next_reading_resolves_it(self) -> None:
        feed = Feed(stream(**SILENT))

        feed.each(reading("a", 0), reading("b", 40), reading("a", 41))

        fired, resolved = feed.alerts
        assert (resolved.state, resolved.reason, resolved.revision) == ("resolved", "recovered", 2)
        assert resolved.id == fired.id
        assert resolved.at.timestamp() == 41

    def test_a_late_record_is_no_sign_of_life(self) -> None:
        feed = Feed(stream(**SILENT))

        feed.each(reading("a", 1), reading("b", 40), reading("a", 0))

        assert [alert.state for alert in feed.alerts] == ["firing"]

    def test_a_second_silence_is_another_alert(self) -> None:
        feed = Feed(stream(**SILENT))

        feed.each(reading("a", 0), reading("b", 40), reading("a", 41), reading("b", 80))

        assert [alert.state for alert in feed.alerts] == ["firing", "resolved", "firing"]
        assert feed.alerts[2].id != feed.alerts[0].id

    def test_a_series_that_is_forgotten_closes_its_alert_as_gone(self) -> None:
        feed = Feed(stream(**SILENT))

        feed.each(reading("a", 0), reading("b", 40), reading("b", 100))

        silent_b = [alert for alert in feed.alerts if alert.series == "b"]
        fired, gone = [alert for alert in feed.alerts if alert.series == "a"]
        assert (gone.id, gone.state, gone.reason, gone.revision) == (fired.id, "resolved", "gone", 2)
        assert gone.at.timestamp() == 100
        assert silent_b == []

    def test_without_silent_after_a_forgotten_series_raises_nothing(self) -> None:
        feed = Feed(stream(forget_after="100s"))

        feed.each(reading("a", 0), reading("b", 200))

        assert feed.alerts == []
        assert "a" not in feed.state.index

    def test_what_comes_first_in_time_is_told_first_whatever_the_batches(self) -> None:
        """The cell of `a` closes at second 40, after the series fell silent at second 15."""
        settings = {"every": "10s", "late": "30s", "silent_after": "10s", "forget_after": "100s"}
        events = [reading("a", 5), reading("b", 20), reading("b", 60)]
        whole, single = Feed(stream(**settings)), Feed(stream(**settings))

        whole.send(*events)
        single.each(*events)

        assert [alert for alert in whole.alerts if alert.series == "a"] == [
            alert for alert in single.alerts if alert.series == "a"
        ]

    def test_a_silent_series_that_never_made_a_row_points_at_its_first_record(self) -> None:
        feed = Feed(stream(every="10s", late="30s", silent_after="10s", forget_after="100s"))

        feed.send(reading("b", 1), reading("a", 5), reading("b", 20))

        assert [alert.source.offset for alert in feed.alerts if alert.series == "a"] == [1]


class TestForgetting:
    def test_a_series_idle_for_forget_after_begins_anew(self) -> None:
        feed = Feed(stream(window=3, forget_after="100s"))

        feed.send(reading("a", 0), reading("a", 1), reading("b", 101), reading("a", 102))

        assert feed.window("a") == [[1.0]]

    def test_a_forgotten_series_may_come_back_with_an_older_time(self) -> None:
        feed = Feed(stream(forget_after="100s"))

        feed.send(reading("a", 10), reading("b", 110), reading("a", 5))

        assert feed.bins == {"warming": 3}

    def test_its_slot_is_used_again(self) -> None:
        feed = Feed(stream(forget_after="100s"))

        feed.each(reading("a", 0), reading("b", 200), reading("c", 201))

        assert sorted(filter(None, feed.state.names)) == ["b", "c"]
        assert feed.state.live == 2


class TestBoundOnSeries:
    def test_records_of_series_beyond_the_bound_are_over_limit(self) -> None:
        feed = Feed(stream(max_series=2))

        feed.send(reading("a", 0), reading("b", 0), reading("c", 0), reading("a", 1), reading("c", 1))

        assert feed.bins == {"warming": 2, "scored": 1, "over_limit": 2}
        assert sorted(filter(None, feed.state.names)) == ["a", "b"]

    def test_a_bound_full_of_series_that_are_no_more_gives_way(self) -> None:
        feed = Feed(stream(max_series=1, forget_after="100s"))

        feed.send(reading("a", 0), reading("b", 100), reading("b", 101))

        assert feed.bins == {"warming": 2, "over_limit": 1}
        assert list(filter(None, feed.state.names)) == ["b"]

    def test_forgetting_makes_room_within_a_batch(self) -> None:
        feed = Feed(stream(max_series=2, forget_after="100s"))

        feed.send(reading("a", 0), reading("b", 1), reading("b", 100), reading("c", 101))

        assert feed.bins == {"warming": 3, "scored": 1}
        assert sorted(filter(None, feed.state.names)) == ["b", "c"]

    def test_what_was_over_the_limit_leaves_nothing_to_remove_from_the_store(self) -> None:
        feed = Feed(stream(max_series=1))

        feed.send(reading("a", 0), *(reading(f"x{i}", 0) for i in range(10)))

        assert feed.state.removed == []
