"""Attention layers of the parser: `(query [B, T, D], context [B, S, D]) -> [B, T, D]`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention with learned projections (HAN: one head)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        attended: Tensor = self.attention(query, context, context, need_weights=False)[0]
        return attended


class GlobalContextAttention(nn.Module):
    """GCAA: attention whose queries and keys are each mixed with the mean of their clip.

    lam_q = sigmoid(V_qx q + V_qc c_q), q^ = (1 - lam_q) q + lam_q c_q with
    c_q = W_qc mean_t(query). Keys are mixed with the context's mean by the same formula with
    weights of their own. Values stay local.
    (Section 3.1 of the paper; the global form of Yang et al., AAAI 2019, arXiv 1902.05766.)
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.query_context, self.key_context = (nn.Linear(width, width) for _ in range(2))
        self.query_gate, self.query_context_gate = (nn.Linear(width, 1) for _ in range(2))
        self.key_gate, self.key_context_gate = (nn.Linear(width, 1) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.query(query), self.key(context), self.value(context)
        c_q = self.query_context(query.mean(1, keepdim=True))
        c_k = self.key_context(context.mean(1, keepdim=True))
        lam_q = torch.sigmoid(self.query_gate(q) + self.query_context_gate(c_q))
        lam_k = torch.sigmoid(self.key_gate(k) + self.key_context_gate(c_k))
        q, k, v = (
            self._split(x)
            for x in ((1 - lam_q) * q + lam_q * c_q, (1 - lam_k) * k + lam_k * c_k, v)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        mixed = self.dropout(weights) @ v
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


ATTENTION: dict[str, type[MultiheadAttention] | type[GlobalContextAttention]] = {
    "multihead": MultiheadAttention,
    "gcaa": GlobalContextAttention,
}
"""Attention layers by their names in `parser.attention`."""
