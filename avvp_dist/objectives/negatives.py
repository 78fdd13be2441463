"""Negatives from other clips of the batch, without those that are likely to be false."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from avvp_dist.shards.schema import PADDING

CELLS = 2**26
"""Pairs of snippets compared at a time: 256 MiB in float32. More are taken in blocks of clips."""
_FLOAT32_SLACK = 1e-6
"""Identical snippets reach a threshold of 1, though float32 gives them 1 - 1e-7."""

Pairs = Sequence[tuple[int, int]]
"""Which modalities are compared: (0, 0) is audio with audio, (0, 1) audio with vision."""


class LinkRule(NamedTuple):
    """When a grounding joins two snippets: their cosines reach the thresholds of any stream
    (`rule="or"`) or of all. Without thresholds it joins none."""

    thresholds: Mapping[str, float]
    rule: str

    def joins(self, cosines: Mapping[str, Tensor]) -> Tensor:
        """Which pairs, of their cosine in each stream; one that is not a number reaches nothing."""
        if not self.thresholds:
            return torch.zeros_like(next(iter(cosines.values())), dtype=torch.bool)
        reached = (
            cosines[name] >= min(limit, 1 - _FLOAT32_SLACK)
            for name, limit in self.thresholds.items()
        )
        return functools.reduce(operator.or_ if self.rule == "or" else operator.and_, reached)


def _own(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class OtherClips:
    """What is known of a batch's clips beside their representations.

    Args:
        clips: their numbers `[B]`: no two snippets of equal numbers are negatives.
        features: what groundings compare, `[B, T, F]` of each stream, as precise as it is stored.
        likenesses: of all groundings; none: nothing is left out.
        likeness: whose a clip is `[B]`, as a position in `likenesses`.
        pool: `pool(x [B, ...])` gives the rows of the clips that all are compared with `[K, ...]`,
            with gradient where x has one; rows of zeros may be among them.
    """

    clips: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    link_rules: Sequence[LinkRule] = ()
    rule_index: Tensor | None = None
    pool: Callable[[Tensor], Tensor] = _own


def other_clips_hinge(
    x: Tensor, components: Tensor, pairs: Pairs, margin: float, others: OtherClips
) -> tuple[Tensor, Tensor]:
    """[<x_i, y_j> - margin]_+ over the snippets j of the pool's other clips, summed over `pairs`.

    For each clip the mean over its real snippets i of the mean over j. What the groundings of
    both clips would join, by their features, is no j: two clips of one kind have much in common.

    Args:
        x: unit representations `[B, 2, T, D]`, audio and visual.
        components: component ids `[B, T]`; `PADDING` for padding.

    Returns:
        The hinge `[B]`, and the share of other clips' snippets that was left out `[B]`.
    """
    snippets = components.shape[1]
    y = others.pool(x).transpose(0, 1).flatten(1, 2)  # [2, KT, D]
    real = components != PADDING
    mates = others.pool(real.to(torch.uint8)).flatten() != 0
    numbers = others.pool(others.clips).repeat_interleave(snippets)
    likely_false = _LikelyFalse(others, snippets)
    size = max(1, CELLS // (snippets * len(numbers)))
    hinges, shares = [], []
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        own = others.clips[part].repeat_interleave(snippets)
        foreign = (own[:, None] != numbers) & real[part].flatten()[:, None] & mates
        negative = foreign & ~likely_false(part) if others.link_rules else foreign
        arguments = (x[part].transpose(0, 1).flatten(1, 2), y, negative, pairs, margin)
        if size >= len(x):
            hinge = _mean_hinge(*arguments)
        else:  # so many pairs are not kept for the backward pass, but computed again
            hinge = checkpoint(
                _mean_hinge, *arguments, use_reentrant=False, preserve_rng_state=False
            )
        hinges.append(hinge.unflatten(0, (-1, snippets)))
        found, left = (m.unflatten(0, (-1, snippets)).sum((1, 2)) for m in (foreign, negative))
        shares.append((found - left) / found.clamp(min=1))
    hinge = torch.cat(hinges).sum(1) / real.sum(1).clamp(min=1)
    return hinge, torch.cat(shares)


def _mean_hinge(x: Tensor, y: Tensor, negative: Tensor, pairs: Pairs, margin: float) -> Tensor:
    """For each anchor the mean over its negatives, summed over pairs of modalities: `[n]`.

    `x [2, n, D]` are the anchors, `y [2, m, D]` all others, `negative [n, m]` says what counts.
    """
    total = x.new_zeros(x.shape[1])
    for one, two in pairs:
        total = total + (F.relu(x[one] @ y[two].T - margin) * negative).sum(1)
    return total / negative.sum(1).clamp(min=1)


class _LikelyFalse:
    """Snippets of a batch that are alike by the features that its groundings compare."""

    def __init__(self, others: OtherClips, snippets: int) -> None:
        self.others, self.snippets = others, snippets
        self.features = {n: _vectors(others.pool(x)) for n, x in sorted(others.features.items())}
        if others.rule_index is not None:
            self.owners = others.pool(others.rule_index).repeat_interleave(snippets)

    @torch.no_grad()
    def __call__(self, part: slice) -> Tensor:
        """For the snippets of some clips, which of the pool's are like them, bool `[bT, KT]`."""
        others = self.others
        cosines = {
            name: _cosines(_vectors(others.features[name][part]), y)
            for name, y in self.features.items()
        }
        if others.rule_index is None or len(others.link_rules) == 1:
            return others.link_rules[0].joins(cosines)
        own = others.rule_index[part].repeat_interleave(self.snippets)
        both = []
        for number, rule_index in enumerate(others.link_rules):
            concerned = (own == number)[:, None] | (self.owners == number)
            both.append(rule_index.joins(cosines) | ~concerned)
        return functools.reduce(operator.and_, both)


def _vectors(features: Tensor) -> tuple[Tensor, Tensor]:
    """Of `[B, T, F]` the vectors `[BT, F]` in float32, and their lengths `[BT]`."""
    x = features.detach().flatten(0, 1).float()
    return x, x.norm(dim=-1)


def _cosines(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> Tensor:
    """`[n, m]`; not a number for a vector of zeros.

    The lengths come last: what is stored in float16 has no more digits than TF32, in which a GPU
    may multiply, while unit vectors would lose some.
    """
    return (x[0] @ y[0].T).div_(x[1][:, None]).div_(y[1])
