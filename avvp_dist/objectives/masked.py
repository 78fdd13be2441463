"""Masked feature modelling: to which snippet of the batch does a masked feature belong?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.config import ObjectiveConfig
from avvp_dist.hashing import hash_uniform
from avvp_dist.objectives.negative_pool import StoredClips

Keys = tuple[Tensor, Tensor]
"""Unit vectors that stand for the raw features of a modality: of the clips of this rank's
micro-batch `[B, T, D]`, and of those of the pool `[K, T, D]`."""


def mask_snippets(
    clips: NDArray[np.integer],
    real: NDArray[np.bool_],
    config: ObjectiveConfig,
    seed: int,
    step: int,
) -> Tensor:
    """Masked snippets of the audio and of the vision, bool `[B, 2, T]` on the CPU.

    Spans of one modality of each clip are masked, and the other modality is seen, as in UNITER.
    Spans do not overlap. Modality and spans are functions of seed, step and clip.

    Args:
        clips: clip numbers `[B]`.
        real: snippets that are no padding, `[B, T]`; padding comes last and is not masked.
    """
    span, snippets = config.mask_span, real.shape[1]
    lengths = real.sum(1)
    shift = (hash_uniform(clips, "mask shift", seed, step) * span).astype(np.int64)[:, None]
    span_of = (np.arange(snippets) + shift) // span
    numbers = np.arange((snippets + span - 2) // span + 1)
    order = hash_uniform(clips[:, None] * len(numbers) + numbers, "masked", seed, step)
    order[numbers > (lengths[:, None] - 1 + shift) // span] = np.inf
    chosen = order.argsort(1).argsort(1) < _spans(lengths, config)[:, None]
    masked = np.take_along_axis(chosen, span_of, 1) & real
    visual = hash_uniform(clips, "masked modality", seed, step)[:, None] < 0.5
    return torch.from_numpy(np.stack([masked & ~visual, masked & visual], 1))


def maximum_masked(snippets: int, config: ObjectiveConfig) -> int:
    """Maximum number of masked snippets in a clip of up to `snippets`."""
    return min(snippets, config.mask_span * int(_spans(np.array(snippets), config)))


def _spans(lengths: NDArray[np.integer], config: ObjectiveConfig) -> NDArray[np.int64]:
    """Number of masked spans in clips of these lengths, at least one."""
    spans = np.rint(config.mask_fraction * lengths / config.mask_span)
    return np.maximum(spans, 1).astype(np.int64)


def masked_places(masked: Tensor, maximum: int) -> tuple[Tensor, Tensor]:
    """Places of the masked snippets among those of their modality, and which of them count.

    Both are `[B, 2, maximum]`, int64 and bool, from `masked [B, 2, T]`. No shape depends on values.
    """
    counts, places = masked.int().topk(maximum, dim=2)
    return places, counts > 0


def feature_keys(clips: StoredClips, pool: StoredClips, names: Sequence[str]) -> Keys:
    """Keys of a modality: its streams, each centred on its mean in the pool and of equal length.

    Without the mean, which backbones with positive features have in large measure, cosines of
    different snippets are spread around 0.

    Args:
        clips: those of this rank's micro-batch.
        names: streams of the modality, with D numbers of a snippet in all.
    """
    real = pool.real[..., None]
    own, pooled = [], []
    for name in names:
        x, y = clips.streams[name].float(), pool.streams[name].float()
        mean = (y * real).sum((0, 1)) / real.sum().clamp(min=1)
        own.append(F.normalize(x - mean, dim=-1) / math.sqrt(len(names)))
        pooled.append(F.normalize(y - mean, dim=-1) / math.sqrt(len(names)))
    return torch.cat(own, -1), torch.cat(pooled, -1)


def masked_loss(
    predicted: Sequence[Tensor],
    places: Tensor,
    counted: Tensor,
    keys: Sequence[Keys],
    components: Tensor,
    clips: StoredClips,
    pool: StoredClips,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """InfoNCE of the features that are predicted for masked snippets (after UNITER and HERO).

    The cross-entropy of softmax(<p, k> / temperature), where p is the prediction of unit length,
    over the key k of the masked snippet itself, those of the clip's snippets of other components,
    and those of the pool's other clips, all of its modality. The mean over a clip's masked snippets
    is averaged over the clips.

    Args:
        predicted: predictions at `places`, `[B, n, D]`, for audio and for vision.
        places: masked snippets, `[B, 2, n]`.
        counted: which of them count, see `masked_places`, `[B, 2, n]`.
        keys: `feature_keys` of audio and of vision.
        components: component ids `[B, T]`.
        clips: those of this rank's micro-batch. Padding is no candidate, and neither are the pool's
            snippets of a clip with the same number.

    Returns:
        The loss, and the loss of a guess: the mean of log N over N candidates.
    """
    foreign = (clips.numbers[:, None] != pool.numbers)[:, :, None] & pool.real  # [B, K, T]
    foreign = foreign.flatten(1)[:, None]
    losses, chances = [], []
    for modality, (x, (own, pooled)) in enumerate(zip(predicted, keys, strict=True)):
        place = places[:, modality]
        itself = place[..., None] == torch.arange(components.shape[1], device=place.device)
        other = components.gather(1, place)[..., None] != components[:, None]
        inside = itself | (other & clips.real[:, None])  # [B, n, T]
        query = F.normalize(x.float(), dim=-1) / temperature
        near = query @ own.transpose(1, 2)
        far = (query.flatten(0, 1) @ pooled.flatten(0, 1).T).unflatten(0, place.shape)
        logits = [near.masked_fill(~inside, -math.inf), far.masked_fill(~foreign, -math.inf)]
        truth = near.gather(2, place[..., None]).squeeze(2)
        losses.append(torch.cat(logits, 2).logsumexp(2) - truth)
        chances.append((inside.sum(2) + foreign.sum(2)).log())
    weights = counted / counted.sum((1, 2), keepdim=True).clamp(min=1)
    loss, chance = ((torch.stack(x, 1) * weights).sum((1, 2)).mean() for x in (losses, chances))
    return loss, chance
