"""The encoder under its objectives."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avvp_dist.config import ObjectiveConfig
from avvp_dist.models.autocast import autocast
from avvp_dist.models.encoder import Encoder
from avvp_dist.objectives.grounding import grounding_loss
from avvp_dist.objectives.negative_pool import NegativePool
from avvp_dist.objectives.negatives import LinkRule, OtherClips
from avvp_dist.runtime.ranks import Ranks


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

    def forward(self, batch: GroundingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the batch and its detached parts: those of `grounding_loss`, and the loss of each
        objective if there are several. A collective if an objective looks at other clips."""
        weights = self.objective.weights()
        losses: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        with autocast(batch.components.device, self.autocast):
            audio, visual = self.representations(batch)
        if "grounding" in weights:
            others = self._other_clips(batch) if self.objective.other_clips else None
            losses["grounding"], parts = grounding_loss(
                audio, visual, batch.components, self.objective, batch.epoch, batch.anchors, others
            )
        if len(weights) > 1:
            parts |= {name: loss.detach() for name, loss in losses.items()}
        terms = [weights[name] * loss for name, loss in losses.items()]
        return functools.reduce(operator.add, terms), parts

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
        features = {name: batch.streams[name] for name in self.compared}
        pool = NegativePool(batch.pool_rows, batch.pool_empty, batch.pool_order, self.ranks)
        return OtherClips(batch.clips, features, self.link_rules, batch.rule_index, pool)
