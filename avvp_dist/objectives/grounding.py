"""The grounding losses: u-avg (4), x-avg (5), m-avg (6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.config import Objective
from avvp_dist.data.schema import PADDING


def grounding_loss(
    audio: Tensor, visual: Tensor, components: Tensor, config: Objective, epoch: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hinge losses on cosine similarities, between and within the modalities.

    For an anchor i and every snippet j of its clip: [p - <x_i, y_j>]_+ where both lie in one
    component, else [<x_i, y_j> - n]_+; (x, y) is (a, a) and (v, v) for uni, (a, v) and (v, a)
    for cross. Averaged over anchors and clips; per anchor the mean or the sum over j. Beyond the
    paper, `other_clips` weighs the mean of the same hinge over the snippets of the batch's other
    clips.

    Args:
        audio, visual: representations `[B, T, D]`.
        components: component ids `[B, T]`; `PADDING` for padding.
        epoch: decides what `alternate` trains.

    Returns:
        The loss, and detached: its parts, mean similarity of positive and negative pairs of a
        clip, share of hinges that are zero.
    """
    a, v = (F.normalize(x.float(), dim=-1) for x in (audio, visual))
    pairs = {"uni": [(a, a), (v, v)], "cross": [(a, v), (v, a)]}
    pairs["multi"] = pairs["uni"] + pairs["cross"]
    same, valid = pair_masks(components)
    anchors = _anchors(components, config.anchors)
    foreign = _other_clips(components)
    parts: dict[str, list[Tensor]] = {
        name: [] for name in ("own", "other", "positive", "negative", "zero")
    }
    name = config.name
    if name == "multi" and config.alternate:
        name = "uni" if epoch % 2 else "cross"
    for x, y in pairs[name]:
        similarity = x @ y.transpose(1, 2)
        hinge = torch.where(
            same,
            F.relu(config.positive_margin - similarity),
            F.relu(similarity - config.negative_margin),
        )
        over_j = (hinge * valid).sum(2)
        if config.reduction == "mean":
            over_j = over_j / valid.sum(2).clamp(min=1)
        parts["own"].append((over_j * anchors).sum() / anchors.sum().clamp(min=1))
        if config.other_clips:
            others = F.relu(x.flatten(0, 1) @ y.flatten(0, 1).T - config.negative_margin)
            parts["other"].append(_mean(others, foreign))
        with torch.no_grad():
            parts["positive"].append(_mean(similarity, same))
            parts["negative"].append(_mean(similarity, valid & ~same))
            parts["zero"].append(_mean((hinge == 0).float(), valid))
    own, other = (sum(parts[name], torch.zeros((), device=a.device)) for name in ("own", "other"))
    seen = {name: torch.stack(parts[name]).mean() for name in ("positive", "negative", "zero")}
    return own + config.other_clips * other, {
        "own": own.detach(),
        "other": other.detach(),
        **seen,
    }


def pair_masks(components: Tensor) -> tuple[Tensor, Tensor]:
    """GT(i, j) of Algorithm 1 and which pairs are real, both bool `[B, T, T]`."""
    real = components != PADDING
    valid = real[:, :, None] & real[:, None, :]
    return (components[:, :, None] == components[:, None, :]) & valid, valid


def _anchors(components: Tensor, kind: str) -> Tensor:
    """1 for the snippets that are anchors, `[B, T]`."""
    real = (components != PADDING).float()
    if kind == "all":
        return real
    draws = torch.rand_like(real)
    draws = draws[:1].expand_as(real) if kind == "shared" else draws * real
    return F.one_hot(draws.argmax(1), components.shape[1]).float() * real


def _other_clips(components: Tensor) -> Tensor:
    """Which of the batch's snippets belong to different clips, bool `[BT, BT]`."""
    clips, snippets = components.shape
    owner = torch.arange(clips, device=components.device).repeat_interleave(snippets)
    real = components.flatten() != PADDING
    return (owner[:, None] != owner) & real[:, None] & real


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)
