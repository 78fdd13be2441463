"""The UNITER-style audio-visual encoder (section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avvp_dist.config import SIZES
from avvp_dist.config import Encoder as EncoderConfig
from avvp_dist.data.schema import AUDIO


class Encoder(nn.Module):
    """Contextual snippet representations of both modalities.

    Each stream is normalised and projected; the visual streams of a snippet add up to one token,
    so a clip is T audio and T visual tokens however many visual streams there are. Learned
    position and modality embeddings are added, then a pre-norm transformer runs over all tokens.

    Args:
        config: size, dropout, and whether the modalities attend to each other (`joint`).
        dims: feature size of each stream; `audio` is audio, the others are visual.
        snippets: T, the most snippets a clip may have.
    """

    def __init__(self, config: EncoderConfig, dims: dict[str, int], snippets: int) -> None:
        super().__init__()
        layers, width, heads, feedforward = SIZES[config.size]
        self.width, self.joint = width, config.joint
        self.visual_streams = [name for name in dims if name != AUDIO]
        self.norms = nn.ModuleDict({name: nn.LayerNorm(dim) for name, dim in dims.items()})
        self.embed = nn.ModuleDict({name: nn.Linear(dim, width) for name, dim in dims.items()})
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.positions = nn.Parameter(torch.zeros(snippets, width))
        self.modalities = nn.Parameter(torch.zeros(2, width))
        self.embedding_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, feedforward, config.dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.apply(_initialise)
        for table in (self.positions, self.modalities):
            nn.init.normal_(table, std=0.02)

    def forward(
        self, streams: dict[str, Tensor], lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Audio and visual representations, each `[B, T, width]`.

        Args:
            streams: `[B, T, D]` each.
            lengths: real snippets of each clip, `[B]`; the padding is attended by nothing.
        """
        audio = self._embed(streams, [AUDIO])
        visual = self._embed(streams, self.visual_streams)
        snippets = audio.shape[1]
        tokens = torch.stack([audio, visual], 1) + self.positions[:snippets]
        tokens = (tokens + self.modalities[:, None]).flatten(1, 2)
        tokens = self.dropout(self.embedding_norm(tokens))
        mask = self._mask(snippets, lengths, tokens.device)
        for layer in self.layers:
            tokens = layer(tokens, mask)
        audio, visual = self.norm(tokens).unflatten(1, (2, snippets)).unbind(1)
        return audio, visual

    def _embed(self, streams: dict[str, Tensor], names: list[str]) -> Tensor:
        embedded = [
            self.embed[name](self.input_dropout(self.norms[name](streams[name]))) for name in names
        ]
        return torch.stack(embedded).sum(0)

    def _mask(self, snippets: int, lengths: Tensor | None, device: torch.device) -> Tensor | None:
        """Which tokens a token may attend, bool `[1 or B, 1, 1 or 2T, 2T]`; None: all."""
        mask = None
        if lengths is not None and bool((lengths < snippets).any()):
            real = torch.arange(snippets, device=device) < lengths[:, None]
            mask = real.repeat(1, 2)[:, None, None]
        if not self.joint:
            same = torch.arange(2, device=device).repeat_interleave(snippets)
            own = (same[:, None] == same)[None, None]
            mask = own if mask is None else mask & own
        return mask


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer on `[B, N, width]`: self-attention, then a GELU network."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, dropout
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        hidden = F.gelu(self.expand(self.feedforward_norm(x)))
        return x + self.dropout(self.contract(hidden))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
