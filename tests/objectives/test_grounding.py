"""The grounding losses, against equations (4) to (6) written as loops."""

from __future__ import annotations

import itertools
from collections import Counter
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


def telling_batch(clips: int, snippets: int) -> tuple[Tensor, Tensor, Tensor]:
    """Equal clips without errors but for <a_i, v_i> = i / 10, which only the anchor i pays for."""
    every = torch.eye(2 * snippets)
    own = torch.arange(snippets)[:, None] / 10
    visual = own * every[:snippets] + (1 - own**2).sqrt() * every[snippets:]
    batch = every[:snippets].expand(clips, -1, -1), visual.expand(clips, -1, -1)
    return *batch, torch.arange(snippets, dtype=torch.uint8).expand(clips, -1)


TELLING = replace(PLAIN, name="cross", positive_margin=0.9)


def told(loss: Tensor, snippets: int) -> float:
    """The mean anchor of a `telling_batch`, from its loss: 2 (0.9 - i / 10) / T for anchor i."""
    return (0.9 - float(loss) * snippets / 2) * 10


def test_a_shared_anchor_is_one_draw_for_all_clips_and_all_snippets_have_their_turn() -> None:
    batch = telling_batch(6, 5)
    config = replace(TELLING, anchors="shared")
    torch.manual_seed(0)
    draws = [told(grounding_loss(*batch, config)[0], 5) for _ in range(500)]
    assert max(abs(draw - round(draw)) for draw in draws) < 1e-4
    counts = Counter(round(draw) for draw in draws)
    assert sorted(counts) == list(range(5))
    # 100 each with deviation 9.
    assert all(abs(count - 100) < 40 for count in counts.values())
    one = told(grounding_loss(*batch, replace(TELLING, anchors="one"))[0], 5)
    assert abs(one - round(one)) > 0.1  # a mean of six draws, or this test sees nothing


def test_a_shared_anchor_counts_for_the_clips_that_reach_it() -> None:
    audio, visual, components = telling_batch(2, 5)
    components = torch.tensor([[0, 1, 2, 3, 4], [0, 1, PADDING, PADDING, PADDING]])
    torch.manual_seed(0)
    found = set()
    for _ in range(60):
        loss, _ = grounding_loss(audio, visual, components, replace(TELLING, anchors="shared"))
        found.add(round(float(loss), 4))
    long, short = ([2 * (0.9 - i / 10) / length for i in range(5)] for length in (5, 2))
    both = [(long[i] + short[i]) / 2 for i in range(2)]
    assert found == {round(loss, 4) for loss in both + long[2:]}


@pytest.mark.parametrize("epoch", range(4))
def test_alternating_multi_is_cross_in_even_epochs_and_uni_in_odd_ones(epoch: int) -> None:
    config = replace(PLAIN, name="multi", alternate=True, other_clips=1.0)
    loss, parts = grounding_loss(*batch(), config, epoch)
    alone = replace(PLAIN, name="uni" if epoch % 2 else "cross", other_clips=1.0)
    expected, expected_parts = grounding_loss(*batch(), alone)
    assert float(loss) == float(expected)
    assert parts == expected_parts


@pytest.mark.parametrize("name", ["uni", "cross"])
def test_only_multi_alternates(name: str) -> None:
    config = replace(PLAIN, name=name)
    expected, _ = grounding_loss(*batch(), config)
    for epoch in (0, 1):
        loss, _ = grounding_loss(*batch(), replace(config, alternate=True), epoch)
        assert float(loss) == float(expected)
    multi = replace(PLAIN, name="multi")
    first, second = (float(grounding_loss(*batch(), multi, epoch)[0]) for epoch in (0, 1))
    assert first == second


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
