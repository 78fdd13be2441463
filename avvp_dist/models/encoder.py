"""The UNITER-style audio-visual encoder (section 3.2)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avvp_dist.config import SIZES, EncoderConfig
from avvp_dist.shards.schema import AUDIO


class Encoder(nn.Module):
    """Contextual snippet representations of both modalities.

    Each stream is normalised and projected. With `visual_tokens="summed"` the visual streams of a
    snippet add up to one token, so a clip is T audio and T visual tokens for any number of visual
    streams. With `"separate"` each visual stream is a token of its own. Learned embeddings of
    position and of token group are added, then a pre-norm transformer runs over all tokens.

    Args:
        config: size, dropout, which modalities attend to each other, and what is a token.
        dims: feature size of each stream; `audio` is audio, the others are visual.
        snippets: maximum number of snippets in a clip, T.
        activation_checkpointing: recompute the activations of each layer in the backward pass
            instead of keeping them. It may be changed at any time.
    """

    def __init__(
        self,
        config: EncoderConfig,
        dims: dict[str, int],
        snippets: int,
        *,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        layers, width, heads, feedforward = SIZES[config.size]
        self.dims, self.width, self.joint = dims, width, config.joint
        self.activation_checkpointing = activation_checkpointing
        visual = [name for name in dims if name != AUDIO]
        summed = config.visual_tokens == "summed"
        self.groups = {AUDIO: [AUDIO]} | (
            {"visual": visual} if summed else {name: [name] for name in visual}
        )
        """Token groups and their streams: audio first, then vision."""
        self.norms = nn.ModuleDict({name: nn.LayerNorm(dim) for name, dim in dims.items()})
        self.embed = nn.ModuleDict({name: nn.Linear(dim, width) for name, dim in dims.items()})
        self.input_dropout = nn.Dropout(config.input_dropout)
        positions = torch.zeros(snippets, width)
        if config.frozen_positions:
            self.register_buffer("positions", positions)
        else:
            self.positions = nn.Parameter(positions)
        self.modalities = nn.Parameter(torch.zeros(len(self.groups), width))
        if config.mask_vectors:
            self.mask_vectors = nn.ParameterDict(
                {name: nn.Parameter(0.02 * torch.randn(dim)) for name, dim in dims.items()}
            )
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
        self,
        streams: dict[str, Tensor],
        lengths: Tensor | None = None,
        hidden: Sequence[str] = (),
        masked: Tensor | None = None,
        mask_tokens: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Representations of each token group in the order of `groups`, `[B, T, width]` each.

        Args:
            streams: features, `[B, T, D]` per stream.
            lengths: real snippets of each clip, `[B]`; None if all clips are whole. No token
                attends to the padding.
            hidden: visual streams to hide. A summed token leaves them out, and no token attends
                to a token of their own.
            masked: tokens whose features are not seen, bool `[B, groups, T]`; None: all are seen.
            mask_tokens: embedding in the place of such features, `[groups, width]`.
        """
        groups = [
            self._embed(streams, [name for name in names if name not in hidden] or names)
            for names in self.groups.values()
        ]
        snippets = groups[0].shape[1]
        tokens = torch.stack(groups, 1)
        if masked is not None and mask_tokens is not None:
            tokens = torch.where(masked[..., None], mask_tokens[:, None], tokens)
        tokens = tokens + self.positions[:snippets]
        tokens = (tokens + self.modalities[:, None]).flatten(1, 2)
        tokens = self.dropout(self.embedding_norm(tokens))
        mask = self._mask(snippets, lengths, hidden, tokens.device)
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                tokens = checkpoint(layer, tokens, mask, use_reentrant=False)
            else:
                tokens = layer(tokens, mask)
        return self.norm(tokens).unflatten(1, (len(groups), snippets)).unbind(1)

    def _embed(self, streams: dict[str, Tensor], names: list[str]) -> Tensor:
        embedded = []
        for name in names:
            features = self.input_dropout(self.norms[name](streams[name]))
            if hasattr(self, "mask_vectors"):
                features = features + self.mask_vectors[name]
            embedded.append(self.embed[name](features))
        return torch.stack(embedded).sum(0)

    def _mask(
        self, snippets: int, lengths: Tensor | None, hidden: Sequence[str], device: torch.device
    ) -> Tensor | None:
        """Attention mask over N tokens, bool `[1 or B, 1, 1 or N, N]`; None: all may attend."""
        masks = []
        if lengths is not None:
            real = torch.arange(snippets, device=device) < lengths[:, None]
            masks.append(real.repeat(1, len(self.groups))[:, None, None])
        visible = [not set(names) <= set(hidden) for names in self.groups.values()]
        if not all(visible):
            seen = [torch.full((snippets,), one, device=device) for one in visible]
            masks.append(torch.cat(seen)[None, None, None])
        if not self.joint:
            group_modality = torch.arange(len(self.groups), device=device).clamp(max=1)
            modality = group_modality.repeat_interleave(snippets)
            masks.append((modality[:, None] == modality)[None, None])
        return functools.reduce(torch.logical_and, masks) if masks else None


def represent(
    encoder: Encoder,
    streams: dict[str, Tensor],
    lengths: Tensor | None = None,
    hidden: Sequence[str] = (),
    **masks: Tensor,
) -> tuple[Tensor, Tensor]:
    """Audio and visual representations, `[B, T, width]` each, of features in any dtype.

    The visual one is the mean of the visual tokens that are not hidden. Other arguments are those
    of `Encoder.forward`.
    """
    dtype = encoder.norm.weight.dtype
    streams = {name: x.to(dtype).contiguous() for name, x in streams.items()}
    audio, *visual = encoder(streams, lengths, hidden, **masks)
    _, *groups = encoder.groups.values()
    seen = [x for names, x in zip(groups, visual, strict=True) if not set(names) <= set(hidden)]
    return audio, torch.stack(seen).mean(0)


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer on `[B, N, width]`: self-attention, then a GELU network.

    `mask` is that of `scaled_dot_product_attention`: True where a token may attend.
    """

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
