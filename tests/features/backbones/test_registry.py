"""Backbones by name, and the name of the extractor that they are together."""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from avvp_dist.errors import ConfigError
from avvp_dist.features.backbones.registry import (
    BACKBONES,
    backbone_class,
    extractor_of,
    open_backbones,
)


def test_the_dimensions_are_those_of_the_networks() -> None:
    assert {
        name: (backbone_class(name).stream, backbone_class(name).dim) for name in BACKBONES
    } == {
        "yamnet": ("audio", 1024),
        "vggish": ("audio", 128),
        "vggish-audioset": ("audio", 128),
        "aisfx": ("audio", 512),
        "clap": ("audio", 512),
        "efficientnet-lite0": ("visual", 1280),
        "resnet152": ("visual", 2048),
        "clip": ("visual", 768),
        "r2plus1d_18": ("motion", 512),
    }


def test_the_extractor_names_backbones_weights_and_decoding() -> None:
    han = extractor_of(["vggish", "resnet152", "r2plus1d_18"])
    assert han == "vggish 10086976, resnet152 394f9c45, r2plus1d_18 91a641e6; decoding 1"
    assert extractor_of(["vggish-audioset"]) == "vggish-audioset 10086976+970ea276; decoding 1"
    assert len({extractor_of([name]) for name in BACKBONES}) == len(BACKBONES)


def test_only_the_packages_of_the_backbones_in_use_are_imported() -> None:
    for path in {find_spec(entry.partition(":")[0]).origin for entry in BACKBONES.values()}:
        nodes = ast.parse(Path(path).read_text()).body
        names = {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}
        names |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        assert names <= {"__future__", "avvp_dist", "numpy", "torch", *sys.stdlib_module_names}


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(ConfigError, match="backbones: resnet is none of yamnet, vggish, "):
        open_backbones(["resnet"], {})


def test_two_backbones_of_one_stream_are_refused() -> None:
    with pytest.raises(ConfigError, match="vggish, clap have the streams audio, audio"):
        open_backbones(["vggish", "clap"], {})
