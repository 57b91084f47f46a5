"""This machine's metrics as events: a steady source that every installation has, read through psutil.

Every figure covers the last second, so that a quiet machine gives a smooth signal (the kernel counts
processor time in steps of 10 ms) while a burst of load shows within a fraction of that second.
"""

from __future__ import annotations

import math
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import psutil

from pipeline.errors import ConfigError
from pipeline.ports import Producer
from pipeline.records import Send
from producers.pacing import Clock, OnProgress, Progress, ShouldStop, Sleep, never, ticks

WINDOW_S = 1.0
"""What a percentage or a rate covers."""

FASTEST_PER_SECOND = 100.0

Reading = dict[str, float | None]
_Counts = list[float]


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of a host event, as a person would say it."""

    name: str
    unit: str
    description: str


FEATURES = (
    Feature("cpu", "%", "processor time in use, over all cores"),
    Feature("cpu_max", "%", "processor time in use on the busiest core"),
    Feature("cpu_system", "%", "processor time spent in the kernel, over all cores"),
    Feature("memory", "%", "memory that is not available to programs"),
    Feature("ctx_switches", "1/s", "context switches"),
    Feature("interrupts", "1/s", "interrupts"),
    Feature("disk", "B/s", "bytes read from and written to disks"),
    Feature("net", "B/s", "bytes sent and received, without the loopback interface"),
)


class _Missing(Exception):  # noqa: N818 - reads as the fact it states
    """This machine does not give a counter."""


def _core_times() -> _Counts:
    """Busy, kernel and total seconds of each core, one core after the other."""
    counts = []
    for core in psutil.cpu_times(percpu=True):
        # Time of guests is counted in user and nice already.
        total = sum(core) - getattr(core, "guest", 0.0) - getattr(core, "guest_nice", 0.0)
        kernel = core.system + getattr(core, "irq", 0.0) + getattr(core, "softirq", 0.0)
        counts += [total - core.idle - getattr(core, "iowait", 0.0), kernel, total]
    if not any(counts):
        raise _Missing("processor times are all zero")
    return counts


def _ctx_switches() -> _Counts:
    return _nonzero(psutil.cpu_stats().ctx_switches)


def _interrupts() -> _Counts:
    return _nonzero(psutil.cpu_stats().interrupts)


def _nonzero(count: int) -> _Counts:
    if not count:
        raise _Missing("the counter stands at zero")
    return [float(count)]


def _disk_bytes() -> _Counts:
    disks = psutil.disk_io_counters()
    if disks is None:
        raise _Missing("no disk is visible")
    return [float(disks.read_bytes + disks.write_bytes)]


def _net_bytes() -> _Counts:
    nics = psutil.net_io_counters(pernic=True)
    counted = [
        nic.bytes_sent + nic.bytes_recv for name, nic in nics.items() if name.rstrip("0123456789") != "lo"
    ]
    if not counted:
        raise _Missing("no interface but loopback is visible")
    return [float(sum(counted))]


def _memory() -> _Counts:
    return [float(psutil.virtual_memory().percent)]


def _share_of_time(passed: _Counts) -> Reading:
    busy, kernel, total = passed[0::3], passed[1::3], passed[2::3]
    if min(total) <= 0:  # a core went away or stood still
        return dict.fromkeys(("cpu", "cpu_max", "cpu_system"))
    return {
        "cpu": _percent(sum(busy) / sum(total)),
        "cpu_max": _percent(max(map(float.__truediv__, busy, total))),
        "cpu_system": _percent(sum(kernel) / sum(total)),
    }


def _percent(share: float) -> float:
    return round(100.0 * min(max(share, 0.0), 1.0), 3)


class _Counter:
    """Counters that psutil gives in one call, remembered over the window."""

    def __init__(self, names: tuple[str, ...], count: Callable[[], _Counts]) -> None:
        self.names = names
        self._count = count
        self._past: deque[tuple[float, _Counts]] = deque()

    def count(self) -> _Counts:
        """The counters now.

        Raises:
            _Missing: this machine does not give them, or not now.
        """
        try:
            return self._count()
        except (OSError, psutil.Error, AttributeError, KeyError, ValueError, RuntimeError) as error:
            # What psutil raises where /proc is hidden, cut short or of another shape.
            raise _Missing(f"{type(error).__name__}: {error}") from error

    def read(self, now: float) -> Reading:
        """The figures over the last window, or as much of it as was seen; nulls when there are none."""
        try:
            counts = self.count()
        except _Missing:
            self._past.clear()
            return dict.fromkeys(self.names)
        if self._past and len(self._past[-1][1]) != len(counts):  # cores were added or taken away
            self._past.clear()
        self._past.append((now, counts))
        while len(self._past) > 2 and self._past[1][0] <= now - WINDOW_S:
            self._past.popleft()
        since, before = self._past[0]
        if now <= since:
            return dict.fromkeys(self.names)
        return self.figures([new - old for new, old in zip(counts, before, strict=True)], now - since)

    def figures(self, passed: _Counts, seconds: float) -> Reading:
        """What the counters' growth over ``seconds`` says; a counter that was set back says 0."""
        return {self.names[0]: round(max(passed[0], 0.0) / seconds, 3)}


