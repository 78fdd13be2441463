"""The parser under its losses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from avvp_dist.config import ParsingLossConfig
from avvp_dist.models.autocast import autocast
from avvp_dist.models.parser import Parser
from avvp_dist.objectives.parsing import ParserOutput, parsing_loss, reversal_ramp


@dataclass(frozen=True)
class ParsingBatch:
    """A micro-batch of B weakly labelled clips."""

    streams: dict[str, Tensor]
    """Features as they are stored, `[B, T, D]` per stream."""
    weak: Tensor
    """Video-level labels `[B, C]`, 0 or 1."""
    kept: Tensor | None
    """Labels that each modality keeps, see `parsing_loss`, `[B, 2, C]`."""
    progress: float
    """Completed fraction of the training, 0 to 1."""


class ParsingModel(nn.Module):
    """The parser under equation (3): a batch to its loss.

    Args:
        autocast: multiply in bfloat16 in the parser's layers, over float32 weights.
    """

    def __init__(self, parser: Parser, loss: ParsingLossConfig, *, autocast: bool = False) -> None:
        super().__init__()
        self.parser, self.loss, self.autocast = parser, loss, autocast

    def forward(self, batch: ParsingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the batch and its detached parts, see `parsing_loss`."""
        dtype = self.parser.prob.weight.dtype
        streams = {name: x.to(dtype).contiguous() for name, x in batch.streams.items()}
        with autocast(batch.weak.device, self.autocast):
            output: ParserOutput = self.parser(streams)
            discrimination = None
            if self.parser.config.discriminator:
                scale = reversal_ramp(batch.progress) if self.loss.ramp else 1.0
                discrimination = self.parser.discriminate(output, scale)
        return parsing_loss(output, batch.weak, self.loss, batch.kept, discrimination)
