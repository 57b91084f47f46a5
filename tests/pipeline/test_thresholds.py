"""The rolling line: what it starts from, how fast it forgets, and when it stands still."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from feeding import COMPILED, Feed, S, reading, stream
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.moments import pace
from pipeline.policy import JudgePolicy, judge_policy
from pipeline.ports import Float32s
from pipeline.series import Layout
from pipeline.testing import FakeScorer
from pipeline.thresholds import ACCEPTED, BINS, CARRIED, learn, line, most, start, start_again

HOUR = 3_600 * S
NO_SKETCH = np.zeros(0, np.float32)
CALIBRATION = np.array([1.0, 0.1, 2.0, 0.4, 1_000.0])


def a_policy(**threshold: object) -> JudgePolicy:
    return judge_policy(stream(threshold={"policy": "ewma", **threshold}))


def started(mean: float, sd: float, rows: float) -> np.void:
    row: np.void = Layout(2, 1, 0, 1, 0, "").arrays(1).rows[0]
    start(row, NO_SKETCH, np.array([mean, sd, 2 * mean, 2 * sd, rows]), a_policy())
    return row


def learned(
    row: np.void,
    error: float,
    last_error: float,
    time_ns: int,
    policy: JudgePolicy,
    sketch: Float32s = NO_SKETCH,
) -> None:
    """Let a row of so late teach."""
    weight = pace(min(policy.error_weight, most(row, time_ns, policy)), row["rows"])
    learn(row, sketch, error, last_error, weight, policy)
    row["judged_ns"] = time_ns


def test_the_line_is_the_mean_plus_k_standard_deviations() -> None:
    assert line(2.0, 0.25, NO_SKETCH, a_policy(k=3)) == pytest.approx(2.0 + 3 * 0.5)


def test_errors_without_any_spread_leave_room_above_their_mean() -> None:
    assert line(2.0, 0.0, NO_SKETCH, a_policy(k=4)) == pytest.approx(2.0 + 4 * 0.05 * 2.0)


def test_an_error_of_zero_on_a_line_at_zero_is_below_it() -> None:
    assert line(0.0, 0.0, NO_SKETCH, a_policy()) > 0.0


def test_a_static_line_stays_where_it_was_put() -> None:
    assert line(2.0, 0.25, NO_SKETCH, a_policy(policy="static", value=7.5)) == 7.5


def test_thresholds_start_from_the_calibration_of_their_bundle() -> None:
    row = started(1.5, 0.5, 300)

    assert (row.error_mean, row.error_variance, row.rows) == (1.5, 0.25, 300)
    assert (row.last_mean, row.last_variance) == (3.0, 1.0)


def moments(prior: tuple[float, float], weights: list[float], errors: list[float]) -> tuple[float, float]:
    """Mean and variance in one go: every row's final weight is its own, times what later rows left of it."""
    weight, values = np.array([1.0, *weights]), np.array([prior[0], *errors])
    left = np.append(np.cumprod((1 - weight)[::-1])[::-1][1:], 1.0)
    share = weight * left
    mean = float((share * values).sum())
    return mean, float((share * (values - mean) ** 2).sum() + share[0] * prior[1])


@settings(deadline=None, derandomize=True, max_examples=100 if COMPILED else 30)
@given(
    rows=st.sampled_from([1.0, 10.0, 5_000.0]),
    memory_s=st.sampled_from([0.0, 1.0, 3_600.0, 21_600.0]),
    errors=st.lists(
        st.tuples(st.floats(0, 10), st.floats(0, 10), st.sampled_from([1, 10, 600])), min_size=1, max_size=20
    ),
)
def test_the_moments_are_the_weighted_moments_of_all_errors(
    rows: float, memory_s: float, errors: list[tuple[float, float, int]]
) -> None:
    row, policy = started(1.0, 0.1, rows), a_policy(memory=memory_s)

    now, weights = 0, []
    for n, (error, last, elapsed_s) in enumerate(errors):
        now += elapsed_s * S
        learned(row, error, last, now, policy)
        by_rows = 1 - 0.5 ** (1 / 1_000)
        by_time = 1 - 0.5 ** (elapsed_s / memory_s) if memory_s else by_rows
        weights.append(max(min(by_rows, by_time), 1 / (rows + n + 1)))

    mean, variance = moments((1.0, 0.01), weights, [error for error, *_ in errors])
    last_mean, last_variance = moments((2.0, 0.04), weights, [last for _, last, _ in errors])
    np.testing.assert_allclose(
        [row.error_mean, row.error_variance, row.last_mean, row.last_variance],
        [mean, variance, last_mean, last_variance],
        rtol=1e-9,
        atol=1e-12,
    )


