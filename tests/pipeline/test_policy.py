"""A stream's settings as the numbers that kernels take."""

from __future__ import annotations

import numpy as np
from feeding import S, stream

from pipeline.policy import ALWAYS, AlignPolicy, JudgePolicy, align_policy, deviations, judge_policy
from pipeline.ports import Explanation


def test_settings_of_events_become_nanoseconds_and_codes() -> None:
    settings = stream(
        every="10s",
        late="2500ms",
        gap="1m",
        silent_after="5m",
        forget_after="1h",
        combine="max",
        missing="reject",
        max_series=9,
    )

    assert align_policy(settings, has_model=True) == AlignPolicy(
        every_ns=10 * S,
        late_ns=2_500_000_000,
        gap_ns=60 * S,
        silent_ns=300 * S,
        forget_ns=3_600 * S,
        combine=3,
        hold=False,
        max_series=9,
        has_model=True,
    )


def test_what_is_not_set_is_unbounded_or_off() -> None:
    policy = align_policy(stream(), has_model=False)

    assert (policy.every_ns, policy.late_ns, policy.gap_ns, policy.silent_ns) == (0, 0, ALWAYS, ALWAYS)
    assert policy.hold


def test_a_rolling_threshold_has_no_fixed_line() -> None:
    settings = stream(
        threshold={"policy": "ewma", "k": 3, "memory": "2h", "adapt_after": "1h"},
        rules={
            "for": 4,
            "recovery": 5,
            "recovery_line": 0.5,
            "recovery_for": "7s",
            "refractory": "10s",
            "critical": 3,
        },
    )

    assert judge_policy(settings) == JudgePolicy(
        static_line=0.0,
        k=3.0,
        quantile=0.0,
        margin=0.0,
        joint_line=0.0,
        joint_doubt=0.0,
        error_weight=1 - 2 ** (-1 / 1_000),
        level_weight=1 - 2 ** (-1 / 1_000),
        memory_ns=7_200.0 * S,
        adapt_ns=3_600 * S,
        asks_deviation=False,
        for_rows=4,
        recovery_rows=5,
        recovery_line=0.5,
        recovery_ns=7 * S,
        refractory_ns=10 * S,
        critical=3.0,
        still=False,
    )


def test_a_fixed_line_never_adapts() -> None:
    policy = judge_policy(stream(threshold={"policy": "static", "value": 2.5}))

    assert (policy.static_line, policy.k, policy.adapt_ns) == (2.5, 0.0, ALWAYS)


def explained(*apart: list[list[float]]) -> Explanation:
    """Windows of [row][feature] by how far values are from zero, which is what was expected."""
    observed = np.array(apart)
    share = np.abs(observed).sum(axis=1)
    return Explanation(observed, np.zeros_like(observed), share / share.sum(axis=1, keepdims=True))


def test_the_row_and_feature_that_contribute_most_must_deviate_enough() -> None:
    asked = deviations(stream(features=["x", "y"], rules={"min_deviation": {"y": 5.0}, "direction": "above"}))

    counted = asked.enough(
        explained(
            [[0.0, 4.0], [0.0, 4.0]],  # y, too little
            [[0.0, 0.0], [0.0, 5.0]],
            [[0.0, 9.0], [0.0, -10.0]],  # the largest is below
            [[3.0, 0.1], [0.0, 0.1]],  # x, of which nothing is asked but its sign
            [[-3.0, 0.1], [0.0, 0.1]],
        )
    )

    assert asked.ask
    assert counted.tolist() == [False, True, False, True, False]


def test_rules_that_ask_for_no_deviation_ask_nothing() -> None:
    assert not deviations(stream()).ask
