"""Gradient reversal and the modality discriminator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avvp_dist.models.adversary import ModalityDiscriminator, reverse_gradient


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 3.0])
def test_only_the_way_back_is_reversed(scale: float) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    weights = torch.randn(4, 3)
    out = reverse_gradient(x, scale)
    assert torch.equal(out, x)
    (out * weights).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, -scale * weights)


def test_one_logit_per_row_through_the_papers_layers() -> None:
    model = ModalityDiscriminator(32)
    assert model(torch.randn(6, 32)).shape == (6,)
    sizes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert sizes == [(32, 128), (128, 10), (10, 1)]


def test_it_learns_to_tell_separable_modalities_apart() -> None:
    torch.manual_seed(0)
    model = ModalityDiscriminator(8)
    truth = (torch.arange(64) % 2).float()
    rows = torch.randn(64, 8) + 3 * truth[:, None]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = nn.functional.binary_cross_entropy_with_logits(model(rows), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(model.eval()(rows) > 0, truth.bool())
