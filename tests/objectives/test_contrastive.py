"""The supervised contrastive loss, against its equation written as loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.config import ObjectiveConfig
from avvp_dist.objectives import negatives
from avvp_dist.objectives.contrastive import supervised_contrastive_loss
from avvp_dist.objectives.grounding import compared_pairs, unit
from avvp_dist.objectives.negatives import LinkRule, Negatives, OtherClips
from avvp_dist.shards.schema import PADDING
from tests.objectives.loops import LOOSE, Place, batch, linked, pairs, real_snippets, stored

NAMES = ("uni", "cross", "multi")
TEMPERATURE = 0.2
RULE = LinkRule(LOOSE, "and")


def loss_of(x: Tensor, components: Tensor, name: str, others: OtherClips) -> Tensor:
    compared = compared_pairs(ObjectiveConfig(name), 0)
    found = Negatives.gather(x, components, others)
    return supervised_contrastive_loss(x, components, compared, TEMPERATURE, found)


def by_loops(x: Tensor, components: Tensor, name: str, numbers: list[int]) -> float:
    """Equation (2) of Khosla et al., anchor by anchor, without what `RULE` links."""
    audio, visual = x.double().numpy().transpose(1, 0, 2, 3)
    features = stored()
    places = [(clip, t) for clip, ids in enumerate(components) for t in real_snippets(ids)]

    def loss(one: NDArray[np.float64], two: NDArray[np.float64], p: Place) -> float:
        own = [q for q in places if q[0] == p[0] and not (one is two and q == p)]
        positives = [q for q in own if components[q] == components[p]]
        foreign = [
            q for q in places if numbers[q[0]] != numbers[p[0]] and not linked(features, p, q, RULE)
        ]
        if not positives:
            return 0.0
        every = sum(np.exp(one[p] @ two[q] / TEMPERATURE) for q in own + foreign)
        logs = [one[p] @ two[q] / TEMPERATURE - np.log(every) for q in positives]
        return -float(np.mean(logs))

    clips = [
        np.mean([sum(loss(*two, (clip, t)) for two in pairs(audio, visual, name)) for t in real])
        for clip, real in enumerate(map(real_snippets, components))
    ]
    return float(np.mean(clips))


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_equation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    audio, visual, components = batch()
    numbers = [7, 3, 7, 9, 4]
    others = OtherClips(torch.tensor(numbers), stored(), [RULE])
    x = unit(audio, visual)
    expected = by_loops(x, components, name, numbers)
    for cells in (2**26, 400):  # in one block of clips, and in several
        monkeypatch.setattr(negatives, "CELLS", cells)
        assert float(loss_of(x, components, name, others)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_has_nothing_to_be_compared_with_has_a_finite_gradient(name: str) -> None:
    audio, visual, components = batch()
    components[:3] = PADDING
    representations = audio.requires_grad_(), visual.requires_grad_()
    alone = OtherClips(torch.zeros(5))
    loss_of(unit(*representations), components, name, alone).backward()
    for x in representations:
        assert x.grad is not None and x.grad.isfinite().all()
        assert (x.grad[components == PADDING] == 0).all() and x.grad[3].any()


def test_positives_approach_and_negatives_withdraw() -> None:
    audio, visual, components = batch()
    x = torch.stack([audio, visual], 1).requires_grad_()
    others = OtherClips(torch.arange(5))
    optimizer = torch.optim.Adam([x], 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(unit(*x.unbind(1)), components, "multi", others).backward()
        optimizer.step()
    with torch.no_grad():
        y = unit(*x.unbind(1)).flatten(1, 2)
    inside = (y[0] @ y[0].T)[:6, :6]
    same = components[0, :, None] == components[0]
    assert inside[same].mean() > 0.8 > 0.3 > inside[~same].mean()
    assert (y[0] @ y[1].T).mean() < 0.3
