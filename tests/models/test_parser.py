"""The parser family: its sizes, its switches, and parsers of an encoder's representations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avvp_dist.config import EncoderConfig, ObjectiveConfig, ParserConfig, PretrainedEncoderConfig
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.export import build_parser, load_parser, save_model
from avvp_dist.models.parser import Parser, ParserLayer
from avvp_dist.models.specification import AttachedEncoder, EncoderSpec, ParserSpec

LLP_DIMS = {"audio": 128, "visual": 2048, "motion": 512}
HAN: dict[str, Any] = {
    "separate_self_attention": False,
    "fusion": "inputs",
    "skip": False,
    "attention": "multihead",
    "discriminator": False,
}
OFFICIAL: dict[str, dict[str, Any]] = {
    "han": HAN,
    "adv_skip": {"attention": "multihead"},
    "adv_skip_gcaa_corrected": {},
    "adv_gcaa_corrected": {"skip": False},
}
DEAD = 2048
"""Parameters of two layer norms in the official Base parsers that never get a gradient."""
PARAMETERS = {
    "han": 4_569_675,
    "adv_skip": 7_009_012 - DEAD,
    "adv_skip_gcaa_corrected": 8_591_104 - DEAD,
}


@pytest.mark.parametrize("tag", PARAMETERS)
def test_parameter_counts_are_the_official_ones(tag: str) -> None:
    parser = Parser(ParserConfig(**OFFICIAL[tag]), LLP_DIMS, 25)
    assert sum(p.numel() for p in parser.parameters()) == PARAMETERS[tag]


# What follows runs on small parsers.

DIMS = {"audio": 4, "visual": 6}
SMALL = ParserConfig(width=16, attention="multihead", discriminator=False)


def clips() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(3, 5, dim) for name, dim in DIMS.items()}


def small(**switches: Any) -> Parser:
    torch.manual_seed(0)
    return Parser(dataclasses.replace(SMALL, **switches), DIMS, 7).eval()


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("separate_self_attention", False),
        ("fusion", "inputs"),
        ("skip", False),
        ("attention", "gcaa"),
        ("discriminator", True),
    ],
)
@torch.no_grad()
def test_each_switch_changes_the_parser(switch: str, value: Any) -> None:
    base, other = small(), small(**{switch: value})
    ours, theirs = base.state_dict(), other.state_dict()
    assert ours.keys() != theirs.keys()
    other.load_state_dict({k: v for k, v in ours.items() if k in theirs}, strict=False)
    same = torch.allclose(base(clips()).frame_prob, other(clips()).frame_prob)
    # The discriminator only speaks through the loss.
    assert same == (switch == "discriminator")


@torch.no_grad()
def test_mmil_pooling_is_attention_over_time_and_modality() -> None:
    parser = small()
    parsed = parser(clips())
    prob, over_time, over_modality = (
        layer(parsed.features).double()
        for layer in (parser.prob, parser.frame_att, parser.modality_att)
    )
    video = torch.zeros(3, 7, dtype=torch.double)
    modality = torch.zeros(3, 2, 7, dtype=torch.double)
    for clip, t, m, c in np.ndindex(3, 5, 2, 7):
        p = prob[clip, t, m, c].sigmoid()
        attention = over_time[clip, t, m, c].exp() / over_time[clip, :, m, c].exp().sum()
        between = over_modality[clip, t, m, c].exp() / over_modality[clip, t, :, c].exp().sum()
        modality[clip, m, c] += attention * p
        video[clip, c] += attention * between * p
    torch.testing.assert_close(parsed.video_prob, video.float())
    torch.testing.assert_close(parsed.modality_prob, modality.float())


def test_the_discriminator_gets_audio_as_0_and_visual_as_1() -> None:
    parser = small(discriminator=True)
    parsed = parser(clips())
    logits, truth = parser.discriminate(parsed)
    audio, visual = (
        parser.discriminator(parsed.features[:, :, m].relu().flatten(0, 1)) for m in (0, 1)
    )
    torch.testing.assert_close(logits[truth == 0], audio)
    torch.testing.assert_close(logits[truth == 1], visual)


NO_FUSION: dict[str, Any] = {"fusion": "none", "skip": False}


@torch.no_grad()
def test_without_fusion_the_heads_read_the_inputs() -> None:
    parser = small(**NO_FUSION)
    modules = {name.partition(".")[0] for name in parser.state_dict()}
    assert modules == {"embed", "prob", "frame_att", "modality_att"}
    streams = clips()
    parsed = parser(streams)
    inputs = [parser.embed[name](streams[name]) for name in ("audio", "visual")]
    torch.testing.assert_close(parsed.features, torch.stack(inputs, 2))
    assert torch.equal(parsed.inputs, parsed.features)


@torch.no_grad()
def test_without_fusion_snippets_and_modalities_do_not_affect_one_another() -> None:
    parser, streams = small(**NO_FUSION), clips()
    before = parser(streams)
    streams["visual"][:, 3] += 1.0
    after = parser(streams)
    changed = (before.frame_prob != after.frame_prob).any(-1)
    assert changed[:, 3, 1].all()
    changed[:, 3, 1] = False
    assert not changed.any()
    # Pooling still is over all of them.
    assert (before.video_prob != after.video_prob).all()


def test_without_fusion_there_is_nothing_to_skip() -> None:
    names = small(fusion="none", skip=True).state_dict().keys()
    assert names == small(fusion="none", skip=False).state_dict().keys()


def layer_input(config: ParserConfig, x: Tensor, other: Tensor) -> Tensor:
    """Sum of what a layer's attentions add to `x`, `[B, T, width]`."""
    torch.manual_seed(0)
    layer = ParserLayer(config, own=True, cross=True).eval()
    attended = []
    layer.norm1.register_forward_hook(lambda _, inputs, __: attended.append(inputs[0]))
    layer(x, other)
    return attended[0] - x


