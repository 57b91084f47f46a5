"""Training without PyTorch: all of a step in one compiled call, while a network's numbers are in cache.

A small network, what Adam remembers of it and a batch take some 300 KB. One network after the other keeps
them in a core's own cache through every step between two checks, where an operator over a stack of many
fetches them anew; and no step waits for some sixty operators to begin. Its products are those of BLAS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.autoencoder import Autoencoder
from models.residuals import tanh
from models.scaling import INPUT_CLIP
from pipeline.kernels import kernel
from pipeline.ports import Float32s, Float64s

Int64s = NDArray[np.int64]

BETAS: Final = (0.9, 0.99)
"""What Adam keeps of its means of the gradient and of the gradient's square each step."""
DECAY: Final = 1e-4
"""Of the weights each step, times the learning rate."""
TINY: Final = 1e-8
"""Keeps Adam from dividing by nothing."""

_CLIP = np.float32(INPUT_CLIP)
_ONE, _HALF = np.float32(1.0), np.float32(0.5)


@contextmanager
def one_thread() -> Iterator[None]:
    """No product is shared between threads meanwhile, in all the process: they are small."""
    import scipy.linalg.cython_blas  # noqa: F401, PLC0415 - Numba's BLAS, which is limited once it is loaded
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    with threadpool_limits(1, "blas"):
        yield


def flat(network: Autoencoder) -> Float32s:
    """All numbers of each network, float32[M, P], layer by layer: its weights, then its biases."""
    layers = zip(network.weights, network.biases, strict=True)
    return np.concatenate([each.flatten(1).numpy() for layer in layers for each in layer], axis=1)


def unflat(values: Float32s, like: Autoencoder) -> Autoencoder:
    """The networks that :func:`flat` made float32[M, P] of."""
    end = 0
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for weight, bias in zip(like.weights, like.biases, strict=True):
        for each, found in ((weight, weights), (bias, biases)):
            first, end = end, end + each[0].numel()
            found.append(torch.from_numpy(values[:, first:end].copy()).view(len(values), *each.shape[1:]))
    return Autoencoder(tuple(weights), tuple(biases), like.bend)


def room(values: Float32s, widths: Sequence[int], windows: int) -> Float32s:
    """What networks float32[M, P] and so many windows at once are worked on in."""
    return np.empty(values.shape[1] + windows * (widths[0] + sum(widths) + max(widths)), np.float32)


@kernel(reassociate=True)
def _gather(
    rows: Float32s, starts: Int64s, noise: Float32s, noise_sd: float, target: Float32s, inputs: Float32s
) -> None:
    """Windows and what the network sees of them, float32[n, width] both; see :func:`descend`."""
    sd = np.float32(noise_sd)
    for i in range(target.shape[0]):
        start = np.uint64(starts[i])
        for j in range(target.shape[1]):
            value = rows[start + np.uint64(j)]
            target[i, j] = value
            inputs[i, j] = min(max(value, -_CLIP), _CLIP)
        if noise.shape[0]:
            for j in range(target.shape[1]):
                inputs[i, j] += sd * noise[i, j]


@kernel(reassociate=True)
def _add(biases: Float32s, sums: Float32s) -> None:
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            sums[i, j] += biases[j]


@kernel(reassociate=True)
def _residual(target: Float32s, biases: Float32s, output: Float32s, by_biases: Float32s) -> float:
    """The mean Huber loss (delta 1) of the sums ``output``, which become its gradient by themselves."""
    share = _ONE / np.float32(output.shape[0] * output.shape[1])
    for j in range(output.shape[1]):
        by_biases[j] = np.float32(0.0)
    loss = np.float32(0.0)
    for i in range(output.shape[0]):
        for j in range(output.shape[1]):
            residual = output[i, j] + biases[j] - target[i, j]
            clipped = min(max(residual, -_ONE), _ONE)
            loss += clipped * (residual - _HALF * clipped)
            output[i, j] = clipped * share
            by_biases[j] += clipped * share
    return float(loss * share)


