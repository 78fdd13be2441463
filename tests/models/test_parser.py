"""The parser family: against the official codes, its switches, an encoder in front."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.config import Encoder as EncoderConfig
from avvp_dist.config import Parser as ParserConfig
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.parser import Parser

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

# Official names to ours.

HEADS = {
    "fc_prob": "prob",
    "fc_frame_att": "frame_att",
    "fc_av_att": "modality_att",
    "fc_a": "embed.audio",
    "fc_v": "embed.visual",
    "fc_st": "embed.motion",
    "fc_fusion": "fuse_visual",
}
GCAA = {
    "qx_linear": "query",
    "kx_linear": "key",
    "vx_linear": "value",
    "qc_linear": "query_context",
    "kc_linear": "key_context",
    "Vqx_linear": "query_gate",
    "Vqc_linear": "query_context_gate",
    "Vkx_linear": "key_gate",
    "Vkc_linear": "key_context_gate",
    "out": "out",
}
FEEDFORWARD = ("linear1", "linear2", "norm1", "norm2")
DISCRIMINATOR = {"fc1": 0, "norm1": 1, "fc2": 3, "norm2": 4, "fc3": 6}


def our_modules(tag: str) -> dict[str, str]:
    """Every living module of an official parser, and its name here."""
    if tag == "han":
        layers = {"hat_encoder.layers.0": ("self_layers.0", {"self_attn": "own"})}
        layers["hat_encoder.layers.0"][1]["cm_attn"] = "cross"
        modules = dict(HEADS)
    else:
        layers = {
            "sa_layer_a": ("self_layers.0", {"self_attn": "own"}),
            "sa_layer_v": ("self_layers.1", {"self_attn": "own"}),
            "cma_layer.layers.0": ("cross_layer", {"cm_attn": "cross"}),
        }
        modules = {**HEADS, "shared_fc": "shared"}
        modules |= {
            f"mod_classifier.{k}": f"discriminator.layers.{i}" for k, i in DISCRIMINATOR.items()
        }
        if "skip" in tag:
            modules |= {"norm_a": "skip_norms.0", "norm_v": "skip_norms.1"}
    for theirs, (ours, attentions) in layers.items():
        modules |= {f"{theirs}.{name}": f"{ours}.{name}" for name in FEEDFORWARD}
        for their_attention, our_attention in attentions.items():
            old, new = f"{theirs}.{their_attention}", f"{ours}.{our_attention}"
            if "gcaa" in tag:
                modules |= {f"{old}.{k}": f"{new}.{v}" for k, v in GCAA.items()}
            else:
                modules |= {old: f"{new}.attention", f"{old}.out_proj": f"{new}.attention.out_proj"}
    return modules


def weights(name: str, shape: list[int]) -> NDArray[np.float32]:
    """The official tensor `name`, as the oracles' README says."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    w = (rng.standard_normal(shape) * 0.05).astype(np.float32)
    if "running_var" in name:
        return 1 + abs(w)
    return 1 + w if len(shape) == 1 and name.endswith(".weight") else w


def official(tag: str, shared: Path) -> Parser:
    shapes = json.loads((shared / "oracles" / "parsers_state_dicts.json").read_text())[tag]
    parser = Parser(ParserConfig(**OFFICIAL[tag]), LLP_DIMS, 25).eval()
    modules, state = our_modules(tag), {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        if module in modules:
            state[f"{modules[module]}.{leaf}"] = torch.tensor(weights(name, shape))
    parser.load_state_dict(state)
    return parser


def oracle_input() -> dict[str, Tensor]:
    rng = np.random.default_rng(7)
    audio = abs(rng.standard_normal((2, 10, 128)))
    frames = abs(rng.standard_normal((2, 80, 2048)))
    motion = rng.standard_normal((2, 10, 512))
    streams = {"audio": audio, "visual": frames.reshape(2, 10, 8, -1).mean(2), "motion": motion}
    return {name: torch.tensor(x, dtype=torch.float32) for name, x in streams.items()}


@pytest.mark.shared
@pytest.mark.parametrize("tag", OFFICIAL)
@torch.no_grad()
def test_parsers_are_the_official_ones(shared: Path, tag: str) -> None:
    parser, expected = official(tag, shared), np.load(shared / "oracles" / "parsers.npz")
    parsed = parser(oracle_input())
    ours = {
        "video_prob": parsed.video_prob,
        "audio_prob": parsed.modality_prob[:, 0],
        "visual_prob": parsed.modality_prob[:, 1],
        "frame_prob": parsed.frame_prob,
    }
    if parser.config.discriminator:
        rows = abs(np.random.default_rng(8).standard_normal((6, 512)))
        ours["discriminator"] = parser.discriminator(
            torch.tensor(rows, dtype=torch.float32)
        ).sigmoid()
    assert {f"{tag}/{name}" for name in ours} == {n for n in expected if n.startswith(f"{tag}/")}
    for name, value in ours.items():
        np.testing.assert_allclose(
            value.numpy(), expected[f"{tag}/{name}"], atol=1e-5, err_msg=name
        )


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
        share = over_modality[clip, t, m, c].exp() / over_modality[clip, t, :, c].exp().sum()
        modality[clip, m, c] += attention * p
        video[clip, c] += attention * share * p
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
def test_scale_is_that_of_the_encoders_features() -> None:
    plain, scaled = with_encoder(tune=False).eval(), with_encoder(tune=False, scale=0.25).eval()
    assert not torch.allclose(plain(clips()).frame_prob, scaled(clips()).frame_prob)
    for layer in plain.embed_encoded.values():
        layer.weight.mul_(0.25)
    torch.testing.assert_close(plain(clips()).frame_prob, scaled(clips()).frame_prob)
