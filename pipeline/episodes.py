"""Scores to episodes: pending, firing, resolved.

A row whose score is at or above 1 opens an episode. Whether it lasts (``for``) and whether it is over
(``recovery``) is told by the last row's own error, because a window's mean keeps one spike above the line for
as many rows as the window has. For the same reason a resolved series is armed again only once its window has
come below the line, or a new row is above its own.
"""

from __future__ import annotations

from pipeline.kernels import Row, kernel
from pipeline.policy import NEVER, JudgePolicy

IDLE, PENDING, FIRING = 0, 1, 2
NOTHING, FIRED, RESOLVED = 0, 1, 2


@kernel
def step(row: Row, time_ns: int, score: float, last_score: float, policy: JudgePolicy) -> int:
    """Move one series by one judged row; returns NOTHING, FIRED or RESOLVED."""
    above, last_above = score >= 1.0, last_score >= 1.0
    if above and row.above_ns == NEVER:
        row.above_ns = time_ns
    if row.episode == FIRING:
        row.peak = max(row.peak, score)
        row.run = 0 if last_above else row.run + 1
        if row.run < policy.recovery_rows:
            return NOTHING
        row.quiet_until_ns = time_ns + policy.refractory_ns
        row.revision += 1
        _rest(row, above)
        return RESOLVED
    if row.episode == PENDING:
        if not (above and last_above):
            _rest(row, above)
            return NOTHING
        row.run += 1
    else:
        if not above:
            _rest(row, above)
            return NOTHING
        fresh = last_above or (row.armed == 1 and policy.for_rows == 1)
        if not fresh or time_ns < row.quiet_until_ns:
            return NOTHING
        row.start_ns = time_ns
        row.peak = score
        row.run = 1
    row.episode = PENDING
    row.peak = max(row.peak, score)
    if row.run < policy.for_rows:
        return NOTHING
    row.episode = FIRING
    row.run = 0
    row.revision = 1
    return FIRED


@kernel
def impose(
    row: Row, time_ns: int, score: float, last_score: float, policy: JudgePolicy, change: int, start_ns: int
) -> None:
    """Move one series by one row that was judged before: ``change`` says what it did then.

    Where its own judgement falls the other way, which takes an error within rounding of the line, the
    series is left as a row on the other side of the line would leave it.
    """
    quiet_until_ns, above_ns = row.quiet_until_ns, row.above_ns
    mine = step(row, time_ns, score, last_score, policy)
    if mine == change:
        if change == FIRED:
            row.start_ns = start_ns
        return
    if mine == FIRED:
        # The window came down, or else only its newest row was at its own line.
        _rest(row, abs(last_score - 1.0) < abs(score - 1.0))
    elif mine == RESOLVED:
        row.episode = FIRING
        row.run = 0
        row.revision -= 1
        row.quiet_until_ns = quiet_until_ns
        row.above_ns = above_ns
    if change == FIRED:
        row.peak = max(row.peak, score) if row.episode == PENDING else score
        row.episode = FIRING
        row.start_ns = start_ns
        row.run = 0
        row.revision = 1
        row.above_ns = time_ns if above_ns == NEVER else above_ns
    elif change == RESOLVED:
        row.quiet_until_ns = time_ns + policy.refractory_ns
        row.revision += 1
        _rest(row, score >= 1.0)


@kernel
def _rest(row: Row, above: bool) -> None:
    row.episode = IDLE
    row.armed = 0 if above else 1
    if not above:
        row.above_ns = NEVER


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
