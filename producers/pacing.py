"""When records leave: paces for recorded and made-up events, fixed ticks for live readings, progress, stop.

Clock and sleep are arguments everywhere, so that a test runs an hour of pacing in a millisecond.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

from pipeline.errors import ConfigError
from pipeline.ports import Producer
from pipeline.records import Send

Clock = Callable[[], float]
Sleep = Callable[[float], object]
ShouldStop = Callable[[], bool]

LOOK_S = 0.1
"""A wait looks this often whether it should stop."""

QUANTUM_S = 0.01
"""The shortest wait: at high rates, records leave in groups of what fell due meanwhile."""


def never() -> bool:
    """Do not stop."""
    return False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a producer has come.

    Attributes:
        sent: records handed to the bus.
        total: records there will be, None when it is not known.
        elapsed_s: seconds since the start.
        event_time: event time of the last record sent, in epoch seconds.
    """

    sent: int
    total: int | None
    elapsed_s: float
    event_time: float


OnProgress = Callable[[Progress], None]


class Chunk(NamedTuple):
    """Records on their way: ``times[i]`` is the event time of ``sends[i]`` in epoch seconds; never empty."""

    times: Sequence[float]
    sends: Sequence[Send]


class Pace(Protocol):
    """When each record is due."""

    def due(self, sent: int, times: Sequence[float], first_time: float) -> list[float]:
        """Seconds after the start at which each record is due, never falling.

        ``sent`` records went before these; ``first_time`` is the event time of the very first one.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fastest:
    """Everything is due at once."""

    def due(self, sent: int, times: Sequence[float], first_time: float) -> list[float]:
        """See :class:`Pace`."""
        del sent, first_time
        return [0.0] * len(times)


@dataclass(frozen=True, slots=True)
class PerSecond:
    """``rate`` records a second, whatever their event times.

    Raises:
        ConfigError: the rate is not a number above zero.
    """

    rate: float

    def __post_init__(self) -> None:
        _require_positive("rate", self.rate)

    def due(self, sent: int, times: Sequence[float], first_time: float) -> list[float]:
        """See :class:`Pace`."""
        del first_time
        return [number / self.rate for number in range(sent, sent + len(times))]


@dataclass(frozen=True, slots=True)
class Recorded:
    """As far apart as their event times, ``speed`` times as fast; what steps back in time is due at once.

    Raises:
        ConfigError: the speed is not a number above zero.
    """

    speed: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("speed", self.speed)

    def due(self, sent: int, times: Sequence[float], first_time: float) -> list[float]:
        """See :class:`Pace`."""
        del sent
        return list(accumulate(((at - first_time) / self.speed for at in times), max))


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value}; give a number above 0")


def deliver(
    chunks: Iterable[Chunk],
    producer: Producer,
    pace: Pace,
    *,
    total: int | None = None,
    on_sent: Callable[[Sequence[Send]], None] | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop = never,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> int:
    """Send every record when it is due, in order; returns how many were sent.

    What was sent is flushed before every wait and at the end, so a reader sees it without delay.

    Args:
        chunks: the records, in order.
        producer: where they go.
        pace: when each is due.
        total: how many there will be, for the progress.
        on_sent: called with each group handed to the bus.
        on_progress: called after each group.
        should_stop: asked before each group and every ``LOOK_S`` of a wait.
        clock: seconds that never step back.
        sleep: waits for so many seconds.

    Raises:
        NotFound, BusDown, BusFull: from the producer.
    """
    began = clock()
    sent = flushed = 0
    first_time: float | None = None
    for times, sends in chunks:
        first_time = times[0] if first_time is None else first_time
        due = pace.due(sent, times, first_time)
        done = 0
        while done < len(due) and not should_stop():
            elapsed_s = clock() - began
            end = bisect_right(due, elapsed_s, done)
            if end == done:
                if flushed < sent:
                    producer.flush()
                    flushed = sent
                sleep(min(max(due[done] - elapsed_s, QUANTUM_S), LOOK_S))
                continue
            group = sends[done:end]
            producer.send(group)
            sent += end - done
            done = end
            if on_sent:
                on_sent(group)
            if on_progress:
                on_progress(Progress(sent, total, clock() - began, times[done - 1]))
        if done < len(due):
            break
    producer.flush()
    return sent


def ticks(period_s: float, should_stop: ShouldStop, clock: Clock, sleep: Sleep) -> Iterator[int]:
    """Yield 0, 1, 2, ... at the start plus 0, 1, 2, ... periods, until ``should_stop``.

    The schedule does not drift. Ticks that passed while the caller was busy, or follow in less than a quarter
    of a period, are left out and not made up for.
    """
    began = clock()
    tick = 0
    while not should_stop():
        early_s = began + tick * period_s - clock()
        if early_s > 0:
            sleep(min(early_s, LOOK_S))
            continue
        yield tick
        tick = max(tick + 1, math.ceil((clock() - began) / period_s + 0.25))
