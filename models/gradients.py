"""Gradients of training that take one pass over the values, where PyTorch takes several.

On the CPU passes over memory, not sums, are half of what a step of a stack costs. Few values, and those on a
GPU, are left to PyTorch, whose own operators take less time to begin.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import huber_loss

from models.residuals import huber, tanh

_MANY: Final = (
    32_768  # values from which on a compiled loop makes up for the 20 microseconds that its call takes
)


def tangent(sums: Tensor) -> Tensor:
    """The tangent of a layer's sums, in place."""
    if sums.is_cpu and sums.numel() >= _MANY:
        bent: Tensor = _Tangent.apply(sums)  # type: ignore[no-untyped-call]  # torch's own
        return bent
    return sums.tanh_()


def mean_huber(output: Tensor, target: Tensor) -> Tensor:
    """The mean Huber loss (delta 1) of each network, float32[M], over float32[M, n, width].

    Where there are many values, its gradient has no gradient.
    """
    if output.is_cpu and output.numel() >= _MANY:
        losses: Tensor = _Huber.apply(output, target)  # type: ignore[no-untyped-call]  # torch's own
        return losses
    return huber_loss(output, target, reduction="none", delta=1.0).mean((1, 2))


class _Tangent(torch.autograd.Function):
    """Four times as fast as PyTorch's exact one; see :func:`models.residuals.tanh`."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:  # noqa: ANN401 - torch types it so
        tanh(sums.view(-1).numpy())
        ctx.mark_dirty(sums)
        ctx.save_for_backward(sums)
        return sums

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        (bent,) = ctx.saved_tensors
        by_sums: Tensor = torch.ops.aten.tanh_backward(gradient, bent)
        return by_sums


class _Huber(torch.autograd.Function):
    """The gradient of a Huber loss is the clipped residual: known when the loss is."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor) -> Tensor:  # noqa: ANN401
        gradient, losses = torch.empty_like(output), torch.empty(len(output))
        huber(output.numpy(), target.numpy(), gradient.numpy(), losses.numpy())
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        if (by_loss == 1).all():  # of the sum of all losses: one pass less
            return gradient, None
        return gradient * by_loss[:, None, None], None
