"""The encoder under its grounding objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avvp_dist.config import ObjectiveConfig
from avvp_dist.hashing import hash_uniform
from avvp_dist.models.autocast import autocast
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
    """Features as they are stored, `[B, T, D]` per stream."""
    lengths: Tensor | None
    """Real snippets of each clip, `[B]`; None if all clips are whole."""
    components: Tensor
    """Component ids `[B, T]`; `PADDING` for padding, and for clips that are no negatives."""
    clips: Tensor
    """Clip numbers `[B]`."""
    step: int
    epoch: int
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
        autocast: multiply in bfloat16 in the encoder's layers when training, over float32 weights.
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
        autocast: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective
        self.hidden_streams, self.seed = hidden_streams, seed
        self.clips_per_rank, self.link_rules, self.ranks = clips_per_rank, link_rules, ranks
        self.compared = sorted({name for rule in link_rules for name in rule.thresholds})
        self.autocast = autocast

    def forward(self, batch: GroundingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the batch and its detached parts, see `grounding_loss`; a collective if the
        objective takes negatives from other clips."""
        others = self._other_clips(batch) if self.objective.other_clips else None
        with autocast(batch.components.device, self.autocast):
            audio, visual = self.representations(batch)
        positions = self._anchor_positions(batch)
        return grounding_loss(
            audio, visual, batch.components, self.objective, batch.epoch, positions, others
        )

    def representations(self, batch: GroundingBatch) -> tuple[Tensor, Tensor]:
        """Audio and visual representations that grounding compares, `[B, T, width]` each.

        The visual one is the mean of the visual tokens that are not hidden.
        """
        dtype, hidden = self.encoder.norm.weight.dtype, self.hidden_streams
        streams = {name: x.to(dtype).contiguous() for name, x in batch.streams.items()}
        audio, *visual = self.encoder(streams, batch.lengths, hidden)
        _, *groups = self.encoder.groups.values()
        seen = [x for names, x in zip(groups, visual, strict=True) if not set(names) <= set(hidden)]
        return audio, torch.stack(seen).mean(0)

    def _other_clips(self, batch: GroundingBatch) -> OtherClips:
        components = batch.components
        hashes = self._hash_uniform(batch, batch.clips, "negatives")
        hashes = hashes.masked_fill((components == PADDING).all(1), torch.inf)
        return OtherClips(
            batch.clips.to(components.device),
            {name: batch.streams[name] for name in self.compared},
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
        if clips.is_meta:  # has no numbers
            return torch.empty(clips.shape, dtype=torch.float64, device=clips.device)
        uniform = hash_uniform(clips.cpu().numpy(), purpose, self.seed, batch.step)
        return torch.from_numpy(uniform).to(batch.components.device)
