"""Paces: every record leaves when it is due and none before, and a stop is heard at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from collecting import TOPIC, Collector, HandClock
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.records import Send
from producers.pacing import (
    LOOK_S,
    QUANTUM_S,
    Chunk,
    Fastest,
    Pace,
    PerSecond,
    Progress,
    Recorded,
    deliver,
    ticks,
)


def chunks(times: list[float], size: int = 3) -> list[Chunk]:
    sends = [Send(TOPIC, None, b"%d" % number) for number in range(len(times))]
    return [Chunk(times[at : at + size], sends[at : at + size]) for at in range(0, len(times), size)]


def sent_offsets(pace: Pace, times: list[float]) -> list[float]:
    clock = HandClock()
    collector = Collector(clock)
    began = clock()
    deliver(chunks(times), collector, pace, clock=clock, sleep=clock.sleep)
    assert [send.value for send in collector.sent] == [b"%d" % number for number in range(len(times))]
    assert collector.flushed == len(times)
    return [at - began for at in collector.sent_at]


def test_everything_leaves_at_once_without_a_pace() -> None:
    assert sent_offsets(Fastest(), [0.0, 50.0, 10.0, 1e9]) == [0.0] * 4


def test_a_rate_spaces_records_evenly_whatever_their_times() -> None:
    offsets = sent_offsets(PerSecond(5), [7.0] * 8)

    assert offsets == pytest.approx([number / 5 for number in range(8)], abs=QUANTUM_S)


def test_the_recorded_pace_is_kept_times_its_speed() -> None:
    offsets = sent_offsets(Recorded(speed=10), [100.0, 101.0, 104.0, 104.0, 130.0])

    assert offsets == pytest.approx([0.0, 0.1, 0.4, 0.4, 3.0], abs=QUANTUM_S)


def test_a_time_that_steps_back_is_due_at_once_and_delays_nothing() -> None:
    offsets = sent_offsets(Recorded(), [10.0, 12.0, 3.0, 11.0, 13.0])

    assert offsets == pytest.approx([0.0, 2.0, 2.0, 2.0, 3.0], abs=QUANTUM_S)


# No record leaves before it is due, nor later than one shortest wait after.
@given(
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=30),
    pace=st.sampled_from([Fastest(), PerSecond(3), PerSecond(1_000), Recorded(0.5), Recorded(100)]),
)
def test_records_leave_when_they_are_due(gaps: list[float], pace: Pace) -> None:
    times = [sum(gaps[: end + 1]) for end in range(len(gaps))]

    offsets = sent_offsets(pace, times)

    due = pace.due(0, times, times[0])
    for at, when in zip(offsets, due, strict=True):
        assert when - 1e-6 <= at <= when + QUANTUM_S + 1e-6


def test_a_pace_catches_up_after_the_bus_was_slow(clock: HandClock) -> None:
    class Slow(Collector):
        def send(self, sends: object) -> None:
            super().send(sends)  # type: ignore[arg-type]
            if len(self.sent) == 1:
                clock.now += 1.0

    collector = Slow(clock)
    deliver(chunks([0.0] * 30), collector, PerSecond(10), clock=clock, sleep=clock.sleep)

    assert clock() - 1_000.0 == pytest.approx(2.9, abs=QUANTUM_S)


def test_what_was_sent_is_flushed_before_a_wait(clock: HandClock) -> None:
    collector = Collector(clock)
    unflushed = []

    def sleep(seconds: float) -> None:
        unflushed.append(len(collector.sent) - collector.flushed)
        clock.sleep(seconds)

    deliver(chunks([0.0, 5.0, 6.0]), collector, Recorded(), clock=clock, sleep=sleep)

    assert set(unflushed) == {0}


def test_progress_counts_and_says_the_event_time(collector: Collector, clock: HandClock) -> None:
    seen: list[Progress] = []

    deliver(
        chunks([4.0, 5.0, 6.0, 7.0]),
        collector,
        Recorded(),
        total=4,
        on_progress=seen.append,
        clock=clock,
        sleep=clock.sleep,
    )

    assert [(progress.sent, progress.total, progress.event_time) for progress in seen] == [
        (1, 4, 4.0),
        (2, 4, 5.0),
        (3, 4, 6.0),
        (4, 4, 7.0),
    ]
    assert seen[-1].elapsed_s == pytest.approx(3.0, abs=2 * QUANTUM_S)


def stop_at(clock: HandClock, when: float) -> Callable[[], bool]:
    return lambda: clock() >= when


def test_a_stop_ends_a_long_wait_and_flushes(collector: Collector, clock: HandClock) -> None:
    stop = stop_at(clock, 1_005.0)

    sent = deliver(
        chunks([0.0, 3600.0]), collector, Recorded(), should_stop=stop, clock=clock, sleep=clock.sleep
    )

    assert sent == 1 == collector.flushed
    assert clock() <= 1_005.0 + LOOK_S + 1e-6


def test_a_stop_takes_no_further_chunk(collector: Collector, clock: HandClock) -> None:
    sent = deliver(
        chunks([0.0] * 9), collector, Fastest(), should_stop=lambda: len(collector.sent) >= 3, clock=clock
    )

    assert sent == 3


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_and_speeds_are_above_zero(bad: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        PerSecond(bad)
    with pytest.raises(ConfigError, match="above 0"):
        Recorded(bad)


def test_ticks_keep_their_schedule_whatever_the_work_takes(clock: HandClock) -> None:
    at = []
    for tick in ticks(0.25, lambda: len(at) == 40, clock, clock.sleep):
        at.append((tick, clock() - 1_000.0))
        clock.now += 0.1

    assert [tick for tick, _ in at] == list(range(40))
    assert [when for _, when in at] == pytest.approx([0.25 * tick for tick in range(40)])


@pytest.mark.parametrize(("work_s", "following"), [(3.5, 5), (3.9, 6), (4.0, 6)])
def test_missed_ticks_are_left_out_not_made_up_for(clock: HandClock, work_s: float, following: int) -> None:
    at = []
    for tick in ticks(1.0, lambda: len(at) == 5, clock, clock.sleep):
        at.append((tick, clock() - 1_000.0))
        if tick == 1:
            clock.now += work_s

    assert [tick for tick, _ in at] == [0, 1, following, following + 1, following + 2]
    assert at[2][1] - (1.0 + work_s) >= 0.25
