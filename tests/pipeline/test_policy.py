"""A stream's settings as the numbers that kernels take."""

from __future__ import annotations

from feeding import S, stream

from pipeline.policy import ALWAYS, AlignPolicy, JudgePolicy, align_policy, judge_policy


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
        rules={"for": 4, "recovery": 5, "refractory": "10s"},
    )

    assert judge_policy(settings) == JudgePolicy(
        static_line=0.0,
        k=3.0,
        memory_ns=7_200.0 * S,
        adapt_ns=3_600 * S,
        for_rows=4,
        recovery_rows=5,
        refractory_ns=10 * S,
    )


def test_a_fixed_line_never_adapts() -> None:
    policy = judge_policy(stream(threshold={"policy": "static", "value": 2.5}))

    assert (policy.static_line, policy.k, policy.adapt_ns) == (2.5, 0.0, ALWAYS)
