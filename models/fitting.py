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

from models.autoencoder import Autoencoder
from models.kinds import Kind, clipped, misfit, principal
from models.residuals import cut
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
_CHECK_WINDOWS: Final = 128  # held-out windows per check


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What one network learns from.

    Attributes:
        random: its own randomness, for its first weights, its batches and its noise.
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
    kind = spec.family
    if kind.loss is None:
        return _solve(lessons, spec, report)
    random = [lesson.random for lesson in lessons]
    drawn = Autoencoder.initial(spec.widths(), random, bend=kind.bend, heads=kind.heads)
    best = drawn.of([tensor.to(device) for tensor in drawn.tensors()])
    network = best.of([tensor.clone().requires_grad_() for tensor in best.tensors()])
    optimiser = torch.optim.AdamW(network.tensors(), betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    windows = _Windows(lessons, spec, device)
    seen, held_out = (
        np.stack(
            [start + _spread(each, _CHECK_WINDOWS) for start, each in zip(windows.base, some, strict=True)]
        )
        for some in ([each.train for each in lessons], [each.held_out for each in lessons])
    )
    noise_width = _noise_width(kind, spec)
    # The same in each check, so that they compare.
    check_noise = _noise(random, _CHECK_WINDOWS, noise_width, device)
    best_loss = np.full(len(lessons), np.inf)
    best_check = np.zeros(len(lessons), np.int64)
    active = np.arange(len(lessons))

    for check, first in enumerate(range(0, spec.steps, _CHECK_STEPS)):
        steps = range(first, min(first + _CHECK_STEPS, spec.steps))
        picks = np.stack([_draw(lessons[i], windows.base[i], len(steps)) for i in active.tolist()], axis=1)
        for step, batch in zip(steps, picks, strict=True):
            optimiser.param_groups[0]["lr"] = _rate(step, spec.steps)
            optimiser.zero_grad()
            noise = _noise([random[i] for i in active.tolist()], _BATCH, noise_width, device)
            # No name for the loss: its graph would outlive the step, and with it the shapes before _drop.
            kind.loss(network, windows.at(batch), noise).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        with torch.no_grad():
            noise = check_noise[torch.from_numpy(active)]
            seen_loss, loss = (
                kind.loss(network, windows.at(starts[active]), noise).detach().cpu().numpy()
                for starts in (seen, held_out)
            )
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
    return best.of([tensor.cpu() for tensor in best.tensors()])


class _Windows:
    """The rows of all lessons; windows are cut from them as they are drawn, which spares W times the room.

    Attributes:
        base: int64[M], the row at which each lesson begins.
    """

    def __init__(self, lessons: Sequence[Lesson], spec: ModelSpec, device: torch.device) -> None:
        self.base = np.cumsum([0, *(len(each.rows) for each in lessons[:-1])])
        self._features, self._width = len(spec.features), spec.width
        self._values = torch.from_numpy(np.concatenate([each.rows.ravel() for each in lessons])).to(device)

    def at(self, starts: Int64s) -> Tensor:
        """The windows float32[..., W x F] that begin at rows int64[...]."""
        first = starts * self._features
        if self._values.is_cpu:
            windows = torch.empty(*starts.shape, self._width)
            cut(self._values.numpy(), first.ravel(), windows.view(-1, self._width).numpy())
            return windows
        return self._values.unfold(0, self._width, 1)[torch.from_numpy(first).to(self._values.device)]


def _spread(starts: Int64s, count: int) -> Int64s:
    """Exactly ``count`` of them, evenly spaced, repeated where there are fewer."""
    return starts[np.arange(count) * len(starts) // count]


def _draw(lesson: Lesson, base: np.int64, steps: int) -> Int64s:
    """Windows of the next batches, int64[steps, batch]."""
    return base + lesson.train[lesson.random.integers(0, len(lesson.train), (steps, _BATCH))]


def _noise_width(kind: Kind, spec: ModelSpec) -> int:
    """Numbers of noise that the kind's loss takes for each window."""
    if kind.noise is None:
        return 0
    return spec.width if kind.noise == "input" else spec.encoder_widths()[-1]


def _noise(random: Sequence[np.random.Generator], windows: int, width: int, device: torch.device) -> Tensor:
    """Standard normal noise float32[M, windows, width], of each network from its own generator."""
    noise = np.empty((len(random), windows, width), np.float32)
    if width:
        for each, out in zip(random, noise, strict=True):
            each.standard_normal(dtype=np.float32, out=out)
    return torch.from_numpy(noise).to(device)


def _solve(lessons: Sequence[Lesson], spec: ModelSpec, report: Callable[[Check], None]) -> Autoencoder:
    """The linear networks that lose the least of their training windows, as :func:`fit` returns them."""
    windows = _Windows(lessons, spec, CPU)
    code = spec.encoder_widths()[-1]
    solved, losses = list[Autoencoder](), np.full((2, len(lessons)), np.nan, np.float32)
    for done, (start, each) in enumerate(zip(windows.base, lessons, strict=True), 1):
        inputs = clipped(windows.at(start + each.train)).numpy()
        mean, directions = map(torch.from_numpy, principal(inputs, code))
        weights = directions[None], directions.T[None].contiguous()
        biases = -(mean @ directions)[None, None], mean[None, None]
        solved.append(Autoencoder(weights, biases, spec.family.bend))
        for loss, some in zip(losses, (each.train, each.held_out), strict=True):
            target = windows.at(start + _spread(some, _CHECK_WINDOWS))[None]
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


def _drop(optimiser: torch.optim.Optimizer, going: Tensor) -> None:
    """Go on with some of the networks, with the optimiser's memory of them."""
    for parameter in optimiser.param_groups[0]["params"]:
        parameter.data = parameter.data[going]
        parameter.grad = None
        memory = optimiser.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):
            memory[name] = memory[name][going]
