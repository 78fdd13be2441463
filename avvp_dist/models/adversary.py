"""The modality discriminator and its gradient reversal layer."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Context(Protocol):
    """Values that the forward pass leaves for the backward pass."""

    scale: float


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grad, None


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    """Return `x` unchanged, and multiply its gradient by `-scale` in the backward pass."""
    reversed_: Tensor = _Reversal.apply(x, scale)
    return reversed_


class ModalityDiscriminator(nn.Module):
    """G_m: tells audio features `[N, width]` from visual ones by logits `[N]` (visual: > 0).

    Layers of width-128-10-1 with batch normalisation and ReLU between them (section 3.1).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 128),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.Linear(128, 10),
            nn.BatchNorm1d(10),
            nn.ReLU(),
            nn.Linear(10, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm1d):
                features = _normalised(layer, features)
            else:
                features = layer(features)
        return features.squeeze(-1)


def _normalised(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Apply `norm` in float32, because bf16 training keeps its running statistics in float32."""
    assert norm.running_mean is not None and norm.num_batches_tracked is not None
    if norm.training:
        norm.num_batches_tracked += 1
    normalised = F.batch_norm(
        x.float(),
        norm.running_mean,
        norm.running_var,
        norm.weight.float(),
        norm.bias.float(),
        norm.training,
        norm.momentum or 0.1,
        norm.eps,
    )
    return normalised.to(x.dtype)
