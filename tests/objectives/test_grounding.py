"""The grounding losses, against equations (4) to (6) written as loops."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from avvp_dist.config import Objective
from avvp_dist.objectives.grounding import PADDING, grounding_loss, pair_masks

PLAIN = Objective(other_clips=0.0, positive_margin=0.6, negative_margin=0.1)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Five clips of up to six snippets, two of them padded."""
    torch.manual_seed(0)
    audio, visual = torch.randn(5, 6, 4), torch.randn(5, 6, 4)
    visual = visual + 0.5 * audio
    components = torch.tensor(
        [
            [0, 0, 2, 2, 0, 5],
            [0, 1, 2, 3, 4, 5],
            [0, 0, 0, 0, 0, 0],
            [0, 1, 0, 1, PADDING, PADDING],
            [0, PADDING, PADDING, PADDING, PADDING, PADDING],
        ],
        dtype=torch.uint8,
    )
    return audio, visual, components


def cosine(x: Tensor, y: Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))


def real_snippets(ids: Tensor) -> list[int]:
    return [t for t, component in enumerate(ids.tolist()) if component != PADDING]


def anchor_loss(x: Tensor, y: Tensor, ids: Tensor, i: int, config: Objective) -> float:
    """One sum over j of equation (4) or (5): `x [T, D]`, `y [T, D]` of one clip."""
    total = 0.0
    for j in real_snippets(ids):
        similarity = cosine(x[i], y[j])
        if ids[i] == ids[j]:
            total += max(config.positive_margin - similarity, 0.0)
        else:
            total += max(similarity - config.negative_margin, 0.0)
    return total / len(real_snippets(ids)) if config.reduction == "mean" else total


def pairs(audio: Any, visual: Any, name: str) -> list[tuple[Any, Any]]:
    uni, cross = [(audio, audio), (visual, visual)], [(audio, visual), (visual, audio)]
    return {"uni": uni, "cross": cross, "multi": uni + cross}[name]


def by_loops(data: tuple[Tensor, Tensor, Tensor], config: Objective) -> float:
    """The loss with every snippet as anchor."""
    terms = [
        sum(anchor_loss(x, y, ids, i, config) for x, y in pairs(a, v, config.name))
        for a, v, ids in zip(*data, strict=True)
        for i in real_snippets(ids)
    ]
    return sum(terms) / len(terms)


def foreign_by_loops(data: tuple[Tensor, Tensor, Tensor], config: Objective) -> float:
    """Mean hinge over the snippets of other clips, summed over the pairs of modalities."""
    audio, visual, components = data
    places = [(clip, t) for clip, ids in enumerate(components) for t in real_snippets(ids)]
    total = 0.0
    for x, y in pairs(audio, visual, config.name):
        hinges = [
            max(cosine(x[p], y[q]) - config.negative_margin, 0.0)
            for p, q in itertools.product(places, places)
            if p[0] != q[0]
        ]
        total += sum(hinges) / len(hinges)
    return total


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["uni", "cross", "multi"])
def test_losses_are_equations_4_to_6(name: str, reduction: str) -> None:
    config = replace(PLAIN, name=name, reduction=reduction)
    loss, parts = grounding_loss(*batch(), config)
    assert float(loss) == pytest.approx(by_loops(batch(), config), rel=1e-5)
    assert float(parts["own"]) == float(loss)
    assert float(parts["other"]) == 0


def test_multi_is_the_sum_of_uni_and_cross() -> None:
    uni, cross, multi = (
        float(grounding_loss(*batch(), replace(PLAIN, name=name))[0])
        for name in ("uni", "cross", "multi")
    )
    assert multi == pytest.approx(uni + cross, rel=1e-6)


@pytest.mark.parametrize("name", ["uni", "cross", "multi"])
def test_other_clips_add_their_mean_hinge(name: str) -> None:
    config = replace(PLAIN, name=name, other_clips=0.5)
    loss, parts = grounding_loss(*batch(), config)
    foreign = foreign_by_loops(batch(), config)
    assert float(parts["other"]) == pytest.approx(foreign, rel=1e-5)
    assert float(loss) == pytest.approx(by_loops(batch(), config) + 0.5 * foreign, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_one_anchor_a_clip_is_a_draw_among_its_real_snippets(seed: int) -> None:
    config = replace(PLAIN, anchors="one")
    data = batch()
    torch.manual_seed(seed)
    loss, _ = grounding_loss(*data, config)
    possible = [
        [
            sum(anchor_loss(x, y, ids, i, config) for x, y in pairs(a, v, config.name))
            for i in real_snippets(ids)
        ]
        for a, v, ids in zip(*data, strict=True)
    ]
    means = [sum(draw) / len(possible) for draw in itertools.product(*possible)]
    assert min(abs(mean - float(loss)) for mean in means) < 1e-6


def test_one_anchor_has_the_expectation_of_all() -> None:
    audio, visual, components = (x[:3] for x in batch())  # clips of one length
    every, _ = grounding_loss(audio, visual, components, PLAIN)
    torch.manual_seed(0)
    repeated = audio.repeat(50, 1, 1), visual.repeat(50, 1, 1), components.repeat(50, 1)
    draws = [grounding_loss(*repeated, replace(PLAIN, anchors="one"))[0] for _ in range(40)]
    assert float(torch.stack(draws).mean()) == pytest.approx(float(every), rel=0.02)
    assert len({float(draw) for draw in draws}) > 30


@pytest.mark.parametrize("name", ["uni", "cross", "multi"])
def test_perfect_representations_cost_nothing(name: str) -> None:
    *_, components = batch()
    places = torch.arange(5)[:, None] * 6 + components.long().clamp(max=5)
    perfect = torch.eye(30)[places]
    config = replace(PLAIN, name=name, other_clips=1.0)
    loss, parts = grounding_loss(3 * perfect, 0.1 * perfect, components, config)
    assert float(loss) == 0
    assert float(parts["positive"]) == pytest.approx(1)
    assert float(parts["negative"]) == 0
    assert float(parts["zero"]) == 1


@pytest.mark.parametrize("name", ["uni", "cross", "multi"])
def test_both_modalities_learn_and_padding_does_not(name: str) -> None:
    audio, visual, components = batch()
    representations = audio.requires_grad_(), visual.requires_grad_()
    config = replace(PLAIN, name=name, other_clips=1.0)
    loss, _ = grounding_loss(*representations, components, config)
    loss.backward()
    padding = components == PADDING
    for x in representations:
        assert x.grad is not None
        assert (x.grad[~padding].abs().sum(-1) > 0).all()
        assert (x.grad[padding] == 0).all()


def test_whatever_stands_in_the_padding() -> None:
    audio, visual, components = batch()
    config = replace(PLAIN, other_clips=1.0)
    before, seen = grounding_loss(audio, visual, components, config)
    for x in (audio, visual):
        x[components == PADDING] = 1e4
    after, now = grounding_loss(audio, visual, components, config)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(now, seen)


def test_pair_masks_are_ground_truth_and_real_pairs() -> None:
    same, valid = pair_masks(torch.tensor([[0, 1, 0, PADDING]]))
    assert valid[0].tolist() == [[True] * 3 + [False]] * 3 + [[False] * 4]
    assert same[0].nonzero().tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [2, 2]]