@pytest.mark.parametrize("faulty", [False, True])
@torch.no_grad()
def test_the_released_gcaa_gives_all_snippets_the_first_ones_output(faulty: bool) -> None:
    torch.manual_seed(1)
    x, other = torch.randn(2, 3, 5, 16)
    gcaa = dataclasses.replace(SMALL, attention="gcaa")
    added = layer_input(dataclasses.replace(gcaa, gcaa_first_snippet=faulty), x, other)
    first = layer_input(gcaa, x, other)[:, :1]
    same = torch.isclose(added, first, atol=1e-6).all(-1)
    assert same[:, 0].all()
    assert bool(same[:, 1:].all()) == bool(same[:, 1:].any()) == faulty


@torch.no_grad()
def test_only_gcaa_can_be_faulty() -> None:
    plain, switched = small(), small(gcaa_first_snippet=True)
    assert plain.state_dict().keys() == switched.state_dict().keys()
    assert torch.equal(plain(clips()).frame_prob, switched(clips()).frame_prob)
    gcaa = small(attention="gcaa", gcaa_first_snippet=True)
    assert not torch.allclose(gcaa(clips()).frame_prob, small(attention="gcaa")(clips()).frame_prob)


def with_encoder(tune: bool, **options: Any) -> Parser:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(size="tiny", dropout=0.5), DIMS, 5)
    return Parser(SMALL, DIMS, 7, encoder, tune=tune, **options)


@pytest.mark.parametrize("tune", [False, True])
def test_only_a_tuned_encoder_trains(tune: bool) -> None:
    parser = with_encoder(tune)
    assert parser.encoder is not None
    parser.eval()
    assert not parser.encoder.training
    parser.train()
    assert parser.encoder.training == tune
    parser(clips()).video_prob.sum().backward()
    assert all((p.grad is not None) == tune for p in parser.encoder.parameters())
    assert all(p.grad is not None for p in parser.embed_encoded.parameters())


def test_a_frozen_encoder_is_in_eval_mode_from_the_start() -> None:
    parser = with_encoder(tune=False)
    assert parser.training
    assert parser.encoder is not None
    assert not parser.encoder.training


