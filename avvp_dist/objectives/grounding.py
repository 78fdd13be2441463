"""The grounding losses: u-avg (4), x-avg (5), m-avg (6)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.config import ObjectiveConfig
from avvp_dist.hashing import hash_uniform
from avvp_dist.objectives.negatives import Negatives, Pairs, other_clips_hinge
from avvp_dist.shards.schema import MODALITY_IDS, PADDING

_UNI, _CROSS = ((0, 0), (1, 1)), ((0, 1), (1, 0))
_PAIRS: dict[str, Pairs] = {"uni": _UNI, "cross": _CROSS, "multi": _UNI + _CROSS}


def grounding_loss(
    x: Tensor,
    components: Tensor,
    config: ObjectiveConfig,
    negatives: Callable[[], Negatives],
    epoch: int = 0,
    positions: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hinge losses on cosine similarities, between and within the modalities.

    For an anchor i and every snippet j of its clip: [p - <x_i, y_j>]_+ if both lie in one
    component, else [<x_i, y_j> - n]_+. The pair (x, y) is (a, a) and (v, v) for uni, (a, v) and
    (v, a) for cross, all four for multi. The mean or the sum over j is averaged over a clip's
    anchors, then over the clips: the expectation of one random anchor per clip, for clips of any
    length. Beyond the paper, `config.other_clips` weights the mean of the same hinge over the
    snippets of the batch's other clips (`other_clips_hinge`).

    Args:
        x: unit representations `[B, 2, T, D]`, audio and visual.
        components: component ids `[B, T]`; `PADDING` for padding.
        negatives: gathers the negatives from other clips, if `config.other_clips` weights them.
        epoch: number of the epoch, which `config.alternate` alternates by.
        positions: position of each clip's only anchor among its snippets, `[B]` in [0, 1]; None:
            every snippet is an anchor.

    Returns:
        The loss, and detached: its parts `own` and `other`, the mean similarity of `positive` and
        `negative` pairs within a clip, the fraction of hinges that are `zero`, and with
        `config.other_clips` the fraction of negatives `left_out`.
    """
    pairs = compared_pairs(config, epoch)
    own, seen = own_clip_hinge(x, components, pairs, config, positions)
    loss = own.mean()
    parts = {"own": loss.detach(), "other": torch.zeros_like(loss), **seen}
    if config.other_clips:
        found = negatives()
        other = other_clips_hinge(x, components, pairs, config.negative_margin, found)
        loss = loss + config.other_clips * other.mean()
        parts |= {"other": other.mean().detach(), "left_out": found.left_out.mean()}
    return loss, parts


def compared_pairs(config: ObjectiveConfig, epoch: int) -> Pairs:
    """Pairs of modalities that the objective compares in an epoch."""
    if config.name == "multi" and config.alternate:
        return _PAIRS["uni" if epoch % 2 else "cross"]
    return _PAIRS[config.name]


def anchor_positions(
    clips: NDArray[np.integer], config: ObjectiveConfig, seed: int, step: int
) -> Tensor | None:
    """Position of each clip's only anchor, `[B]` in [0, 1], on the CPU; None: every snippet is one.

    Functions of seed, step and clip, or of seed and step where all clips share one. Ranks and
    micro-batches do not change them.
    """
    if config.anchors == "all":
        return None
    numbers = np.zeros_like(clips) if config.anchors == "shared" else clips
    return torch.from_numpy(hash_uniform(numbers, "anchors", seed, step)).float()


def clip_losses(x: Tensor, components: Tensor, config: ObjectiveConfig) -> Tensor:
    """Loss of each clip `[B]` for validation, from unit representations `x [B, 2, T, D]`.

    Every snippet is an anchor, other clips and `alternate` do not enter: nothing in it is random
    or changes between epochs.
    """
    return own_clip_hinge(x, components, _PAIRS[config.name], config, None)[0]


def unit(audio: Tensor, visual: Tensor) -> Tensor:
    """Normalise two representations `[B, T, D]` to unit length, float32 `[B, 2, T, D]`."""
    return F.normalize(torch.stack([audio, visual], 1).float(), dim=-1)


def own_clip_hinge(
    x: Tensor,
    components: Tensor,
    pairs: Pairs,
    config: ObjectiveConfig,
    positions: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hinges within each clip, summed over `pairs`, `[B]`, and scalars to monitor.

    Args:
        x: unit representations `[B, 2, T, D]`, audio and visual.
        positions: see `grounding_loss`.
    """
    anchors = _anchors(components, positions)
    weights = anchors / anchors.sum(1, keepdim=True).clamp(min=1)
    total = x.new_zeros(len(x))
    parts: dict[str, list[Tensor]] = {name: [] for name in ("positive", "negative", "zero")}
    for (one, two), (same, valid) in zip(pairs, pair_masks(components, pairs), strict=True):
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


def pair_masks(components: Tensor, pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """Positive and compared snippets of each clip for each of `pairs`, both bool `[B, T, T]`.

    With one graph, snippets are positive by GT(i, j) of Algorithm 1, and all are compared. If each
    modality has its own, snippets of a modality are positive by its graph. The sound of a snippet
    and the picture of another are positive if both graphs join the two snippets, as they join each
    with itself, and negative if neither does. They are not compared if one does: of two snippets
    with one picture and different sounds, each picture fits either sound.

    Args:
        components: component ids `[B, T]`; int32 are those of two graphs (`MODALITY_IDS`).
    """
    real = components != PADDING
    valid = real[:, :, None] & real[:, None, :]
    if components.dtype != torch.int32:
        return [(_equal(components) & valid, valid)] * len(pairs)
    joined = _equal(components // MODALITY_IDS), _equal(components % MODALITY_IDS)
    masks = []
    for one, two in pairs:
        same = joined[one] & joined[two] & valid
        masks.append((same, same | (valid & ~(joined[one] | joined[two]))))
    return masks


def _equal(ids: Tensor) -> Tensor:
    return ids[:, :, None] == ids[:, None, :]


def _anchors(components: Tensor, positions: Tensor | None) -> Tensor:
    """1 for anchors, else 0, `[B, T]`: every real snippet, or the one at the clip's position."""
    real = components != PADDING
    if positions is None:
        return real.float()
    count = real.sum(1)
    chosen = torch.minimum((positions * count).long(), count - 1)  # a position may round up to 1
    return (real & (real.cumsum(1) - 1 == chosen[:, None])).float()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)
