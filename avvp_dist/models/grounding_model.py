"""The encoder under its objectives."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from avvp_dist.config import ObjectiveConfig
from avvp_dist.models.autocast import autocast
from avvp_dist.models.encoder import Encoder, represent
from avvp_dist.models.heads import MaskedHead, MatchingHead
from avvp_dist.objectives.contrastive import supervised_contrastive_loss
from avvp_dist.objectives.grounding import compared_pairs, grounding_loss, unit
from avvp_dist.objectives.masked import (
    feature_keys,
    masked_loss,
    masked_places,
    maximum_masked,
)
from avvp_dist.objectives.matching import alike, matching_loss
from avvp_dist.objectives.negative_pool import NegativePool, StoredClips
from avvp_dist.objectives.negatives import LinkRule, Negatives, OtherClips
from avvp_dist.objectives.regularity import regularity_loss
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.shards.schema import AUDIO, PADDING


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
    epoch: int
    pool_rows: Tensor
    """Rows that this rank lends to the pool of negatives, `[k]`: `PoolRows.rows`."""
    pool_empty: Tensor
    """Those that hold no clip, `[k]`: `PoolRows.empty`."""
    pool_order: Tensor | None = None
    """Pool's rows among those of all ranks, `[K]`: `PoolRows.order`."""
    anchors: Tensor | None = None
    """Position of each clip's only anchor, `[B]`; None if every snippet is an anchor."""
    rule_index: Tensor | None = None
    """Index of each clip's link rule, `[B]`."""
    masked: Tensor | None = None
    """Masked snippets of audio and vision, bool `[B, 2, T]`: `mask_snippets`; None: none is."""
    partners: Tensor | None = None
    """Row of the pool whose vision each clip is matched with, `[B]`: `partner_rows`."""


class GroundingModel(nn.Module):
    """The encoder under its objectives: a batch to its loss, a weighted sum of theirs.

    Its forward pass copies nothing from the host and never waits for the device.

    Args:
        hidden_streams: visual streams that the encoder does not see.
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
        link_rules: Sequence[LinkRule],
        ranks: Ranks,
        autocast: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective
        self.hidden_streams, self.link_rules, self.ranks = hidden_streams, link_rules, ranks
        self.compared = sorted({name for rule in link_rules for name in rule.thresholds})
        self.autocast = autocast
        self.streams = (
            encoder.groups[AUDIO],
            [name for name in encoder.norms if name not in (AUDIO, *hidden_streams)],
        )
        """Streams that are seen, of audio and of vision."""
        if objective.masked:
            dims = [sum(encoder.dims[name] for name in names) for names in self.streams]
            self.masked_head = MaskedHead(encoder.width, len(encoder.groups), dims)
        if objective.matching:
            self.matching_head = MatchingHead(encoder.width)

    def forward(self, batch: GroundingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the batch and its detached parts: those of the objectives, and the loss of each
        unless it is grounding alone. A collective if an objective looks at other clips."""
        objective, components = self.objective, batch.components
        weights = objective.weights()
        losses: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        if weights.keys() != {"masked"}:
            with self._autocast(batch):
                audio, visual = self.representations(batch)
            x = unit(audio, visual)
        if weights.keys() & {"masked", "matching"}:
            clips = self._stored(batch)
            pool = self._pool(batch).stored(clips)

        @functools.cache  # gathered once for all objectives
        def negatives() -> Negatives:
            return Negatives.gather(x, components, self._other_clips(batch))

        if "grounding" in weights:
            losses["grounding"], parts = grounding_loss(
                x, components, objective, negatives, batch.epoch, batch.anchors
            )
        if "contrastive" in weights:
            pairs = compared_pairs(objective, batch.epoch)
            losses["contrastive"] = supervised_contrastive_loss(
                x, components, pairs, objective.temperature, negatives()
            )
        if "regularity" in weights:
            losses["regularity"] = regularity_loss(x, components, self.ranks)
        if "masked" in weights:
            losses["masked"], parts["masked_chance"] = self._masked_loss(batch, clips, pool)
        if "matching" in weights:
            found = self._matching_loss(batch, clips, pool, (audio, visual))
            losses["matching"], parts["matching_left_out"] = found
        if weights.keys() != {"grounding"}:
            parts |= {name: loss.detach() for name, loss in losses.items()}
        terms = [weights[name] * loss for name, loss in losses.items()]
        return functools.reduce(operator.add, terms), parts

    def representations(self, batch: GroundingBatch, **masks: Tensor) -> tuple[Tensor, Tensor]:
        """Audio and visual representations that grounding compares, see `represent`."""
        return represent(self.encoder, batch.streams, batch.lengths, self.hidden_streams, **masks)

    def _autocast(self, batch: GroundingBatch) -> AbstractContextManager[object]:
        return autocast(batch.components.device, self.autocast)

    def _masked_loss(
        self, batch: GroundingBatch, clips: StoredClips, pool: StoredClips
    ) -> tuple[Tensor, Tensor]:
        """Loss of a pass with masked snippets, and the loss of a guess."""
        assert batch.masked is not None, "the batch was made for other objectives"
        maximum = maximum_masked(batch.masked.shape[2], self.objective)
        places, counted = masked_places(batch.masked, maximum)
        audio, visual = batch.masked.split(1, dim=1)
        tokens = torch.cat([audio, visual.expand(-1, len(self.encoder.groups) - 1, -1)], 1)
        with self._autocast(batch):
            seen = self.representations(batch, masked=tokens, mask_tokens=self.masked_head.tokens)
            predicted = self.masked_head(seen, places)
        keys = [feature_keys(clips, pool, names) for names in self.streams]
        temperature = self.objective.temperature
        return masked_loss(
            predicted, places, counted, keys, batch.components, clips, pool, temperature
        )

    def _matching_loss(
        self,
        batch: GroundingBatch,
        clips: StoredClips,
        pool: StoredClips,
        seen: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Loss of the clips as they were `seen`, and of a pass over their audio with the vision of
        their partners, cut to the shorter one; and the fraction of partners that are left out."""
        assert batch.partners is not None, "the batch was made for other objectives"
        partners = pool.take(batch.partners)
        both = clips.real & partners.real
        vision = {name: partners.streams[name] for name in self.streams[1]}
        lengths = None if batch.lengths is None else both.sum(1).clamp(min=1)
        mixed = replace(batch, streams={**batch.streams, **vision}, lengths=lengths)
        with self._autocast(batch):
            matched = self.matching_head(*seen, clips.real)
            swapped = self.matching_head(*self.representations(mixed), both)
        other = both.any(1) & (clips.numbers != partners.numbers)
        counted = other
        if self.link_rules:
            counted = other & ~alike(clips, partners, self.link_rules, self.compared)
        left_out = (other & ~counted).float().mean()
        return matching_loss(matched, swapped, counted), left_out

    def _stored(self, batch: GroundingBatch) -> StoredClips:
        """This rank's clips with all features that objectives beyond grounding look at."""
        names = {*self.streams[0], *self.streams[1], *self.compared}
        streams = {name: x for name, x in batch.streams.items() if name in names}
        return StoredClips(streams, batch.components != PADDING, batch.clips, batch.rule_index)

    def _other_clips(self, batch: GroundingBatch) -> OtherClips:
        features = {name: batch.streams[name] for name in self.compared}
        return OtherClips(
            batch.clips, features, self.link_rules, batch.rule_index, self._pool(batch)
        )

    def _pool(self, batch: GroundingBatch) -> NegativePool:
        return NegativePool(batch.pool_rows, batch.pool_empty, batch.pool_order, self.ranks)
