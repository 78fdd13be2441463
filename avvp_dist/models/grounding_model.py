"""The encoder under its grounding objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from avvp_dist.config import ObjectiveConfig
from avvp_dist.hashing import hash_uniform
from avvp_dist.models.encoder import Encoder
from avvp_dist.objectives.grounding import grounding_loss
from avvp_dist.objectives.negative_pool import NegativePool
from avvp_dist.objectives.negatives import LinkRule, OtherClips
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.shards.schema import PADDING


@dataclass(frozen=True)
class GroundingBatch:
    """A micro-batch of B grounded clips."""

    streams: dict[str, Tensor]
    """Features in the training precision, `[B, T, D]` per stream."""
    lengths: Tensor | None
    """Real snippets of each clip, `[B]`; None if all clips are whole."""
    components: Tensor
    """Component ids `[B, T]`; `PADDING` for padding, and for clips that are no negatives."""
    clips: Tensor
    """Clip numbers `[B]`, on the CPU."""
    step: int
    epoch: int
    features: dict[str, Tensor] = field(default_factory=dict)
    """Features that the link rules compare, as stored, `[B, T, F]` per stream."""
    rule_index: Tensor | None = None
    """Index of each clip's link rule, `[B]`."""


class GroundingModel(nn.Module):
    """The encoder under its grounding objective: a batch to its loss.

    Args:
        hidden_streams: visual streams that the encoder does not see.
        seed: of anchors and negatives, which are functions of seed, step and clip alone.
        clips_per_rank: clips in a micro-batch of one rank.
        link_rules: link rules used to drop likely-false negatives; empty: none is dropped.
        ranks: ranks whose clips are negatives of one another.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: ObjectiveConfig,
        *,
        hidden_streams: Sequence[str],
        seed: int,
        clips_per_rank: int,
        link_rules: Sequence[LinkRule],
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective
        self.hidden_streams, self.seed = hidden_streams, seed
        self.clips_per_rank, self.link_rules, self.ranks = clips_per_rank, link_rules, ranks

    def forward(self, batch: GroundingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the batch and its detached parts, see `grounding_loss`; a collective if the
        objective takes negatives from other clips."""
        others = self._other_clips(batch) if self.objective.other_clips else None
        audio, visual = compared_representations(
            self.encoder, batch.streams, batch.lengths, self.hidden_streams
        )
        positions = self._anchor_positions(batch)
        return grounding_loss(
            audio, visual, batch.components, self.objective, batch.epoch, positions, others
        )

    def _other_clips(self, batch: GroundingBatch) -> OtherClips:
        components = batch.components
        hashes = self._hash_uniform(batch, batch.clips, "negatives")
        hashes = hashes.masked_fill((components == PADDING).all(1), torch.inf)
        return OtherClips(
            batch.clips.to(components.device),
            batch.features,
            self.link_rules,
            batch.rule_index,
            NegativePool(hashes, self.clips_per_rank, self.objective.negatives, self.ranks),
        )

    def _anchor_positions(self, batch: GroundingBatch) -> Tensor | None:
        """Place of each clip's anchor, which does not depend on ranks and micro-batches."""
        if self.objective.anchors == "all":
            return None
        clips = batch.clips
        if self.objective.anchors == "shared":  # one place for the whole batch
            clips = torch.zeros_like(clips)
        return self._hash_uniform(batch, clips, "anchors").float()

    def _hash_uniform(self, batch: GroundingBatch, clips: Tensor, purpose: str) -> Tensor:
        uniform = hash_uniform(clips.numpy(), purpose, self.seed, batch.step)
        return torch.from_numpy(uniform).to(batch.components.device)


def compared_representations(
    encoder: Encoder,
    streams: dict[str, Tensor],
    lengths: Tensor | None,
    hidden_streams: Sequence[str],
) -> tuple[Tensor, Tensor]:
    """Audio and visual representations that grounding compares, `[B, T, width]` each.

    The visual one is the mean of the visual tokens that are not hidden. Arguments are those of
    `Encoder.forward`.
    """
    audio, *visual = encoder(streams, lengths, hidden_streams)
    _, *groups = encoder.groups.values()
    seen = [
        x for names, x in zip(groups, visual, strict=True) if not set(names) <= set(hidden_streams)
    ]
    return audio, torch.stack(seen).mean(0)
