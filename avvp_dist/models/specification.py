"""Specifications of exported models: everything that `config.yaml` of an export holds.

A specification says how to build a model with fresh weights, on which features it was trained, and
where it comes from. It is parsed and validated here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import ClassVar, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from avvp_dist.config import (
    EncoderConfig,
    ObjectiveConfig,
    ParserConfig,
    PretrainedEncoderConfig,
)
from avvp_dist.errors import CheckpointError

CONFIG = "config.yaml"
"""File of an export that holds its specification."""
FORMAT = "avvp-model-2"
"""Version of the export format; it changes when an older reader would misread a newer export."""

T = TypeVar("T")


@dataclass(frozen=True)
class EncoderSpec:
    """An exported encoder."""

    kind: ClassVar[str] = "encoder"

    encoder: EncoderConfig
    objective: ObjectiveConfig
    dims: dict[str, int]
    """Feature size of each stream."""
    snippets: int
    """T: maximum number of snippets in a clip."""
    extractor: str
    """Name and version of the backbones that made the features."""
    manifest: str
    """Digests of the shard sets it was trained on, joined by `+`."""
    grounding: str
    """Versions of their groundings, joined by `+`."""
    step: int = 0
    """Optimiser steps before the export."""
    validated: dict[str, float] = field(default_factory=dict)
    """Metrics of the exported epoch on held-out clips."""


@dataclass(frozen=True)
class AttachedEncoder:
    """The pretrained encoder inside an exported parser."""

    config: PretrainedEncoderConfig
    spec: EncoderSpec
    version: str
    """`NAME/VERSION` in the registry, or the folder it was loaded from."""
    run: str = ""
    """Id of the MLflow run that made the version; empty for a folder."""


@dataclass(frozen=True)
class ParserSpec:
    """An exported parser."""

    kind: ClassVar[str] = "parser"

    parser: ParserConfig
    dims: dict[str, int]
    """Feature size of each stream."""
    snippets: int
    """T: snippets in a clip."""
    classes: list[str]
    """Names of the C event classes, in the order of the outputs."""
    extractor: str
    """Name and version of the backbones that made the features."""
    manifest: str
    """Digest of the shard set it was trained on."""
    pretrained: AttachedEncoder | None = None
    step: int = 0
    """Optimiser steps before the export."""
    validated: dict[str, float] = field(default_factory=dict)
    """Metrics of the exported epoch on validation clips."""


Spec = EncoderSpec | ParserSpec


def write_spec(path: Path, spec: Spec) -> None:
    """Write a specification as YAML."""
    values = {"format": FORMAT, "kind": spec.kind, **asdict(spec)}
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(values)), "utf-8")


def read_spec(path: Path) -> Spec:
    """The specification in a YAML file.

    Raises:
        CheckpointError: if the file is damaged or has another format version.
    """
    try:
        values = _mapping(OmegaConf.to_container(OmegaConf.load(path)), path)
    except (YAMLError, OSError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    kind, version = values.pop("kind", None), values.pop("format", "avvp-model-1")
    if kind not in (EncoderSpec.kind, ParserSpec.kind):
        raise CheckpointError(f"{path} describes no exported model: its kind is {kind!r}")
    if version != FORMAT:
        raise CheckpointError(
            f"{path.parent} has the export format {version}, this version reads {FORMAT}",
            remedy=f"Train the {kind} again with this version",
        )
    return _encoder(values, path) if kind == EncoderSpec.kind else _parser(values, path)


def _encoder(values: dict[str, object], path: Path) -> EncoderSpec:
    nested = {
        "encoder": _made(EncoderConfig, values.get("encoder"), path),
        "objective": _made(ObjectiveConfig, values.get("objective"), path),
    }
    return _made(EncoderSpec, {**values, **nested}, path)


def _parser(values: dict[str, object], path: Path) -> ParserSpec:
    attached = values.get("pretrained")
    if attached is not None:
        attached = _mapping(attached, path)
        attached["spec"] = _encoder(_mapping(attached.get("spec"), path), path)
        attached["config"] = _made(PretrainedEncoderConfig, attached.get("config"), path)
        attached = _made(AttachedEncoder, attached, path)
    nested = {"parser": _made(ParserConfig, values.get("parser"), path), "pretrained": attached}
    return _made(ParserSpec, {**values, **nested}, path)


def _mapping(value: object, path: Path) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{path} is damaged: a mapping is expected, not {value!r}")
    return {str(key): item for key, item in value.items()}


def _made(kind: type[T], value: object, path: Path) -> T:
    """A dataclass from a mapping that has its fields.

    Raises:
        CheckpointError: naming a field that is missing or unknown.
    """
    values = _mapping(value, path)
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(values.keys() - known)
    if unknown:
        raise CheckpointError(f"{path} has an unknown key {unknown[0]} in its {kind.__name__}")
    try:
        return kind(**values)
    except TypeError as error:  # a field without default is missing
        raise CheckpointError(f"{path} is damaged: {error}") from None
