"""Exported models: `model.safetensors` + `config.yaml`, what the registry holds and others load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avvp_dist.commit import commit_folder
from avvp_dist.config import PretrainedEncoderConfig
from avvp_dist.errors import CheckpointError, StorageError, first_line
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.parser import Parser
from avvp_dist.models.specification import (
    CONFIG,
    EncoderSpec,
    ParserSpec,
    Spec,
    read_spec,
    write_spec,
)

WEIGHTS = "model.safetensors"

M = TypeVar("M", bound=nn.Module)
S = TypeVar("S", EncoderSpec, ParserSpec)


def save_model(folder: Path, state: Mapping[str, Tensor], spec: Spec) -> None:
    """Write an exported model, replacing an older one whole.

    Args:
        state: the state dict, in float32.
        spec: how to build it, and where it comes from.

    Raises:
        StorageError: when the disk is full.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        write_tensors(temporary / WEIGHTS, tensors)
        write_spec(temporary / CONFIG, spec)
        commit_folder(temporary, folder, {"kind": spec.kind})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # it may have filled the disk
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors on the CPU as safetensors.

    Raises:
        StorageError: when the disk does not take them.
    """
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise StorageError(
            f"{path} cannot be written: {first_line(error)}", remedy="Make room there"
        ) from None


def load_encoder(
    folder: Path, *, activation_checkpointing: bool = False
) -> tuple[Encoder, EncoderSpec]:
    """An exported encoder and its specification.

    Raises:
        CheckpointError: if the folder is no exported encoder or its weights do not fit.
    """
    spec = load_spec(folder, EncoderSpec)
    encoder = build_encoder(spec, activation_checkpointing=activation_checkpointing)
    return _filled(encoder, folder), spec


def load_parser(folder: Path) -> tuple[Parser, ParserSpec]:
    """An exported parser, with the encoder in it if it has one, and its specification.

    Raises:
        CheckpointError: if the folder is no exported parser or its weights do not fit.
    """
    spec = load_spec(folder, ParserSpec)
    return _filled(build_parser(spec), folder), spec


def build_encoder(spec: EncoderSpec, *, activation_checkpointing: bool = False) -> Encoder:
    """An encoder with fresh weights."""
    return Encoder(
        spec.encoder,
        spec.dims,
        spec.snippets,
        activation_checkpointing=activation_checkpointing,
    )


def build_parser(spec: ParserSpec, encoder: Encoder | None = None) -> Parser:
    """A parser with fresh weights; `encoder` replaces the fresh one that `spec` describes."""
    attached = spec.pretrained
    if encoder is None and attached is not None:
        encoder = build_encoder(attached.spec)
    options = attached.config if attached else PretrainedEncoderConfig()
    return Parser(
        spec.parser,
        spec.dims,
        len(spec.classes),
        encoder,
        raw=options.raw,
        scale=options.scale,
        tune=options.tune,
    )


def load_spec(folder: Path, kind: type[S]) -> S:
    """The specification of an exported encoder or parser, without its weights.

    Raises:
        CheckpointError: if the folder is no exported model, or holds one of the other kind.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} is no exported model: {CONFIG} or {WEIGHTS} is missing",
            remedy=f"Give the `model` folder of a finished run that made the {kind.kind}",
        )
    spec = read_spec(folder / CONFIG)
    if not isinstance(spec, kind):
        raise CheckpointError(f"{folder} holds an exported {spec.kind}, not a {kind.kind}")
    return spec


def _filled(module: M, folder: Path) -> M:
    """The module with the weights of an export."""
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
            f"{folder / WEIGHTS} does not fit: {fitting} of {len(own)} tensors can be loaded; "
            f"missing {missing[:5]}, unexpected {unexpected[:5]}, of other shape {reshaped[:5]}"
        )
    module.load_state_dict(state)
    return module
