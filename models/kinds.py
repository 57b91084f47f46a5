"""The kinds of autoencoders: what keeps each from merely copying its input.

A kind is one entry of :data:`KINDS`: how its code looks, and the loss that training lowers. A loss is a pure
function of a stack and its windows; what it needs by chance is handed to it, so that the training loop can
draw it from each network's own generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from models.autoencoder import Autoencoder, Bend
from models.gradients import mean_huber
from models.scaling import INPUT_CLIP
from pipeline.ports import Float32s

NOISE_SD: Final = 0.5
"""Of the noise on a denoiser's input, in units of the feature's spread: half of what is normal."""
_ACTIVITY: Final = 0.1
"""Mean activity of a sparse code's units: each means something, and speaks for a tenth of the windows."""
_ACTIVITY_WEIGHT: Final = 0.5
"""Of a unit's divergence: far above what a unit could lower the misfit by, so that the target is met."""
_CONTRACTION: Final = 0.01
_DECODER_VARIANCE: Final = 0.25
"""That a variational decoder allows a value, in squared spreads: what of the misfit is not worth a code."""

Loss: TypeAlias = Callable[[Autoencoder, Tensor, Tensor], Tensor]
"""Of each network, float32[M]: from the stack, scaled windows float32[M, n, width], and standard normal noise
float32[M, n, k]."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind is.

    Attributes:
        loss: what training lowers; None where the weights follow from the windows without steps.
        noise: what the loss needs standard normal noise for: each value of the input, or of the code.
        bend: of the code's layer.
        heads: numbers that the encoder tells of each number of the code.
        code_share: the code's width as a share of the last hidden layer's, unless it is given.
        narrow: whether only a code narrower than the input keeps it from copying.
        layered: whether there are hidden layers.
        plain: whether its loss is the misfit alone, which :mod:`models.descent` knows the gradient of.
    """

    loss: Loss | None
    noise: Literal["input", "code"] | None = None
    bend: Bend = "tanh"
    heads: int = 1
    code_share: float = 0.25
    narrow: bool = False
    layered: bool = True
    plain: bool = False


def clipped(target: Tensor) -> Tensor:
    """What the network sees of scaled windows."""
    return target.clamp(-INPUT_CLIP, INPUT_CLIP)


def misfit(network: Autoencoder, target: Tensor) -> Tensor:
    """How badly each network restores scaled windows float32[M, n, width], whatever its kind; float32[M]."""
    return mean_huber(network.reconstruct(clipped(target)), target)


def _undercomplete(network: Autoencoder, target: Tensor, _noise: Tensor) -> Tensor:
    """The code has no room for a copy."""
    return misfit(network, target)


def _denoising(network: Autoencoder, target: Tensor, noise: Tensor) -> Tensor:
    """The clean window from a noisy one: what is copied is wrong (Vincent et al., 2008)."""
    return mean_huber(network.reconstruct(clipped(target) + NOISE_SD * noise), target)


def _sparse(network: Autoencoder, target: Tensor, _noise: Tensor) -> Tensor:
    """Each unit's mean activity is pulled to a low one, by the divergence of two coins (Ng, 2011)."""
    codes = network.encode(clipped(target))
    mean = codes.mean(1).clamp(1e-6, 1 - 1e-6)
    divergence = _ACTIVITY * torch.log(_ACTIVITY / mean) + (1 - _ACTIVITY) * torch.log(
        (1 - _ACTIVITY) / (1 - mean)
    )
    return mean_huber(network.decode(codes), target) + _ACTIVITY_WEIGHT * divergence.mean(1)


def _contractive(network: Autoencoder, target: Tensor, noise: Tensor) -> Tensor:
    """The code moves little where the input does: the squared norm of its Jacobian (Rifai et al., 2011).

    The norm is that of vJ on average over random directions v of the code (Hutchinson, 1989): one for each
    window takes one more pass, where the whole Jacobian would take one for each number of the code.
    """
    with torch.enable_grad():
        inputs = clipped(target).requires_grad_()
        codes = network.encode(inputs)
        (slope,) = torch.autograd.grad(codes, inputs, noise, create_graph=True)
        return mean_huber(network.decode(codes), target) + _CONTRACTION * slope.square().sum(2).mean(1)


def _variational(network: Autoencoder, target: Tensor, noise: Tensor) -> Tensor:
    """A code is a cloud, and all clouds together fill a standard normal (Kingma and Welling, 2014).

    The negative evidence lower bound a value, in units of the decoder's variance.
    """
    mean, log_variance = network.distribution(clipped(target))
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(2).mean(1)
    output = network.decode(mean + (0.5 * log_variance).exp() * noise)
    return mean_huber(output, target) + _DECODER_VARIANCE / target.shape[2] * divergence


KINDS: Final[dict[str, Kind]] = {
    "undercomplete": Kind(_undercomplete, narrow=True, plain=True),
    "denoising": Kind(_denoising, noise="input", plain=True),
    "sparse": Kind(_sparse, bend="sigmoid", code_share=1.0),
    "contractive": Kind(_contractive, noise="code"),
    "variational": Kind(_variational, noise="code", bend="linear", heads=2),
    "pca": Kind(None, bend="linear", narrow=True, layered=False),
}


def principal(windows: Float32s, code: int) -> tuple[Float32s, Float32s]:
    """The mean float32[width] and the ``code`` first principal directions, float32[width, code].

    Directions beyond the rank of the windows float32[n, width] are 0.
    """
    exact = windows.astype(np.float64)
    mean = exact.mean(axis=0)
    apart = exact - mean
    squares, found = np.linalg.eigh(apart.T @ apart)  # a tenth of the time that a decomposition of them takes
    directions = np.zeros((windows.shape[1], code), np.float32)
    there = squares[::-1][:code] > squares[-1] * windows.shape[1] * np.finfo(np.float64).eps
    directions[:, : len(there)] = found[:, ::-1][:, :code] * there
    return mean.astype(np.float32), directions
