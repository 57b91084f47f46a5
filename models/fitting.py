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

from models.autoencoder import Autoencoder
from models.kinds import clipped, misfit, principal
from models.learners import CHECK_WINDOWS, Compiled, Learner, Operators, Windows, compiled
from models.lessons import Lesson
from models.samples import Int64s
from models.spec import ModelSpec
from pipeline.config import Device
from pipeline.errors import ConfigError
from pipeline.ports import Float32s, Float64s

CPU: Final = torch.device("cpu")

_BATCH: Final = 64
_LEARNING_RATE: Final = 2e-3
_LAST_RATE: Final = 0.05  # of the learning rate, where the cosine ends
_WARM_UP_STEPS: Final = 50
_CHECK_STEPS: Final = 50
_PATIENCE: Final = 6  # checks without a better one before a network is finished


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


def device_for(choice: Device) -> torch.device:
    """Where to train.

    Raises:
        ConfigError: a GPU is asked for, and there is none.
    """
    found = torch.cuda.is_available()
    if choice == "cuda" and not found:
        raise ConfigError(
            f"training.device is cuda, and PyTorch {torch.__version__} finds no GPU; set it to auto or cpu, "
            "or install a build of PyTorch for this machine's GPU"
        )
    return torch.device("cuda" if found and choice != "cpu" else "cpu")


def fit(
    lessons: Sequence[Lesson],
    spec: ModelSpec,
    report: Callable[[Check], None],
    device: torch.device = CPU,
) -> Autoencoder:
    """Train one network a lesson; each keeps the weights of its best check and leaves when it is done.

    Networks do not know of each other: what one becomes depends on its lesson and on rounding alone.

    Args:
        lessons: one a network.
        spec: its shape, and how many steps at most.
        report: called after each check; what it raises ends training.
        device: where to train; the result is in the machine's own memory.
    """
    kind, random = spec.family, [lesson.random for lesson in lessons]
    if kind.loss is None:
        return _solve(lessons, spec, report)
    drawn = Autoencoder.initial(spec.widths(), random, bend=kind.bend, heads=kind.heads)
    if compiled(spec, device):
        return teach(Compiled(drawn, lessons, spec), lessons, spec, report)
    return teach(Operators(drawn, lessons, spec, device), lessons, spec, report)


def teach(
    learner: Learner, lessons: Sequence[Lesson], spec: ModelSpec, report: Callable[[Check], None]
) -> Autoencoder:
    """What :func:`fit` does, with networks as the learner has drawn them."""
    seen, held_out = (
        np.stack([_spread(each, CHECK_WINDOWS) for each in some])
        for some in ([each.train for each in lessons], [each.held_out for each in lessons])
    )
    active = np.arange(len(lessons))
    best = learner.networks(active)
    best_loss = np.full(len(lessons), np.inf)
    best_check = np.zeros(len(lessons), np.int64)

    for check, first in enumerate(range(0, spec.steps, _CHECK_STEPS)):
        steps = range(first, min(first + _CHECK_STEPS, spec.steps))
        picks = np.stack([_draw(lessons[i], len(steps)) for i in active.tolist()])
        learner.learn(active, picks, np.array([_rate(step, spec.steps) for step in steps]), first)

        losses = np.full((2, len(lessons)), np.nan, np.float32)
        for loss, starts in zip(losses, (seen, held_out), strict=True):
            loss[active] = learner.losses(active, starts[active])
        better = np.flatnonzero(losses[1] < best_loss)
        for kept, now in zip(best.tensors(), learner.networks(better).tensors(), strict=True):
            kept[torch.from_numpy(better)] = now
        best_loss[better] = losses[1, better]
        best_check[better] = check

        active = active[check - best_check[active] < _PATIENCE]
        share = steps.stop / spec.steps if len(active) else 1.0
        report(Check(share, len(lessons) - len(active), losses[0], losses[1], best_loss.copy()))
        if not len(active):
            break
    return best.of([tensor.cpu() for tensor in best.tensors()])


def _spread(starts: Int64s, count: int) -> Int64s:
    """Exactly ``count`` of them, evenly spaced, repeated where there are fewer."""
    return starts[np.arange(count) * len(starts) // count]


def _draw(lesson: Lesson, steps: int) -> Int64s:
    """Windows of the next batches, int64[steps, batch]."""
    return lesson.train[lesson.random.integers(0, len(lesson.train), (steps, _BATCH))]


def _solve(lessons: Sequence[Lesson], spec: ModelSpec, report: Callable[[Check], None]) -> Autoencoder:
    """The linear networks that lose the least of their training windows, as :func:`fit` returns them."""
    windows = Windows(lessons, spec, CPU)
    code = spec.encoder_widths()[-1]
    solved, losses = list[Autoencoder](), np.full((2, len(lessons)), np.nan, np.float32)
    for done, each in enumerate(lessons, 1):
        network = np.array([done - 1])
        inputs = clipped(windows.at(network, each.train[None])[0]).numpy()
        mean, directions = map(torch.from_numpy, principal(inputs, code))
        weights = directions[None], directions.T[None].contiguous()
        biases = -(mean @ directions)[None, None], mean[None, None]
        solved.append(Autoencoder(weights, biases, spec.family.bend))
        for loss, some in zip(losses, (each.train, each.held_out), strict=True):
            target = windows.at(network, _spread(some, CHECK_WINDOWS)[None])
            loss[done - 1] = float(misfit(solved[-1], target))
        best = np.where(np.isnan(losses[1]), np.nanmean(losses[1]), losses[1]).astype(np.float64)
        report(Check(done / len(lessons), done, losses[0].copy(), losses[1].copy(), best))
    return Autoencoder.join(solved)


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to a twentieth."""
    if step < _WARM_UP_STEPS:
        return _LEARNING_RATE * (step + 1) / _WARM_UP_STEPS
    done = (step - _WARM_UP_STEPS) / max(1, steps - _WARM_UP_STEPS)
    return _LEARNING_RATE * (_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))
