"""Reconstruction errors of stacked autoencoders: the one place where they are computed.

Training calibrates with it, loading checks the canary with it, and the scorer is little else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.autoencoder import Autoencoder, helpers
from models.residuals import compare, scale
from models.scaling import INPUT_CLIP, TARGET_CLIP, Scaling
from pipeline.ports import Errors, Explanation, Float32s, Float64s, Int32s, Windows

Int64s = NDArray[np.int64]
Block: TypeAlias = tuple[Int64s, Int64s]
"""Networks int64[G] and the rows of each, int64[G, P]."""

_VALUES_AT_ONCE: Final = 262_144  # 1 MiB of float32: a block and its two copies stay in cache
_GROUP_ALONE: Final = 256  # rows of one network from which a product of its own costs less than padding
_FEW: Final = 8  # rows of each network up to which copying its weights costs more than what it saves
_WORTH_HELP: Final = 8  # blocks of about a millisecond each; handing over takes a tenth of one
_FLOAT32_SAFE: Final = 1e37  # what lies this far off is clipped anyway; beyond, float32 could make NaN

_helper: Final = helpers(1, "scoring")  # docs/decisions/0013-backlog.md


@dataclass(eq=False)
class Scratch:
    """What one thread works on, kept because new memory for each block would cost as much as scaling it."""

    _kept: Tensor = field(init=False, default_factory=lambda: torch.empty(2, 0))

    def of(self, size: int) -> tuple[Tensor, Tensor]:
        """Two flat tensors float32[size] of whatever content."""
        if self._kept.shape[1] < size:
            self._kept = torch.empty(2, size)
        return self._kept[0, :size], self._kept[1, :size]


@dataclass(eq=False)
class Stack:
    """N networks in the service of M models. Not for two threads at once: temporaries are kept and reused.

    A model is a network with a scaling of its own; models of one cohort share their network. Errors of the
    same window in another batch or order differ by rounding only (about 4e-7), for matrix products add in
    another order; no window depends on its neighbours otherwise.
    """

    network: Autoencoder
    scaling: Scaling
    network_of: Int32s
    _inverse: Float32s = field(init=False)
    _each_row: Tensor = field(init=False)
    _scratch: tuple[Scratch, Scratch] = field(init=False, default_factory=lambda: (Scratch(), Scratch()))

    def __post_init__(self) -> None:
        inverse = (1 / self.scaling.spread).clip(1 / _FLOAT32_SAFE, _FLOAT32_SAFE)
        self._inverse = inverse.astype(np.float32)
        features = inverse.shape[1]
        rows = self.network.weights[0].shape[1] // features
        self._each_row = torch.eye(features).repeat(1, rows)
        with torch.inference_mode():  # compiles it
            self.network.reconstruct_by(np.zeros(1, np.int64), torch.zeros(1, 1, rows * features))

    def score(self, windows: Windows) -> Errors:
        """The root of the mean absolute residual, over the window and over its last row alone.

        The residual is between the scaled window, clipped at ``TARGET_CLIP``, and what the network makes
        of it when clipped at ``INPUT_CLIP``.
        """
        n, rows, features = windows.tail.shape
        errors, offset = np.empty((2, n), np.float32), torch.from_numpy(self._offset(windows))
        per_block = max(1, _VALUES_AT_ONCE // (rows * features))
        blocks = list(_blocks(self.network_of[windows.model], per_block)) if n else []
        waiting = iter(blocks)  # a list's iterator gives each block to one thread
        if len(blocks) < _WORTH_HELP:
            self._score(windows, offset, waiting, errors, self._scratch[0])
        else:
            help_ = _helper.submit(self._score, windows, offset, waiting, errors, self._scratch[1])
            try:
                self._score(windows, offset, waiting, errors, self._scratch[0])
            finally:
                if not help_.cancel():  # not begun, while another stack is being helped
                    help_.result()
        return Errors(errors[0].astype(np.float64), errors[1].astype(np.float64))

    def _score(
        self, windows: Windows, offset: Tensor, blocks: Iterator[Block], errors: Float32s, scratch: Scratch
    ) -> None:
        """Score what the other thread leaves; whoever is held up by the machine takes fewer blocks."""
        _, rows, features = windows.tail.shape
        width = rows * features
        tails, units = windows.tail.reshape(-1, width), np.empty(width, np.float32)
        with torch.inference_mode():
            for networks, members in blocks:
                groups, padded = members.shape
                target, inputs = (each.view(-1, width) for each in scratch.of(members.size * width))
                # A product with ones and zeros is exact, and faster than broadcasting over a few features.
                torch.mm(offset[torch.from_numpy(members.ravel())], self._each_row, out=target)
                scale(tails, self._inverse, windows.model, members, units, target.numpy(), inputs.numpy())
                output = self._reconstruct(networks, inputs.view(groups, padded, width))
                compare(target.numpy(), output.view(-1, width).numpy(), members, features, errors)

    def explain(self, windows: Windows) -> Explanation:
        """Observed and expected values in the features' own units, and each feature's share of the error."""
        observed = windows.anchor[:, None, :] + windows.tail
        target = self._scaled(windows.model, observed)
        rebuilt = self._each(windows.model, _inputs(target), Autoencoder.reconstruct).reshape(target.shape)
        by_feature = np.abs(target - rebuilt).sum(axis=1)
        total = by_feature.sum(axis=1, keepdims=True)
        even = np.full_like(by_feature, 1 / target.shape[2])
        share = np.divide(by_feature, total, out=even, where=total > 0)
        return Explanation(observed, self._unscaled(windows.model, rebuilt), share)

    def encode(self, model: Int32s, windows: Float64s) -> Float32s:
        """The codes float32[n, code] of windows float64[n, W, F] in the features' own units."""
        return self._each(model, _inputs(self._scaled(model, windows)), Autoencoder.encode)

    def decode(self, model: Int32s, codes: Float32s) -> Float64s:
        """The windows float64[n, W, F], in the features' own units, of codes float32[n, code]."""
        flat, features = self._each(model, codes, Autoencoder.decode), self.scaling.median.shape[1]
        return self._unscaled(model, flat.reshape(len(flat), flat.shape[1] // features, features))

    def _scaled(self, model: Int32s, windows: Float64s) -> Float64s:
        """Windows float64[n, W, F] in units of their models' spreads, clipped as targets are."""
        with np.errstate(over="ignore"):  # what overflows is clipped
            scaled: Float64s = windows - self.scaling.median[model][:, None]
            scaled /= self.scaling.spread[model][:, None]
        return scaled.clip(-TARGET_CLIP, TARGET_CLIP)

    def _unscaled(self, model: Int32s, windows: Float32s) -> Float64s:
        """The same in the features' own units."""
        own: Float64s = windows * self.scaling.spread[model][:, None] + self.scaling.median[model][:, None]
        return own

    def _each(
        self, model: Int32s, values: Float32s, does: Callable[[Autoencoder, Tensor], Tensor]
    ) -> Float32s:
        """What each row's own network does with it: float32[n, values in] to float32[n, values out]."""
        owner = self.network_of[model]
        order = np.argsort(owner, kind="stable")
        given, networks = torch.from_numpy(values[order]), np.unique(owner).tolist() or [0]
        ends = np.searchsorted(owner[order], networks, side="right").tolist()
        with torch.inference_mode():
            made = [
                does(self.network.pick(slice(network, network + 1)), given[None, first:end])[0]
                for network, first, end in zip(networks, [0, *ends], ends, strict=False)
            ]
            restored = torch.empty(len(values), made[0].shape[1])
            restored[torch.from_numpy(order)] = torch.cat(made)
        return restored.numpy()

    def _reconstruct(self, networks: Int64s, inputs: Tensor) -> Tensor:
        """Inputs float32[G, P, W x F] by the networks int64[G]."""
        if networks[-1] - networks[0] == len(networks) - 1:  # side by side, their weights need no copy
            return self.network.pick(slice(int(networks[0]), int(networks[-1]) + 1)).reconstruct(inputs)
        if inputs.shape[1] <= _FEW:
            return self.network.reconstruct_by(networks, inputs)
        return self.network.pick(torch.from_numpy(networks)).reconstruct(inputs)

    def _offset(self, windows: Windows) -> Float32s:
        """What the anchor adds to a scaled tail, float32[n, F]; the difference is taken in float64."""
        model = windows.model
        if len(model) and (model == model[0]).all():
            model = model[:1]
        with np.errstate(over="ignore"):
            offset: Float64s = (windows.anchor - self.scaling.median[model]) / self.scaling.spread[model]
        return offset.clip(-_FLOAT32_SAFE, _FLOAT32_SAFE).astype(np.float32)


def _inputs(target: Float64s) -> Float32s:
    """What networks see of scaled windows float64[n, W, F], flat: float32[n, W x F]."""
    count, rows, features = target.shape
    return target.clip(-INPUT_CLIP, INPUT_CLIP).astype(np.float32).reshape(count, rows * features)


def _blocks(network: Int32s, per_block: int) -> Iterator[Block]:
    """Cut rows of mixed networks into blocks of equally many rows for each of some networks.

    A network with fewer than P rows repeats its last one. Networks are taken in classes of like counts, so
    that padding at most doubles the work.
    """
    order = np.argsort(network.astype(np.uint16) if network.max() < 65_536 else network, kind="stable")
    ordered = network[order]
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    counts = np.diff(starts, append=len(network))
    ids = ordered[starts].astype(np.int64)

    for group in np.flatnonzero(counts > _GROUP_ALONE).tolist():
        end = starts[group] + counts[group]
        for first in range(starts[group], end, per_block):
            yield ids[group : group + 1], order[None, first : min(first + per_block, end)]
    waiting = counts <= _GROUP_ALONE
    while waiting.any():
        padded = int(counts[waiting].max())
        chosen = np.flatnonzero(waiting & (counts * 2 > padded))
        waiting[chosen] = False
        at_once = max(1, per_block // padded)
        for first in range(0, len(chosen), at_once):
            groups = chosen[first : first + at_once]
            place = np.minimum(np.arange(padded), counts[groups, None] - 1)
            yield ids[groups], order[starts[groups, None] + place]
