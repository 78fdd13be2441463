"""The grounding losses, against equations (4) to (6) written as loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.config import ObjectiveConfig
from avvp_dist.objectives.grounding import (
    anchor_positions,
    clip_losses,
    grounding_loss,
    pair_masks,
    unit,
)
from avvp_dist.objectives.negatives import Negatives, OtherClips
from avvp_dist.shards.schema import MODALITY_IDS, PADDING
from tests.objectives.loops import (
    PLAIN,
    anchor_loss,
    batch,
    by_loops,
    foreign_by_loops,
    mean,
    pairs,
    real_snippets,
)


def loss_of(
    audio: Tensor,
    visual: Tensor,
    components: Tensor,
    config: ObjectiveConfig,
    *,
    others: OtherClips | None = None,
    **changed: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of representations; the clips are different ones, and nothing is left out."""
    x = unit(audio, visual)
    clips = others or OtherClips(torch.arange(len(x)))
    return grounding_loss(
        x, components, config, lambda: Negatives.gather(x, components, clips), **changed
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["uni", "cross", "multi"])
def test_losses_are_equations_4_to_6(name: str, reduction: str) -> None:
    config = replace(PLAIN, name=name, reduction=reduction)
    loss, parts = loss_of(*batch(), config)
    assert float(loss) == pytest.approx(by_loops(batch(), config), rel=1e-5)
    assert float(parts["own"]) == float(loss)
    assert float(parts["other"]) == 0


def test_multi_is_the_sum_of_uni_and_cross() -> None:
    uni, cross, multi = (
        float(loss_of(*batch(), replace(PLAIN, name=name))[0]) for name in ("uni", "cross", "multi")
    )
    assert multi == pytest.approx(uni + cross, rel=1e-6)


