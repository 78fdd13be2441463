"""The encoder under its objective: hidden streams, anchors and negatives of a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avvp_dist.config import EncoderConfig, ObjectiveConfig
from avvp_dist.loading.transfer import to_device
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.grounding_model import GroundingBatch, GroundingModel
from avvp_dist.objectives.grounding import grounding_loss, unit
from avvp_dist.objectives.masked import mask_snippets, masked_places
from avvp_dist.objectives.matching import matching_loss
from avvp_dist.objectives.negative_pool import PoolRows, pool_places
from avvp_dist.objectives.negatives import LinkRule, Negatives
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.shards.schema import PADDING
from avvp_dist.training.footprint import PlannedRanks
from tests.training.operations import Operations

DIMS = {"audio": 4, "visual": 6, "motion": 5}
CLIPS, SNIPPETS = 6, 5
OWN = ObjectiveConfig(anchors="all", other_clips=0.0, positive_margin=1.0, negative_margin=-1.0)
"""Margins under which every pair counts."""


def encoder(tokens: str = "summed") -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig("tiny", visual_tokens=tokens), DIMS, SNIPPETS)


def model_of(objective: ObjectiveConfig, tokens: str = "summed", **changed: Any) -> GroundingModel:
    options = {"hidden_streams": [], "link_rules": [], "ranks": single_rank(), **changed}
    return GroundingModel(encoder(tokens), objective, **options).eval()


def batch_of() -> GroundingBatch:
    torch.manual_seed(1)
    components = torch.randint(0, 3, (CLIPS, SNIPPETS)).to(torch.uint8)
    components[0, 3:] = PADDING
    lengths = torch.full((CLIPS,), SNIPPETS)
    lengths[0] = 3
    return GroundingBatch(
        streams={name: torch.randn(CLIPS, SNIPPETS, dim) for name, dim in DIMS.items()},
        lengths=lengths,
        components=components,
        clips=torch.arange(CLIPS) + 100,
        epoch=0,
        pool_rows=torch.arange(CLIPS),
        pool_empty=torch.zeros(CLIPS, dtype=torch.bool),
        masked=mask_snippets(np.arange(CLIPS), (components != PADDING).numpy(), OWN, 0, 0),
        partners=(torch.arange(CLIPS) + 1) % CLIPS,
    )


def take(batch: GroundingBatch, rows: slice) -> GroundingBatch:
    """Some clips of a batch, as a micro-batch of their own."""
    assert batch.lengths is not None and batch.anchors is not None
    return replace(
        batch,
        streams={name: x[rows] for name, x in batch.streams.items()},
        lengths=batch.lengths[rows],
        components=batch.components[rows],
        clips=batch.clips[rows],
        anchors=batch.anchors[rows],
    )


@pytest.mark.parametrize("tokens", ["summed", "separate"])
@torch.no_grad()
def test_the_loss_is_that_of_the_compared_representations(tokens: str) -> None:
    model, batch = model_of(OWN, tokens), batch_of()
    audio, *visual = model.encoder(batch.streams, batch.lengths)
    vision = sum(visual) / len(visual)
    x = unit(audio, vision)
    expected, _ = grounding_loss(x, batch.components, OWN, lambda: pytest.fail("unweighted"))
    torch.testing.assert_close(model(batch)[0], expected)


@pytest.mark.parametrize("hidden", [["motion"], ["visual"]])
@pytest.mark.parametrize("tokens", ["summed", "separate"])
@torch.no_grad()
def test_hidden_streams_do_not_reach_the_loss(tokens: str, hidden: list[str]) -> None:
    model = model_of(OWN, tokens, hidden_streams=hidden)
    plain = model(batch_of())[0]
    for name in ("motion", "visual"):
        batch = batch_of()
        batch.streams[name] = batch.streams[name].flip(1)
        assert torch.equal(model(batch)[0], plain) == (name in hidden), name


@pytest.mark.parametrize("other_clips", [0.0, 1.0])
@torch.no_grad()
def test_further_objectives_are_added_by_their_weights(other_clips: float) -> None:
    plain = replace(OWN, other_clips=other_clips)
    alone, batch = model_of(plain)(batch_of())[0], batch_of()
    loss, parts = model_of(replace(plain, contrastive=0.5, regularity=2.0))(batch)
    assert min(parts["contrastive"], parts["regularity"]) > 0.1
    expected = alone + 0.5 * parts["contrastive"] + 2 * parts["regularity"]
    torch.testing.assert_close(loss, expected)


@torch.no_grad()
def test_the_pool_is_gathered_once_for_all_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered, gather = [], Negatives.gather
    monkeypatch.setattr(Negatives, "gather", lambda *x: gathered.append(1) or gather(*x))
    model_of(replace(OWN, other_clips=1.0, contrastive=1.0))(batch_of())
    assert gathered == [1]


@torch.no_grad()
def test_parts_of_a_batch_with_anchors_add_up() -> None:
    model = model_of(OWN)
    batch = replace(batch_of(), anchors=torch.rand(CLIPS))
    whole = model(batch)[0]
    assert not torch.equal(whole, model(batch_of())[0])
    parts = [model(take(batch, rows))[0] for rows in (slice(0, 2), slice(2, CLIPS))]
    torch.testing.assert_close((2 * parts[0] + (CLIPS - 2) * parts[1]) / CLIPS, whole)


def test_negatives_are_the_clips_of_the_pool() -> None:
    batch = batch_of()
    rows = PoolRows.choose(np.array([1, 4]), np.array([0, 1, 2, 3, 5, 6]), 7, single_rank())
    few = replace(batch, pool_rows=rows.rows, pool_empty=rows.empty)  # place 4 cannot be read
    others = model_of(replace(OWN, other_clips=1.0))._other_clips(few)
    x, (real, clips) = others.pool(batch.streams["audio"], [torch.ones(CLIPS) > 0, others.clips])
    assert clips.tolist() == [101, 0] and real.tolist() == [True, False]
    assert torch.equal(x[0], batch.streams["audio"][1])


@pytest.mark.parametrize("anchors", ["all", "one"])
@pytest.mark.parametrize("size", [4, 0])
def test_a_step_copies_nothing_from_the_host_and_waits_for_nothing(anchors: str, size: int) -> None:
    """Tensors on the meta device have no values, so that what depends on one raises."""
    ranks = PlannedRanks(1, 3, torch.device("meta"))
    places = pool_places(size, 3 * CLIPS, 0, 0, 0)
    rows = PoolRows.choose(places, np.arange(CLIPS), CLIPS, ranks)
    assert (rows.order is None) == (not size)
    batch = replace(
        batch_of(),
        anchors=None if anchors == "all" else torch.rand(CLIPS),
        rule_index=torch.arange(CLIPS) % 2,
        pool_rows=rows.rows,
        pool_empty=rows.empty,
        pool_order=rows.order,
    )
    links = [LinkRule({"audio": 0.9}, "or"), LinkRule({"visual": 0.5}, "and")]
    weights = dict.fromkeys(("contrastive", "regularity", "masked", "matching"), 1.0)
    objective = ObjectiveConfig("multi", anchors=anchors, **weights)
    model = model_of(objective, link_rules=links, ranks=ranks).train().to("meta")
    moved = to_device(batch, ranks.device)
    with Operations() as operations:
        loss, _ = model(moved)
        loss.backward()
    assert (operations.waits, operations.copied) == (0, []) and operations.kernels > 100


@torch.no_grad()
def test_a_batch_without_components_has_no_negatives() -> None:
    model, batch = model_of(replace(OWN, other_clips=1.0)), batch_of()
    assert float(model(batch)[1]["other"]) > 0
    batch.components.fill_(PADDING)
    assert float(model(batch)[1]["other"]) == 0


@torch.no_grad()
def test_snippets_that_the_link_rules_link_are_no_negatives() -> None:
    objective, rule = replace(OWN, other_clips=1.0), LinkRule({"audio": 0.999}, "or")
    model, batch = model_of(objective, link_rules=[rule]), batch_of()
    alike = replace(
        batch, streams={**batch.streams, "audio": torch.ones(CLIPS, SNIPPETS, 4).half()}
    )
    assert float(model(batch)[1]["left_out"]) == 0.0
    assert float(model(alike)[1]["left_out"]) == 1.0
    mixed = replace(alike, rule_index=torch.arange(CLIPS) // 3)
    parts = model_of(objective, link_rules=[rule, LinkRule({}, "or")])(mixed)[1]
    assert 0 < float(parts["left_out"]) < 1


@torch.no_grad()
def test_the_visual_representation_is_the_mean_of_the_visible_tokens() -> None:
    model, batch = model_of(OWN, "separate"), batch_of()
    audio, visual, motion = model.encoder(batch.streams, batch.lengths)
    torch.testing.assert_close(model.representations(batch), (audio, (visual + motion) / 2))
    model = model_of(OWN, "separate", hidden_streams=["motion"])
    audio, visual, _ = model.encoder(batch.streams, batch.lengths, ["motion"])
    torch.testing.assert_close(model.representations(batch), (audio, visual))


@torch.no_grad()
def test_autocast_multiplies_in_bfloat16_in_the_layers_alone() -> None:
    objective = replace(OWN, other_clips=1.0)
    exact, cast = (model_of(objective, autocast=on)(batch_of()) for on in (False, True))
    assert cast[0].dtype == torch.float32
    assert 0 < abs(float(cast[0] - exact[0])) < 0.01 * float(exact[0])
    model = model_of(objective, autocast=True)
    seen = []
    for layer in (model.encoder.embed["audio"], model.encoder.layers[0].contract):
        layer.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    model(batch_of())
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@torch.no_grad()
def test_grounding_alone_has_the_encoders_parameters_and_its_own_loss() -> None:
    model, batch = model_of(OWN), batch_of()
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"encoder"}
    x = unit(*model.representations(batch))
    expected, parts = grounding_loss(x, batch.components, OWN, lambda: pytest.fail("no negatives"))
    loss, found = model(batch)
    assert torch.equal(loss, expected) and found == parts


@pytest.mark.parametrize("hidden", [[], ["motion"]])
@pytest.mark.parametrize("tokens", ["summed", "separate"])
@torch.no_grad()
def test_the_loss_is_the_weighted_sum_of_the_objectives(tokens: str, hidden: list[str]) -> None:
    def found(**weights: float) -> tuple[float, dict[str, float]]:
        loss, parts = model_of(replace(OWN, **weights), tokens, hidden_streams=hidden)(batch_of())
        return float(loss), {name: float(part) for name, part in parts.items()}

    grounding, _ = found()
    masked, parts = found(grounding=0.0, masked=1.0)
    assert parts["masked"] == masked and parts["masked_chance"] > 0
    matching, parts = found(grounding=0.0, matching=1.0)
    assert parts == {"matching": matching, "matching_left_out": 0.0}
    total, parts = found(grounding=0.5, masked=2.0)
    assert total == pytest.approx(0.5 * grounding + 2 * masked, rel=1e-5)
    assert (parts["grounding"], parts["masked"]) == pytest.approx((grounding, masked), rel=1e-5)
    total, parts = found(grounding=0.5, matching=2.0)
    assert total == pytest.approx(0.5 * grounding + 2 * matching, rel=1e-5)


@pytest.mark.parametrize("hidden", [[], ["motion"]])
@torch.no_grad()
def test_matching_compares_clips_with_their_audio_and_other_vision(hidden: list[str]) -> None:
    model = model_of(replace(OWN, grounding=0.0, matching=1.0), hidden_streams=hidden)
    batch = batch_of()  # clip 0 has three snippets of five, and is the partner of the last one
    assert batch.lengths is not None
    order = torch.tensor([1, 2, 3, 4, 5, 0])
    mixed = replace(
        batch,
        streams={n: x if n == "audio" else x[order] for n, x in batch.streams.items()},
        lengths=torch.minimum(batch.lengths, batch.lengths[order]),
    )
    logits = []
    for one in (batch, mixed):
        assert one.lengths is not None
        real = torch.arange(SNIPPETS) < one.lengths[:, None]
        logits.append(model.matching_head(*model.representations(one), real))
    expected = matching_loss(logits[0], logits[1], torch.ones(CLIPS, dtype=torch.bool))
    torch.testing.assert_close(model(batch)[0], expected)


@torch.no_grad()
def test_partners_that_are_no_negatives_do_not_count() -> None:
    objective = replace(OWN, grounding=0.0, matching=1.0)
    model, batch = model_of(objective), batch_of()
    itself = replace(batch, partners=torch.arange(CLIPS))
    assert float(model(itself)[0]) == 0
    unreadable = replace(batch, pool_empty=torch.ones(CLIPS, dtype=torch.bool))
    loss, parts = model(unreadable)
    assert float(loss) == float(parts["matching_left_out"]) == 0
    similar = replace(batch, streams={**batch.streams, "audio": torch.ones(CLIPS, SNIPPETS, 4)})
    loss, parts = model_of(objective, link_rules=[LinkRule({"audio": 0.9}, "or")])(similar)
    assert (float(loss), float(parts["matching_left_out"])) == (0, 1)


def predictions(changed: str) -> list[Tensor]:
    """Predicted features of masked snippets, where some features are `changed`."""
    model = model_of(replace(OWN, masked=1.0), "separate", hidden_streams=["motion"])
    batch, found = batch_of(), []
    assert batch.masked is not None
    if changed == "hidden":
        batch.streams["motion"] += 1
    elif changed:
        rows = batch.masked if changed == "masked" else ~batch.masked
        for name, row in (("audio", 0), ("visual", 1)):
            batch.streams[name][rows[:, row]] += 1 + torch.arange(DIMS[name])
    model.masked_head.register_forward_hook(lambda _, __, out: found.extend(out))
    model(batch)
    _, counted = masked_places(batch.masked, found[0].shape[1])
    return [x[one] for x, one in zip(found, counted.unbind(1), strict=True)]


@torch.no_grad()
def test_predictions_know_neither_masked_features_nor_hidden_streams() -> None:
    plain = predictions("")
    assert [x.shape[1] for x in plain] == [DIMS["audio"], DIMS["visual"]]
    for changed in ("masked", "hidden", "seen"):
        same = [torch.equal(x, y) for x, y in zip(predictions(changed), plain, strict=True)]
        assert same == [changed != "seen"] * 2, changed


def test_masked_features_are_found_far_above_chance() -> None:
    """Each clip has a cause of its own that its audio and its vision share."""
    torch.manual_seed(0)
    count = 16
    causes = torch.randn(count, 1, 6) + 0.5 * torch.randn(count, SNIPPETS, 6)
    streams = {name: causes @ torch.randn(6, dim) for name, dim in DIMS.items()}
    clips, components = np.arange(count), torch.arange(SNIPPETS).expand(count, -1).to(torch.uint8)
    objective = ObjectiveConfig(grounding=0.0, masked=1.0, mask_fraction=0.3)
    model = model_of(objective).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(50):
        batch = GroundingBatch(
            streams=streams,
            lengths=None,
            components=components,
            clips=torch.from_numpy(clips),
            epoch=0,
            pool_rows=torch.from_numpy(clips),
            pool_empty=torch.zeros(count, dtype=torch.bool),
            masked=mask_snippets(clips, np.ones((count, SNIPPETS), bool), objective, 0, step),
        )
        loss, parts = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chance = float(parts["masked_chance"])
    assert chance == pytest.approx(np.log(count * SNIPPETS))
    assert float(loss.detach()) < 0.7 * chance
