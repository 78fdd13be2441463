"""The encoder under its objective: hidden streams, anchors and negatives of a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from avvp_dist.config import EncoderConfig, ObjectiveConfig
from avvp_dist.hashing import hash_uniform
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.grounding_model import GroundingBatch, GroundingModel
from avvp_dist.objectives.grounding import grounding_loss
from avvp_dist.objectives.negatives import LinkRule
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.shards.schema import PADDING

DIMS = {"audio": 4, "visual": 6, "motion": 5}
CLIPS, SNIPPETS = 6, 5
OWN = ObjectiveConfig(anchors="all", other_clips=0.0, positive_margin=1.0, negative_margin=-1.0)
"""Margins under which every pair counts."""


def encoder(tokens: str = "summed") -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig("tiny", visual_tokens=tokens), DIMS, SNIPPETS)


def model_of(objective: ObjectiveConfig, tokens: str = "summed", **changed: Any) -> GroundingModel:
    options = {"hidden_streams": [], "seed": 0, "clips_per_rank": CLIPS, "link_rules": []}
    options |= changed
    return GroundingModel(encoder(tokens), objective, ranks=single_rank(), **options).eval()


def batch_of(step: int = 0) -> GroundingBatch:
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
        step=step,
        epoch=0,
    )


def take(batch: GroundingBatch, rows: slice) -> GroundingBatch:
    """Some clips of a batch, as a micro-batch of their own."""
    assert batch.lengths is not None
    return replace(
        batch,
        streams={name: x[rows] for name, x in batch.streams.items()},
        lengths=batch.lengths[rows],
        components=batch.components[rows],
        clips=batch.clips[rows],
    )


@pytest.mark.parametrize("tokens", ["summed", "separate"])
@torch.no_grad()
def test_the_loss_is_that_of_the_compared_representations(tokens: str) -> None:
    model, batch = model_of(OWN, tokens), batch_of()
    audio, *visual = model.encoder(batch.streams, batch.lengths)
    vision = sum(visual) / len(visual)
    expected, _ = grounding_loss(audio, vision, batch.components, OWN)
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


@pytest.mark.parametrize("anchors", ["one", "shared"])
@torch.no_grad()
def test_anchors_belong_to_seed_step_and_clip(anchors: str) -> None:
    model = model_of(replace(OWN, anchors=anchors))
    whole = model(batch_of(step=3))[0]
    parts = [model(take(batch_of(step=3), rows))[0] for rows in (slice(0, 2), slice(2, CLIPS))]
    # The same anchors in micro-batches of any size.
    torch.testing.assert_close((2 * parts[0] + (CLIPS - 2) * parts[1]) / CLIPS, whole)
    assert not torch.equal(model(batch_of(step=4))[0], whole)
    assert not torch.equal(model_of(replace(OWN, anchors=anchors), seed=1)(batch_of(3))[0], whole)


def test_negatives_are_the_clips_with_the_smallest_hashes_at_each_step() -> None:
    model = model_of(replace(OWN, other_clips=1.0, negatives=2))
    pools = set()
    for step in range(20):
        batch = batch_of(step)
        batch.components[4] = PADDING  # clip 104 cannot be read
        others = model._other_clips(batch)
        pools.add(tuple(others.pool(others.clips).tolist()))
        hashes = hash_uniform(batch.clips.numpy(), "negatives", 0, step)
        hashes[4] = np.inf
        assert others.pool(others.clips).tolist() == (100 + np.argsort(hashes)[:2]).tolist()
    assert len(pools) > 5


@torch.no_grad()
def test_a_batch_without_components_has_no_negatives() -> None:
    model, batch = model_of(replace(OWN, other_clips=1.0, negatives=2)), batch_of()
    assert float(model(batch)[1]["other"]) > 0
    batch.components.fill_(PADDING)
    assert float(model(batch)[1]["other"]) == 0


@torch.no_grad()
def test_snippets_that_the_link_rules_link_are_no_negatives() -> None:
    objective, rule = replace(OWN, other_clips=1.0, negatives=0), LinkRule({"audio": 0.999}, "or")
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
