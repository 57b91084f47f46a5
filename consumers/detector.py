"""The detector: a stream's worker from its first poll to its orderly end."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.loop import Parts, Worker
from pipeline.status import Status

STATUS_S = 2.0


def run(
    parts: Parts,
    *,
    should_stop: Callable[[], bool],
    on_status: Callable[[Status], None] = lambda _: None,
    until_idle_s: float | None = None,
) -> Status:
    """Work until told to stop, or until everything is read and nothing came for ``until_idle_s``.

    At the end the batch at hand is finished, committed and checkpointed; the caller closes the bus.

    Args:
        parts: what the worker is made of.
        should_stop: asked between batches.
        on_status: told every two seconds, whenever what the worker is doing changes, and at the end.
        until_idle_s: for work that has an end.

    Returns:
        The last status.

    Raises:
        OffbeatError: something that trying again cannot mend.
    """
    worker = Worker(parts)
    told, told_at = "", parts.clock()
    read, read_at = -1, parts.clock()
    while not should_stop():
        worker.turn()
        status, now = worker.status(), parts.clock()
        if status.doing != told or now - told_at >= STATUS_S:
            told, told_at = status.doing, now
            on_status(status)
        total = sum(status.bins.values())
        if total != read or status.lag or not status.partitions:
            read, read_at = total, now
        elif until_idle_s is not None and now - read_at >= until_idle_s:
            break
    worker.stop()
    status = worker.status()
    on_status(status)
    return status
