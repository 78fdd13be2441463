"""The grounding losses, against equations (4) to (6) written as loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.config import ObjectiveConfig
from avvp_dist.objectives import negatives
from avvp_dist.objectives.grounding import PADDING, grounding_loss, pair_masks
from avvp_dist.objectives.negatives import LinkRule, OtherClips

PLAIN = ObjectiveConfig(other_clips=0.0, positive_margin=0.6, negative_margin=0.1)


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


def anchor_loss(x: Tensor, y: Tensor, ids: Tensor, i: int, config: ObjectiveConfig) -> float:
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


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def by_loops(data: tuple[Tensor, Tensor, Tensor], config: ObjectiveConfig) -> float:
    """The loss with every snippet as anchor: the mean clip, each the mean of its anchors."""
    return mean(
        mean(
            sum(anchor_loss(x, y, ids, i, config) for x, y in pairs(a, v, config.name))
            for i in real_snippets(ids)
        )
        for a, v, ids in zip(*data, strict=True)
    )


Place = tuple[int, int]
"""Clip and snippet."""


def foreign_by_loops(
    data: tuple[Tensor, Tensor, Tensor],
    config: ObjectiveConfig,
    numbers: Sequence[int] = range(5),
    left_out: Callable[[Place, Place], bool] = lambda p, q: False,
) -> tuple[float, float]:
    """The hinge over the snippets of other clips, summed over the pairs of modalities: the mean
    clip, of it the mean anchor, of it the mean j. And the mean clip's share of j left out."""
    audio, visual, components = data
    places = [(clip, t) for clip, ids in enumerate(components) for t in real_snippets(ids)]
    hinges, shares = [], []
    for clip, ids in enumerate(components):
        anchors, out, all_j = [], 0, 0
        for p in ((clip, t) for t in real_snippets(ids)):
            foreign = [q for q in places if numbers[q[0]] != numbers[clip]]
            kept = [q for q in foreign if not left_out(p, q)]
            out, all_j = out + len(foreign) - len(kept), all_j + len(foreign)
            terms = [
                max(cosine(x[p], y[q]) - config.negative_margin, 0.0)
                for x, y in pairs(audio, visual, config.name)
                for q in kept
            ]
            anchors.append(sum(terms) / max(1, len(kept)))
        hinges.append(mean(anchors))
        shares.append(out / max(1, all_j))
    return mean(hinges), mean(shares)


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
    foreign, _ = foreign_by_loops(batch(), config)
    assert float(parts["other"]) == pytest.approx(foreign, rel=1e-5)
    assert float(parts["left_out"]) == 0
    assert float(loss) == pytest.approx(by_loops(batch(), config) + 0.5 * foreign, rel=1e-5)


def test_a_clip_that_is_drawn_twice_is_no_negative_of_itself() -> None:
    config = replace(PLAIN, other_clips=1.0)
    numbers = [7, 3, 7, 9, 3]
    _, parts = grounding_loss(*batch(), config, others=OtherClips(torch.tensor(numbers)))
    assert float(parts["other"]) == pytest.approx(
        foreign_by_loops(batch(), config, numbers)[0], rel=1e-5
    )
    one = OtherClips(torch.full((5,), 7))
    loss, parts = grounding_loss(*batch(), config, others=one)
    assert float(parts["other"]) == 0 and float(loss) == float(parts["own"])


def stored() -> dict[str, Tensor]:
    """Features of the clips of `batch`, many of them alike, one of them zero."""
    torch.manual_seed(1)
    kinds = {"audio": torch.randn(4, 3), "visual": torch.randn(4, 7)}
    features = {
        name: (kind[torch.randint(4, (5, 6))] + 0.2 * torch.randn(5, 6, kind.shape[1])).half()
        for name, kind in kinds.items()
    }
    features["audio"][2, 1] = 0
    return features


LOOSE = {"audio": 0.6, "visual": 0.7}


def joined(p: Place, q: Place, rule_index: LinkRule) -> bool:
    """The rule of Algorithm 1, as a loop."""
    reached = []
    for name, limit in rule_index.thresholds.items():
        x, y = (stored()[name].float()[place] for place in (p, q))
        reached.append(bool(x.any() and y.any()) and cosine(x, y) >= limit)
    return bool(reached) and (any(reached) if rule_index.rule == "or" else all(reached))


