"""Scores to episodes: when an alert fires, when it is over, and when a series stays quiet."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from feeding import COMPILED, Feed, S, reading, stream
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.alerts import Alert
from pipeline.episodes import (
    FIRED,
    FIRING,
    NOTHING,
    QUIET,
    RECOVERS,
    RESOLVED,
    STALE,
    TRIVIAL,
    WAITS,
    WORSENED,
    accept,
    clear,
    frozen,
    impose,
    step,
)
from pipeline.policy import judge_policy
from pipeline.series import Layout
from pipeline.thresholds import ACCEPTED

LOW, HIGH = 0.5, 2.0
STEADY = (LOW, LOW)
BURST = (HIGH, HIGH)
ECHO = (HIGH, LOW)
"""The window still holds a spike, the newest row is well."""


class Episodes:
    """One series, a row a second."""

    def __init__(self, **rules: object) -> None:
        self.policy = judge_policy(stream(rules=rules, threshold={"policy": "ewma", "adapt_after": "100s"}))
        self.row: np.void = Layout(2, 1, 0, 1, 0, "").arrays(1).rows[0]
        clear(self.row)
        self.second, self.deviates, self.rule = 0, True, -1

    def take(self, *scores: tuple[float, float]) -> list[int]:
        changes = []
        for score, last_score in scores:
            self.second += 1
            change, self.rule = step(self.row, self.second * S, score, last_score, self.deviates, self.policy)
            changes.append(change)
        return changes

    def follow(self, *rows: tuple[tuple[float, float], int, int]) -> None:
        """Rows that were judged before: their scores now, what they did then, and the start of what fired."""
        for (score, last_score), change, start_ns in rows:
            self.second += 1
            impose(self.row, self.second * S, score, last_score, True, self.policy, change, start_ns)

    def frozen(self) -> bool:
        return frozen(self.row, self.second * S, self.policy)


def test_a_score_of_one_is_above_the_line() -> None:
    assert Episodes().take((1.0, 1.0)) == [FIRED]
    assert Episodes().take((0.999, 0.999)) == [NOTHING]


def test_for_counts_rows_above_the_line_before_an_alert_fires() -> None:
    assert Episodes(**{"for": 3}).take(BURST, BURST, BURST) == [NOTHING, NOTHING, FIRED]


def test_an_episode_begins_at_its_first_row_not_where_it_fired() -> None:
    episodes = Episodes(**{"for": 3})

    episodes.take(STEADY, BURST, BURST, BURST)

    assert episodes.row.start_ns == 2 * S


def test_a_row_below_the_line_ends_what_is_pending() -> None:
    assert FIRED not in Episodes(**{"for": 3}).take(BURST, BURST, STEADY, BURST, BURST)


def test_for_counts_by_the_last_row_so_the_echo_of_a_spike_fires_nothing() -> None:
    assert FIRED not in Episodes(**{"for": 2}).take(BURST, ECHO, ECHO, ECHO, ECHO)


def test_what_is_too_close_to_what_was_expected_fires_nothing_and_teaches() -> None:
    episodes = Episodes()
    episodes.deviates = False

    assert episodes.take(BURST, BURST) == [NOTHING, NOTHING]
    assert episodes.rule == TRIVIAL
    assert not episodes.frozen()


def test_rows_that_deviate_too_little_count_towards_recovery() -> None:
    episodes = Episodes(recovery=2)
    episodes.take(BURST)
    episodes.deviates = False

    assert episodes.take(BURST, BURST) == [NOTHING, RESOLVED]


def test_recovery_counts_only_rows_below_its_own_line() -> None:
    episodes = Episodes(recovery=2, recovery_line=0.4)

    assert episodes.take(BURST, STEADY, STEADY) == [FIRED, NOTHING, NOTHING]
    assert episodes.take((0.3, 0.3), (0.3, 0.3)) == [NOTHING, RESOLVED]


def test_recovery_lasts_as_long_as_it_must() -> None:
    episodes = Episodes(recovery=2, recovery_for="3s")

    assert episodes.take(BURST, STEADY, STEADY, STEADY) == [FIRED, NOTHING, NOTHING, NOTHING]
    assert episodes.rule == RECOVERS
    assert episodes.take(STEADY) == [RESOLVED]


def test_an_open_alert_that_becomes_critical_says_so_once() -> None:
    episodes = Episodes(critical=3.0)

    assert episodes.take(BURST, (3.0, 3.0), BURST, (5.0, 5.0)) == [FIRED, WORSENED, NOTHING, NOTHING]
    assert episodes.row.revision == 2


@pytest.mark.parametrize(
    ("rules", "scores", "rule"),
    [
        ({"for": 3}, [BURST], WAITS),
        ({"for": 2}, [ECHO], STALE),
        ({"refractory": "9s", "recovery": 1}, [BURST, STEADY, BURST], QUIET),
    ],
)
def test_the_rule_that_held_a_row_back_is_told(
    rules: dict[str, object], scores: list[tuple[float, float]], rule: int
) -> None:
    episodes = Episodes(**rules)

    assert episodes.take(*scores)[-1] == NOTHING
    assert episodes.rule == rule


def test_what_is_accepted_is_over_and_teaches() -> None:
    episodes = Episodes()
    episodes.take(BURST, BURST)
    assert episodes.frozen()

    accept(episodes.row)

    assert not episodes.frozen()
    assert (episodes.row.episode, episodes.row.rows) == (0, ACCEPTED)


def test_recovery_counts_rows_in_a_row_whose_own_error_is_below() -> None:
    episodes = Episodes(recovery=3)

    assert episodes.take(BURST, ECHO, ECHO, BURST, ECHO, STEADY, STEADY) == [
        FIRED,
        *[NOTHING] * 5,
        RESOLVED,
    ]
    assert (episodes.row.revision, episodes.row.peak) == (2, HIGH)


def test_the_peak_is_the_highest_score_of_the_whole_episode() -> None:
    episodes = Episodes(**{"for": 2, "recovery": 2})

    peaks = []
    for row in ((2.0, 2.0), (3.0, 3.0), (9.0, 9.0), (1.0, 0.5), (0.5, 0.5), (4.0, 4.0)):
        episodes.take(row)
        peaks.append(float(episodes.row.peak))

    assert peaks == [2.0, 3.0, 9.0, 9.0, 9.0, 4.0]


def test_a_slow_drift_that_only_the_window_shows_fires_too() -> None:
    assert Episodes().take(STEADY, ECHO) == [NOTHING, FIRED]


def test_a_resolved_series_is_armed_again_once_its_window_came_below_the_line() -> None:
    episodes = Episodes(recovery=2)

    assert episodes.take(BURST, ECHO, ECHO, ECHO, ECHO) == [FIRED, NOTHING, RESOLVED, NOTHING, NOTHING]
    assert episodes.take(STEADY, ECHO) == [NOTHING, FIRED]


def test_a_new_row_above_its_own_line_fires_again_while_the_window_is_still_high() -> None:
    assert Episodes(recovery=1).take(BURST, ECHO, BURST) == [FIRED, RESOLVED, FIRED]


def test_within_the_refractory_time_no_new_alert_fires() -> None:
    episodes = Episodes(recovery=1, refractory="3s")

    assert episodes.take(BURST, STEADY) == [FIRED, RESOLVED]
    assert episodes.take(BURST, BURST, BURST) == [NOTHING, NOTHING, FIRED]


def test_moments_are_frozen_from_the_first_row_above_until_the_window_is_below_again() -> None:
    episodes = Episodes(recovery=1)
    held = []
    for row in (STEADY, BURST, ECHO, ECHO, STEADY):
        episodes.take(row)
        held.append(episodes.frozen())

    assert held == [False, True, True, True, False]


def test_a_pending_row_is_frozen_too() -> None:
    episodes = Episodes(**{"for": 5})

    episodes.take(BURST)

    assert episodes.frozen()


def test_one_spike_is_one_short_alert_however_long_its_window_remembers_it() -> None:
    feed = Feed(stream(window=32, rules={"recovery": 4}))

    feed.send(*(reading("a", t, 500.0 if t == 50 else 1.0) for t in range(150)))

    fired, resolved = feed.alerts
    assert (fired.at.timestamp(), resolved.at.timestamp()) == (50, 54)
    assert fired.score is not None
    assert fired.score > 1


def test_a_fired_alert_of_a_series_that_is_forgotten_resolves_as_gone() -> None:
    feed = Feed(stream(forget_after="100s"))

    feed.send(reading("a", 0), reading("a", 1, 50.0), reading("b", 200))

    fired, gone = feed.alerts
    assert (gone.id, gone.revision, gone.state, gone.reason) == (fired.id, 2, "resolved", "gone")
    assert gone.peak_score == fired.peak_score
    assert (gone.score, gone.error, gone.threshold, gone.features) == (None, None, None, [])


def test_a_pending_episode_of_a_forgotten_series_leaves_no_trace() -> None:
    feed = Feed(stream(forget_after="100s", rules={"for": 3}))

    feed.send(reading("a", 0), reading("a", 1, 50.0), reading("b", 200))
    feed.send(reading("a", 201), reading("a", 202, 50.0), reading("a", 203, 50.0))

    assert feed.alerts == []


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, float, float]]:
    """Readings of two series: series, time, value; with silences in which one or both are forgotten."""
    now, found = 0.0, []
    for _ in range(draw(st.integers(1, 60))):
        now += draw(st.sampled_from([1, 1, 1, 1, 1, 20, 40, 120]))
        found.append((draw(st.sampled_from("ab")), now, draw(st.sampled_from([1.0, 1.0, 1.2, 50.0]))))
    return found


@settings(deadline=None, derandomize=True, max_examples=200 if COMPILED else 30)
@given(
    history=histories(),
    rules=st.fixed_dictionaries(
        {
            "for": st.integers(1, 3),
            "recovery": st.integers(1, 4),
            "refractory": st.sampled_from(["0s", "5s", "60s"]),
        }
    ),
    window=st.integers(2, 5),
    batch_rows=st.integers(1, 60),
)
def test_each_alert_fires_once_resolves_at_most_once_and_none_overlap(
    history: list[tuple[str, float, float]], rules: dict[str, object], window: int, batch_rows: int
) -> None:
    feed = Feed(stream(window=window, rules=rules, silent_after="30s", forget_after="100s"))
    events = [reading(*one) for one in history]
    for first in range(0, len(events), batch_rows):
        feed.send(*events[first : first + batch_rows])

    episodes: dict[tuple[str, str], list[Alert]] = {}
    for alert in feed.alerts:
        episodes.setdefault((alert.series, alert.kind), []).append(alert)
    for (series, kind), alerts in episodes.items():
        for before, after in pairwise(alerts):
            assert (before.state, after.state) in {("firing", "resolved"), ("resolved", "firing")}
            assert (before.id == after.id) == (after.state == "resolved")
            assert before.at <= after.at
        assert alerts[0].state == "firing"
        assert [alert.revision for alert in alerts] == [1 + n % 2 for n in range(len(alerts))]
        if alerts[-1].state == "firing":
            assert is_open(feed, series, kind)


def is_open(feed: Feed, series: str, kind: str) -> bool:
    row = feed.row(series)
    return bool(row["episode"] == 2 if kind == "anomaly" else row["silent"] == 1)


# Rows that are read again do what they did, though their errors may be a rounding away from what they were.

BELOW, ABOVE = 1 - 1e-7, 1 + 1e-7


def judged(rows: list[tuple[float, float]], **rules: object) -> tuple[Episodes, list[tuple[int, int]]]:
    """What rows did, each with the start of the episode that it was in then."""
    live, done = Episodes(**rules), []
    for row in rows:
        [change] = live.take(row)
        done.append((change, int(live.row.start_ns)))
    return live, done


def read_again(rows: list[tuple[float, float]], done: list[tuple[int, int]], **rules: object) -> Episodes:
    again = Episodes(**rules)
    again.follow(*((row, *did) for row, did in zip(rows, done, strict=True)))
    return again


def test_rows_judged_alike_leave_the_same_state() -> None:
    rows = [STEADY, BURST, ECHO, BURST, STEADY, STEADY, ECHO, STEADY, BURST]
    rules = {"recovery": 2, "refractory": "2s"}

    live, done = judged(rows, **rules)

    assert [change for change, _ in done if change != NOTHING] == [FIRED, RESOLVED, FIRED]
    assert read_again(rows, done, **rules).row.tobytes() == live.row.tobytes()


def test_a_row_that_fired_fires_again_though_it_is_below_the_line_now() -> None:
    again = read_again([STEADY, (BELOW, BELOW)], [(NOTHING, 0), (FIRED, 2 * S)])

    assert (again.row.episode, again.row.start_ns, again.row.revision) == (FIRING, 2 * S, 1)
    assert again.frozen()


def test_what_fires_again_has_a_peak_of_its_own() -> None:
    rows, rules = [BURST, STEADY, (BELOW, BELOW)], {"recovery": 1}

    again = read_again(rows, [(FIRED, 1 * S), (RESOLVED, 1 * S), (FIRED, 3 * S)], **rules)

    assert again.row.peak == BELOW


# Its first row was above the line by far: what the series is frozen for counts from there.
def test_a_pending_series_that_fired_is_frozen_from_where_it_rose_above_the_line() -> None:
    again = read_again([BURST, (BELOW, HIGH)], [(NOTHING, 1 * S), (FIRED, 1 * S)], **{"for": 2})

    assert (again.row.episode, again.row.start_ns, again.row.above_ns) == (FIRING, 1 * S, 1 * S)


def test_a_row_that_did_not_fire_does_not_though_it_is_above_the_line_now() -> None:
    again = read_again([STEADY, (ABOVE, ABOVE)], [(NOTHING, 0)] * 2)

    assert again.row.episode != FIRING
    assert not again.frozen()
    assert again.take(BURST) == [FIRED]
    assert again.row.start_ns == 3 * S


# The window still holds a spike. Had the newest row, which is at its own line, been above it, it had fired.
def test_an_echo_that_did_not_fire_leaves_the_series_quiet_until_its_window_came_down() -> None:
    rows = [BURST, ECHO, (HIGH, ABOVE)]

    again = read_again(rows, [(FIRED, 1 * S), (RESOLVED, 1 * S), (NOTHING, 0)], recovery=1)

    assert again.take(ECHO, ECHO) == [NOTHING, NOTHING]
    assert again.take(STEADY, ECHO) == [NOTHING, FIRED]


def test_an_episode_that_was_not_over_goes_on_though_it_would_be_now() -> None:
    again = read_again([BURST, (HIGH, BELOW)], [(FIRED, 1 * S), (NOTHING, 0)], recovery=1, refractory="50s")

    assert (again.row.episode, again.row.start_ns, again.row.revision) == (FIRING, 1 * S, 1)
    assert again.frozen()
    assert again.take(STEADY) == [RESOLVED]
    assert again.row.revision == 2
    assert again.take(*[BURST] * 49) == [NOTHING] * 49
    assert again.take(BURST) == [FIRED]


def test_an_episode_that_was_over_is_though_it_would_not_be_now() -> None:
    rows = [BURST, (HIGH, ABOVE)]

    again = read_again(rows, [(FIRED, 1 * S), (RESOLVED, 1 * S)], recovery=1, refractory="5s")

    assert (again.row.episode, again.row.revision) == (0, 2)
    assert again.take(*[BURST] * 5) == [NOTHING] * 4 + [FIRED]


TIED = st.sampled_from([LOW, HIGH, 1.0])


@settings(deadline=None, derandomize=True, max_examples=300 if COMPILED else 60)
@given(
    rows=st.lists(st.tuples(TIED, TIED), max_size=25),
    rules=st.fixed_dictionaries(
        {
            "for": st.integers(1, 3),
            "recovery": st.integers(1, 3),
            "refractory": st.sampled_from(["0s", "4s"]),
        }
    ),
    draw=st.data(),
)
def test_rows_at_the_line_do_what_they_did_whichever_way_they_fall_now(
    rows: list[tuple[float, float]], rules: dict[str, object], draw: st.DataObject
) -> None:
    def fallen() -> list[tuple[float, float]]:
        side = st.sampled_from([BELOW, ABOVE])
        return [tuple(draw.draw(side) if one == 1.0 else one for one in row) for row in rows]

    live, again = Episodes(**rules), Episodes(**rules)
    for then, now in zip(fallen(), fallen(), strict=True):
        [change] = live.take(then)
        again.follow((now, change, int(live.row.start_ns)))

        assert (again.row.episode == FIRING) == (live.row.episode == FIRING)
        assert again.row.quiet_until_ns == live.row.quiet_until_ns
        if live.row.episode == FIRING:
            assert (again.row.start_ns, again.row.revision) == (live.row.start_ns, live.row.revision)
            assert again.frozen() == live.frozen()
