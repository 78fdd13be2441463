"""Attention layers: shapes, and GCAA against its formula written as loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avvp_dist.models.attention import ATTENTION, GlobalContextAttention


def gcaa_by_loops(layer: GlobalContextAttention, query: Tensor, context: Tensor) -> Tensor:
    """One clip, one head: `query [T, D]`, `context [S, D]` to `[T, D]`."""
    c_q = layer.query_context(torch.stack(list(query)).mean(0))
    c_k = layer.key_context(torch.stack(list(context)).mean(0))
    keys, values = [], []
    for x in context:
        k = layer.key(x)
        gate = torch.sigmoid(layer.key_gate(k) + layer.key_context_gate(c_k))
        keys.append((1 - gate) * k + gate * c_k)
        values.append(layer.value(x))
    out = []
    for x in query:
        q = layer.query(x)
        gate = torch.sigmoid(layer.query_gate(q) + layer.query_context_gate(c_q))
        q = (1 - gate) * q + gate * c_q
        scores = [math.exp(float(q @ k) / math.sqrt(len(q))) for k in keys]
        mixed = sum(s / sum(scores) * v for s, v in zip(scores, values, strict=True))
        out.append(layer.out(mixed))
    return torch.stack(out)


@torch.no_grad()
def test_gcaa_is_its_formula() -> None:
    torch.manual_seed(0)
    layer = GlobalContextAttention(8, 1, dropout=0.1).eval()
    query, context = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    expected = [gcaa_by_loops(layer, q, c) for q, c in zip(query, context, strict=True)]
    torch.testing.assert_close(layer(query, context), torch.stack(expected), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_gcaa_heads_attend_apart() -> None:
    torch.manual_seed(0)
    layer = GlobalContextAttention(8, 2, dropout=0.0).eval()
    query, context = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    before = layer(query, context)
    layer.out.weight.copy_(torch.eye(8))  # now the output is the heads side by side
    layer.out.bias.zero_()
    mixed = layer(query, context)
    layer.value.weight[4:] += 1.0  # values of the second head only
    changed = layer(query, context)
    assert not torch.equal(before, mixed)
    torch.testing.assert_close(changed[..., :4], mixed[..., :4])
    assert (changed[..., 4:] - mixed[..., 4:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ATTENTION)
@torch.no_grad()
def test_the_order_of_the_context_does_not_matter(name: str) -> None:
    torch.manual_seed(0)
    layer = ATTENTION[name](8, 2, 0.1).eval()
    query, context = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    attended = layer(query, context)
    assert attended.shape == query.shape
    torch.testing.assert_close(layer(query, context.flip(1)), attended, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(layer(query, 2 * context), attended)
