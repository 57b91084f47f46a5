"""How the networks of a stack are taken down their losses: by compiled loops, or by PyTorch's operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from models.autoencoder import Autoencoder
from models.descent import BETAS, DECAY, descend, flat, room, unflat
from models.kinds import NOISE_SD
from models.lessons import Lesson
from models.residuals import cut
from models.samples import Int64s
from models.spec import ModelSpec
from pipeline.ports import Float32s, Float64s

CHECK_WINDOWS: Final = 128
"""Windows of a network whose loss is asked for at once."""

_AT_ONCE: Final = {"cpu": 64, "cuda": 4_096}
"""By device: so many that an operator costs little by itself, and that fit a cache, or memory."""
_AT_ONCE_COMPILED: Final = 16
"""So few that threads are done at about the same time."""


def compiled(spec: ModelSpec, device: torch.device) -> bool:
    """Whether such networks are trained by compiled loops."""
    return spec.family.plain and device.type == "cpu"


def networks_at_once(spec: ModelSpec, device: torch.device) -> int:
    """How many networks make a stack that one thread trains."""
    return _AT_ONCE_COMPILED if compiled(spec, device) else _AT_ONCE[device.type]


class Learner(Protocol):
    """Networks that learn, numbered as their lessons are.

    Networks do not know of each other. One that is left out once is done: it costs nothing from then on, and
    is not asked for again.
    """

    def learn(self, active: Int64s, picks: Int64s, rates: Float64s, done: int) -> None:
        """Networks int64[A] take steps at ``rates`` float64[steps], after so many ``done`` before.

        Their batches are the windows that begin at rows ``picks`` int64[A, steps, n] of their lessons, n at
        most CHECK_WINDOWS.
        """

    def losses(self, active: Int64s, starts: Int64s) -> Float32s:
        """Of networks int64[A] on the windows that begin at rows ``starts`` int64[A, CHECK_WINDOWS]."""

    def networks(self, some: Int64s) -> Autoencoder:
        """Copies of some of those that learn, as they are now."""


class Compiled:
    """Learns one network after the other, by :func:`models.descent.descend`: plain kinds on the CPU."""

    def __init__(self, drawn: Autoencoder, lessons: Sequence[Lesson], spec: ModelSpec) -> None:
        self._like, self._lessons = drawn, lessons
        self._values = flat(drawn)
        self._memory = np.zeros((len(lessons), 2, self._values.shape[1]), np.float32)
        self._room = room(self._values, spec.widths(), CHECK_WINDOWS)
        self._widths, self._features = np.array(spec.widths()), len(spec.features)
        self._noise_width = _noise_width(spec)
        self._check_noise = [self._noise(lesson, (1, CHECK_WINDOWS)) for lesson in lessons]

    def learn(self, active: Int64s, picks: Int64s, rates: Float64s, done: int) -> None:
        """See :class:`Learner`."""
        for network, batches in zip(active.tolist(), picks, strict=True):
            noise = self._noise(self._lessons[network], batches.shape)
            self._descend(network, batches, noise, rates, done)

    def losses(self, active: Int64s, starts: Int64s) -> Float32s:
        """See :class:`Learner`."""
        return np.array(
            [
                self._descend(network, windows[None], self._check_noise[network], np.empty(0), 0)
                for network, windows in zip(active.tolist(), starts, strict=True)
            ],
            np.float32,
        )

    def networks(self, some: Int64s) -> Autoencoder:
        """See :class:`Learner`."""
        return unflat(self._values[some], self._like)

    def _descend(self, network: int, picks: Int64s, noise: Float32s, rates: Float64s, done: int) -> float:
        loss: float = descend(
            self._lessons[network].rows.ravel(),
            picks * self._features,
            noise,
            NOISE_SD,
            rates,
            done,
            self._widths,
            self._values[network],
            self._memory[network],
            self._room,
        )
        return loss

    def _noise(self, lesson: Lesson, batches: tuple[int, ...]) -> Float32s:
        steps, windows = batches
        if not self._noise_width:
            return np.empty((steps, 0, 0), np.float32)
        return lesson.random.standard_normal((steps, windows, self._noise_width), np.float32)


class Operators:
    """Learns all networks at once, one operator after the other: any kind, on any device."""

    def __init__(
        self, drawn: Autoencoder, lessons: Sequence[Lesson], spec: ModelSpec, device: torch.device
    ) -> None:
        if spec.family.loss is None:
            raise ValueError(f"a network of kind {spec.kind} does not learn by steps")
        self._loss, self._lessons, self._device = spec.family.loss, lessons, device
        self._network = drawn.of(
            [tensor.to(device, copy=True).requires_grad_() for tensor in drawn.tensors()]
        )
        self._optimiser = torch.optim.AdamW(
            self._network.tensors(), betas=BETAS, weight_decay=DECAY, fused=True
        )
        self._windows = Windows(lessons, spec, device)
        self._noise_width = _noise_width(spec)
        self._active = np.arange(len(lessons))
        # The same in each check, so that they compare.
        self._check_noise = self._noise(self._active, CHECK_WINDOWS)

    def learn(self, active: Int64s, picks: Int64s, rates: Float64s, done: int) -> None:
        """See :class:`Learner`; the optimiser counts the steps itself."""
        del done
        if len(active) < len(self._active):
            drop(self._optimiser, torch.from_numpy(np.searchsorted(self._active, active)))
            self._active = active
        for step, rate in enumerate(rates.tolist()):
            self._optimiser.param_groups[0]["lr"] = rate
            self._optimiser.zero_grad()
            noise = self._noise(active, picks.shape[2])
            # No name for the loss: its graph would outlive the step, and with it the shapes before drop.
            self._losses(active, picks[:, step], noise).sum().backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()

    def losses(self, active: Int64s, starts: Int64s) -> Float32s:
        """See :class:`Learner`."""
        with torch.no_grad():
            noise = self._check_noise[torch.from_numpy(active)]
            found: Float32s = self._losses(active, starts, noise).detach().cpu().numpy()
        return found

    def networks(self, some: Int64s) -> Autoencoder:
        """See :class:`Learner`."""
        with torch.no_grad():
            return self._network.pick(torch.from_numpy(np.searchsorted(self._active, some)))

    def _losses(self, active: Int64s, starts: Int64s, noise: Tensor) -> Tensor:
        return self._loss(self._network, self._windows.at(active, starts), noise)

    def _noise(self, active: Int64s, windows: int) -> Tensor:
        """Standard normal noise float32[A, windows, width], of each network from its own generator."""
        noise = np.empty((len(active), windows, self._noise_width), np.float32)
        if self._noise_width:
            for network, out in zip(active.tolist(), noise, strict=True):
                self._lessons[network].random.standard_normal(dtype=np.float32, out=out)
        return torch.from_numpy(noise).to(self._device)


class Windows:
    """The rows of all lessons; windows are cut from them as they are drawn, which spares W times the room."""

    def __init__(self, lessons: Sequence[Lesson], spec: ModelSpec, device: torch.device) -> None:
        self._base = np.cumsum([0, *(len(each.rows) for each in lessons[:-1])])
        self._features, self._width = len(spec.features), spec.width
        self._values = torch.from_numpy(np.concatenate([each.rows.ravel() for each in lessons])).to(device)

    def at(self, networks: Int64s, starts: Int64s) -> Tensor:
        """The windows float32[A, n, W x F] that begin at rows int64[A, n] of some networks' lessons."""
        first = (self._base[networks, None] + starts) * self._features
        if self._values.is_cpu:
            windows = torch.empty(*starts.shape, self._width)
            cut(self._values.numpy(), first.ravel(), windows.view(-1, self._width).numpy())
            return windows
        return self._values.unfold(0, self._width, 1)[torch.from_numpy(first).to(self._values.device)]


def _noise_width(spec: ModelSpec) -> int:
    """Numbers of noise that the kind's loss takes for each window."""
    if spec.family.noise is None:
        return 0
    return spec.width if spec.family.noise == "input" else spec.encoder_widths()[-1]


def drop(optimiser: torch.optim.Optimizer, going: Tensor) -> None:
    """Go on with some of the networks, with the optimiser's memory of them."""
    for parameter in optimiser.param_groups[0]["params"]:
        parameter.data = parameter.data[going]
        parameter.grad = None
        memory = optimiser.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):
            memory[name] = memory[name][going]
