"""The backbones by name, and the extractor that several of them are together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

from avvp_dist.errors import ConfigError
from avvp_dist.features.backbones.backbone import Backbone

BACKBONES = {
    "yamnet": "avvp_dist.features.backbones.yamnet:Yamnet",
    "vggish": "avvp_dist.features.backbones.vggish:Vggish",
    "vggish-audioset": "avvp_dist.features.backbones.vggish:VggishAudioset",
    "aisfx": "avvp_dist.features.backbones.aisfx:Aisfx",
    "clap": "avvp_dist.features.backbones.clap:Clap",
    "efficientnet-lite0": "avvp_dist.features.backbones.efficientnet:EfficientNetLite0",
    "resnet152": "avvp_dist.features.backbones.resnet152:ResNet152",
    "clip": "avvp_dist.features.backbones.clip:Clip",
    "r2plus1d_18": "avvp_dist.features.backbones.r2plus1d:R2Plus1D18",
}
"""Class of each backbone, as `module:class`: what one imports is not needed by the others."""

DECODING = 1
"""Version of the decoding; pictures and sound of another one give other features."""


def backbone_class(name: str) -> type[Backbone]:
    """The class of a backbone, which is not loaded yet.

    Args:
        name: one of `BACKBONES`, or `module:class` for a backbone of one's own.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in BACKBONES and ":" not in name:
        raise ConfigError(f"backbones: {name} is none of {', '.join(BACKBONES)}")
    module, _, attribute = BACKBONES.get(name, name).partition(":")
    try:
        kind: type[Backbone] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"backbones: {name} cannot be imported: {error}") from None
    return kind


def backbones_of(extractor: str) -> list[str]:
    """Names of the backbones that an extractor is made of; see `extractor_of`.

    Raises:
        ConfigError: if they are not those of this version.
    """
    parts = extractor.partition(";")[0].split(", ")
    names = [part.rpartition(" ")[0] for part in parts]
    if not set(names) <= set(BACKBONES) or extractor_of(names) != extractor:
        raise ConfigError(
            f"features of {extractor!r} cannot be extracted here",
            remedy="Name the backbones that make them",
        )
    return names


def dims_of(names: Sequence[str]) -> dict[str, int]:
    """Feature size of the stream that each of some backbones makes."""
    return {kind.stream: kind.dim for kind in map(backbone_class, names)}


def check_streams(names: Sequence[str]) -> None:
    """Raise `ConfigError` for no backbone, an unknown one, or two of one stream."""
    streams = [backbone_class(name).stream for name in names]
    if len(set(streams)) < len(streams):
        raise ConfigError(f"backbones: {', '.join(names)} have the streams {', '.join(streams)}")
    if not names:
        raise ConfigError(f"backbones is empty: name some of {', '.join(BACKBONES)}")


def open_backbones(names: Sequence[str], weights: Mapping[str, str]) -> list[Backbone]:
    """Load backbones.

    Raises:
        ConfigError: for an unknown name, missing weights, or two backbones of one stream.
    """
    check_streams(names)
    return [backbone_class(name)(weights) for name in names]


def extractor_of(names: Sequence[str]) -> str:
    """The name of the extractor: its backbones, their weights, and the decoding."""
    kinds = [backbone_class(name) for name in names]
    parts = [f"{kind.name} {kind.weights.digits}" for kind in kinds]
    return f"{', '.join(parts)}; decoding {DECODING}"
