"""Negatives from the other clips of a batch, without those that are likely false."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from avvp_dist.shards.schema import PADDING

CELLS = 2**26
"""Pairs of snippets compared at a time: 256 MiB in float32. More are taken in blocks of clips."""
_FLOAT32_SLACK = 1e-6
"""Identical snippets reach a threshold of 1, although their cosine in float32 is 1 - 1e-7."""

Pairs = Sequence[tuple[int, int]]
"""Modalities that are compared: (0, 0) is audio with audio, (0, 1) audio with vision."""


class LinkRule(NamedTuple):
    """Rule by which a grounding links two snippets (Algorithm 1 of the paper).

    Their cosine has to reach the threshold in any stream (`rule="or"`) or in every stream
    (`rule="and"`). A rule without thresholds links nothing.
    """

    thresholds: Mapping[str, float]
    rule: str

    def links(self, cosines: Mapping[str, Tensor]) -> Tensor:
        """Pairs of snippets that the rule links, bool, from their cosines in each stream.

        A cosine that is not a number reaches no threshold.
        """
        if not self.thresholds:
            return torch.zeros_like(next(iter(cosines.values())), dtype=torch.bool)
        reached = (
            cosines[name] >= min(limit, 1 - _FLOAT32_SLACK)
            for name, limit in self.thresholds.items()
        )
        return functools.reduce(operator.or_ if self.rule == "or" else operator.and_, reached)


def linked_by_both(
    link_rules: Sequence[LinkRule],
    cosines: Mapping[str, Tensor],
    indices: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Pairs of snippets that the rules of both clips link, bool of the shape of the cosines.

    Args:
        indices: index of each clip's rule, of one side of the pairs and of the other, in shapes
            that broadcast; None if there is one rule.
    """
    if indices is None or len(link_rules) == 1:
        return link_rules[0].links(cosines)
    one, other = indices
    linked = (
        rule.links(cosines) | ~((one == index) | (other == index))
        for index, rule in enumerate(link_rules)
    )
    return functools.reduce(operator.and_, linked)


