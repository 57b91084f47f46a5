"""The companions of the reconstruction error: a row's level, its shape, and how rare its level is.

With the policy `joint` three channels are joined into one score, each as standard deviations above its own
rolling mean: the autoencoder's error; the level, each feature's own value; and the memory of shapes, the
distance of the newest rows to the nearest of some prototypes. Of one feature the joined score is weighed by
how rare its level is. All of it is in units of the bundle's scaling, and rests on raw values alone: the same
rows give the same bits in any batching. The constants were found by experiment (docs/quality.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Joint, Stream
from pipeline.kernels import kernel
from pipeline.moments import deviations, moved, pace

if TYPE_CHECKING:
    from pipeline.ports import Float32s, Float64s, Int32s

_SERIES_WITH_SHAPES = 100_000
"""On a partition: a memory of shapes takes about 2.5 KB a series."""
PROTOTYPES = 64
RARITY_BINS = 64
SETTLING_ROWS = 256
"""Rows that fill an empty memory of shapes, before how far rows are from it says anything."""

_SHAPE_VALUES = 8
_APART_ROWS, _RARE_ROWS = 8, 10
_TURNS = 40
"""Both of them divide it."""

_HALF_LIFE, _LEVEL_HALF_LIFE, _HALF_LIFE_OF_MANY = 2_000, 1_000, 20_000
"""Rows; of streams with many features all moments forget slowly."""
ERROR_AT_ONE, _LEVEL_AT_ONE, _SHAPES_AT_ONE = 2.25, 4.7, 2.7
"""Standard deviations by which a channel alone makes a joined score of 1."""
CHANNELS: tuple[Literal["autoencoder", "level", "shapes"], ...] = ("autoencoder", "level", "shapes")
_HIGHEST = 50.0

_REGIME_Z, _REGIME_WEIGHT = 2.0, 0.05
_REGIME_ROWS, _ERROR_REGIME_ROWS = 25.0, 64.0
"""So many rows in a row above ``_REGIME_Z`` are a new regime: moments learn at least so fast."""

_ROWS_TO_SPEAK = 64
"""Rows that the moments of the memory of shapes rest on, before it says anything."""
_LEAST_LEVEL_SPREAD = 0.05
"""In units of the scaling: a level that has stood still is not a hair's breadth wide."""
_FARTHEST = 1e6
_MOVE = np.float32(0.05)
_APART_WEIGHT = 1 - 2 ** (-1 / 1_000)
_TOP = 3
_LINEAR, _WIDEST, _BIN = 3.0, 8.0, 0.25
_LEAST_RARITY = 0.003
_KEPT = 0.9
"""Of the rows counted by level, at each change of model."""
_GROWTH, _LEFT = 0.05, 2 ** (-1 / 10_000)
"""Each alert raises the line of its series by so much, which is half forgotten after 10,000 rows."""
_ACCEPTED_ROWS = 32.0

SCALARS = [
    ("grown", "f8"),  # by which the line is higher on account of the series' own alerts
    ("error_run", "f8"),  # rows in a row in which the error was above _REGIME_Z
    ("shape_run", "f8"),
    ("shape_rows", "f8"),  # that the shapes' moments rest on; below 0 they have not begun
    ("shape_mean", "f8"),
    ("shape_variance", "f8"),
    ("apart_rows", "f8"),
    ("apart_mean", "f8"),  # rolling mean of the distance to the nearest prototype
    ("stored", "f8"),  # prototypes there are
    ("level_rows", "f8"),
    ("turn", "f8"),  # of the rings of newest rows
]
"""Plain numbers all, so that a bundle holds them as float64[n, 11]."""


class Parts(NamedTuple):
    """Which companions a stream has.

    Attributes:
        joint: whether it has any.
        level: F, features of which the level is watched, or 0.
        shapes: D, values of a shape, or 0.
        rarity: whether the rarity of the level is counted.
    """

    joint: bool = False
    level: int = 0
    shapes: int = 0
    rarity: bool = False

    @classmethod
    def of(cls, stream: Stream) -> Parts:
        """Those that a stream's settings ask for."""
        threshold, features = stream.threshold, len(stream.feature_names)
        if not isinstance(threshold, Joint):
            return cls()
        worth_it = features == 1 and stream.events.max_series <= _SERIES_WITH_SHAPES
        shapes = worth_it if threshold.shapes == "auto" else threshold.shapes
        return cls(
            joint=True,
            level=features if threshold.level else 0,
            shapes=shape_values(stream.model.window, features) if shapes else 0,
            rarity=threshold.rarity and features == 1,
        )

    @classmethod
    def all(cls, window_rows: int, features: int) -> Parts:
        """Every one that windows of such a size can have."""
        return cls(
            joint=True, level=features, shapes=shape_values(window_rows, features), rarity=features == 1
        )


