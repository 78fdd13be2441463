"""Heads of the objectives beyond grounding. They train beside the encoder and are not exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MatchingHead(nn.Module):
    """Tells by a linear layer whether the audio and the vision of an input match.

    Args:
        width: size of a representation.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2 * width, 1)

    def forward(self, audio: Tensor, visual: Tensor, real: Tensor) -> Tensor:
        """Logits `[B]`, > 0 for a match, from the means of `[B, T, width]` over `real [B, T]`."""
        weights = (real / real.sum(1, keepdim=True).clamp(min=1)).to(audio.dtype)
        means = [(x * weights[..., None]).sum(1) for x in (audio, visual)]
        logits: Tensor = self.layer(torch.cat(means, 1)).squeeze(1)
        return logits


class MaskedHead(nn.Module):
    """Predicts the raw features of masked snippets from their representations.

    Linear, GELU, Linear for each modality, as UNITER's head.

    Args:
        width: size of a representation.
        groups: number of the encoder's token groups.
        dims: numbers of a snippet's raw features, audio and visual.
    """

    def __init__(self, width: int, groups: int, dims: Sequence[int]) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(groups, width).normal_(std=0.02))
        """Embeddings in the place of masked features, `[groups, width]`."""
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim)) for dim in dims
        )

    def forward(self, representations: Sequence[Tensor], places: Tensor) -> list[Tensor]:
        """Predictions of audio and of vision, `[B, n, D]` each.

        Args:
            representations: of audio and of vision, `[B, T, width]` each.
            places: masked snippets of both, `[B, 2, n]`.
        """
        chosen = (
            x.take_along_dim(place[..., None], 1)
            for x, place in zip(representations, places.unbind(1), strict=True)
        )
        return [layers(x) for layers, x in zip(self.layers, chosen, strict=True)]
