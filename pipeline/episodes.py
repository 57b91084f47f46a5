"""Scores to episodes: pending, firing, resolved.

A row whose score is at or above 1 opens an episode, if it deviates enough (``min_deviation``,
``direction``). Whether it lasts (``for``) and whether it is over (``recovery``) is told by the last row's own
error, because a window's mean keeps one spike above the line for as many rows as the window has. For the same
reason a resolved series is armed again only once its window has come below the line, or a new row is above
its own.
"""

from __future__ import annotations

from pipeline.kernels import Row, kernel
from pipeline.policy import NEVER, JudgePolicy
from pipeline.thresholds import ACCEPTED

IDLE, PENDING, FIRING = 0, 1, 2
NOTHING, FIRED, RESOLVED, WORSENED = 0, 1, 2, 3

# The rule that a row was held to, for whoever asks why it did what it did.
BELOW, TRIVIAL, WAITS, QUIET, STALE, FIRES, OPEN, RECOVERS, ENDS = 0, 1, 2, 3, 4, 5, 6, 7, 8


@kernel
def step(
    row: Row, time_ns: int, score: float, last_score: float, deviates: bool, policy: JudgePolicy
) -> tuple[int, int]:
    """Move one series by one judged row.

    Returns what it did (NOTHING, FIRED, RESOLVED, or WORSENED: the open alert became critical), and the rule
    that decided: BELOW the line; TRIVIAL, above it and too close to what was expected; WAITS for more rows
    (``for``); QUIET, within ``refractory``; STALE, only its window is above, on account of rows of the last
    episode; FIRES; OPEN; RECOVERS, open and below the recovery line; ENDS.
    """
    above, last_above = score >= 1.0 and deviates, last_score >= 1.0 and deviates
    if above and row.above_ns == NEVER:
        row.above_ns = time_ns
    if row.episode == FIRING:
        return _go_on(row, time_ns, score, above, last_score >= policy.recovery_line and deviates, policy)
    if row.episode == PENDING:
        if not (above and last_above):
            _rest(row, above)
            return NOTHING, STALE if above else BELOW
        row.run += 1
    else:
        if not above:
            _rest(row, above)
            return NOTHING, BELOW if deviates or score < 1.0 else TRIVIAL
        if not (last_above or (row.armed == 1 and policy.for_rows == 1)):
            return NOTHING, STALE
        if time_ns < row.quiet_until_ns:
            return NOTHING, QUIET
        row.start_ns = time_ns
        row.peak = score
        row.run = 1
    row.episode = PENDING
    row.peak = max(row.peak, score)
    if row.run < policy.for_rows:
        return NOTHING, WAITS
    row.episode = FIRING
    row.run = 0
    row.revision = 1
    return FIRED, FIRES


@kernel
def _go_on(
    row: Row, time_ns: int, score: float, above: bool, unrest: bool, policy: JudgePolicy
) -> tuple[int, int]:
    """Move an open episode by one row."""
    before = row.peak
    row.peak = max(row.peak, score)
    if unrest:
        row.run = 0
    else:
        if row.run == 0:
            row.calm_ns = time_ns
        row.run += 1
        if row.run >= policy.recovery_rows and time_ns - row.calm_ns >= policy.recovery_ns:
            row.quiet_until_ns = time_ns + policy.refractory_ns
            row.revision += 1
            _rest(row, above)
            return RESOLVED, ENDS
    if before < policy.critical <= row.peak:
        row.revision += 1
        return WORSENED, OPEN
    return NOTHING, OPEN if unrest else RECOVERS


@kernel
def impose(
    row: Row,
    time_ns: int,
    score: float,
    last_score: float,
    deviates: bool,
    policy: JudgePolicy,
    change: int,
    start_ns: int,
) -> int:
    """Move one series by one row that was judged before: ``change`` says what it did then.

    Where its own judgement falls the other way, which takes an error within rounding of the line, the
    series is left as a row on the other side of the line would leave it. Returns the rule, as :func:`step`.
    """
    quiet_until_ns, above_ns = row.quiet_until_ns, row.above_ns
    mine, rule = step(row, time_ns, score, last_score, deviates, policy)
    if mine == change:
        if change == FIRED:
            row.start_ns = start_ns
        return rule
    if mine == FIRED:
        # The window came down, or else only its newest row was at its own line.
        _rest(row, abs(last_score - 1.0) < abs(score - 1.0))
    elif mine == RESOLVED:
        row.episode = FIRING
        row.run = 0
        row.revision -= 1
        row.quiet_until_ns = quiet_until_ns
        row.above_ns = above_ns
    elif mine == WORSENED:
        row.revision -= 1
    if change == FIRED:
        row.peak = max(row.peak, score) if row.episode == PENDING else score
        row.episode = FIRING
        row.start_ns = start_ns
        row.run = 0
        row.revision = 1
        row.above_ns = time_ns if above_ns == NEVER else above_ns
        return FIRES
    if change == RESOLVED:
        row.quiet_until_ns = time_ns + policy.refractory_ns
        row.revision += 1
        _rest(row, score >= 1.0 and deviates)
        return ENDS
    if change == WORSENED:
        row.revision += 1
    return OPEN if row.episode == FIRING else BELOW


@kernel
def _rest(row: Row, above: bool) -> None:
    row.episode = IDLE
    row.armed = 0 if above else 1
    if not above:
        row.above_ns = NEVER


@kernel
def accept(row: Row) -> None:
    """Let what a series does now be its normal: an open episode ends, and its next row starts the line."""
    _rest(row, False)
    row.run = 0
    row.rows = ACCEPTED


@kernel
def frozen(row: Row, time_ns: int, policy: JudgePolicy) -> bool:
    """Whether a row must not teach: the series is judged anomalous, and not for ``adapt_after`` yet."""
    return bool(row.above_ns != NEVER and time_ns - row.above_ns < policy.adapt_ns)


@kernel
def clear(row: Row) -> None:
    """What a series begins with, and is left with when it is gone."""
    row.episode = IDLE
    row.armed = 1
    row.above_ns = NEVER
    row.quiet_until_ns = NEVER
    row.calm_ns = NEVER
    row.start_ns = 0
    row.peak = 0.0
    row.run = 0
    row.revision = 0
    row.rows = 0.0
    row.error_mean = 0.0
    row.error_variance = 0.0
    row.last_mean = 0.0
    row.last_variance = 0.0
    row.judged_ns = 0