class Companions(NamedTuple):
    """The companions' state by slot, or by model of a bundle (the first axis, S); off is empty.

    Attributes:
        scalars: structured[S, 1 or 0], ``SCALARS``.
        level: float64[S, 3 F]: of each feature mean, variance, and rows in a row above ``_REGIME_Z``.
        shapes: float32[S, D x PROTOTYPES]: the prototypes' first values, then their second, and so on: the
            distances to all of them are computed side by side, and no sum has to be taken in another order.
        uses: int32[S, PROTOTYPES], how often each was the nearest.
        apart: float64[S, 8], of the newest rows the root of the distance to the nearest prototype; a ring.
        counts: uint16[S, RARITY_BINS], rows by the height of their level.
        rare: float64[S, 10], of the newest rows how rare their bin was; a ring.
    """

    scalars: NDArray[np.void]
    level: Float64s
    shapes: Float32s
    uses: Int32s
    apart: Float64s
    counts: NDArray[np.uint16]
    rare: Float64s

    @classmethod
    def empty(cls, slots: int, parts: Parts) -> Companions:
        """Room for so many slots."""
        return cls(
            np.zeros((slots, int(parts.joint)), np.dtype((np.record, SCALARS))),
            np.zeros((slots, 3 * parts.level)),
            np.zeros((slots, parts.shapes * PROTOTYPES), np.float32),
            np.zeros((slots, PROTOTYPES if parts.shapes else 0), np.int32),
            np.zeros((slots, _APART_ROWS if parts.shapes else 0)),
            np.zeros((slots, RARITY_BINS if parts.rarity else 0), np.uint16),
            np.zeros((slots, _RARE_ROWS if parts.rarity else 0)),
        )


class Seeds(NamedTuple):
    """What a bundle knows of the rows that each of its models learned from.

    Attributes:
        median, spread: float64[M, F], its scaling.
        begin: the companions as its rows left them, all of them on.
    """

    median: Float64s
    spread: Float64s
    begin: Companions

    @classmethod
    def blank(cls, median: Float64s, spread: Float64s, parts: Parts) -> Seeds:
        """Models of which no more is known than their scaling, float64[M, F] each."""
        begin = Companions.empty(len(median), parts)
        begin.scalars["shape_rows"] = -SETTLING_ROWS
        begin.scalars["level_rows"] = _ACCEPTED_ROWS
        begin.level[:, 1::3] = 1.0
        begin.rare[:] = _LEAST_RARITY
        return cls(median, spread, begin)

    def suffice(self, parts: Parts) -> bool:
        """Whether there is enough of everything to begin with."""
        wanted = Companions.empty(0, parts)
        return all(
            getattr(self.begin, name).shape[1] >= each.shape[1] for name, each in wanted._asdict().items()
        )


