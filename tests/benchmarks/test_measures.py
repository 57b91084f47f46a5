"""Measures against cases worked out by hand from their published definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from measures import average_precision, event_f1, hit_rate, nab_points, nab_score, vus_pr

WINDOWS = np.array([[10, 19], [50, 59]])


def fired(*rows: int) -> np.ndarray:
    return np.array(rows, np.int64)


def sigmoid(place: float) -> float:
    return 2 / (1 + math.exp(5 * place)) - 1


def test_event_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    precision, recall = 6 / (6 + 2), 6 / 10

    assert event_f1(6, 2, 10) == pytest.approx(2 * precision * recall / (precision + recall))
    assert event_f1(0, 0, 10) == 0.0


class TestNab:
    def test_the_first_row_of_a_window_is_worth_one_and_a_missed_window_costs_one(self) -> None:
        assert nab_points(WINDOWS, fired(10, 50)) == pytest.approx(2.0)
        assert nab_points(WINDOWS, fired(10)) == pytest.approx(0.0)
        assert nab_points(WINDOWS, fired()) == -2.0

    def test_of_a_window_the_first_alert_counts_by_its_place(self) -> None:
        # the last of ten rows stands at -1/10, the sixth at -5/10
        last, sixth = (sigmoid(place) / sigmoid(-1) for place in (-0.1, -0.5))

        assert nab_points(WINDOWS, fired(19, 50)) == pytest.approx(1 + last)
        assert nab_points(WINDOWS, fired(15, 17, 19, 50)) == pytest.approx(1 + sixth)

    def test_a_false_alarm_costs_the_more_the_further_it_is_behind_a_window(self) -> None:
        # one row behind a window that spans nine steps; behind three such spans it costs all
        assert nab_points(WINDOWS, fired(10, 20, 50)) == pytest.approx(2 + 0.11 * sigmoid(1 / 9))
        assert nab_points(WINDOWS, fired(10, 49, 50)) == pytest.approx(2 - 0.11)
        assert nab_points(WINDOWS, fired(10, 50, 500)) == pytest.approx(2 - 0.11)

    def test_a_false_alarm_before_any_window_costs_all(self) -> None:
        assert nab_points(WINDOWS, fired(9, 10, 50)) == pytest.approx(2 - 0.11)
        assert nab_points(np.zeros((0, 2), np.int64), fired(3, 4)) == pytest.approx(-0.22)

    def test_silence_is_zero_and_a_perfect_detector_a_hundred(self) -> None:
        assert nab_score(-7, 7) == 0.0
        assert nab_score(7, 7) == 100.0


class TestAveragePrecision:
    def test_it_is_the_mean_of_precision_where_labels_are_met(self) -> None:
        scores, labels = np.array([0.1, 0.9, 0.8, 0.3, 0.7]), np.array([0, 1, 0, 0, 1], bool)

        assert average_precision(scores, labels) == pytest.approx((1 / 1 + 2 / 3) / 2)

    def test_equal_scores_are_taken_together(self) -> None:
        assert average_precision(np.ones(8), np.arange(8) < 2) == pytest.approx(2 / 8)


class TestVolumeUnderTheSurface:
    def test_without_a_buffer_recall_counts_rows_times_windows_touched(self) -> None:
        scores, labels = np.array([0.1, 0.9, 0.8, 0.3, 0.7]), np.array([0, 1, 0, 0, 1], bool)

        # first hit: half of the rows, half of the windows; both at the third row
        assert vus_pr(scores, labels, [0]) == pytest.approx(1 / 4 * 1 + 3 / 4 * 2 / 3)

    def test_rows_beside_a_window_count_in_part(self) -> None:
        labels = np.array([0, 0, 1, 0, 0], bool)
        early = np.array([0.0, 1.0, 0.5, 0.0, 0.0])
        soft = 0.5**0.5  # one row away, of a buffer of two
        positives = (1 + (1 + 2 * soft)) / 2
        first, second = soft / positives, min((1 + soft) / positives, 1.0)

        expected = first * soft + (second - first) * (1 + soft) / 2 + (1 - second) * (1 + 2 * soft) / 5
        assert vus_pr(early, labels, [2]) == pytest.approx(expected)
        assert vus_pr(early, labels, [2]) > average_precision(early, labels) == 0.5

    def test_a_perfect_score_has_it_all(self) -> None:
        labels = np.zeros(100, bool)
        labels[40:60] = True

        assert vus_pr(labels + 0.0, labels, [0]) == pytest.approx(1.0)


def test_hit_rate_is_the_share_of_causes_among_the_first_of_a_ranking() -> None:
    ranked, causes = [3, 1, 4, 0, 2, 5], (1, 3, 0, 5)

    assert hit_rate(ranked, causes, 1.0) == 3 / 4
    assert hit_rate(ranked, causes, 1.5) == 1.0