def test_at_first_the_line_is_the_average_over_all_rows() -> None:
    row, policy = started(1.0, 0.0, 10), a_policy(memory="0s")

    for n in range(30):
        learned(row, 5.0, 5.0, n * S, policy)

    assert row.error_mean == pytest.approx((10 * 1.0 + 30 * 5.0) / 40)


def forgotten_half(policy: JudgePolicy, elapsed_ns: int, rows: int) -> float:
    """How much of an old mean of 0 is left after so many rows with an error of 1."""
    row = started(0.0, 0.0, 1e12)
    for n in range(1, rows + 1):
        learned(row, 1.0, 1.0, n * elapsed_ns, policy)
    return 1.0 - float(row.error_mean)


def test_the_half_life_is_a_thousand_rows_where_memory_is_shorter() -> None:
    assert forgotten_half(a_policy(memory="10m"), 10 * S, 1_000) == pytest.approx(0.5)


def test_the_half_life_is_memory_where_a_thousand_rows_pass_sooner() -> None:
    assert forgotten_half(a_policy(memory="1h"), 1 * S, 3_600) == pytest.approx(0.5)


class TestQuantiles:
    """A line of twice the rolling quantile."""

    policy = a_policy(policy="quantile", q=0.9, margin=2, memory="0s")

    def learned(
        self, errors: Sequence[float], mean: float = 1.0, sd: float = 0.1, rows: float = 1.0
    ) -> float:
        """The line over ``errors``."""
        arrays = Layout(2, 1, 0, 1, 2 * BINS, "").arrays(1)
        row, sketch = arrays.rows[0], arrays.sketch[0]
        start(row, sketch, np.array([mean, sd, mean, sd, rows]), self.policy)
        for n, error in enumerate(errors):
            learned(row, error, 3 * error, n * S, self.policy, sketch)
        assert sketch[:BINS].sum() == pytest.approx(1.0, abs=1e-3)
        return line(row.error_mean, row.error_variance, sketch[:BINS], self.policy)

    def test_it_starts_from_the_calibration(self) -> None:
        normal = NormalDist(1.0, 0.1).inv_cdf(0.9)

        assert self.learned([]) == pytest.approx(2 * normal, rel=0.1)

    @given(st.lists(st.floats(0.3, 8.0), min_size=40, max_size=400))
    @settings(deadline=None, derandomize=True, max_examples=50 if COMPILED else 5)
    def test_it_is_the_quantile_of_what_was_learned_within_a_bin(self, errors: list[float]) -> None:
        ordered = np.sort(errors)
        low, high = (
            ordered[int(at * len(errors))] for at in (0.9 - 2 / len(errors), 0.9 + 0.9 / len(errors))
        )
        tolerance = 1.16

        found = self.learned(errors, rows=1e-9) / 2

        assert low / tolerance <= found <= high * tolerance

    def test_one_large_error_does_not_move_it_as_it_moves_the_moments(self) -> None:
        errors = [1.0] * 200

        assert self.learned([*errors, 9.0]) == pytest.approx(self.learned(errors), rel=0.05)

    def test_it_forgets(self) -> None:
        assert self.learned([1.0] * 500 + [4.0] * 8_000) == pytest.approx(2 * 4.0, rel=0.16)


def test_an_accepted_row_is_what_is_normal_from_then_on() -> None:
    row = started(1.0, 0.1, 5_000)
    row["rows"] = ACCEPTED

    start_again(row, NO_SKETCH, CALIBRATION, 5.0, 8.0, 32, a_policy())

    assert (row.error_mean, row.last_mean, row.rows) == (5.0, 8.0, 32)
    assert row.error_variance == pytest.approx(0.5**2)
    assert row.last_variance == pytest.approx(1.6**2)


