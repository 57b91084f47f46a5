"""Transforms, and the window that a series drags along."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import pytest
from feeding import Feed, S, reading, stream
from hypothesis import given
from hypothesis import strategies as some

from pipeline.policy import NEVER, TRANSFORM
from pipeline.ports import Errors, Windows
from pipeline.testing import FakeScorer
from pipeline.windows import transformed


def after(name: str, value: float, before: float, elapsed_s: float = 10) -> float:
    return transformed(TRANSFORM[name], value, before, 0, round(elapsed_s * S))


def test_none_is_the_value_itself() -> None:
    assert after("none", 5.0, 3.0) == 5.0


def test_rate_is_the_rise_per_second() -> None:
    assert after("rate", 50.0, 30.0) == 2.0


def test_a_counter_that_fell_was_reset_and_counts_from_zero() -> None:
    assert after("rate", 5.0, 1_000.0) == 0.5


def test_diff_is_the_change_since_the_row_before() -> None:
    assert after("diff", 3.0, 5.0) == -2.0


@pytest.mark.parametrize(("value", "expected"), [(math.e - 1, 1.0), (1 - math.e, -1.0), (0.0, 0.0)])
def test_log_keeps_the_sign(value: float, expected: float) -> None:
    assert after("log", value, 0.0) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["rate", "diff"])
def test_what_needs_a_value_before_has_none_at_first(name: str) -> None:
    assert math.isnan(transformed(TRANSFORM[name], 5.0, 0.0, NEVER, 10 * S))


def test_the_first_row_of_a_counter_makes_no_row_and_none_after_a_gap() -> None:
    feed = Feed(stream(features={"x": {"transform": "rate"}}, gap="5s", window=3))

    feed.send(*(reading("a", t, x) for t, x in ((0, 0.0), (1, 4.0), (2, 6.0), (20, 100.0), (21, 101.0))))

    assert feed.window("a") == [[1.0]]
    assert feed.bins == {"warming": 5}


def test_a_rate_over_a_missing_value_spans_the_time_since_the_last_one() -> None:
    feed = Feed(stream(features={"x": {"transform": "rate"}}, window=4))

    feed.send(reading("a", 0, 0.0), reading("a", 1, 2.0), reading("a", 2, None), reading("a", 5, 10.0))

    assert feed.window("a") == [[2.0], [2.0], [2.0]]


def test_the_newest_row_stands_last_and_the_oldest_leaves() -> None:
    feed = Feed(stream(window=3))

    feed.send(*(reading("a", t, float(t)) for t in range(5)))

    assert feed.window("a") == [[2.0], [3.0], [4.0]]


@dataclass
class Seen(FakeScorer):
    """Keeps the windows that it is to score."""

    windows: list[list[list[float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def score(self, windows: Windows) -> Errors:
        self.windows += self._values(windows).tolist()
        return super().score(windows)


@given(size=some.integers(2, 5), steps=some.lists(some.integers(1, 30), max_size=40))
def test_a_window_is_the_newest_rows_oldest_first_however_often_the_ring_went_round(
    size: int, steps: list[int]
) -> None:
    seen, times = Seen(), list(accumulate(steps, initial=0))
    feed = Feed(stream(features=["x", "y"], window=size, gap="29s"), seen)

    feed.each(*(reading("a", t, float(t), y=float(-t)) for t in times))

    windows, window = [], list[list[float]]()
    for time, step in zip(times, [30, *steps], strict=True):
        window = [*([] if step > 29 else window), [float(time), float(-time)]][-size:]
        if len(window) == size:
            windows.append(window)
    assert seen.windows == windows
    assert feed.window("a") == window


def test_small_changes_of_large_values_keep_their_precision() -> None:
    feed = Feed(stream(window=3))

    feed.send(*(reading("a", t, 1e12 + t / 8) for t in range(3)))

    assert feed.window("a") == [[1e12], [1e12 + 0.125], [1e12 + 0.25]]


def test_values_beyond_float32_stay_finite() -> None:
    feed = Feed(stream(window=2))

    feed.send(reading("a", 0, 1e300), reading("a", 1, -1e300))

    assert all(math.isfinite(value) for row in feed.window("a") for value in row)
    assert feed.bins == {"warming": 1, "scored": 1}


def test_a_transform_that_overflows_ends_the_window() -> None:
    feed = Feed(stream(features={"x": {"transform": "diff"}}, window=2))

    with np.errstate(over="ignore"):  # compiled kernels never warn
        feed.send(reading("a", 0, 1e308), reading("a", 1, 1e308), reading("a", 2, -1e308))

    assert feed.window("a") == []
    assert feed.bins == {"warming": 3}
