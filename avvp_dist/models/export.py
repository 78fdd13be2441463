"""Exported models: `model.safetensors` + `config.yaml`, what the registry holds and others load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from yaml import YAMLError

from avvp_dist.commit import commit_folder, sha256
from avvp_dist.config import EncoderConfig, ParserConfig, PretrainedEncoderConfig
from avvp_dist.errors import CheckpointError
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.parser import Parser

WEIGHTS, CONFIG = "model.safetensors", "config.yaml"


def save_model(folder: Path, state: dict[str, Tensor], meta: dict[str, Any]) -> str:
    """Write an exported model, replacing an older one whole; returns the weights' SHA-256.

    Args:
        state: the state dict, in float32.
        meta: what `build_encoder` or `build_parser` needs, and lineage.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in state.items()}, temporary / WEIGHTS
    )
    (temporary / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create(meta)))
    digest = sha256(temporary / WEIGHTS)
    commit_folder(temporary, folder, {"kind": meta["kind"]})
    return digest


def load_encoder(folder: Path) -> tuple[Encoder, dict[str, Any]]:
    """An exported encoder and its meta data.

    Raises:
        CheckpointError: if the folder is no exported encoder or its weights do not fit.
    """
    meta = read_meta(folder, "encoder")
    return _filled(build_encoder(meta), folder), meta


def load_parser(folder: Path) -> tuple[Parser, dict[str, Any]]:
    """An exported parser, with the encoder in it if it has one, and its meta data.

    Raises:
        CheckpointError: if the folder is no exported parser or its weights do not fit.
    """
    meta = read_meta(folder, "parser")
    return _filled(build_parser(meta), folder), meta


def build_encoder(meta: dict[str, Any]) -> Encoder:
    """An encoder with fresh weights, by `meta["encoder"]`, `meta["dims"]`, `meta["snippets"]`."""
    return Encoder(EncoderConfig(**meta["encoder"]), meta["dims"], meta["snippets"])


def build_parser(meta: dict[str, Any], encoder: Encoder | None = None) -> Parser:
    """A parser with fresh weights; `encoder` replaces the fresh one that `meta` describes."""
    pretrained_encoder = meta["pretrained"]
    if encoder is None and pretrained_encoder is not None:
        encoder = build_encoder(pretrained_encoder["meta"])
    options = (
        PretrainedEncoderConfig(**pretrained_encoder["config"])
        if pretrained_encoder
        else PretrainedEncoderConfig()
    )
    return Parser(
        ParserConfig(**meta["parser"]),
        meta["dims"],
        len(meta["classes"]),
        encoder,
        raw=options.raw,
        scale=options.scale,
        tune=options.tune,
    )


def read_meta(folder: Path, kind: str) -> dict[str, Any]:
    """The meta data of an exported model of this kind."""
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} is no exported model: {CONFIG} or {WEIGHTS} is missing",
            remedy=f"Give the `model` folder of a finished run that made the {kind}",
        )
    try:
        meta: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(meta, dict) or meta.get("kind") != kind:
        held = meta.get("kind") if isinstance(meta, dict) else "nothing"
        raise CheckpointError(f"{folder} holds an exported {held}, not a {kind}")
    return meta


def validated_tags(folder: Path, kind: str) -> dict[str, str]:
    """The metrics of the exported epoch as tags of its version in the registry.

    Raises:
        CheckpointError: if the folder is no exported model of this kind.
    """
    metrics = read_meta(folder, kind).get("validated", {})
    return {name: f"{value:.6g}" for name, value in metrics.items()}


def _filled(module: Any, folder: Path) -> Any:
    assert isinstance(module, nn.Module)
    try:
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {error}") from None
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    reshaped = sorted(n for n in own.keys() & state.keys() if own[n].shape != state[n].shape)
    if missing or unexpected or reshaped:
        fitting = len(own) - len(missing) - len(reshaped)
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit: of {len(own)} tensors {fitting} would be loaded; "
            f"missing {missing[:5]}, unexpected {unexpected[:5]}, of other shape {reshaped[:5]}"
        )
    module.load_state_dict(state)
    return module
