"""Regularity of the representations: a loss against collapse and over-smoothing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.runtime.ranks import Ranks
from avvp_dist.shards.schema import PADDING

_SPREAD, _SPREAD_WITHIN = 1.0, math.sqrt(0.5)
"""Standard deviations below which the loss rises: over all snippets, and within clips.

Directions that are evenly spread have 1. Within a clip, a variance of 1/2 is a mean cosine of 1/2
between its snippets, between the margins of positive and negative pairs."""
_COVARIANCE = 1 / 25
"""Weight of the covariance term beside the variance terms, as in VICReg."""
_LEAST_VARIANCE = 1e-4
"""Summand that keeps the gradient of a standard deviation of 0 finite, as in VICReg."""


def regularity_loss(x: Tensor, components: Tensor, ranks: Ranks) -> Tensor:
    """Variance and covariance terms over the snippets of all ranks, a scalar; a collective.

    With the standard deviation s_d of dimension d over all snippets, w_d within clips, and the
    covariance C, summed over audio and vision:

        mean_d [1 - s_d]_+  +  mean_d [sqrt(1/2) - w_d]_+  +  1/25 * 1/D sum_{d != e} C_de^2

    The first and the last term are those of VICReg (Bardes et al., ICLR 2022). Both can be 0 where
    each clip is a single point, so the second asks for differences within clips. In all terms the
    mean of each position is subtracted first: what a position adds to every clip is no difference.
    VICReg's representations have any length. Cosines ignore it, so here x is scaled to sqrt(D).

    Args:
        x: unit representations `[B, 2, T, D]`, audio and visual.
        components: component ids `[B, T]`; `PADDING` for padding.
        ranks: ranks over whose micro-batch the statistics are taken.

    Returns:
        The loss, equal on all ranks.
    """
    width = x.shape[3]
    real = (components != PADDING)[:, None, :, None].to(x.dtype)
    scaled = x * math.sqrt(width)
    counted = torch.cat([scaled, torch.ones_like(x[..., :1])], 3) * real
    sums = ranks.all_reduce_sum(counted.sum(0))  # [2, T, D + 1]
    count = sums[0, :, -1]  # [T]; the first is the number of clips
    centred = (scaled - sums[..., :-1] / count[:, None].clamp(min=1)) * real
    mean = centred.sum(2, keepdim=True) / real.sum(2, keepdim=True).clamp(min=1)
    within = ((centred - mean) * real).square().sum((0, 2))
    snippets = centred.transpose(0, 1).flatten(1, 2)  # [2, BT, D]
    products = snippets.transpose(1, 2) @ snippets
    moments = ranks.all_reduce_sum(torch.cat([products, within[:, None]], 1))
    covariance = moments[:, :-1] / count.sum().clamp(min=1)
    variance = covariance.diagonal(dim1=1, dim2=2)
    variance_within = moments[:, -1] / (count.sum() - count[0]).clamp(min=1)
    off_diagonal = covariance.square().sum((1, 2)) - variance.square().sum(1)
    terms = (
        _shortfall(variance, _SPREAD)
        + _shortfall(variance_within, _SPREAD_WITHIN)
        + _COVARIANCE * off_diagonal / width
    )
    return terms.sum()


def _shortfall(variance: Tensor, spread: float) -> Tensor:
    """Mean over dimensions of what a standard deviation lacks, `[2]`, from `[2, D]`."""
    return F.relu(spread - (variance + _LEAST_VARIANCE).sqrt()).mean(1)
