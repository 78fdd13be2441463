"""Specifications of exported models: plain YAML, of one format version, every key checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from avvp_dist.config import (
    EncoderConfig,
    ObjectiveConfig,
    ParserConfig,
    PretrainedEncoderConfig,
)
from avvp_dist.errors import CheckpointError
from avvp_dist.models.specification import (
    FORMAT,
    AttachedEncoder,
    EncoderSpec,
    ParserSpec,
    read_spec,
    write_spec,
)

ENCODER = EncoderSpec(
    encoder=EncoderConfig(size="tiny", joint=False),
    objective=ObjectiveConfig("uni"),
    dims={"audio": 4, "visual": 6},
    snippets=5,
    extractor="simulated: 007",
    manifest="0f",
    grounding="or-1",
)
PARSER = ParserSpec(
    parser=ParserConfig(width=16),
    dims={"audio": 4, "visual": 6},
    snippets=5,
    classes=["Dog", "no", "1e3"],
    extractor="",
    manifest="0f",
    pretrained=AttachedEncoder(PretrainedEncoderConfig(scale=0.5), ENCODER, "avvp-encoder/3", "r"),
    step=7,
    validated={"val/segment_type_av": 55.25},
)


@pytest.mark.parametrize("spec", [ENCODER, PARSER], ids=["encoder", "parser"])
def test_a_specification_comes_back(tmp_path: Path, spec: EncoderSpec | ParserSpec) -> None:
    write_spec(tmp_path / "config.yaml", spec)
    assert read_spec(tmp_path / "config.yaml") == spec
    plain: Any = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    assert (plain["format"], plain["kind"]) == (FORMAT, spec.kind)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "avvp-model-1"}, "has the export format avvp-model-1, this version reads"),
        ({"format": None}, "has the export format"),
        ({"kind": "tree"}, "describes no exported model: its kind is 'tree'"),
        ({"size": 3}, "has an unknown key size in its ParserSpec"),
        ({"parser": {"depth": 3}}, "has an unknown key depth in its ParserConfig"),
        ({"pretrained": {"spec": 3}}, "a mapping is expected, not 3"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    path = tmp_path / "config.yaml"
    write_spec(path, PARSER)
    plain: Any = OmegaConf.to_container(OmegaConf.load(path))
    path.write_text(OmegaConf.to_yaml(OmegaConf.create({**plain, **change})))
    with pytest.raises(CheckpointError, match=str(tmp_path)) as caught:
        read_spec(path)
    assert named in str(caught.value)


@pytest.mark.parametrize("key", ["parser", "dims", "classes"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "config.yaml"
    write_spec(path, PARSER)
    plain: Any = OmegaConf.to_container(OmegaConf.load(path))
    del plain[key]
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
    with pytest.raises(CheckpointError, match="is damaged"):
        read_spec(path)


def test_an_export_without_a_format_is_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("kind: encoder\nencoder: {size: tiny}\n")
    with pytest.raises(CheckpointError, match=r"export format avvp-model-1.*Train the encoder"):
        read_spec(tmp_path / "config.yaml")
