"""Made-up readings of many series with a daily rhythm, and named faults at known places.

Everything follows from the options: the same seed gives the same bytes, and faults change nothing but
the rows they stand in, so a run without them is the same run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import msgspec
import numpy as np

from pipeline.errors import ConfigError
from pipeline.ports import Producer
from pipeline.records import Send
from producers.faults import FAULTS, Fault, Float64s, Span, place
from producers.pacing import Chunk, Clock, Fastest, OnProgress, Pace, ShouldStop, Sleep, deliver, never

_BLOCK_EVENTS = 16_384
_CHUNK_EVENTS = 4_096
_DECIMALS = 3
_FEATURE_NAMES = ("temperature", "pressure", "vibration", "power", "flow", "current", "humidity", "speed")

_SIGNAL, _NOISE, _PLACES, _FAULT = range(4)
"""Random numbers come from streams of their own, so that none depends on how many another drew."""


class Label(msgspec.Struct, frozen=True):
    """Where a fault stands.

    Attributes:
        series: the series that has it.
        fault: one of ``FAULTS``.
        features: the features it changes; all of them for ``silence``.
        start, end: event time of its first and of its last row, in epoch seconds, both included.
    """

    series: str
    fault: str
    features: tuple[str, ...]
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticOptions:
    """What is made up.

    Attributes:
        series: number of series.
        features: number of features.
        rows: rows of each series.
        every_s: seconds between two rows of a series; the series take turns within it.
        start: epoch seconds of the first row.
        day_s: length of the rhythm.
        faults: number of faults over all series.
        kinds: the faults to choose from, in turn.
        clean_rows: rows at the start of each series that stay free of faults.
        seed: what everything random follows from.

    Raises:
        ConfigError: a number is out of range, or a fault is unknown.
    """

    series: int = 10
    features: int = 4
    rows: int = 1_440
    every_s: float = 60.0
    start: float = 1_767_225_600.0  # 2026-01-01
    day_s: float = 86_400.0
    faults: int = 0
    kinds: Sequence[str] = tuple(FAULTS)
    clean_rows: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        counted = dict.fromkeys(("series", "features", "rows"), 1.0)
        zero_or_more = dict.fromkeys(("faults", "clean_rows", "start", "seed"), 0.0)
        # A millisecond is what a record's timestamp can hold.
        lasting = dict.fromkeys(("every_s", "day_s"), 0.001)
        for name, bound in (counted | zero_or_more | lasting).items():
            if not getattr(self, name) >= bound:
                raise ConfigError(f"{name} is {getattr(self, name)}; give {bound:g} or more")
        unknown = [kind for kind in self.kinds if kind not in FAULTS]
        if unknown or not self.kinds:
            raise ConfigError(
                f"no such fault: {', '.join(unknown) or '(none given)'}; there are {', '.join(FAULTS)}"
            )


class _Signal:
    """Readings without faults: a daily rhythm, a load shared by a series' features, correlated noise."""

    def __init__(self, options: SyntheticOptions) -> None:
        shape = options.series, options.features
        rng = np.random.default_rng([options.seed, _SIGNAL])
        self._seed = options.seed
        self._day_s = options.day_s
        self._level = rng.uniform(20, 100, shape)
        self.swing = self._level * rng.uniform(0.1, 0.3, shape)
        self._phase = rng.uniform(0, 2 * np.pi, options.series)[:, None] + rng.uniform(0, 0.8, shape)
        self._second = rng.uniform(0.1, 0.3, shape)
        self._loads_a_day = rng.uniform(8, 24, options.series)
        self._load_phase = rng.uniform(0, 2 * np.pi, options.series)
        self._load_gain = rng.uniform(0.2, 0.5, shape) * rng.choice((-1, 1), shape)
        self._noise_mix = 0.04 * (np.eye(options.features) + 0.5)

    def rhythm(self, times: Float64s, series: slice = slice(None)) -> Float64s:
        """What changes with time but is not noise: float64[rows, series, features] at ``[rows, series]``."""
        days = 2 * np.pi / self._day_s * times
        angle = days[:, :, None] - self._phase[series]
        load = np.sin(days * self._loads_a_day[series] + self._load_phase[series])
        shape = np.sin(angle) + self._second[series] * np.sin(2 * angle)
        shape += self._load_gain[series] * load[:, :, None]
        shape *= self.swing[series]
        return shape

    def block(self, times: Float64s, first_row: int) -> Float64s:
        """Readings float64[rows, series, features] at ``times[rows, series]``."""
        rng = np.random.default_rng([self._seed, _NOISE, first_row])
        noise = rng.standard_normal((*times.shape, len(self._noise_mix))) @ self._noise_mix
        noise *= self.swing
        noise += self._level
        noise += self.rhythm(times)
        return noise


