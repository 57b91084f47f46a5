"""The training loop of stacked networks: one optimiser step for all of them.

The recipe was found by experiment: Huber loss on targets that are hardly clipped, Adam with warm-up and
cosine, and the weights of each network's best moment on its own held-out windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from models.autoencoder import Autoencoder, ModelSpec
from models.samples import Int64s
from models.scaling import INPUT_CLIP
from pipeline.ports import Float32s, Float64s

_BATCH: Final = 64
_LEARNING_RATE: Final = 2e-3
_LAST_RATE: Final = 0.05  # of the learning rate, where the cosine ends
_WARM_UP_STEPS: Final = 50
_CHECK_STEPS: Final = 50
_PATIENCE: Final = 6  # checks without a better one before a network is finished
_CHECK_WINDOWS: Final = 128  # held-out windows per check


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What one network learns from.

    Attributes:
        random: its own randomness, for its first weights and its batches.
        rows: float32[n, F], scaled.
        train: first rows of windows, int64.
        held_out: the same, for the checks.
    """

    random: np.random.Generator
    rows: Float32s
    train: Int64s
    held_out: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """How far networks are that learn together.

    Attributes:
        share: of the steps, 0 to 1.
        finished: networks that are done.
        loss: float32[M], on rows that each network learns from; NaN once it is done.
        held_out_loss: the same on the rows held out.
        best_loss: float64[M], the lowest of these so far.
    """

    share: float
    finished: int
    loss: Float32s
    held_out_loss: Float32s
    best_loss: Float64s


def fit(lessons: Sequence[Lesson], spec: ModelSpec, report: Callable[[Check], None]) -> Autoencoder:
    """Train one network a lesson; each keeps the weights of its best check and leaves when it is done.

    Networks do not know of each other: what one becomes depends on its lesson and on rounding alone.

    Args:
        lessons: one a network.
        spec: its shape, and how many steps at most.
        report: called after each check.
    """
    best = Autoencoder.initial(spec.widths(), [lesson.random for lesson in lessons])
    network = Autoencoder.of([tensor.clone().requires_grad_() for tensor in best.tensors()])
    optimiser = torch.optim.AdamW(network.tensors(), betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    windows, base = _all_windows(lessons, spec)
    seen, held_out = (
        np.stack([start + _spread(each, _CHECK_WINDOWS) for start, each in zip(base, some, strict=True)])
        for some in ([each.train for each in lessons], [each.held_out for each in lessons])
    )
    best_loss = np.full(len(lessons), np.inf)
    best_check = np.zeros(len(lessons), np.int64)
    active = np.arange(len(lessons))

    for check, first in enumerate(range(0, spec.steps, _CHECK_STEPS)):
        steps = range(first, min(first + _CHECK_STEPS, spec.steps))
        picks = np.stack([_draw(lessons[i], base[i], len(steps)) for i in active.tolist()], axis=1)
        for step, batch in zip(steps, torch.from_numpy(picks), strict=True):
            optimiser.param_groups[0]["lr"] = _rate(step, spec.steps)
            optimiser.zero_grad()
            _loss(network, windows[batch]).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
            optimiser.step()

        with torch.no_grad():
            loss = _loss(network, windows[torch.from_numpy(held_out[active])]).numpy()
            seen_loss = _loss(network, windows[torch.from_numpy(seen[active])]).numpy()
            better = np.flatnonzero(loss < best_loss[active])
            for kept, now in zip(best.tensors(), network.tensors(), strict=True):
                kept[torch.from_numpy(active[better])] = now[torch.from_numpy(better)]
        best_loss[active[better]] = loss[better]
        best_check[active[better]] = check

        losses = np.full((2, len(lessons)), np.nan, np.float32)
        losses[:, active] = seen_loss, loss

        going = np.flatnonzero(check - best_check[active] < _PATIENCE)
        if len(going) < len(active):
            _drop(optimiser, torch.from_numpy(going))
            active = active[going]
        share = steps.stop / spec.steps if len(active) else 1.0
        report(Check(share, len(lessons) - len(active), losses[0], losses[1], best_loss.copy()))
        if not len(active):
            break
    return best


def _all_windows(lessons: Sequence[Lesson], spec: ModelSpec) -> tuple[Tensor, Int64s]:
    """Every row of every lesson as the start of a window, and the row at which each lesson begins.

    The windows, float32[N, W * F], share the rows' memory: batches are cut out of it as they are drawn.
    """
    rows = torch.from_numpy(np.concatenate([each.rows for each in lessons]))
    width = spec.window_rows * len(spec.features)
    windows = rows.as_strided((len(rows) - spec.window_rows + 1, width), (len(spec.features), 1))
    return windows, np.cumsum([0, *(len(each.rows) for each in lessons[:-1])])


def _spread(starts: Int64s, count: int) -> Int64s:
    """Exactly ``count`` of them, evenly spaced, repeated where there are fewer."""
    return starts[np.arange(count) * len(starts) // count]


def _draw(lesson: Lesson, base: np.int64, steps: int) -> Int64s:
    """Windows of the next batches, int64[steps, batch]."""
    return base + lesson.train[lesson.random.integers(0, len(lesson.train), (steps, _BATCH))]


def _loss(network: Autoencoder, target: Tensor) -> Tensor:
    """The mean Huber loss of each network, float32[M], over windows float32[M, n, W * F]."""
    output = network.reconstruct(target.clamp(-INPUT_CLIP, INPUT_CLIP))
    return huber_loss(output, target, reduction="none", delta=1.0).mean((1, 2))


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to a twentieth."""
    if step < _WARM_UP_STEPS:
        return _LEARNING_RATE * (step + 1) / _WARM_UP_STEPS
    done = (step - _WARM_UP_STEPS) / max(1, steps - _WARM_UP_STEPS)
    return _LEARNING_RATE * (_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


def _drop(optimiser: torch.optim.Optimizer, going: Tensor) -> None:
    """Go on with some of the networks, with the optimiser's memory of them."""
    for parameter in optimiser.param_groups[0]["params"]:
        parameter.data = parameter.data[going]
        parameter.grad = None
        memory = optimiser.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):
            memory[name] = memory[name][going]
