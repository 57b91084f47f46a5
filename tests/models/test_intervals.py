"""Intervals hold what they promise: published values, and the truth in nine of ten trials."""

from __future__ import annotations

import numpy as np
import pytest

from models.intervals import Estimate, difference_of_rates, difference_of_shares, excess, rate, share


def holds(estimates: list[Estimate], truth: float) -> float:
    return float(np.mean([each.low <= truth <= each.high for each in estimates]))


def both(agreements: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [agreements, only_first, only_second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


# z = 1.6449; by hand: (0.1 + z^2/40 -+ z sqrt(0.1 * 0.9 / 20 + z^2 / 1600)) / (1 + z^2/20)
def test_a_share_has_wilsons_interval() -> None:
    found = share(2, 20)

    assert found.value == 0.1
    assert found.low == pytest.approx(0.0337, abs=1e-3)
    assert found.high == pytest.approx(0.2617, abs=1e-3)
    assert share(0, 50).low == 0
    assert share(50, 50).high == 1
    assert share(0, 0) is None


@pytest.mark.parametrize(("first", "second"), [(0.7, 0.6), (0.95, 0.95), (0.3, 0.5)])
def test_the_difference_of_paired_shares_holds_the_truth(first: float, second: float) -> None:
    """Two models find much the same faults, for what is hard for one is hard for the other.

    Near all or none the method is known to be wide rather than narrow.
    """
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        ease = random.uniform(size=120)
        mine = np.where(random.uniform(size=120) < 0.8, ease, random.uniform(size=120))
        found.append(difference_of_shares(ease < first, mine < second))

    assert 0.87 <= holds(found, first - second) <= 0.985


def test_faults_that_both_find_narrow_the_difference() -> None:
    apart = difference_of_shares(*both(30, 20, 20, 30))
    alike = difference_of_shares(*both(50, 0, 0, 50))

    assert apart.value == alike.value == 0
    assert alike.high < apart.high / 2
    assert alike.low == -alike.high
    assert difference_of_shares(*both(0, 0, 0, 0)) is None


def test_a_few_faults_that_all_were_found_by_both_do_not_make_us_certain() -> None:
    assert difference_of_shares(*both(20, 0, 0, 0)).high > 0.1


def test_a_rate_holds_the_truth_and_none_seen_is_not_none() -> None:
    counts = np.random.default_rng(0).poisson(6.0, 500)

    assert 0.87 <= holds([rate(int(count), 3.0) for count in counts], 2.0) <= 0.97
    assert rate(0, 10.0).low == 0
    assert 0.2 < rate(0, 10.0).high < 0.3
    assert rate(0, 0.0) is None


def test_the_difference_of_rates_holds_the_truth_where_blocks_are_not_alike() -> None:
    random = np.random.default_rng(1)
    found = []
    for trial in range(150):
        busy = random.gamma(0.5, 2.0, 60)  # some days of some series raise most of the alarms
        first, second = (random.poisson(busy * more).astype(float) for more in (1.2, 1.0))
        found.append(difference_of_rates(first, second, np.ones(60), trial))

    assert 0.82 <= holds(found, 0.2) <= 0.97


def test_days_without_any_alarm_leave_room_for_some() -> None:
    none = np.zeros(20)

    quiet = difference_of_rates(none, none, np.ones(20), 0)

    assert quiet.value == 0
    assert quiet.low < -0.05
    assert quiet.high > 0.05
    assert difference_of_rates(none[:0], none[:0], none[:0], 0) is None


def test_many_blocks_are_joined_and_tell_as_much() -> None:
    random = np.random.default_rng(2)
    first, second = random.poisson(0.1, (2, 30_000)).astype(float)

    found = difference_of_rates(first, second, np.ones(30_000), 0)

    assert found.value == pytest.approx((first - second).mean())
    assert found.high - found.low == pytest.approx(2 * 1.645 * np.sqrt(0.2 / 30_000), rel=0.15)


def test_the_excess_holds_the_truth() -> None:
    random = np.random.default_rng(3)
    found = []
    for trial in range(150):
        second = random.gamma(4.0, 0.1, 40)
        found.append(excess(second * random.normal(1.1, 0.1, 40), second, trial))

    assert 0.82 <= holds(found, 0.1) <= 0.97
    assert excess(np.zeros(0), np.zeros(0), 0) is None