class Scratch(NamedTuple):
    """Room to work in.

    z float64[F] of each level, shape float32[D], squares float32[PROTOTYPES] of its distances, halves
    float32[PROTOTYPES / 2], counts float64[RARITY_BINS].
    """

    z: Float64s
    shape: Float32s
    squares: Float32s
    halves: Float32s
    counts: Float64s

    @classmethod
    def room(cls, window_rows: int, features: int) -> Scratch:
        """For windows of such a size."""
        values = shape_values(window_rows, features)
        shape, squares, halves = (np.zeros(n, np.float32) for n in (values, PROTOTYPES, PROTOTYPES // 2))
        return cls(np.zeros(features), shape, squares, halves, np.zeros(RARITY_BINS))


def shape_values(window_rows: int, features: int) -> int:
    """D, the values of a shape: the newest 8 of one feature, at least one whole row of many."""
    return min(max(1, _SHAPE_VALUES // features), window_rows) * features


@kernel
def scaled(value: float, median: float, spread: float) -> float:
    """A value in units of its feature's spread."""
    return min(max((float(value) - float(median)) / float(spread), -_FARTHEST), _FARTHEST)


def shares(z: Sequence[float]) -> list[float]:
    """What each of the ``CHANNELS`` adds to a joined score; they sum to 1, or to 0 where none does."""
    at_one = (ERROR_AT_ONE, _LEVEL_AT_ONE, _SHAPES_AT_ONE)
    powers = [(max(each, 0.0) / one) ** 4 for each, one in zip(z, at_one, strict=True)]
    return [each / (sum(powers) or 1.0) for each in powers]


@kernel
def joined(error_z: float, level_z: float, shapes_z: float, rarity: float) -> float:
    """The channels' fourth powers as one, weighed by how rare the level is."""
    error, level = max(error_z, 0.0) / ERROR_AT_ONE, level_z / _LEVEL_AT_ONE
    shapes = max(shapes_z, 0.0) / _SHAPES_AT_ONE
    error, level, shapes = error * error, level * level, shapes * shapes
    whole = math.sqrt(math.sqrt(error * error + level * level + shapes * shapes))
    return min(whole, _HIGHEST) * math.sqrt(rarity)


@kernel
def begin(now: Companions, units: Float64s, slot: int, seeds: Seeds, model: int) -> None:
    """Start a series with what its bundle knows; how far its line has grown stays."""
    if now.scalars.shape[1] == 0:
        return
    _take_units(units, slot, seeds, model)
    mine, known = now.scalars[slot, 0], seeds.begin.scalars[model, 0]
    mine.error_run = 0.0
    mine.shape_run = 0.0
    mine.shape_rows = known.shape_rows
    mine.shape_mean = known.shape_mean
    mine.shape_variance = known.shape_variance
    mine.apart_rows = known.apart_rows
    mine.apart_mean = known.apart_mean
    mine.stored = known.stored
    mine.level_rows = known.level_rows
    mine.turn = 0.0
    for n in range(now.level.shape[1]):
        now.level[slot, n] = seeds.begin.level[model, n]
    for n in range(now.shapes.shape[1]):
        now.shapes[slot, n] = seeds.begin.shapes[model, n]
    for n in range(now.uses.shape[1]):
        now.uses[slot, n] = seeds.begin.uses[model, n]
    for n in range(now.apart.shape[1]):
        now.apart[slot, n] = seeds.begin.apart[model, n]
    for n in range(now.counts.shape[1]):
        now.counts[slot, n] = seeds.begin.counts[model, n]
    for n in range(now.rare.shape[1]):
        now.rare[slot, n] = seeds.begin.rare[model, n]


@kernel
def _take_units(units: Float64s, slot: int, seeds: Seeds, model: int) -> None:
    for f in range(units.shape[1] // 2):
        units[slot, 2 * f] = seeds.median[model, f]
        units[slot, 2 * f + 1] = seeds.spread[model, f]


@kernel
def carry(now: Companions, units: Float64s, slot: int, seeds: Seeds, model: int, scratch: Scratch) -> None:
    """Go on under another model: what a series is used to is the same in the units of the new one.

    Distances between shapes of several features change by the mean change of their spreads.
    """
    if now.scalars.shape[1] == 0:
        return
    mine, features = now.scalars[slot, 0], units.shape[1] // 2
    squares = 0.0
    for f in range(features):
        factor = units[slot, 2 * f + 1] / seeds.spread[model, f]
        shift = (units[slot, 2 * f] - seeds.median[model, f]) / seeds.spread[model, f]
        squares += factor * factor / features
        if now.level.shape[1] > 0:
            now.level[slot, 3 * f] = now.level[slot, 3 * f] * factor + shift
            now.level[slot, 3 * f + 1] *= factor * factor
        for n in range(f * PROTOTYPES, now.shapes.shape[1], features * PROTOTYPES):
            for each in range(n, n + PROTOTYPES):
                now.shapes[slot, each] = np.float32(now.shapes[slot, each] * factor + shift)
        if now.counts.shape[1] > 0:
            _recount(now.counts[slot], factor, shift, seeds.begin.counts[model], scratch.counts)
    root = math.sqrt(math.sqrt(squares))  # errors of the shapes are roots of distances
    mine.shape_mean *= root
    mine.shape_variance *= root * root
    mine.apart_mean *= root * root
    for n in range(now.apart.shape[1]):
        now.apart[slot, n] *= root
    _take_units(units, slot, seeds, model)


@kernel
def _recount(
    counts: NDArray[np.uint16], factor: float, shift: float, known: NDArray[np.uint16], again: Float64s
) -> None:
    """Count again in bins of other units: the rows of a bin are spread evenly over what it covers.

    Some are forgotten, down to those that the bundle has counted.
    """
    again[:] = 0.0
    for n in range(RARITY_BINS):
        low = _height(_value_at(n) * factor + shift)
        high = _height(_value_at(n + 1) * factor + shift)
        first, last = min(int(low), RARITY_BINS - 1), min(int(high), RARITY_BINS - 1)
        for bin_ in range(first, last + 1):
            inside = min(high, bin_ + 1.0) - max(low, float(bin_))
            again[bin_] += counts[n] * (inside / (high - low) if last > first else 1.0)
    for n in range(RARITY_BINS):
        counts[n] = max(min(int(_KEPT * again[n] + 0.5), 65_535), int(known[n]))


@kernel
def begin_again(
    now: Companions, slot: int, values: Float64s, shape_error: float, seeds: Seeds, model: int
) -> None:
    """Take an accepted row for what is normal."""
    mine, features = now.scalars[slot, 0], now.level.shape[1] // 3
    mine.error_run = 0.0
    mine.shape_run = 0.0
    mine.level_rows = _ACCEPTED_ROWS
    for f in range(features):
        now.level[slot, 3 * f] = scaled(values[f], seeds.median[model, f], seeds.spread[model, f])
        now.level[slot, 3 * f + 1] = max(now.level[slot, 3 * f + 1], 1.0)
        now.level[slot, 3 * f + 2] = 0.0
    if mine.shape_rows >= _ROWS_TO_SPEAK:
        mine.shape_mean = shape_error
        mine.shape_rows = float(_ROWS_TO_SPEAK)


@kernel
def level_of(
    now: Companions, slot: int, values: Float64s, seeds: Seeds, model: int, scratch: Scratch
) -> float:
    """Standard deviations between the values and their means, either way: the mean of the three largest.

    Half of it counts where there are several features, of which some are always far out.
    """
    features = now.level.shape[1] // 3
    if features == 0:
        return 0.0
    first = second = third = 0.0
    for f in range(features):
        value = scaled(values[f], seeds.median[model, f], seeds.spread[model, f])
        spread = max(math.sqrt(now.level[slot, 3 * f + 1]), _LEAST_LEVEL_SPREAD)
        z = abs(value - now.level[slot, 3 * f]) / spread
        scratch.z[f] = z
        first, z = max(first, z), min(first, z)
        second, z = max(second, z), min(second, z)
        third = max(third, z)
    mean = (first + second + third) / min(features, _TOP)
    return float(mean if features == 1 else mean / 2)


@kernel
def nearest_shape(
    now: Companions,
    slot: int,
    tail: Float32s,
    anchor: Float64s,
    seeds: Seeds,
    model: int,
    scratch: Scratch,
) -> tuple[int, float]:
    """The prototype nearest to the newest rows of a window, and its root mean square distance."""
    values, features = scratch.shape.shape[0], anchor.shape[0]
    if now.shapes.shape[1] == 0:
        return -1, 0.0
    first, f = tail.shape[0] - values, 0
    for j in range(values):
        value = anchor[f] + tail[first + j]
        scratch.shape[j] = scaled(value, seeds.median[model, f], seeds.spread[model, f])
        f = f + 1 if f + 1 < features else 0
    stored = int(now.scalars[slot, 0].stored)
    if stored == 0:
        return -1, 0.0
    prototypes, squares, halves = now.shapes[slot], scratch.squares, scratch.halves
    for n in range(PROTOTYPES):
        squares[n] = np.float32(0.0)
    for j in range(values):
        value, column = scratch.shape[j], prototypes[j * PROTOTYPES : (j + 1) * PROTOTYPES]
        for n in range(PROTOTYPES):
            apart = column[n] - value
            squares[n] += apart * apart
    for n in range(stored, PROTOTYPES):
        squares[n] = np.float32(np.inf)
    # The least by halves: each of these loops takes many at once, which a loop over all of them does not.
    for n in range(PROTOTYPES // 2):
        halves[n] = min(squares[n], squares[n + PROTOTYPES // 2])
    for n in range(PROTOTYPES // 4):
        halves[n] = min(halves[n], halves[n + PROTOTYPES // 4])
    for n in range(PROTOTYPES // 8):
        halves[n] = min(halves[n], halves[n + PROTOTYPES // 8])
    least = halves[0]
    for n in range(1, PROTOTYPES // 8):
        least = min(least, halves[n])
    nearest = 0
    while nearest < PROTOTYPES - 1 and squares[nearest] != least:
        nearest += 1
    return nearest, math.sqrt(float(least) / values)


@kernel
def shape_error_of(now: Companions, slot: int, distance: float) -> float:
    """The mean root distance over the newest rows, this one with ``distance`` among them."""
    rows = now.apart.shape[1]
    if rows == 0:
        return 0.0
    at = int(now.scalars[slot, 0].turn) % rows
    total = 0.0
    for n in range(rows):
        total += math.sqrt(distance) if n == at else now.apart[slot, n]
    return float(total / rows)


@kernel
def shapes_z_of(now: Companions, slot: int, error: float) -> float:
    """Standard deviations of the memory of shapes above its mean; 0 while that rests on little."""
    if now.shapes.shape[1] == 0:
        return 0.0
    mine = now.scalars[slot, 0]
    if mine.shape_rows < _ROWS_TO_SPEAK:
        return 0.0
    return deviations(error, mine.shape_mean, mine.shape_variance)


@kernel
def _height(value: float) -> float:
    """Where among the bins a level is: linear in the middle, logarithmic beyond."""
    height = abs(value)
    if height > _LINEAR:
        height = min(_LINEAR + math.log(1.0 + height - _LINEAR), _WIDEST)
    signed = height if value >= 0.0 else -height
    return float((signed + _WIDEST) / _BIN)


@kernel
def _value_at(height: float) -> float:
    """The level at some height, the other way."""
    signed = height * _BIN - _WIDEST
    beyond = abs(signed) - _LINEAR
    if beyond <= 0.0:
        return signed
    value = _LINEAR + math.exp(beyond) - 1.0
    return value if signed > 0.0 else -value


@kernel
def bin_of(value: float) -> int:
    """The bin of a level."""
    return min(int(_height(value)), RARITY_BINS - 1)


@kernel
def rarity_of(now: Companions, slot: int, value: float) -> float:
    """How rare the level of the newest rows is, this one's ``value`` among them: near 0, at most 1."""
    rows = now.rare.shape[1]
    if rows == 0:
        return 1.0
    at = int(now.scalars[slot, 0].turn) % rows
    newest = 1.0 / (1.0 + now.counts[slot, bin_of(value)])
    total = 0.0
    for n in range(rows):
        total += newest if n == at else now.rare[slot, n]
    return float(max(total / rows, _LEAST_RARITY))


@kernel
def go_on(
    now: Companions,
    slot: int,
    error_z: float,
    shapes_z: float,
    distance: float,
    value: float,
    scratch: Scratch,
) -> None:
    """What a row changes whether it teaches or not: the newest rows, and how long channels have been high."""
    mine, features = now.scalars[slot, 0], now.level.shape[1] // 3
    mine.grown *= _LEFT
    turn = int(mine.turn)
    mine.turn = float((turn + 1) % _TURNS)
    mine.error_run = mine.error_run + 1.0 if error_z > _REGIME_Z else 0.0
    mine.shape_run = mine.shape_run + 1.0 if shapes_z > _REGIME_Z else 0.0
    for f in range(features):
        run = now.level[slot, 3 * f + 2]
        now.level[slot, 3 * f + 2] = run + 1.0 if scratch.z[f] > _REGIME_Z else 0.0
    if now.apart.shape[1] > 0:
        now.apart[slot, turn % now.apart.shape[1]] = math.sqrt(distance)
    if now.rare.shape[1] > 0:
        now.rare[slot, turn % now.rare.shape[1]] = 1.0 / (1.0 + now.counts[slot, bin_of(value)])


@kernel
def alerted(now: Companions, slot: int) -> None:
    """An alert of the series raises its line."""
    now.scalars[slot, 0].grown += _GROWTH


@kernel
def in_regime(weight: float, rows: float, run: float, long: float) -> float:
    """The weight of a row: more where the channel has been high for ``long``, which is a new regime."""
    return max(pace(weight, rows), _REGIME_WEIGHT if run >= long else 0.0)


@kernel
def error_weight(now: Companions, slot: int, weight: float, rows: float) -> float:
    """The weight of a row among the autoencoder's errors."""
    return in_regime(weight, rows, now.scalars[slot, 0].error_run, _ERROR_REGIME_ROWS)


@kernel
def learn_level(
    now: Companions, slot: int, values: Float64s, seeds: Seeds, model: int, weight: float
) -> None:
    """Let a row move the features' own moments."""
    mine, features = now.scalars[slot, 0], now.level.shape[1] // 3
    for f in range(features):
        mean, variance, run = now.level[slot, 3 * f], now.level[slot, 3 * f + 1], now.level[slot, 3 * f + 2]
        value = scaled(values[f], seeds.median[model, f], seeds.spread[model, f])
        paced = in_regime(weight, mine.level_rows, run, _REGIME_ROWS)
        now.level[slot, 3 * f], now.level[slot, 3 * f + 1] = moved(mean, variance, value, paced)
    mine.level_rows += 1.0


@kernel
def learn_shape(
    now: Companions, slot: int, nearest: int, distance: float, error: float, weight: float, scratch: Scratch
) -> None:
    """Let a row move the memory of shapes: a known shape moves its prototype, a strange one becomes one."""
    if now.shapes.shape[1] == 0:
        return
    mine, values = now.scalars[slot, 0], scratch.shape.shape[0]
    if mine.shape_rows >= 0.0:
        paced = in_regime(weight, mine.shape_rows, mine.shape_run, _REGIME_ROWS)
        mine.shape_mean, mine.shape_variance = moved(mine.shape_mean, mine.shape_variance, error, paced)
    mine.shape_rows += 1.0
    if nearest < 0 or distance > mine.apart_mean:
        least = int(mine.stored)
        if least < PROTOTYPES:
            mine.stored += 1.0
        else:
            fewest = now.uses[slot, 0]
            for n in range(1, PROTOTYPES):
                fewest = min(fewest, now.uses[slot, n])
            least = 0
            while now.uses[slot, least] != fewest:
                least += 1
        for j in range(values):
            now.shapes[slot, j * PROTOTYPES + least] = scratch.shape[j]
        now.uses[slot, least] = 1
    else:
        for j in range(values):
            at = j * PROTOTYPES + nearest
            now.shapes[slot, at] += _MOVE * (scratch.shape[j] - now.shapes[slot, at])
        now.uses[slot, nearest] += 1
    mine.apart_mean += pace(_APART_WEIGHT, mine.apart_rows) * (distance - mine.apart_mean)
    mine.apart_rows += 1.0


@kernel
def learn_rarity(now: Companions, slot: int, value: float) -> None:
    """Count a row's level."""
    if now.counts.shape[1] > 0:
        bin_ = bin_of(value)
        if now.counts[slot, bin_] < 65_535:
            now.counts[slot, bin_] += 1


def weights(features: int) -> tuple[float, float]:
    """How much a row weighs among the errors and shapes, and among the levels."""
    half_lives = (_HALF_LIFE, _LEVEL_HALF_LIFE) if features == 1 else (_HALF_LIFE_OF_MANY,) * 2
    error, level = (1 - 2 ** (-1 / rows) for rows in half_lives)
    return error, level


@kernel
def go_over(
    now: Companions,
    slot: int,
    values: Float64s,
    segment: Int32s,
    seeds: Seeds,
    model: int,
    weight: float,
    level_weight: float,
    tail: Float32s,
    scratch: Scratch,
) -> None:
    """Learn from a history of rows, float64[n, F] in segments int32[n], as from live ones.

    The moments of the memory of shapes begin in the middle: at first everything is strange to it. ``tail`` is
    float32[D], room for a shape.
    """
    mine, features = now.scalars[slot, 0], values.shape[1]
    mine.shape_rows = -float(values.shape[0] // 2)
    shape_rows, unbroken = tail.shape[0] // features, 0
    for i in range(values.shape[0]):
        unbroken = unbroken + 1 if i > 0 and segment[i] == segment[i - 1] else 1
        value = scaled(values[i, 0], seeds.median[model, 0], seeds.spread[model, 0])
        level_of(now, slot, values[i], seeds, model, scratch)
        nearest, distance, shapes_z, error = -1, 0.0, 0.0, 0.0
        if unbroken >= shape_rows:
            first = i + 1 - shape_rows
            for j in range(shape_rows):
                for f in range(features):
                    tail[j * features + f] = np.float32(values[first + j, f] - values[first, f])
            nearest, distance = nearest_shape(now, slot, tail, values[first], seeds, model, scratch)
            error = shape_error_of(now, slot, distance)
            shapes_z = shapes_z_of(now, slot, error)
            go_on(now, slot, 0.0, shapes_z, distance, value, scratch)
            learn_shape(now, slot, nearest, distance, error, weight, scratch)
        learn_level(now, slot, values[i], seeds, model, level_weight)
        learn_rarity(now, slot, value)
