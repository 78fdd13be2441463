"""The encoder: which streams and snippets reach which representations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avvp_dist.config import SIZES, EncoderConfig, ObjectiveConfig
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.export import load_encoder, save_model
from avvp_dist.models.specification import EncoderSpec

DIMS = {"audio": 6, "visual": 10, "motion": 4}
SNIPPETS = 7


def encoder(dims: dict[str, int] = DIMS, **options: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(size="tiny", **options), dims, SNIPPETS).eval()


def clips(count: int, dims: dict[str, int] = DIMS, snippets: int = SNIPPETS) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(count, snippets, dim) for name, dim in dims.items()}


def close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("joint", [True, False])
@torch.no_grad()
def test_padding_changes_nothing_in_the_real_snippets(joint: bool) -> None:
    model, streams = encoder(joint=joint), clips(3)
    lengths = torch.tensor([4, SNIPPETS, 1])
    encoded = model(streams, lengths)
    for clip, length in enumerate(lengths.tolist()):
        alone = {name: x[clip : clip + 1, :length] for name, x in streams.items()}
        close(tuple(x[clip : clip + 1, :length] for x in encoded), model(alone))


@torch.no_grad()
def test_clips_of_full_length_need_no_lengths() -> None:
    model, streams = encoder(), clips(2)
    close(model(streams, torch.full((2,), SNIPPETS)), model(streams))


@pytest.mark.parametrize("joint", [True, False])
@torch.no_grad()
def test_modalities_attend_to_each_other_only_in_a_joint_encoder(joint: bool) -> None:
    model, streams = encoder(joint=joint), clips(2)
    audio, visual = model(streams)
    unseen = model({**streams, "visual": torch.randn(2, SNIPPETS, 10)})
    unheard = model({**streams, "audio": torch.randn(2, SNIPPETS, 6)})
    assert torch.equal(unseen[0], audio) == (not joint)
    assert torch.equal(unheard[1], visual) == (not joint)
    assert not torch.allclose(unseen[1], visual)
    assert not torch.allclose(unheard[0], audio)


@pytest.mark.parametrize(
    "dims",
    [{"audio": 5, "visual": 3}, {"clip": 9, "audio": 2, "flow": 3, "depth": 8}, DIMS],
    ids=lambda dims: "+".join(dims),
)
@torch.no_grad()
def test_any_streams_of_any_size_all_of_which_matter(dims: dict[str, int]) -> None:
    model, streams = encoder(dims), clips(2, dims)
    encoded = model(streams)
    assert [x.shape for x in encoded] == [(2, SNIPPETS, SIZES["tiny"][1])] * 2
    for name in dims:
        other = model({**streams, name: torch.randn_like(streams[name])})
        assert not torch.allclose(encoded[0], other[0]), name
        assert not torch.allclose(encoded[1], other[1]), name


@torch.no_grad()
def test_clips_of_a_batch_do_not_affect_one_another() -> None:
    model, streams = encoder(), clips(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    lengths = torch.tensor([7, 2, 5, 7, 3])
    shuffled = model({name: x[order] for name, x in streams.items()}, lengths[order])
    close(shuffled, tuple(x[order] for x in model(streams, lengths)))


@torch.no_grad()
def test_the_order_of_snippets_matters() -> None:
    model, streams = encoder(), clips(1)
    backwards = model({name: x.flip(1) for name, x in streams.items()})
    assert not torch.allclose(backwards[0].flip(1), model(streams)[0], atol=1e-4)


# One token for each visual stream.


@torch.no_grad()
def test_each_visual_stream_can_be_a_token_of_its_own() -> None:
    dims = {"motion": 4, "audio": 6, "visual": 10}
    model, streams = encoder(dims, visual_tokens="separate"), clips(2, dims)
    assert list(model.groups) == ["audio", "motion", "visual"]
    encoded = model(streams)
    assert [x.shape for x in encoded] == [(2, SNIPPETS, SIZES["tiny"][1])] * 3
    for name in dims:
        other = model({**streams, name: torch.randn_like(streams[name])})
        assert not any(torch.allclose(x, y) for x, y in zip(encoded, other, strict=True)), name


@torch.no_grad()
def test_separate_tokens_know_their_stream() -> None:
    dims = {"audio": 6, "one": 5, "two": 5}
    model, streams = encoder(dims, visual_tokens="separate"), clips(2, dims)
    for layer in (model.norms, model.embed):
        layer["two"].load_state_dict(layer["one"].state_dict())
    _, one, two = model({**streams, "two": streams["one"]})
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("hidden", [(), ("motion",), ("visual",)])
@torch.no_grad()
def test_a_hidden_token_reaches_no_other(hidden: tuple[str, ...]) -> None:
    model, streams = encoder(visual_tokens="separate"), clips(2)
    for lengths in (None, torch.tensor([4, SNIPPETS])):
        encoded = model(streams, lengths, hidden)
        for name in ("visual", "motion"):
            changed = {**streams, name: torch.randn_like(streams[name])}
            other = dict(zip(model.groups, model(changed, lengths, hidden), strict=True))
            own = dict(zip(model.groups, encoded, strict=True))
            same = {group: torch.equal(own[group], other[group]) for group in own}
            assert same == {group: name in hidden and group != name for group in own}


@pytest.mark.parametrize("hidden", ["visual", "motion"])
@torch.no_grad()
def test_a_hidden_stream_is_left_out_of_the_sum(hidden: str) -> None:
    model, streams = encoder(), clips(2)
    encoded = model(streams, hidden=[hidden])
    seen = {name: dim for name, dim in DIMS.items() if name != hidden}
    without = encoder(seen)
    without.load_state_dict({n: t for n, t in model.state_dict().items() if f".{hidden}." not in n})
    assert len(without.groups["visual"]) == 1
    close(encoded, without({name: streams[name] for name in seen}))


@torch.no_grad()
def test_audio_meets_no_visual_token_in_an_encoder_that_is_not_joint() -> None:
    model, streams = encoder(visual_tokens="separate", joint=False), clips(2)
    audio, visual, motion = model(streams)
    unheard = model({**streams, "audio": torch.randn(2, SNIPPETS, 6)})
    assert not torch.allclose(unheard[0], audio)
    assert torch.equal(unheard[1], visual) and torch.equal(unheard[2], motion)
    for name, dim in (("visual", 10), ("motion", 4)):
        unseen = model({**streams, name: torch.randn(2, SNIPPETS, dim)})
        assert torch.equal(unseen[0], audio)
        assert not torch.allclose(unseen[1], visual)
        assert not torch.allclose(unseen[2], motion)


@pytest.mark.parametrize("tokens", ["summed", "separate"])
@torch.no_grad()
def test_masked_features_are_replaced_and_reach_no_token(tokens: str) -> None:
    model, streams = encoder(visual_tokens=tokens), clips(3)
    lengths = torch.tensor([4, SNIPPETS, 2])
    masked = torch.zeros(3, len(model.groups), SNIPPETS, dtype=torch.bool)
    stand_ins = torch.randn(len(model.groups), SIZES["tiny"][1])
    plain = model(streams, lengths)
    assert all(map(torch.equal, model(streams, lengths, (), masked, stand_ins), plain))
    masked[0, 0, 1] = masked[1, 1:, 2:5] = True
    encoded = model(streams, lengths, (), masked, stand_ins)
    assert not torch.allclose(encoded[0][0], plain[0][0])
    close(tuple(x[2] for x in encoded), tuple(x[2] for x in plain))
    changed = {name: x.clone() for name, x in streams.items()}
    changed["audio"][0, 1] = changed["visual"][1, 2:5] = changed["motion"][1, 2:5] = 7.0
    assert all(map(torch.equal, model(changed, lengths, (), masked, stand_ins), encoded))
    other = model(streams, lengths, (), masked, stand_ins.flip(1))
    assert not torch.allclose(other[0][0], encoded[0][0])


# Faults of the authors' code, as options.


def train_a_step(model: Encoder) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    sum(group[..., 0].mean() for group in model(clips(2))).backward()
    optimizer.step()


def test_frozen_positions_are_random_and_stay(tmp_path: Path) -> None:
    model = encoder(frozen_positions=True)
    before = model.positions.clone()
    assert "positions" not in dict(model.named_parameters())
    assert 0.01 < float(before.std()) < 0.03
    train_a_step(model)
    assert torch.equal(model.positions, before)
    spec = EncoderSpec(
        encoder=EncoderConfig("tiny", frozen_positions=True),
        objective=ObjectiveConfig(),
        dims=DIMS,
        snippets=SNIPPETS,
        extractor="",
        manifest="none",
        grounding="none",
    )
    save_model(tmp_path / "model", model.state_dict(), spec)
    torch.manual_seed(5)  # other positions than these, were they not loaded
    loaded, _ = load_encoder(tmp_path / "model")
    assert torch.equal(loaded.positions, before)
    close(loaded.eval()(clips(2)), model.eval()(clips(2)))


def test_learned_positions_train() -> None:
    model = encoder()
    before = model.positions.detach().clone()
    train_a_step(model)
    assert not torch.equal(model.positions, before)


@torch.no_grad()
def test_mask_vectors_are_added_to_all_normalised_features() -> None:
    model, plain = encoder(mask_vectors=True), encoder()
    state = model.state_dict()
    for name, vector in model.mask_vectors.items():
        assert vector.shape == (DIMS[name],) and vector.any()
        bias = state[f"embed.{name}.bias"]
        state[f"embed.{name}.bias"] = bias + model.embed[name].weight @ vector
    plain.load_state_dict({n: t for n, t in state.items() if not n.startswith("mask_vectors.")})
    close(model(clips(2)), plain(clips(2)))
    for vector in model.mask_vectors.values():
        vector.zero_()
    assert not torch.allclose(model(clips(2))[0], plain(clips(2))[0])


def test_mask_vectors_train() -> None:
    model = encoder(mask_vectors=True)
    before = {name: vector.detach().clone() for name, vector in model.mask_vectors.items()}
    train_a_step(model)
    assert before.keys() == DIMS.keys()
    assert not any(torch.equal(model.mask_vectors[name], before[name]) for name in DIMS)


def test_activation_checkpointing_runs_each_layer_again_for_the_same_gradients() -> None:
    gradients, calls = [], []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        config = EncoderConfig(size="tiny", dropout=0.1)
        model = Encoder(config, DIMS, SNIPPETS, activation_checkpointing=checkpointed)
        count: list[object] = []
        for layer in model.layers:
            layer.expand.register_forward_hook(lambda *hook, count=count: count.append(hook))
        sum(group.square().sum() for group in model(clips(2))).backward()
        gradients.append([p.grad for p in model.parameters()])
        calls.append(len(count))
    assert calls == [2, 4]
    assert all(map(torch.equal, *gradients))


def test_exported_encoders_still_load() -> None:
    """Names and shapes of the default encoder's tensors, which every export of one has."""
    width, feedforward = 128, 512
    norm, square = {"weight": (width,), "bias": (width,)}, {}
    for name, rows, columns in (
        ("qkv", 3 * width, width),
        ("out", width, width),
        ("expand", feedforward, width),
        ("contract", width, feedforward),
    ):
        square[f"{name}.weight"], square[f"{name}.bias"] = (rows, columns), (rows,)
    expected = {"positions": (SNIPPETS, width), "modalities": (2, width)}
    for name, dim in DIMS.items():
        expected |= {f"norms.{name}.weight": (dim,), f"norms.{name}.bias": (dim,)}
        expected |= {f"embed.{name}.weight": (width, dim), f"embed.{name}.bias": (width,)}
    for prefix in ("embedding_norm", "norm"):
        expected |= {f"{prefix}.{n}": shape for n, shape in norm.items()}
    for layer in ("layers.0", "layers.1"):
        expected |= {f"{layer}.{n}": shape for n, shape in square.items()}
        for prefix in ("attention_norm", "feedforward_norm"):
            expected |= {f"{layer}.{prefix}.{n}": shape for n, shape in norm.items()}
    assert {n: tuple(t.shape) for n, t in encoder().state_dict().items()} == expected