@pytest.mark.parametrize("name", ["uni", "cross", "multi"])
def test_other_clips_add_their_mean_hinge(name: str) -> None:
    config = replace(PLAIN, name=name, other_clips=0.5)
    loss, parts = loss_of(*batch(), config)
    foreign, _ = foreign_by_loops(batch(), config)
    assert float(parts["other"]) == pytest.approx(foreign, rel=1e-5)
    assert float(parts["left_out"]) == 0
    assert float(loss) == pytest.approx(by_loops(batch(), config) + 0.5 * foreign, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_one_anchor_per_clip_is_the_real_snippet_at_its_position(seed: int) -> None:
    data = batch()
    positions = torch.rand(5, generator=torch.Generator().manual_seed(seed))
    loss, _ = loss_of(*data, PLAIN, positions=positions)
    expected = mean(
        sum(
            anchor_loss(x, y, ids, int(place * len(real_snippets(ids))), PLAIN)
            for x, y in pairs(a, v, PLAIN.name)
        )
        for a, v, ids, place in zip(*data, positions.tolist(), strict=True)
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_one_anchor_has_the_expectation_of_all_for_clips_of_any_length() -> None:
    audio, visual, components = batch()
    every, _ = loss_of(audio, visual, components, PLAIN)
    # 60 positions that are evenly spread: the mean over them is the expectation.
    losses = [
        loss_of(audio, visual, components, PLAIN, positions=torch.full((5,), (n + 0.5) / 60))[0]
        for n in range(60)
    ]
    assert float(torch.stack(losses).mean()) == pytest.approx(float(every), rel=1e-5)


@pytest.mark.parametrize("anchors", ["one", "shared"])
def test_positions_belong_to_seed_step_and_clip(anchors: str) -> None:
    config, clips = replace(PLAIN, anchors=anchors), np.arange(8) + 100
    whole = anchor_positions(clips, config, 0, 3)
    assert whole is not None and whole.shape == (8,)
    assert len(set(whole.tolist())) == (8 if anchors == "one" else 1)
    for rows in (slice(0, 2), slice(2, 8)):  # in ranks and micro-batches of any size
        part = anchor_positions(clips[rows], config, 0, 3)
        assert part is not None and torch.equal(part, whole[rows])
    for other in (anchor_positions(clips, config, 0, 4), anchor_positions(clips, config, 1, 3)):
        assert other is not None and not torch.equal(other, whole)
    assert anchor_positions(clips, replace(PLAIN, anchors="all"), 0, 3) is None


def test_position_1_is_the_last_snippet_and_a_clip_without_components_has_no_anchor() -> None:
    audio, visual, components = batch()
    components[1] = PADDING
    loss, _ = loss_of(audio, visual, components, PLAIN, positions=torch.ones(5))
    last = [len(real_snippets(ids)) - 1 for ids in components]
    expected = sum(
        anchor_loss(x, y, ids, i, PLAIN)
        for a, v, ids, i in zip(audio, visual, components, last, strict=True)
        for x, y in pairs(a, v, PLAIN.name)
        if i >= 0
    )
    assert float(loss) == pytest.approx(expected / 5, rel=1e-5)


@pytest.mark.parametrize("config", [PLAIN, replace(PLAIN, other_clips=1.0, name="cross")])
def test_every_clip_has_the_same_weight_so_parts_of_a_batch_add_up(config: ObjectiveConfig) -> None:
    audio, visual, components = batch()
    whole, _ = loss_of(audio, visual, components, config)
    every = torch.stack([audio, visual], 1)

    def pool(x: Tensor, traits: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return F.normalize(every, dim=-1), [components != PADDING, torch.arange(5)]

    parts = []
    for rows in (slice(0, 2), slice(2, 3), slice(3, 5)):
        others = OtherClips(torch.arange(5)[rows], pool=pool)
        here = (audio[rows], visual[rows], components[rows])
        loss, _ = loss_of(*here, config, others=others)
        parts.append(float(loss) * len(here[0]) / 5)
    assert sum(parts) == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize("epoch", range(4))
def test_alternating_multi_is_cross_in_even_epochs_and_uni_in_odd_ones(epoch: int) -> None:
    config = replace(PLAIN, name="multi", alternate=True, other_clips=1.0)
    loss, parts = loss_of(*batch(), config, epoch=epoch)
    alone = replace(PLAIN, name="uni" if epoch % 2 else "cross", other_clips=1.0)
    expected, expected_parts = loss_of(*batch(), alone)
    assert float(loss) == float(expected)
    assert parts == expected_parts


@pytest.mark.parametrize("name", ["uni", "cross"])
def test_only_multi_alternates(name: str) -> None:
    config = replace(PLAIN, name=name)
    expected, _ = loss_of(*batch(), config)
    for epoch in (0, 1):
        loss, _ = loss_of(*batch(), replace(config, alternate=True), epoch=epoch)
        assert float(loss) == float(expected)
    multi = replace(PLAIN, name="multi")
    first, second = (float(loss_of(*batch(), multi, epoch=epoch)[0]) for epoch in (0, 1))
    assert first == second


@pytest.mark.parametrize("name", ["uni", "cross", "multi"])
def test_perfect_representations_cost_nothing(name: str) -> None:
    *_, components = batch()
    places = torch.arange(5)[:, None] * 6 + components.long().clamp(max=5)
    perfect = torch.eye(30)[places]
    config = replace(PLAIN, name=name, other_clips=1.0)
    loss, parts = loss_of(3 * perfect, 0.1 * perfect, components, config)
    assert float(loss) == 0
    assert float(parts["positive"]) == pytest.approx(1)
    assert float(parts["negative"]) == 0
    assert float(parts["zero"]) == 1


@pytest.mark.parametrize("name", ["uni", "cross", "multi"])
def test_both_modalities_learn_and_padding_does_not(name: str) -> None:
    audio, visual, components = batch()
    representations = audio.requires_grad_(), visual.requires_grad_()
    config = replace(PLAIN, name=name, other_clips=1.0)
    loss, _ = loss_of(*representations, components, config)
    loss.backward()
    padding = components == PADDING
    for x in representations:
        assert x.grad is not None
        assert (x.grad[~padding].abs().sum(-1) > 0).all()
        assert (x.grad[padding] == 0).all()


def test_the_padding_does_not_matter() -> None:
    audio, visual, components = batch()
    config = replace(PLAIN, other_clips=1.0)
    before, seen = loss_of(audio, visual, components, config)
    for x in (audio, visual):
        x[components == PADDING] = 1e4
    after, now = loss_of(audio, visual, components, config)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(now, seen)


def test_pair_masks_are_ground_truth_and_real_pairs() -> None:
    ids = torch.tensor([[0, 1, 0, PADDING]], dtype=torch.uint8)
    (same, valid), again = pair_masks(ids, ((0, 1), (1, 0)))
    assert again == (same, valid)
    assert valid[0].tolist() == [[True] * 3 + [False]] * 3 + [[False] * 4]
    assert same[0].nonzero().tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [2, 2]]


def test_each_modality_has_its_graph_and_what_one_joins_is_not_compared_across() -> None:
    audio, visual = torch.tensor([[0, 0, 0, 3, 0]]), torch.tensor([[0, 0, 2, 2, 0]])
    ids = (audio * MODALITY_IDS + visual).int()
    ids[:, 4] = PADDING
    (heard, all_heard), (seen, all_seen), (both, compared) = pair_masks(
        ids, ((0, 0), (1, 1), (0, 1))
    )
    real = torch.ones(5, 5).bool()
    real[4] = real[:, 4] = False
    assert torch.equal(heard[0], (audio[0] == audio[0][:, None]) & real)
    assert torch.equal(seen[0], (visual[0] == visual[0][:, None]) & real)
    assert torch.equal(all_heard[0], real) and torch.equal(all_seen[0], real)
    assert both[0].int().tolist()[:3] == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    assert (compared & ~both)[0].nonzero().tolist() == [[0, 3], [1, 3], [3, 0], [3, 1]]


@pytest.mark.parametrize("name", ["uni", "cross", "multi"])
def test_two_equal_graphs_are_one(name: str) -> None:
    audio, visual, components = batch()
    config = replace(PLAIN, name=name, other_clips=1.0)
    two = torch.where(components == PADDING, PADDING, components.int() * (MODALITY_IDS + 1)).int()
    expected, (loss, _) = loss_of(*batch(), config)[0], loss_of(audio, visual, two, config)
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("name", ["uni", "cross", "multi"])
def test_clip_losses_are_all_anchors_without_other_clips_or_turns(name: str) -> None:
    audio, visual, components = batch()
    config = replace(PLAIN, name=name, other_clips=1.0, alternate=True, anchors="one")
    losses = clip_losses(unit(audio, visual), components, config)
    assert losses.shape == (5,)
    assert float(losses.mean()) == pytest.approx(by_loops(batch(), config), rel=1e-5)
