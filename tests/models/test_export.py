"""Exported models: what goes in comes out, and what does not fit is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avvp_dist.commit import verify_folder
from avvp_dist.config import EncoderConfig, ObjectiveConfig, ParserConfig, PretrainedEncoderConfig
from avvp_dist.errors import CheckpointError, StorageError
from avvp_dist.models.export import (
    build_encoder,
    build_parser,
    load_encoder,
    load_parser,
    save_model,
)
from avvp_dist.models.specification import AttachedEncoder, EncoderSpec, ParserSpec

DIMS = {"audio": 4, "visual": 6}
ENCODER = EncoderSpec(
    encoder=EncoderConfig(size="tiny"),
    objective=ObjectiveConfig(),
    dims=DIMS,
    snippets=5,
    extractor="simulated",
    manifest="0f",
    grounding="or-1",
    step=7,
    validated={"val/auc": 0.5},
)
PARSER = ParserSpec(
    parser=ParserConfig(width=16),
    dims=DIMS,
    snippets=5,
    classes=["Dog", "Car", "Speech"],
    extractor="simulated",
    manifest="0f",
)
OVER_ENCODER = replace(
    PARSER,
    pretrained=AttachedEncoder(PretrainedEncoderConfig(raw=False, scale=0.5), ENCODER, "enc/1"),
)


def clips() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(3, 5, dim) for name, dim in DIMS.items()}


def test_a_full_disk_is_named_and_keeps_the_older_export(small_disk: Any) -> None:
    folder = small_disk("1m") / "model"
    save_model(folder, {"weight": torch.zeros(1000)}, PARSER)
    with pytest.raises(
        StorageError, match=r"model\.safetensors cannot be written: .*No space left"
    ):
        save_model(folder, {"weight": torch.zeros(1_000_000)}, PARSER)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert verify_folder(folder) == []


def assert_same_state(ours: nn.Module, theirs: nn.Module) -> None:
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An exported encoder."""
    save_model(tmp_path / "model", build_encoder(ENCODER).state_dict(), ENCODER)
    return tmp_path / "model"


def change(folder: Path, **tensors: Tensor | None) -> None:
    """Replace tensors of an export, or remove them."""
    state = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    save_file(state, folder / "model.safetensors")


@torch.no_grad()
def test_an_encoder_comes_back(tmp_path: Path) -> None:
    model = build_encoder(ENCODER).eval()
    save_model(tmp_path / "model", model.state_dict(), ENCODER)
    loaded, spec = load_encoder(tmp_path / "model")
    assert spec == ENCODER
    assert_same_state(loaded, model)
    torch.testing.assert_close(loaded.eval()(clips()), model(clips()), rtol=0, atol=0)


@pytest.mark.parametrize("spec", [PARSER, OVER_ENCODER], ids=["alone", "over an encoder"])
def test_a_parser_comes_back_with_its_encoder_and_buffers(tmp_path: Path, spec: ParserSpec) -> None:
    model = build_parser(spec)
    model.discriminate(model(clips()))  # moves the statistics of its BatchNorm layers
    save_model(tmp_path / "model", model.state_dict(), spec)
    loaded, described = load_parser(tmp_path / "model")
    assert described == spec
    assert_same_state(loaded, model)
    norm = loaded.discriminator.layers[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.num_batches_tracked == 1
    assert norm.running_mean is not None
    assert norm.running_mean.abs().max() > 0
    assert (loaded.encoder is None) == (spec is PARSER)
    with torch.no_grad():
        ours, theirs = model.eval()(clips()), loaded.eval()(clips())
    assert torch.equal(ours.video_prob, theirs.video_prob)


def test_an_older_export_is_replaced_whole(exported: Path) -> None:
    (exported / "left-over.txt").write_text("of the older export")
    parser = build_parser(PARSER)
    save_model(exported, parser.state_dict(), PARSER)
    assert_same_state(load_parser(exported)[0], parser)
    assert sorted(p.name for p in exported.iterdir()) == [
        "config.yaml",
        "manifest.json",
        "model.safetensors",
    ]
    assert verify_folder(exported) == []
    assert list(exported.parent.iterdir()) == [exported]


def test_the_wrong_kind_is_named(exported: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model holds an exported encoder, not a parser"):
        load_parser(exported)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_a_missing_file_is_named(exported: Path, name: str) -> None:
    (exported / name).unlink()
    with pytest.raises(CheckpointError, match=f"{exported} is no exported model.*{name}"):
        load_encoder(exported)


def test_tensors_that_do_not_fit_are_named(exported: Path) -> None:
    tensors = {"positions": None, "norm.weight": torch.ones(3), "extra": torch.ones(1)}
    change(exported, **tensors)
    with pytest.raises(
        CheckpointError,
        match=r"missing \['positions'\], unexpected \['extra'\], of other shape \['norm.weight'\]",
    ):
        load_encoder(exported)


@pytest.mark.parametrize(
    "tensors", [{"positions": None}, {"x": torch.ones(1)}, {"norm.weight": torch.ones(3)}]
)
def test_one_tensor_is_enough(exported: Path, tensors: dict[str, Tensor | None]) -> None:
    change(exported, **tensors)
    with pytest.raises(CheckpointError, match=next(iter(tensors))):
        load_encoder(exported)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_a_torn_file_is_named(exported: Path, name: str) -> None:
    data = (exported / name).read_bytes()
    (exported / name).write_bytes(data[: len(data) // 2] + b"\n: [")
    with pytest.raises(CheckpointError, match=str(exported)):
        load_encoder(exported)
