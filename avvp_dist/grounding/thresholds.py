"""The file `thresholds.yaml`: similarity thresholds by stream, and what they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from avvp_dist.commit import staged
from avvp_dist.config.files import TextLoader
from avvp_dist.errors import ConfigError

THRESHOLDS = "thresholds.yaml"
"""Name of the file in a shard set, unless a config key names another."""

Thresholds = dict[str, float]
"""Minimum cosine of two snippets that belong together, by stream."""


@dataclass(frozen=True)
class ThresholdsFile:
    """Part of `thresholds.yaml` that grounding depends on."""

    thresholds: Thresholds
    extractor: str
    """Name of the feature extractor that the thresholds were chosen for."""
    joining: dict[str, object] = field(default_factory=dict)
    """Keys of `LinkConfig` that the thresholds were chosen for; empty in a file made by hand."""

    @classmethod
    def read(cls, path: Path) -> ThresholdsFile:
        """Read and check a file.

        Raises:
            ConfigError: naming it, if it is missing or no thresholds file.
        """
        if not path.is_file():
            raise ConfigError(
                f"thresholds: {path} does not exist", remedy="Make it with `avvp calibrate`"
            )
        try:
            text = path.read_text("utf-8-sig")
            content = yaml.load(text, TextLoader)  # names are text, such as 0012
            typed = OmegaConf.to_container(OmegaConf.create(text))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"thresholds: {path} is not YAML: {reason}") from None
        if not isinstance(content, dict) or not {"extractor", "thresholds"} <= content.keys():
            raise ConfigError(
                f"thresholds: {path} is no file of `avvp calibrate`: it needs the keys "
                "thresholds and extractor"
            )
        assert isinstance(typed, dict)
        limits, joining = content["thresholds"], typed.get("joining") or {}
        numbers = [_number(one) for one in limits.values()] if isinstance(limits, dict) else []
        if not numbers or None in numbers:
            raise ConfigError(
                f"thresholds: {path} needs a number for each stream under thresholds, not {limits}"
            )
        if not isinstance(joining, dict):
            raise ConfigError(f"thresholds: {path}: joining holds no keys but {joining}")
        return cls(
            {name: one for name, one in zip(limits, numbers, strict=True) if one is not None},
            str(content["extractor"] or ""),
            {str(key): value for key, value in joining.items()},
        )


def _number(text: object) -> float | None:
    """A finite number, an int if it is written as one; None for anything else."""
    try:
        value = float(str(text))
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return int(value) if re.fullmatch(r"[-+]?\d+", str(text)) else value


def write_thresholds(path: Path, content: Mapping[str, object]) -> None:
    """Write the content of a thresholds file, whole or not at all."""
    with staged(path) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(content))), "utf-8")