@pytest.mark.parametrize("cells", [2**26, 1, 400])
@pytest.mark.parametrize(
    "link_rules",
    [
        [LinkRule(LOOSE, "or")],
        [LinkRule(LOOSE, "and")],
        [LinkRule({"visual": 0.9}, "or")],
        [LinkRule(LOOSE, "or"), LinkRule({"audio": 0.7}, "and")],
        [LinkRule(LOOSE, "or"), LinkRule({}, "or")],
    ],
)
def test_what_both_groundings_would_join_is_no_negative(
    link_rules: list[LinkRule], cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negatives, "CELLS", cells)
    config = replace(PLAIN, other_clips=1.0)
    owners = [0, 0, 1, 1, 0] if len(link_rules) > 1 else [0] * 5

    def left_out(p: Place, q: Place) -> bool:
        return all(joined(p, q, link_rules[owners[clip]]) for clip in (p[0], q[0]))

    wanted = {name for one in link_rules for name in one.thresholds}
    features = {name: x for name, x in stored().items() if name in wanted}
    others = OtherClips(torch.arange(5), features, link_rules, torch.tensor(owners))
    _, parts = grounding_loss(*batch(), config, others=others)
    other, share = foreign_by_loops(batch(), config, left_out=left_out)
    assert 0.02 < share < 0.9
    assert float(parts["other"]) == pytest.approx(other, rel=1e-5)
    assert float(parts["left_out"]) == pytest.approx(share, rel=1e-5)


def test_blocks_have_the_gradient_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for cells in (2**26, 400):
        monkeypatch.setattr(negatives, "CELLS", cells)
        audio, visual, components = batch()
        others = OtherClips(torch.arange(5), stored(), [LinkRule(LOOSE, "and")])
        x = audio.requires_grad_(), visual.requires_grad_()
        loss, _ = grounding_loss(*x, components, replace(PLAIN, other_clips=1.0), others=others)
        gradients.append(torch.stack(torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("seed", range(4))
def test_one_anchor_a_clip_is_the_real_snippet_that_is_drawn(seed: int) -> None:
    data = batch()
    draws = torch.rand(5, generator=torch.Generator().manual_seed(seed))
    loss, _ = grounding_loss(*data, PLAIN, draws=draws)
    expected = mean(
        sum(
            anchor_loss(x, y, ids, int(draw * len(real_snippets(ids))), PLAIN)
            for x, y in pairs(a, v, PLAIN.name)
        )
        for a, v, ids, draw in zip(*data, draws.tolist(), strict=True)
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_one_anchor_has_the_expectation_of_all_whatever_the_lengths() -> None:
    audio, visual, components = batch()
    every, _ = grounding_loss(audio, visual, components, PLAIN)
    # All of 60 draws that are evenly spread: the mean over them is the expectation.
    draws = [torch.full((5,), (n + 0.5) / 60) for n in range(60)]
    losses = [grounding_loss(audio, visual, components, PLAIN, draws=draw)[0] for draw in draws]
    assert float(torch.stack(losses).mean()) == pytest.approx(float(every), rel=1e-5)


def test_a_draw_of_one_is_the_last_snippet_and_a_clip_without_labels_has_none() -> None:
    audio, visual, components = batch()
    components[1] = PADDING
    loss, _ = grounding_loss(audio, visual, components, PLAIN, draws=torch.ones(5))
    last = [len(real_snippets(ids)) - 1 for ids in components]
    expected = sum(
        anchor_loss(x, y, ids, i, PLAIN)
        for a, v, ids, i in zip(audio, visual, components, last, strict=True)
        for x, y in pairs(a, v, PLAIN.name)
        if i >= 0
    )
    assert float(loss) == pytest.approx(expected / 5, rel=1e-5)


@pytest.mark.parametrize("config", [PLAIN, replace(PLAIN, other_clips=1.0, name="cross")])
def test_clips_count_alike_so_parts_of_a_batch_add_up(config: ObjectiveConfig) -> None:
    audio, visual, components = batch()
    whole, _ = grounding_loss(audio, visual, components, config)
    every = torch.stack([audio, visual], 1)

    def pool(x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            return (components != PADDING).to(torch.uint8)
        return torch.arange(5) if x.dtype == torch.int64 else F.normalize(every, dim=-1)

    parts = []
    for rows in (slice(0, 2), slice(2, 3), slice(3, 5)):
        others = OtherClips(torch.arange(5)[rows], pool=pool)
        here = (audio[rows], visual[rows], components[rows])
        loss, _ = grounding_loss(*here, config, others=others)
        parts.append(float(loss) * len(here[0]) / 5)
    assert sum(parts) == pytest.approx(float(whole), rel=1e-5)


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
