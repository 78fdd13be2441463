"""The grounding losses: u-avg (4), x-avg (5), m-avg (6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.config import ObjectiveConfig
from avvp_dist.objectives.negatives import OtherClips, Pairs, other_clips_hinge
from avvp_dist.shards.schema import PADDING

_UNI, _CROSS = ((0, 0), (1, 1)), ((0, 1), (1, 0))
_PAIRS: dict[str, Pairs] = {"uni": _UNI, "cross": _CROSS, "multi": _UNI + _CROSS}


def grounding_loss(
    audio: Tensor,
    visual: Tensor,
    components: Tensor,
    config: ObjectiveConfig,
    epoch: int = 0,
    draws: Tensor | None = None,
    others: OtherClips | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hinge losses on cosine similarities, between and within the modalities.

    For an anchor i and every snippet j of its clip: [p - <x_i, y_j>]_+ where both lie in one
    component, else [<x_i, y_j> - n]_+; (x, y) is (a, a) and (v, v) for uni, (a, v) and (v, a)
    for cross. Per anchor the mean or the sum over j, then the mean over a clip's anchors, then over
    the clips: the expectation of one random anchor a clip, however long the clips are. Beyond the
    paper, `other_clips` weighs the mean of the same hinge over the snippets of the batch's other
    clips (`other_clips_hinge`).

    Args:
        audio, visual: representations `[B, T, D]`.
        components: component ids `[B, T]`; `PADDING` for padding.
        epoch: decides what `alternate` trains.
        draws: a number in [0, 1) for each clip `[B]`, which chooses its anchor where not all are.
        others: what is known of the clips; by default they are different ones, and all there are.

    Returns:
        The loss, and detached: its parts, mean similarity of positive and negative pairs of a
        clip, share of hinges that are zero, and, with `other_clips`, share of negatives left out.
    """
    x = unit(audio, visual)
    pairs = _pairs(config, epoch)
    own, seen = own_clip_hinge(x, components, pairs, config, draws)
    loss = own.mean()
    parts = {"own": loss.detach(), "other": torch.zeros_like(loss), **seen}
    if config.other_clips:
        others = others or OtherClips(torch.arange(len(x), device=x.device))
        other, left_out = other_clips_hinge(x, components, pairs, config.negative_margin, others)
        loss = loss + config.other_clips * other.mean()
        parts |= {"other": other.mean().detach(), "left_out": left_out.mean()}
    return loss, parts


def clip_losses(x: Tensor, components: Tensor, config: ObjectiveConfig) -> Tensor:
    """The loss of each clip, `[B]`, from all its anchors and without other clips: nothing in it
    is drawn or takes turns. `x [B, 2, T, D]` are the unit representations."""
    return own_clip_hinge(x, components, _PAIRS[config.name], config, None)[0]


def unit(audio: Tensor, visual: Tensor) -> Tensor:
    """Both representations `[B, T, D]` at length 1, in float32, as `[B, 2, T, D]`."""
    return F.normalize(torch.stack([audio, visual], 1).float(), dim=-1)


def own_clip_hinge(
    x: Tensor, components: Tensor, pairs: Pairs, config: ObjectiveConfig, draws: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The hinges within the clips, summed over `pairs`: `[B]`, and what was seen on the way.

    Args:
        x: unit representations `[B, 2, T, D]`, audio and visual.
        draws: of the anchors `[B]`; None: every snippet is one.
    """
    same, valid = pair_masks(components)
    anchors = _anchors(components, draws)
    weights = anchors / anchors.sum(1, keepdim=True).clamp(min=1)
    total = x.new_zeros(len(x))
    parts: dict[str, list[Tensor]] = {name: [] for name in ("positive", "negative", "zero")}
    for one, two in pairs:
        similarity = x[:, one] @ x[:, two].transpose(1, 2)
        hinge = torch.where(
            same,
            F.relu(config.positive_margin - similarity),
            F.relu(similarity - config.negative_margin),
        )
        over_j = (hinge * valid).sum(2)
        if config.reduction == "mean":
            over_j = over_j / valid.sum(2).clamp(min=1)
        total = total + (over_j * weights).sum(1)
        with torch.no_grad():
            parts["positive"].append(_mean(similarity, same))
            parts["negative"].append(_mean(similarity, valid & ~same))
            parts["zero"].append(_mean((hinge == 0).float(), valid))
    return total, {name: torch.stack(values).mean() for name, values in parts.items()}


def pair_masks(components: Tensor) -> tuple[Tensor, Tensor]:
    """GT(i, j) of Algorithm 1 and which pairs are real, both bool `[B, T, T]`."""
    real = components != PADDING
    valid = real[:, :, None] & real[:, None, :]
    return (components[:, :, None] == components[:, None, :]) & valid, valid


def _pairs(config: ObjectiveConfig, epoch: int) -> Pairs:
    if config.name == "multi" and config.alternate:
        return _PAIRS["uni" if epoch % 2 else "cross"]
    return _PAIRS[config.name]


def _anchors(components: Tensor, draws: Tensor | None) -> Tensor:
    """1 for the snippets that are anchors, `[B, T]`: all real ones, or the one that is drawn."""
    real = components != PADDING
    if draws is None:
        return real.float()
    count = real.sum(1)
    chosen = torch.minimum((draws * count).long(), count - 1)  # a draw may round up to 1
    return (real & (real.cumsum(1) - 1 == chosen[:, None])).float()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)
