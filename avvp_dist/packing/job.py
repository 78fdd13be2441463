"""Packing: a feature folder into a shard set."""

from __future__ import annotations

from pathlib import Path

from avvp_dist.config import PackConfig
from avvp_dist.packing.audioset import AudioSetSource
from avvp_dist.packing.making import Recipe, make_set
from avvp_dist.packing.rates import check_rates
from avvp_dist.packing.sources import ArraySource, HanSource, Source
from avvp_dist.shards.shard_set import ShardSet

SOURCES: dict[str, type[ArraySource] | type[HanSource] | type[AudioSetSource]] = {
    "arrays": ArraySource,
    "han": HanSource,
    "audioset": AudioSetSource,
}
"""Source formats by the name that `format=` gives them; made of folder, split, annotations."""


def pack(config: PackConfig) -> ShardSet:
    """Turn one split of a feature folder into a shard set; see `make_set`."""
    kind, folder = SOURCES[config.format], Path(config.source)

    def source() -> Source:
        check_rates(config.rates)
        return kind(folder, config.split, config.annotations, config.rates)

    return make_set(
        config,
        Recipe(
            stage="pack",
            what=f"packing {config.split}",
            origin=_origin(config),
            files=lambda: kind.files_of(folder, config.split, config.annotations),
            source=source,
            kept={"format": config.format, "split": config.split},
        ),
    )


def _origin(config: PackConfig) -> dict[str, object]:
    return {
        "folder": str(Path(config.source).absolute()),
        "format": config.format,
        "split": config.split,
        "annotations": config.annotations,
        "short": config.short,
        "snippets": config.snippets,
        "extractor": config.extractor,
        **({"rates": config.rates} if config.rates else {}),
        **({"dtype": config.dtype} if config.dtype != "float16" else {}),
    }
