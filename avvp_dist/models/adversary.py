"""The modality discriminator and the gradient reversal layer in front of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grad, None


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    """`x` itself; on the way back its gradient is multiplied by `-scale`."""
    reversed_: Tensor = _Reversal.apply(x, scale)
    return reversed_


class ModalityDiscriminator(nn.Module):
    """G_m: is this snippet's feature audio or visual? `[N, width]` to logits `[N]` (visual: > 0).

    width-128-10-1 with batch normalisation and ReLU between (section 3.1).
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
    """`norm(x)` in float32: in bf16 training the weights are bf16, its running statistics not."""
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
