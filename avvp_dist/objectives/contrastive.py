"""Supervised contrastive loss over the positives of the grounding."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from avvp_dist.objectives.grounding import pair_masks
from avvp_dist.objectives.negatives import Negatives, Pairs
from avvp_dist.shards.schema import PADDING

_NEVER = torch.finfo(torch.float32).min
"""Logit of what is not compared; finite, because an anchor may have nothing to be compared with."""


def supervised_contrastive_loss(
    x: Tensor, components: Tensor, pairs: Pairs, temperature: float, negatives: Negatives
) -> Tensor:
    """Cross-entropy of each anchor's positives among all that it is compared with, a scalar.

    Equation (2) of Khosla et al., NeurIPS 2020, for an anchor i, its positives P and what it is
    compared with, A:

        -1/|P| sum_{p in P} log(exp(<x_i, y_p> / temperature)
                                / sum_{a in A} exp(<x_i, y_a> / temperature))

    P are the snippets of its component in its clip. A are all snippets of its clip, and those of
    the pool's other clips that are no likely-false negatives. Within a modality the anchor itself
    is in neither, and an anchor without positives counts as 0. The sum over `pairs` is averaged
    over the real snippets i of a clip, then over the clips.

    Args:
        x: unit representations `[B, 2, T, D]`, audio and visual.
        components: component ids `[B, T]`; `PADDING` for padding.
    """
    masks = pair_masks(components, pairs)
    itself = torch.eye(x.shape[2], dtype=torch.bool, device=x.device)
    foreign = negatives.reduce(x, functools.partial(_log_sum, pairs=pairs, temperature=temperature))
    total = x.new_zeros(components.shape)
    for (one, two), others, (same, valid) in zip(pairs, foreign, masks, strict=True):
        logits = x[:, one] @ x[:, two].transpose(1, 2) / temperature
        left_out = itself & (one == two)
        positive, compared = same & ~left_out, valid & ~left_out
        own = logits.masked_fill(~compared, _NEVER).logsumexp(2)
        count = positive.sum(2)
        agreement = (logits * positive).sum(2) / count.clamp(min=1)
        total = total + torch.where(count > 0, torch.logaddexp(own, others) - agreement, 0)
    return (total.sum(1) / (components != PADDING).sum(1).clamp(min=1)).mean()


def _log_sum(x: Tensor, y: Tensor, negative: Tensor, pairs: Pairs, temperature: float) -> Tensor:
    """Logarithm of the sum of exponentials over the negatives of each anchor, `[pairs, n]`.

    Anchors are `x [2, n, D]`, candidates `y [2, m, D]`; `negative [n, m]` selects among them.
    """
    return torch.stack(
        [
            (x[one] @ y[two].T / temperature).masked_fill(~negative, _NEVER).logsumexp(1)
            for one, two in pairs
        ]
    )