class TestASeriesThatWasCalmUnderAnotherModel:
    """Under the new one a window's error is 1 give or take 0.1 on held-out rows, a row's 2 and 0.4."""

    def begun(self, error: float, last_error: float, window_rows: int = 32) -> np.void:
        row = started(1.0, 0.1, 5_000)
        row["rows"] = CARRIED
        start_again(row, NO_SKETCH, CALIBRATION, error, last_error, window_rows, a_policy())
        return row

    def test_it_begins_as_high_as_the_rows_before_stand_under_the_new_model(self) -> None:
        row = self.begun(3.0, 3.0)

        assert (row.error_mean, row.last_mean) == (pytest.approx(3.0), pytest.approx(6.0))
        assert row.error_variance == pytest.approx(0.3**2)
        assert row.last_variance == pytest.approx(1.2**2)
        assert row.rows == 32

    def test_it_begins_with_the_calibration_where_the_rows_before_are_lower(self) -> None:
        row = self.begun(0.5, 0.5)

        assert (row.error_mean, row.last_mean, row.rows) == (1.0, 2.0, 1_000)

    def test_its_newest_row_is_judged_and_not_taken_for_normal(self) -> None:
        others, fault = 1.5, 20.0

        row = self.begun(((31 * others**2 + fault**2) / 32) ** 0.5, fault)

        assert row.error_mean == pytest.approx(others)
        assert line(row.last_mean, row.last_variance, NO_SKETCH, a_policy()) < fault

    def test_a_window_of_one_row_has_none_before_it(self) -> None:
        assert self.begun(9.0, 9.0, window_rows=1).error_mean == 1.0


class TestWhatTeaches:
    """A series whose window of two rows has an error of 1 when all is well; the line is at 1.4."""

    def test_a_row_is_scored_by_the_line_that_the_rows_before_it_drew(self) -> None:
        feed = Feed(stream())

        outputs = feed.send(reading("a", 0, 1.3), reading("a", 1, 1.3), reading("a", 2, 1.3))

        thresholds = outputs.scores[0].threshold
        assert thresholds[0] == pytest.approx(1.4, abs=1e-6)
        assert thresholds[1] != thresholds[0]
        np.testing.assert_allclose(outputs.scores[0].score, outputs.scores[0].error / thresholds)

    def test_what_is_judged_anomalous_does_not_teach(self) -> None:
        feed = Feed(stream())

        feed.send(reading("a", 0), reading("a", 1), *(reading("a", 2 + t, 50.0) for t in range(50)))

        assert feed.row("a")["error_mean"] == 1.0
        assert feed.state.counters.frozen == 50

    def test_after_adapt_after_an_anomaly_begins_to_count_as_normal(self) -> None:
        feed = Feed(stream(threshold={"policy": "ewma", "adapt_after": "10s", "memory": "0s"}))

        feed.send(reading("a", 0), reading("a", 1), *(reading("a", 2 + t, 50.0) for t in range(11)))

        assert feed.state.counters.frozen == 10
        assert feed.row("a")["error_mean"] > 1.0

    def test_the_moments_stand_still_while_a_window_remembers_its_spike(self) -> None:
        feed = Feed(stream(window=8, rules={"recovery": 1}))

        feed.send(*(reading("a", t, 50.0 if t == 10 else 1.0) for t in range(30)))

        assert [alert.state for alert in feed.alerts] == ["firing", "resolved"]
        assert feed.state.counters.frozen == 8
        assert feed.row("a")["error_mean"] == pytest.approx(1.0)

    def test_moments_of_a_series_are_its_own(self) -> None:
        feed = Feed(stream(), scorer=FakeScorer())

        feed.send(*(reading(name, t, x) for t in range(5) for name, x in (("a", 1.0), ("b", 1.3))))

        assert feed.row("a")["error_mean"] < feed.row("b")["error_mean"]
