"""The regularity loss: its equation in numpy, and what it sees and makes of over-smoothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from avvp_dist.evaluation.collapse import spread
from avvp_dist.objectives.grounding import unit
from avvp_dist.objectives.regularity import regularity_loss
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.shards.schema import PADDING
from tests.objectives.loops import batch

ALONE = single_rank("cpu")
CLIPS, SNIPPETS, WIDTH = 48, 6, 8
WORST = 2 * (1 - 0.01 + 0.5**0.5 - 0.01)
"""The loss of a single point."""
WHOLE = torch.zeros(CLIPS, SNIPPETS, dtype=torch.uint8)


def by_numpy(x: Tensor, components: Tensor) -> float:
    """Sum of the terms of both modalities, from the list of real snippets."""
    clips, positions = np.nonzero(components.numpy() != PADDING)
    total = 0.0
    for modality in x.double().numpy().transpose(1, 0, 2, 3):
        z = modality[clips, positions] * np.sqrt(modality.shape[-1])
        for t in set(positions):
            z[positions == t] -= z[positions == t].mean(0)
        covariance = z.T @ z / len(z)
        inside = z - np.stack([z[clips == clip].mean(0) for clip in clips])
        within = (inside**2).sum(0) / (len(z) - len(set(clips)))
        total += np.maximum(1 - np.sqrt(np.diag(covariance) + 1e-4), 0).mean()
        total += np.maximum(np.sqrt(0.5) - np.sqrt(within + 1e-4), 0).mean()
        off_diagonal = covariance - np.diag(np.diag(covariance))
        total += (off_diagonal**2).sum() / len(covariance) / 25
    return float(total)


def test_the_loss_is_the_equation() -> None:
    audio, visual, components = batch()
    x = unit(audio, visual)
    expected = by_numpy(x, components)
    assert float(regularity_loss(x, components, ALONE)) == pytest.approx(expected, rel=1e-5)
    x[(components == PADDING)[:, None].expand(-1, 2, -1)] = 1e3
    assert float(regularity_loss(x, components, ALONE)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_collapsed_representations_have_a_finite_gradient(padded: bool) -> None:
    x = torch.ones(3, 2, SNIPPETS, WIDTH, requires_grad=True)
    components = torch.full_like(WHOLE[:3], PADDING if padded else 0)
    loss = regularity_loss(unit(*x.unbind(1)), components, ALONE)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(WORST, rel=1e-5)
    assert x.grad is not None and x.grad.isfinite().all()


def smoothed() -> Tensor:
    """Clips that differ from one another, each of which is nearly one point, `[B, 2, T, D]`."""
    torch.manual_seed(0)
    clips = torch.randn(CLIPS, 2, 1, WIDTH)
    return clips + 0.2 * torch.randn(CLIPS, 2, SNIPPETS, WIDTH)


def cosine_within(x: Tensor) -> float:
    """Mean cosine of two snippets of a clip."""
    y = unit(*x.detach().unbind(1))
    gram = y @ y.transpose(2, 3)
    return float((gram.sum((2, 3)) - SNIPPETS).mean() / (SNIPPETS * (SNIPPETS - 1)))


def test_snippets_of_smoothed_clips_part_and_clips_stay_apart() -> None:
    x = smoothed().requires_grad_()
    middle = x.detach()[:, 0, 0].numpy()
    assert spread(middle) > 0.9 and cosine_within(x) > 0.9  # between clips nothing has collapsed
    optimizer = torch.optim.Adam([x], 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        regularity_loss(unit(*x.unbind(1)), WHOLE, ALONE).backward()
        optimizer.step()
    assert cosine_within(x) < 0.6
    assert spread(x.detach()[:, 0, 0].numpy()) > 0.9


def test_what_each_position_adds_to_all_clips_is_no_difference() -> None:
    positions = torch.randn(2, SNIPPETS, WIDTH, generator=torch.Generator().manual_seed(1))
    x = unit(*positions.expand(CLIPS, -1, -1, -1).unbind(1))
    assert float(regularity_loss(x, WHOLE, ALONE)) == pytest.approx(WORST, rel=1e-3)
