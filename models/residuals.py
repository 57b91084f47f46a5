"""What surrounds the products of a reconstruction, as compiled loops; and products of few rows each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.scaling import INPUT_CLIP, TARGET_CLIP
from pipeline.kernels import kernel
from pipeline.ports import Float32s

Int64s = NDArray[np.int64]

_INPUT_CLIP, _TARGET_CLIP = np.float32(INPUT_CLIP), np.float32(TARGET_CLIP)


@kernel(reassociate=True)
def scale(
    tails: Float32s, inverse: Float32s, models: Int64s, members: Int64s, target: Float32s, inputs: Float32s
) -> None:
    """Scale and clip windows float32[n, W x F], taken as ``members`` int64[G, P] of the models int64[G].

    ``target`` float32[G x P, W x F] holds what the windows' anchors add; it becomes what the output is
    compared with, and ``inputs`` what the network sees. ``inverse`` float32[M, W x F] is one over the spread.
    """
    row = 0
    for group in range(members.shape[0]):
        model = models[group]
        for place in range(members.shape[1]):
            window = members[group, place]
            for j in range(tails.shape[1]):
                scaled = target[row, j] + tails[window, j] * inverse[model, j]
                scaled = min(max(scaled, -_TARGET_CLIP), _TARGET_CLIP)
                target[row, j] = scaled
                inputs[row, j] = min(max(scaled, -_INPUT_CLIP), _INPUT_CLIP)
            row += 1


@kernel(reassociate=True)
def compare(target: Float32s, output: Float32s, members: Int64s, features: int, errors: Float32s) -> None:
    """The root of the mean absolute residual of each window, into ``errors`` float32[2, n] at ``members``.

    The first is over the whole window, the second over its last row of ``features`` values.
    """
    row, width = 0, target.shape[1]
    for group in range(members.shape[0]):
        for place in range(members.shape[1]):
            whole, last = np.float32(0.0), np.float32(0.0)
            for j in range(width):
                whole += abs(target[row, j] - output[row, j])
            for j in range(width - features, width):
                last += abs(target[row, j] - output[row, j])
            errors[0, members[group, place]] = np.sqrt(whole / np.float32(width))
            errors[1, members[group, place]] = np.sqrt(last / np.float32(features))
            row += 1


@kernel(reassociate=True)
def affine(inputs: Float32s, weights: Float32s, biases: Float32s, models: Int64s, outputs: Float32s) -> None:
    """One layer by the models int64[G], whose weights are read where they stand.

    ``inputs`` are float32[G, P, in], ``weights`` float32[M, in, out], ``biases`` float32[M, 1, out], and
    ``outputs`` float32[G, P, out].
    """
    for group in range(inputs.shape[0]):
        model = models[group]
        for place in range(inputs.shape[1]):
            for j in range(outputs.shape[2]):
                outputs[group, place, j] = biases[model, 0, j]
            for i in range(inputs.shape[2]):
                value = inputs[group, place, i]
                for j in range(outputs.shape[2]):
                    outputs[group, place, j] += value * weights[model, i, j]