class _Times(_Counter):
    """Seconds of processor time: shares instead of rates."""

    def figures(self, passed: _Counts, seconds: float) -> Reading:
        del seconds
        return _share_of_time(passed)


class _Gauge(_Counter):
    """A figure that stands for itself."""

    def read(self, now: float) -> Reading:
        del now
        try:
            return {self.names[0]: self.count()[0]}
        except _Missing:
            return dict.fromkeys(self.names)


class HostReader:
    """Reads the machine.

    What this machine cannot give at all is found out once, left out of every reading and said in
    ``notes``; what fails for a moment later is null in that reading.

    Attributes:
        features: what every reading holds.
        notes: one sentence for each figure left out.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._counters: list[_Counter] = []
        notes = []
        for counter in (
            _Times(("cpu", "cpu_max", "cpu_system"), _core_times),
            _Gauge(("memory",), _memory),
            _Counter(("ctx_switches",), _ctx_switches),
            _Counter(("interrupts",), _interrupts),
            _Counter(("disk",), _disk_bytes),
            _Counter(("net",), _net_bytes),
        ):
            try:
                counter.count()
            except _Missing as why:
                notes.append(f"{', '.join(counter.names)}: left out, this machine does not give it ({why})")
            else:
                self._counters.append(counter)
        names = {name for counter in self._counters for name in counter.names}
        self.features = tuple(feature for feature in FEATURES if feature.name in names)
        self.notes: Sequence[str] = tuple(notes)
        if not self.features:
            raise ConfigError("this machine gives none of the host metrics; is /proc mounted?")

    def read(self) -> Reading:
        """Name to figure for all of ``features``; the very first reading has nulls where time must pass."""
        now = self._clock()
        reading: Reading = {}
        for counter in self._counters:
            reading |= counter.read(now)
        return reading


def produce(
    producer: Producer,
    topic: str,
    *,
    per_second: float = 15.0,
    host: str | None = None,
    reader: HostReader | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop = never,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
    wall_clock: Clock = time.time,
) -> int:
    """Send readings of this machine until ``should_stop``; returns how many were sent.

    An event is ``{"time": epoch seconds, "host": name, feature: figure, ...}``, its key the host's name.
    Readings keep a fixed schedule; one that was missed is left out. The first leaves when a whole window
    was seen. Each is flushed, so that it is read at once.

    Args:
        producer: where they go.
        topic: its name, with the namespace's prefix.
        per_second: readings a second.
        host: the name in the events; by default this machine's.
        reader: what reads the machine; hand one in to show its ``notes`` first.
        on_progress: called after each reading.
        should_stop: asked before each reading and several times a second.
        clock: seconds that never step back, for the schedule.
        sleep: waits for so many seconds.
        wall_clock: epoch seconds, for the events.

    Raises:
        ConfigError: the rate is out of range, or the machine gives no metric.
        NotFound, BusDown, BusFull: from the producer.
    """
    if not 0 < per_second <= FASTEST_PER_SECOND:
        raise ConfigError(
            f"{per_second} readings a second were asked for; give above 0 and up to {FASTEST_PER_SECOND:g}"
        )
    reader = reader or HostReader(clock=clock)
    host = host or socket.gethostname()
    key = host.encode()
    began = clock()
    warm_ticks = math.ceil(WINDOW_S * per_second)
    sent = 0
    for tick in ticks(1 / per_second, should_stop, clock, sleep):
        reading = reader.read()
        if tick < warm_ticks:
            continue
        at_ms = round(wall_clock() * 1000)
        event = {"time": at_ms / 1000, "host": host} | reading
        producer.send([Send(topic, key, msgspec.json.encode(event), timestamp_ms=at_ms)])
        producer.flush()
        sent += 1
        if on_progress:
            on_progress(Progress(sent, None, clock() - began, at_ms / 1000))
    return sent
