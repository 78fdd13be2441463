"""Audio-visual matching: are the audio and the vision of an input those of one clip?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.hashing import hash_uniform
from avvp_dist.objectives.negative_pool import StoredClips
from avvp_dist.objectives.negatives import LinkRule, cosines, linked_by_both, with_norms

_ALIKE = 0.5
"""Fraction of a clip's snippets that are linked to its partner, from which the two are alike."""


def partner_rows(clips: NDArray[np.integer], pool: int, seed: int, step: int) -> Tensor:
    """Row of the pool whose vision each clip is paired with, int64 `[B]` on the CPU.

    Functions of seed, step and clip, each row as likely as another.

    Args:
        clips: clip numbers `[B]`.
        pool: number of clips in the pool.
    """
    return torch.from_numpy((hash_uniform(clips, "partner", seed, step) * pool).astype(np.int64))


@torch.no_grad()
def alike(
    clips: StoredClips, partners: StoredClips, link_rules: Sequence[LinkRule], names: Sequence[str]
) -> Tensor:
    """Clips that are likely-false negatives of their partners, bool `[B]`.

    The groundings of both would link at least half of the clip's snippets to one of the partner's.

    Args:
        names: streams that the link rules compare.
    """
    real = clips.real[:, :, None] & partners.real[:, None]
    compared = {
        name: cosines(with_norms(clips.streams[name]), with_norms(partners.streams[name]))
        for name in names
    }
    rules = None
    if clips.rule_index is not None and partners.rule_index is not None:
        rules = clips.rule_index[:, None, None], partners.rule_index[:, None, None]
    linked = (linked_by_both(link_rules, compared, rules) & real).any(2)
    return linked.sum(1) >= _ALIKE * clips.real.sum(1)


def matching_loss(matched: Tensor, swapped: Tensor, counted: Tensor) -> Tensor:
    """Binary cross-entropy of one matched and one mismatched input of each clip (after UNITER).

    The mean of both is averaged over the clips. A clip whose partner does not count is 0.

    Args:
        matched: logits of the clips themselves, `[B]`; > 0 says that audio and vision match.
        swapped: logits of their audio with the vision of their partners, `[B]`.
        counted: clips whose partner is a negative, bool `[B]`.
    """
    both = (F.softplus(-matched.float()) + F.softplus(swapped.float())) / 2
    return (both * counted).mean()