@pytest.mark.parametrize("tune", [False, True])
def test_heads_can_read_an_encoder_alone(tune: bool) -> None:
    """The authors' Pretrain rows: encoder, one linear layer per modality, pooling."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(size="tiny"), DIMS, 5)
    config = dataclasses.replace(SMALL, **NO_FUSION)
    parser = Parser(config, DIMS, 7, encoder, raw=False, tune=tune).eval()
    own = {name.partition(".")[0] for name, _ in parser.named_parameters()}
    assert own == {"encoder", "embed_encoded", "prob", "frame_att", "modality_att"}
    parsed = parser(clips())
    assert parsed.frame_prob.shape == (3, 5, 2, 7)
    parsed.video_prob.sum().backward()
    for name, p in encoder.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == tune, name


@pytest.mark.parametrize("raw", [False, True])
@torch.no_grad()
def test_an_encoder_with_a_token_for_each_stream_comes_back(raw: bool, tmp_path: Path) -> None:
    dims = {**DIMS, "motion": 3}
    features = {"dims": dims, "snippets": 5, "extractor": "", "manifest": "none"}
    config = EncoderConfig("tiny", visual_tokens="separate")
    encoder = EncoderSpec(encoder=config, objective=ObjectiveConfig(), grounding="", **features)
    attached = AttachedEncoder(PretrainedEncoderConfig(raw=raw), encoder, "1")
    classes = list("abcdefg")
    spec = ParserSpec(parser=SMALL, classes=classes, pretrained=attached, **features)
    made, streams = build_parser(spec).eval(), clips()
    streams["motion"] = torch.randn(3, 5, 3)
    assert ("fuse_visual.weight" in made.state_dict()) == raw
    assert made.fuse_encoded.weight.shape == (16, 2 * 16)
    save_model(tmp_path / "model", made.state_dict(), spec)
    loaded, _ = load_parser(tmp_path / "model")
    loaded.eval()
    assert torch.equal(loaded(streams).frame_prob, made(streams).frame_prob)
    # Each token is read by the parser, not only by the encoder's other tokens.
    assert loaded.encoder is not None
    encoded = loaded.encoder(streams)
    for changed in range(3):
        given = [x.flip(-1) if n == changed else x for n, x in enumerate(encoded)]
        loaded.encoder.forward = lambda _, given=given: given
        assert not torch.allclose(loaded(streams).frame_prob, made(streams).frame_prob)


@torch.no_grad()
def test_raw_features_bypass_the_encoder_only_on_request() -> None:
    both, encoded = with_encoder(tune=False).eval(), with_encoder(tune=False, raw=False).eval()
    silent = {name: torch.randn_like(x) for name, x in clips().items()}
    for parser, bypassed in ((both, True), (encoded, False)):
        representations = parser.encoder(clips())
        parser.encoder.forward = lambda streams, fixed=representations: fixed
        same = torch.equal(parser(clips()).frame_prob, parser(silent).frame_prob)
        assert same == (not bypassed)


@torch.no_grad()
def test_scale_multiplies_the_encoders_features() -> None:
    plain, scaled = with_encoder(tune=False).eval(), with_encoder(tune=False, scale=0.25).eval()
    assert not torch.allclose(plain(clips()).frame_prob, scaled(clips()).frame_prob)
    for layer in plain.embed_encoded.values():
        layer.weight.mul_(0.25)
    torch.testing.assert_close(plain(clips()).frame_prob, scaled(clips()).frame_prob)


@torch.no_grad()
def test_the_clips_probability_may_pass_one_but_not_two() -> None:
    parser = small()
    features = torch.zeros(1, 2, 2, 16)
    features[0, 0, 0, 0] = features[0, 1, 1, 0] = 1.0  # heard in one snippet, seen in the other
    for head, slope in ((parser.prob, 0.0), (parser.frame_att, 50.0), (parser.modality_att, 50.0)):
        head.weight.zero_()
        head.weight[:, 0] = slope
        head.bias.fill_(20.0)
    parsed = parser._pool(features, list(features.unbind(2)))
    assert parsed.video_prob.min() == pytest.approx(2.0, abs=1e-4)
    assert parsed.modality_prob.max() == pytest.approx(1.0, abs=1e-4)
