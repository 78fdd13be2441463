"""The parser family: HAN, and the paper's Base with its parts (section 3.1), as switches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from avvp_dist.config import ParserConfig
from avvp_dist.models.adversary import ModalityDiscriminator, reverse_gradient
from avvp_dist.models.attention import ATTENTION
from avvp_dist.models.encoder import Encoder
from avvp_dist.objectives.parsing import ParserOutput
from avvp_dist.shards.schema import AUDIO


class Parser(nn.Module):
    """An audio-visual video parser over any audio stream and any visual streams.

    Args:
        config: switches of the family.
        dims: feature size of each stream; `audio` is audio, the others are visual.
        classes: number of classes, C.
        encoder: pretrained encoder whose representations are read; None: raw features only.
        raw: with an encoder: also read the raw features.
        scale: with an encoder: factor on its layer-normed outputs, so that they do not outweigh
            the raw features.
        tune: with an encoder: train it too. Otherwise it stays in eval mode without gradients.
    """

    def __init__(
        self,
        config: ParserConfig,
        dims: dict[str, int],
        classes: int,
        encoder: Encoder | None = None,
        *,
        raw: bool = True,
        scale: float = 1.0,
        tune: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.encoder, self.scale, self.tune = config, encoder, scale, tune
        width = config.width
        self.visual_streams = [name for name in dims if name != AUDIO]
        inputs = dict(dims) if encoder is None or raw else {}
        self.embed = nn.ModuleDict({name: nn.Linear(dim, width) for name, dim in inputs.items()})
        if encoder is not None:
            encoder.requires_grad_(tune).train(tune)
            self.embed_encoded = nn.ModuleDict(
                {name: nn.Linear(encoder.width, width) for name in encoder.groups}
            )
            if len(encoder.groups) > 2:
                self.fuse_encoded = nn.Linear(width * (len(encoder.groups) - 1), width)
        if len(self.visual_streams) > 1 and inputs:
            self.fuse_visual = nn.Linear(width * len(self.visual_streams), width)
        copies = 2 if config.separate_self_attention else 1
        if config.fusion != "none":
            self.self_layers = nn.ModuleList(
                ParserLayer(config, own=True, cross=config.fusion == "inputs")
                for _ in range(copies)
            )
        if config.fusion == "attended":
            self.cross_layer = ParserLayer(config, own=False, cross=True)
            self.shared = nn.Linear(width, width)
        if config.skip and config.fusion != "none":
            self.skip_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        if config.discriminator:
            self.discriminator = ModalityDiscriminator(width)
        self.prob, self.frame_att, self.modality_att = (nn.Linear(width, classes) for _ in range(3))

    def forward(self, streams: dict[str, Tensor]) -> ParserOutput:
        """Parse B clips from their features, `[B, T, D]` per stream."""
        inputs = self._inputs(streams)
        if self.config.fusion == "none":
            return self._pool(torch.stack(inputs, 2), inputs)
        first, second = self.self_layers[0], self.self_layers[-1]
        if first is second:
            own = _both_ways(first, inputs)
        else:
            own = [first(inputs[0], inputs[1]), second(inputs[1], inputs[0])]
        mixed = own
        if self.config.fusion == "attended":
            mixed = [self.shared(x) for x in _both_ways(self.cross_layer, own)]
        if self.config.skip:
            mixed = [
                norm(x + skipped)
                for norm, x, skipped in zip(self.skip_norms, mixed, own, strict=True)
            ]
        return self._pool(torch.stack(mixed, 2), inputs)

    def discriminate(self, output: ParserOutput, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Logits of the discriminator for each snippet and modality, and the truth, `[2BT]` each.

        The gradient that returns to the parser is reversed and multiplied by `scale`.
        """
        features = F.relu(reverse_gradient(output.features, scale)).flatten(0, 1)
        truth = torch.arange(2.0, device=features.device).expand(len(features), 2)
        return self.discriminator(features.flatten(0, 1)), truth.flatten()

    def train(self, mode: bool = True) -> Parser:
        super().train(mode)
        if self.encoder is not None and not self.tune:
            self.encoder.eval()
        return self

    def _inputs(self, streams: dict[str, Tensor]) -> list[Tensor]:
        """Audio and visual inputs of the attention layers, `[B, T, width]` each."""
        sums: list[list[Tensor]] = [[], []]
        if self.embed:
            sums[0].append(self.embed[AUDIO](streams[AUDIO]))
            visual = [self.embed[name](streams[name]) for name in self.visual_streams]
            joined = torch.cat(visual, -1)
            sums[1].append(self.fuse_visual(joined) if len(visual) > 1 else joined)
        if self.encoder is not None:
            with torch.set_grad_enabled(self.tune and torch.is_grad_enabled()):
                encoded = self.encoder(streams)
            audio, *visual = (
                self.embed_encoded[name](self.scale * F.layer_norm(group, group.shape[-1:]))
                for name, group in zip(self.encoder.groups, encoded, strict=True)
            )
            sums[0].append(audio)
            joined = torch.cat(visual, -1)
            sums[1].append(self.fuse_encoded(joined) if len(visual) > 1 else joined)
        return [torch.stack(parts).sum(0) for parts in sums]

    def _pool(self, features: Tensor, inputs: list[Tensor]) -> ParserOutput:
        """MMIL pooling (Tian et al., ECCV 2020): attention over time and modality."""
        frame_prob = torch.sigmoid(self.prob(features))
        temporal = self.frame_att(features).softmax(1) * frame_prob
        modality = self.modality_att(features).softmax(2)
        return ParserOutput(
            frame_prob=frame_prob,
            modality_prob=temporal.sum(1),
            video_prob=(temporal * modality).sum((1, 2)),
            features=features,
            inputs=torch.stack(inputs, 2),
        )


@torch.no_grad()
def probabilities(parser: Parser, streams: Mapping[str, Tensor]) -> list[NDArray[np.float32]]:
    """Probabilities of a batch of clips: of snippets, videos and modalities, as `Predictions` has.

    Args:
        streams: features `[B, T, D]` by stream.
    """
    parsed = parser(dict(streams))
    return [
        one.float().cpu().numpy()
        for one in (parsed.frame_prob, parsed.video_prob, parsed.modality_prob)
    ]


def _both_ways(layer: nn.Module, pair: list[Tensor]) -> list[Tensor]:
    """Compute `layer(a, b)` and `layer(b, a)` for a, b of `[B, T, D]` as one batch `[2B, T, D]`."""
    return list(layer(torch.cat(pair), torch.cat(pair[::-1])).chunk(2))


class ParserLayer(nn.Module):
    """Post-norm layer: attention to the own modality, the other, or both, then a ReLU network.

    With `own` and `cross` it is HAN's hybrid layer: both attentions read the same inputs.
    """

    def __init__(self, config: ParserConfig, *, own: bool, cross: bool) -> None:
        super().__init__()
        width, attention = config.width, ATTENTION[config.attention]
        self.first_snippet = config.gcaa_first_snippet and config.attention == "gcaa"
        self.own = attention(width, config.heads, config.dropout) if own else None
        self.cross = attention(width, config.heads, config.dropout) if cross else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        attended = x
        for attention, context in ((self.cross, other), (self.own, x)):
            if attention is not None:
                update = attention(x, context)
                if self.first_snippet:  # the fault of the released GCAA: one update for all
                    update = update[:, :1]
                attended = attended + self.dropout(update)
        x = self.norm1(attended)
        hidden = self.dropout(F.relu(self.linear1(x)))
        out: Tensor = self.norm2(x + self.dropout(self.linear2(hidden)))
        return out
