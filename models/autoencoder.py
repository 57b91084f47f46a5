"""The undercomplete autoencoder, stacked: many small networks of one shape in one set of tensors.

A mirrored encoder and decoder with a narrow middle must find what windows have in common, because the
code has no room for a copy. Every tensor has a leading dimension M, one network each, so that all of
them are trained and asked by batched products.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.residuals import affine, tanh
from pipeline.errors import ConfigError

# One thread for each product: they are small, and threads that wait for each other on a busy machine cost far
# more than a second core brings (300 steps of 100 networks beside two busy processes: 4 s with one thread,
# 35 s with two). More work is spread over more workers.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)

MAX_WIDTH: Final = 65_536
"""Bound on window_rows x features, and on every layer's width."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What to train: the shape of the network and of its input.

    The input is a window of ``window_rows`` rows of all features, flattened row by row. Where ``hidden``
    is None it is one layer of half the input's width up to 32, and of an eighth beyond 256; where ``code``
    is None it is a quarter of the last hidden layer: 32-16-4-16-32 for one feature and 32 rows,
    128-32-8-32-128 for four.

    Attributes:
        features: names, in the order of the columns.
        window_rows: rows in a window.
        kind: the kind of autoencoder.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        code: width of the code, below the input's.
        seed: everything random follows from it.
        steps: optimiser steps at most.
        transforms: how features were made from readings; compared, never read.

    Raises:
        ConfigError: a value does not make sense.
    """

    features: tuple[str, ...]
    window_rows: int = 32
    kind: str = "undercomplete"
    hidden: tuple[int, ...] | None = None
    code: int | None = None
    seed: int = 0
    steps: int = 1_200
    transforms: str = ""

    def __post_init__(self) -> None:
        if self.kind != "undercomplete":
            raise ConfigError(f"model.kind is {self.kind!r}; the one kind there is so far is 'undercomplete'")
        if not self.features or self.window_rows < 2 or self.steps < 1 or self.seed < 0:
            raise ConfigError(
                f"a model needs features (found {len(self.features)}), windows of at least 2 rows "
                f"(window_rows is {self.window_rows}), steps (found {self.steps}) and a seed from 0 on "
                f"(found {self.seed})"
            )
        widths = self.encoder_widths()
        if min(widths) < 1 or max(widths) > MAX_WIDTH:
            raise ConfigError(f"layers of {widths} units; each must have 1 to {MAX_WIDTH}")
        if widths[-1] >= widths[0]:
            raise ConfigError(
                f"model.code is {widths[-1]} for an input of {widths[0]} values; an undercomplete "
                "autoencoder needs a narrower code, or it can copy its input"
            )

    def encoder_widths(self) -> tuple[int, ...]:
        """Widths from the input to the code."""
        width = self.window_rows * len(self.features)
        hidden = self.hidden
        if hidden is None:
            hidden = (max(1, min(width // 2, 32), width // 8),)
        code = self.code
        if code is None:
            code = max(1, (width, *hidden)[-1] // 4)
        return (width, *hidden, code)

    def widths(self) -> tuple[int, ...]:
        """Widths of all layers: the encoder's, then the same mirrored."""
        encoder = self.encoder_widths()
        return encoder + encoder[-2::-1]


@dataclass(frozen=True, slots=True, eq=False)
class Autoencoder:
    """M networks of one shape: tanh at every layer but the last, which is linear.

    Attributes:
        weights: per layer float32[M, width in, width out].
        biases: per layer float32[M, 1, width out].
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.weights[0])

    @classmethod
    def initial(cls, widths: Sequence[int], random: Sequence[np.random.Generator]) -> Autoencoder:
        """Untrained networks, one drawn from each generator (uniform after Glorot and Bengio, 2010)."""
        weights = []
        for fan_in, fan_out in pairwise(widths):
            bound = (6 / (fan_in + fan_out)) ** 0.5
            drawn = [each.uniform(-bound, bound, (fan_in, fan_out)).astype(np.float32) for each in random]
            weights.append(torch.from_numpy(np.stack(drawn)))
        biases = [torch.zeros(len(random), 1, width) for width in widths[1:]]
        return cls(tuple(weights), tuple(biases))

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Autoencoder:
        """The inverse of :meth:`tensors`."""
        half = len(tensors) // 2
        return cls(tuple(tensors[:half]), tuple(tensors[half:]))

    def tensors(self) -> list[Tensor]:
        """All weights, then all biases."""
        return [*self.weights, *self.biases]

    def pick(self, models: slice | Tensor) -> Autoencoder:
        """Some of the networks; a slice shares memory, an index int64[k] copies."""
        return Autoencoder(
            tuple(weight[models] for weight in self.weights), tuple(bias[models] for bias in self.biases)
        )

    def encode(self, inputs: Tensor) -> Tensor:
        """Compress float32[M, n, width] to codes float32[M, n, code]."""
        for layer in range(len(self.weights) // 2):
            inputs = _bend(torch.baddbmm(self.biases[layer], inputs, self.weights[layer]))
        return inputs

    def decode(self, codes: Tensor) -> Tensor:
        """Restore float32[M, n, width] from codes float32[M, n, code]."""
        last = len(self.weights) - 1
        for layer in range(len(self.weights) // 2, last):
            codes = _bend(torch.baddbmm(self.biases[layer], codes, self.weights[layer]))
        return torch.baddbmm(self.biases[last], codes, self.weights[last])

    def reconstruct(self, inputs: Tensor) -> Tensor:
        """What is left of float32[M, n, width] after passing through the code; same shape."""
        return self.decode(self.encode(inputs))

    def reconstruct_by(self, models: NDArray[np.int64], inputs: Tensor) -> Tensor:
        """The same for float32[G, n, width] by the networks int64[G], without a copy of their weights.

        For few rows each: copying the weights of networks that do not stand side by side takes more time then
        than the products do.
        """
        values, last = inputs, len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            outputs = torch.empty(*values.shape[:2], weight.shape[2])
            affine(values.numpy(), weight.numpy(), bias.numpy(), models, outputs.numpy())
            values = _bend(outputs) if layer < last else outputs
        return values


def _bend(values: Tensor) -> Tensor:
    """The tangent of a layer's output, in place; where gradients are taken through it, by PyTorch."""
    if torch.is_grad_enabled():
        return values.tanh_()
    tanh(values.view(-1).numpy())
    return values
