"""Autoencoders, stacked: many small networks of one shape in one set of tensors.

A mirrored encoder and decoder must find what windows have in common, because a constraint on the code
keeps them from copying. Every tensor has a leading dimension M, one network each, so that all of them are
trained and asked by batched products.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.gradients import tangent
from models.residuals import affine, tanh

# One thread for each product: they are small, and threads that wait for each other on a busy machine cost far
# more than a second core brings (300 steps of 100 networks beside two busy processes: 4 s with one thread,
# 35 s with two). More work is spread over more workers.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)


def helpers(count: int, name: str) -> ThreadPoolExecutor:
    """Threads to compute with, whose products take as many threads as those of the caller's own.

    PyTorch tells its number to a new thread only when that does something else first: one that begins with a
    product gets a thread for each core, and on a busy machine they hold each other up tenfold.
    """
    return ThreadPoolExecutor(count, name, torch.set_num_threads, (torch.get_num_threads(),))


Bend: TypeAlias = Literal["tanh", "sigmoid", "linear"]
"""What a layer makes of its sums."""


def layer_shapes(widths: Sequence[int], heads: int = 1) -> list[tuple[int, int]]:
    """The shape (in, out) of each layer's weight; the code's layer puts out ``heads`` times the code."""
    code = len(widths) // 2 - 1
    return [(a, b * heads if layer == code else b) for layer, (a, b) in enumerate(pairwise(widths))]


@dataclass(frozen=True, slots=True, eq=False)
class Autoencoder:
    """M networks of one shape: tanh at every layer but the code's, whose bend is told, and the last, linear.

    Where the encoder tells a distribution, the code's layer puts out twice the code: first its mean, which is
    the code, then the logarithm of its variance.

    Attributes:
        weights: per layer float32[M, width in, width out].
        biases: per layer float32[M, 1, width out].
        bend: of the code's layer.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    bend: Bend

    def __len__(self) -> int:
        return len(self.weights[0])

    @classmethod
    def initial(
        cls,
        widths: Sequence[int],
        random: Sequence[np.random.Generator],
        *,
        bend: Bend = "tanh",
        heads: int = 1,
    ) -> Autoencoder:
        """Untrained networks, one drawn from each generator (uniform after Glorot and Bengio, 2010)."""
        weights, biases = [], []
        for fan_in, fan_out in layer_shapes(widths, heads):
            bound = (6 / (fan_in + fan_out)) ** 0.5
            drawn = [each.uniform(-bound, bound, (fan_in, fan_out)).astype(np.float32) for each in random]
            weights.append(torch.from_numpy(np.stack(drawn)))
            biases.append(torch.zeros(len(random), 1, fan_out))
        return cls(tuple(weights), tuple(biases), bend)

    @classmethod
    def join(cls, parts: Sequence[Autoencoder]) -> Autoencoder:
        """One stack of several of one shape and kind."""
        tensors = zip(*(each.tensors() for each in parts), strict=True)
        return parts[0].of([torch.cat(each) for each in tensors])

    @property
    def middle(self) -> int:
        """The decoder's first layer; the encoder's are those before it."""
        return len(self.weights) // 2

    @property
    def code(self) -> int:
        """Width of the code."""
        return self.weights[self.middle].shape[1]

    def tensors(self) -> list[Tensor]:
        """All weights, then all biases."""
        return [*self.weights, *self.biases]

    def of(self, tensors: Sequence[Tensor]) -> Autoencoder:
        """The same kind of network with other tensors, in the order of :meth:`tensors`."""
        half = len(tensors) // 2
        return Autoencoder(tuple(tensors[:half]), tuple(tensors[half:]), self.bend)

    def pick(self, models: slice | Tensor) -> Autoencoder:
        """Some of the networks; a slice shares memory, an index int64[k] copies."""
        return self.of([tensor[models] for tensor in self.tensors()])

    def encode(self, inputs: Tensor) -> Tensor:
        """Compress float32[M, n, width] to codes float32[M, n, code]."""
        layer, code = self.middle - 1, self.code
        sums = torch.baddbmm(
            self.biases[layer][..., :code], self._hidden(inputs), self.weights[layer][..., :code]
        )
        return _bent(sums, self.bend)

    def distribution(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, float32[M, n, code] each, that the encoder tells of float32[M, n, width]."""
        layer, code = self.middle - 1, self.code
        both = torch.baddbmm(self.biases[layer], self._hidden(inputs), self.weights[layer])
        return both[..., :code], both[..., code:]

    def _hidden(self, values: Tensor) -> Tensor:
        """What the code's layer sees."""
        for layer in range(self.middle - 1):
            values = _bent(torch.baddbmm(self.biases[layer], values, self.weights[layer]), "tanh")
        return values

    def decode(self, codes: Tensor) -> Tensor:
        """Restore float32[M, n, width] from codes float32[M, n, code]."""
        last = len(self.weights) - 1
        for layer in range(self.middle, last):
            codes = _bent(torch.baddbmm(self.biases[layer], codes, self.weights[layer]), "tanh")
        return torch.baddbmm(self.biases[last], codes, self.weights[last])

    def reconstruct(self, inputs: Tensor) -> Tensor:
        """What is left of float32[M, n, width] after passing through the code; same shape."""
        return self.decode(self.encode(inputs))

    def reconstruct_by(self, models: NDArray[np.int64], inputs: Tensor) -> Tensor:
        """The same for float32[G, n, width] by the networks int64[G], without a copy of their weights.

        For few rows each: copying the weights of networks that do not stand side by side takes more time then
        than the products do.
        """
        values, middle, code, last = inputs, self.middle, self.code, len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            to_code = layer == middle - 1
            outputs = torch.empty(*values.shape[:2], code if to_code else weight.shape[2])
            affine(values.numpy(), weight.numpy(), bias.numpy(), models, outputs.numpy())
            if layer < last:
                outputs = _bent(outputs, self.bend if to_code else "tanh")
            values = outputs
        return values


def _bent(sums: Tensor, bend: Bend) -> Tensor:
    """A layer's output from its sums, in place."""
    if bend == "linear":
        return sums
    if torch.is_grad_enabled() or not sums.is_cpu:
        return tangent(sums) if bend == "tanh" else sums.sigmoid_()
    if bend == "sigmoid":  # a tangent of half the size, moved
        return _bent(sums.mul_(0.5), "tanh").mul_(0.5).add_(0.5)
    tanh(sums.view(-1).numpy())
    return sums