class Pool(Protocol):
    """Chooses the clips that all clips of a batch are compared with."""

    def __call__(self, x: Tensor, traits: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Rows `[K, ...]` of the pool's clips, of `x [B, ...]` with its gradient and of `traits`.

        Rows of zeros may be among them.
        """


def _own(x: Tensor, traits: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return x, list(traits)


@dataclass(frozen=True)
class OtherClips:
    """The clips of a batch as negatives of one another, beside their representations."""

    clips: Tensor
    """Clip numbers `[B]`. Snippets of clips with equal numbers are no negatives."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """Features that the groundings compare, `[B, T, F]` per stream, in their stored precision."""
    link_rules: Sequence[LinkRule] = ()
    """Link rules used to drop likely-false negatives, one per grounding; empty: none is dropped."""
    rule_index: Tensor | None = None
    """Index of each clip's rule in `link_rules`, `[B]`; None if there is one rule at most."""
    pool: Pool = _own
    """Clips that all clips are compared with; by default the batch itself."""

    def compared(self) -> list[Tensor]:
        """Everything that the link rules look at: features in order, then the rule index if any."""
        return [*self.features.values(), *([] if self.rule_index is None else [self.rule_index])]


@dataclass(frozen=True)
class Negatives:
    """Snippets of the pool's clips, and the anchors of a batch that each is a negative of."""

    pool: Tensor
    """Unit representations of the pool's snippets, `[2, KT, D]`."""
    masks: Sequence[Tensor]
    """Whether each is a negative of each snippet of a block of clips, bool `[bT, KT]`."""
    left_out: Tensor
    """Fraction of the other clips' snippets that was left out, `[B]`."""

    @classmethod
    def gather(cls, x: Tensor, components: Tensor, others: OtherClips) -> Negatives:
        """Gather the pool; a collective.

        Snippets of the same clip are no negatives. Neither is a snippet that the groundings of both
        clips would link to the anchor: two clips of the same kind have much in common.

        Args:
            x: unit representations `[B, 2, T, D]`, audio and visual.
            components: component ids `[B, T]`; `PADDING` for padding.
        """
        snippets = components.shape[1]
        real = components != PADDING
        traits = [real, others.clips, *others.compared()]
        y, (pool_real, pool_clips, *compared) = others.pool(x, traits)
        pool_real, pool_clips = pool_real.flatten(), pool_clips.repeat_interleave(snippets)
        likely_false = _LikelyFalse(others, compared, snippets)
        del compared  # the pool's features as stored: the products need them in float32 only
        block = max(1, CELLS // (snippets * len(pool_clips)))
        masks, fractions = [], []
        for start in range(0, len(x), block):
            part = slice(start, start + block)
            clips = others.clips[part].repeat_interleave(snippets)
            foreign = (clips[:, None] != pool_clips) & real[part].flatten()[:, None] & pool_real
            negative = foreign & ~likely_false(part) if others.link_rules else foreign
            count, kept = (m.unflatten(0, (-1, snippets)).sum((1, 2)) for m in (foreign, negative))
            masks.append(negative)
            fractions.append((count - kept) / count.clamp(min=1))
        return cls(y.transpose(0, 1).flatten(1, 2), masks, torch.cat(fractions))

    def reduce(self, x: Tensor, over: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Reduce the comparisons of each anchor with its negatives, `[..., B, T]`.

        Args:
            x: unit representations of the batch `[B, 2, T, D]`.
            over: from anchors `[2, n, D]`, the pool's snippets `[2, m, D]` and the mask of those
                that are negatives `[n, m]`, to `[..., n]`.
        """
        snippets = x.shape[2]
        block = len(self.masks[0]) // snippets
        parts = []
        for number, negative in enumerate(self.masks):
            part = slice(number * block, (number + 1) * block)
            arguments = (x[part].transpose(0, 1).flatten(1, 2), self.pool, negative)
            if len(self.masks) == 1:
                reduced = over(*arguments)
            else:  # recomputed in the backward pass: all blocks together would not fit in memory
                reduced = checkpoint(
                    over, *arguments, use_reentrant=False, preserve_rng_state=False
                )
            parts.append(reduced)
        return torch.cat(parts, -1).unflatten(-1, (len(x), snippets))


def other_clips_hinge(
    x: Tensor, components: Tensor, pairs: Pairs, margin: float, negatives: Negatives
) -> Tensor:
    """Hinge [<x_i, y_j> - margin]_+ over the negatives from other clips, per clip `[B]`.

    The mean over the negatives j of an anchor is summed over `pairs`, then averaged over the real
    snippets i of the clip.

    Args:
        x: unit representations `[B, 2, T, D]`, audio and visual.
        components: component ids `[B, T]`; `PADDING` for padding.
    """
    hinge = negatives.reduce(x, functools.partial(_mean_hinge, pairs=pairs, margin=margin))
    return hinge.sum(1) / (components != PADDING).sum(1).clamp(min=1)


def _mean_hinge(x: Tensor, y: Tensor, negative: Tensor, pairs: Pairs, margin: float) -> Tensor:
    """Mean hinge of each anchor over its negatives, summed over pairs of modalities, `[n]`.

    Anchors are `x [2, n, D]`, candidates `y [2, m, D]`; `negative [n, m]` selects among them.
    """
    total = x.new_zeros(x.shape[1])
    for one, two in pairs:
        total = total + (F.relu(x[one] @ y[two].T - margin) * negative).sum(1)
    return total / negative.sum(1).clamp(min=1)


class _LikelyFalse:
    """Likely-false negatives of a batch: snippets that the link rules would link.

    Args:
        pool: `others.compared()` of the pool's clips.
    """

    def __init__(self, others: OtherClips, pool: Sequence[Tensor], snippets: int) -> None:
        self.others, self.snippets = others, snippets
        features = zip(others.features, pool, strict=False)
        self.features = {name: with_norms(x.flatten(0, 1)) for name, x in features}
        if others.rule_index is not None:
            self.pool_rules = pool[-1].repeat_interleave(snippets)

    @torch.no_grad()
    def __call__(self, part: slice) -> Tensor:
        """Likely-false negatives of some clips' snippets in the pool, bool `[bT, KT]`.

        Clips of different groundings are compared by both rules, and both have to link them.
        """
        others = self.others
        compared = {
            name: cosines(with_norms(others.features[name][part].flatten(0, 1)), y)
            for name, y in self.features.items()
        }
        indices = None
        if others.rule_index is not None:
            own_rules = others.rule_index[part].repeat_interleave(self.snippets)
            indices = own_rules[:, None], self.pool_rules
        return linked_by_both(others.link_rules, compared, indices)


Vectors = tuple[Tensor, Tensor]
"""Feature vectors `[..., n, F]` in float32, and their norms `[..., n]`."""


def with_norms(features: Tensor) -> Vectors:
    """Feature vectors `[..., n, F]` as they are stored, and their norms."""
    x = features.detach().float()
    return x, x.norm(dim=-1)


def cosines(x: Vectors, y: Vectors) -> Tensor:
    """Cosines `[..., n, m]` of two sets of vectors; nan for a vector of zeros.

    The norms are divided out last. Features stored in float16 lose no digit in TF32, in which a GPU
    may multiply, but unit vectors would; those stored in float32 are rounded to as many digits.
    """
    return (x[0] @ y[0].mT).div_(x[1][..., None]).div_(y[1][..., None, :])