@kernel(reassociate=True)
def _unbend(gradient: Float32s, bent: Float32s, by_biases: Float32s) -> None:
    """From the gradient by a layer's tangents, and these, to the gradient by its sums, in their place."""
    for j in range(bent.shape[1]):
        by_biases[j] = np.float32(0.0)
    for i in range(bent.shape[0]):
        for j in range(bent.shape[1]):
            by_sum = gradient[i, j] * (_ONE - bent[i, j] * bent[i, j])
            bent[i, j] = by_sum
            by_biases[j] += by_sum


@kernel(reassociate=True)
def _adam(
    values: Float32s, gradient: Float32s, means: Float32s, squares: Float32s, rate: float, step: int
) -> None:
    """The ``step``-th one, counted from 1 (Kingma and Ba, 2015; decay as Loshchilov and Hutter, 2019)."""
    keep, keep_square = np.float32(BETAS[0]), np.float32(BETAS[1])
    left = np.float32(1 - rate * DECAY)
    far = np.float32(rate / (1 - BETAS[0] ** step))
    scale = np.float32(1 / np.sqrt(1 - BETAS[1] ** step))
    tiny = np.float32(TINY)
    for k in range(values.shape[0]):
        slope = gradient[k]
        mean = keep * means[k] + (_ONE - keep) * slope
        square = keep_square * squares[k] + (_ONE - keep_square) * slope * slope
        means[k], squares[k] = mean, square
        values[k] = left * values[k] - far * mean / (scale * np.sqrt(square) + tiny)


# Products make arrays of their own where memory is not in one piece, so that this one cannot be a `kernel`.
@numba.njit(cache=True, nogil=True, error_model="numpy")
def descend(
    rows: Float32s,
    picks: Int64s,
    noise: Float32s,
    noise_sd: float,
    rates: Float64s,
    done: int,
    widths: Int64s,
    values: Float32s,
    memory: Float32s,
    room: Float32s,
) -> float:
    """Train one network, tanh at every layer but the last, on batches of windows for some steps.

    Args:
        rows: float32[N x F], scaled.
        picks: int64[steps, n], the first value of each window.
        noise: float32[steps, n, width], added to what the network sees; or float32[steps, 0, 0].
        noise_sd: by which it is multiplied.
        rates: float64[steps], of learning; 0 steps ask for the loss of one batch alone.
        done: steps before these.
        widths: int64[L + 1] of all layers.
        values: float32[P] as of :func:`flat`, in place.
        memory: float32[2, P], Adam's means and squares, in place.
        room: of :func:`room`.

    Returns:
        The mean Huber loss of the last batch.
    """
    layers, n, loss = len(widths) - 1, picks.shape[1], 0.0
    gradient, windows = room[: len(values)], room[len(values) :]
    size = n * widths[0]
    target = windows[:size].reshape((n, widths[0]))
    spare = windows[size + n * widths.sum() :]
    for step in range(picks.shape[0]):
        first = size
        inputs = windows[first : first + n * widths[0]].reshape((n, widths[0]))
        _gather(rows, picks[step], noise[step], noise_sd, target, inputs)
        at = 0
        for layer in range(layers):
            a, b = widths[layer], widths[layer + 1]
            weights = values[at : at + a * b].reshape((a, b))
            at += a * b
            first += n * a
            sums = windows[first : first + n * b]
            outputs = sums.reshape((n, b))
            np.dot(inputs, weights, outputs)
            if layer < layers - 1:
                _add(values[at : at + b], outputs)
                tanh(sums)
            inputs = outputs
            at += b
        last = at - widths[layers]
        loss = _residual(target, values[last:at], inputs, gradient[last:at])
        if not len(rates):
            continue
        for layer in range(layers - 1, -1, -1):
            a, b = widths[layer], widths[layer + 1]
            at -= b + a * b
            by_sums = inputs
            first -= n * a
            inputs = windows[first : first + n * a].reshape((n, a))
            np.dot(inputs.T, by_sums, gradient[at : at + a * b].reshape((a, b)))
            if layer:
                by_inputs = spare[: n * a].reshape((n, a))
                np.dot(by_sums, values[at : at + a * b].reshape((a, b)).T, by_inputs)
                _unbend(by_inputs, inputs, gradient[at - a : at])
        _adam(values, gradient, memory[0], memory[1], rates[step], done + step + 1)
    return loss