class Synthetic:
    """Generates the readings of some options.

    Attributes:
        options: the options.
        series: the names of the series.
        features: the names of the features.
        labels: the faults, by start.
        total: number of events.

    Raises:
        ConfigError: the faults do not fit into the rows.
    """

    def __init__(self, options: SyntheticOptions) -> None:
        self.options = options
        digits = len(str(options.series))
        self.series = [f"unit-{number:0{digits}d}" for number in range(1, options.series + 1)]
        unnamed = (f"feature_{number}" for number in range(len(_FEATURE_NAMES) + 1, options.features + 1))
        self.features = (*_FEATURE_NAMES[: options.features], *unnamed)
        self._signal = _Signal(options)
        self._faults = place(
            options.faults,
            options.kinds,
            series=options.series,
            features=options.features,
            first_row=options.clean_rows,
            rows=options.rows,
            rng=np.random.default_rng([options.seed, _PLACES]),
        )
        self._held: dict[int, Float64s] = {}
        self.labels = sorted(map(self._label, self._faults), key=lambda label: label.start)
        silent = sum(fault.end - fault.first for fault in self._faults if fault.kind == "silence")
        self.total = options.series * options.rows - silent

    def blocks(self) -> Iterator[tuple[Float64s, Float64s]]:
        """Times ``float64[rows, series]`` and values ``float64[rows, series, features]``, in order.

        Values are rounded to three decimals; those of a silent row are NaN. A block holds all series over
        some rows.
        """
        rows = max(1, _BLOCK_EVENTS // self.options.series)
        for first in range(0, self.options.rows, rows):
            end = min(first + rows, self.options.rows)
            times = self._times(first, end)
            values = self._signal.block(times, first)
            for fault in self._faults:
                if fault.first < end and fault.end > first:
                    self._inject(fault, first, times, values)
            yield times, np.round(values, _DECIMALS)

    def chunks(self, topic: str) -> Iterator[Chunk]:
        """The events as records for ``topic``, in order of time.

        An event is ``{"time": epoch seconds, "series": name, feature: value, ...}``, its key the series.
        """
        fields = ("time", "series", *self.features)
        encode = msgspec.json.Encoder().encode
        keys = np.array([name.encode() for name in self.series], object)
        names = np.array(self.series, object)
        for times, values in self.blocks():
            row, series = np.nonzero(~np.isnan(values[:, :, 0]))
            for first in range(0, len(row), _CHUNK_EVENTS):
                at = row[first : first + _CHUNK_EVENTS], series[first : first + _CHUNK_EVENTS]
                seconds = times[at]
                columns = seconds.tolist(), names[at[1]].tolist(), *values[at].T.tolist()
                bodies = [encode(dict(zip(fields, cells))) for cells in zip(*columns)]  # noqa: B905 - the hot loop
                stamps = np.rint(seconds * 1000).astype(np.int64).tolist()
                sends = map(Send, repeat(topic), keys[at[1]].tolist(), bodies, repeat(()), stamps)
                yield Chunk(columns[0], list(sends))

    def _times(self, first: int, end: int) -> Float64s:
        options = self.options
        turns = np.arange(options.series) * (options.every_s / options.series)
        times: Float64s = options.start + np.arange(first, end)[:, None] * options.every_s + turns
        return times.round(3)

    def _label(self, fault: Fault) -> Label:
        start, end = (
            float(self._times(row, row + 1)[0, fault.series]) for row in (fault.first, fault.end - 1)
        )
        features = tuple(self.features[index] for index in fault.features)
        return Label(self.series[fault.series], fault.kind, features, start, end)

    def _inject(self, fault: Fault, first_row: int, times: Float64s, values: Float64s) -> None:
        """Change the rows of the block ``values`` in which the fault stands."""
        rows = slice(max(fault.first - first_row, 0), fault.end - first_row)
        features = list(fault.features)
        clean = values[rows, fault.series, features]
        age = np.arange(len(clean)) + max(first_row - fault.first, 0)
        length = fault.end - fault.first
        rng = np.random.default_rng([self.options.seed, _FAULT, fault.number])
        one = slice(fault.series, fault.series + 1)
        now = times[rows, one]
        away = self._signal.rhythm(now + self.options.day_s / 2, one) - self._signal.rhythm(now, one)
        values[rows, fault.series, features] = FAULTS[fault.kind].change(
            Span(
                clean=clean,
                held=self._held.setdefault(fault.number, clean[0]),
                antiphase=away[:, 0, features],
                draws=rng.standard_normal((length, len(features)))[age],
                swing=self._signal.swing[fault.series, features],
                grown=(age[:, None] + 1) / length,
                sign=fault.sign,
            )
        )


def write_labels(path: Path, labels: Iterable[Label]) -> None:
    """Write labels as JSONL, one object a line with the fields of :class:`Label`."""
    path.write_bytes(msgspec.json.Encoder().encode_lines(list(labels)))


def read_labels(path: Path) -> list[Label]:
    """Read what :func:`write_labels` wrote."""
    return msgspec.json.Decoder(Label).decode_lines(path.read_bytes())


def produce(
    producer: Producer,
    topic: str,
    options: SyntheticOptions,
    *,
    pace: Pace | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop = never,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> int:
    """Send made-up readings; returns how many were sent. Their faults are ``Synthetic(options).labels``.

    Args:
        producer: where they go.
        topic: its name, with the namespace's prefix.
        options: what is made up.
        pace: when events leave; by default as fast as possible.
        on_progress: called after each group of events.
        should_stop: asked before each group and several times a second.
        clock: seconds that never step back.
        sleep: waits for so many seconds.

    Raises:
        ConfigError: the faults do not fit into the rows.
        NotFound, BusDown, BusFull: from the producer.
    """
    made = Synthetic(options)
    return deliver(
        made.chunks(topic),
        producer,
        pace or Fastest(),
        total=made.total,
        on_progress=on_progress,
        should_stop=should_stop,
        clock=clock,
        sleep=sleep,
    )
