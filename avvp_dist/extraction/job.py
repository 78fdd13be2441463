"""The extraction job: media files into a shard set, and a ledger of what became of each of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from avvp_dist.commit import staged
from avvp_dist.config import ExtractConfig
from avvp_dist.extraction.files import media_files, media_items
from avvp_dist.extraction.journal import BEGUN, JOURNALS, MediaRecord, read_journal, watched
from avvp_dist.extraction.part import MediaPart
from avvp_dist.features.backbones.registry import backbone_class, check_streams, extractor_of
from avvp_dist.features.media import Bounds
from avvp_dist.packing.making import Recipe, make_set
from avvp_dist.packing.sources import labels_of
from avvp_dist.shards.indexing import PLAN
from avvp_dist.shards.shard_set import ShardSet

LEDGER = "ledger.jsonl"
"""File beside the manifest with a line for each media file."""
_NAMED = 5


def extract(config: ExtractConfig) -> ShardSet:
    """Describe media files by backbones, second by second, and write a shard set; see `make_set`.

    Raises:
        ConfigError: for an unknown backbone, missing weights, or two backbones of one stream.
        DataError: if there are no media files, or more of them fail than may.
    """
    check_streams(config.backbones)
    for name in config.backbones:  # before any process starts
        backbone_class(name).weights.find(name, config.weights, download=config.download)
    source = cache(lambda: MediaSource(config))
    return make_set(
        config,
        Recipe(
            stage="extract",
            what="extracting",
            origin=_origin(config),
            files=lambda: media_files(Path(config.source)),
            source=source,
            kept={"format": "media", "backbones": list(config.backbones)},
            watched=lambda files: watched(Path(config.out) / PLAN, files),
            cpus=max(1, config.threads),
            gpus=config.gpus,
            finish=lambda out: _finish(out, source().paths),
        ),
    )


class MediaSource:
    """The media files of `source`, each of which becomes one clip or several."""

    def __init__(self, config: ExtractConfig) -> None:
        labelled = config.annotations
        labels = labels_of(labelled, config.split, True) if labelled else None
        self._items = media_items(Path(config.source), labels)
        self._config = config
        self.paths = [one.path for one in self._items]
        self.ids = [f"{one.id} of {one.path}" if one.other else one.id for one in self._items]
        self.extractor = extractor_of(config.backbones)
        self.snippets = config.window
        kinds = [backbone_class(name) for name in config.backbones]
        self.dims: dict[str, int] | None = {kind.stream: kind.dim for kind in kinds}
        self.dims = dict(sorted(self.dims.items()))

    def part(self, start: int, stop: int) -> MediaPart:
        """The files `start` to `stop`, exclusive."""
        config = self._config
        return MediaPart(
            tuple(self._items[start:stop]),
            tuple(config.backbones),
            tuple(sorted(config.weights.items())),
            config.window,
            config.long,
            config.missing,
            Bounds.of(config),
            config.threads,
            config.batch,
            str((Path(config.out) / PLAN / f"media-{start:09d}.jsonl").absolute()),
        )


def _origin(config: ExtractConfig) -> dict[str, object]:
    return {
        "source": str(Path(config.source).absolute()),
        "annotations": config.annotations,
        "split": config.split,
        "backbones": list(config.backbones),
        "window": config.window,
        "long": config.long,
        "missing": config.missing,
        "short": config.short,
        "dtype": config.dtype,
        "extractor": extractor_of(config.backbones),
    }


def _finish(out: Path, paths: Sequence[str]) -> None:
    """Write the ledger, and print how many files failed for which reason."""
    ended: dict[str, MediaRecord] = {}
    for journal in sorted((out / PLAN).glob(JOURNALS)):
        ended |= {one.source: one for one in read_journal(journal) if one.state not in BEGUN}
    # Journals of an earlier command may tell of files that are no longer in the source.
    records = {path: ended[path] for path in paths if path in ended}
    failed: defaultdict[str, list[str]] = defaultdict(list)
    for one in records.values():
        if one.state == "failed":
            failed[one.reason].append(one.id)
    summary = {
        "files": len(records),
        "done": len(records) - sum(map(len, failed.values())),
        "failed": {reason: len(ids) for reason, ids in sorted(failed.items())},
        "examples": {reason: ids[:_NAMED] for reason, ids in sorted(failed.items())},
    }
    with staged(out / LEDGER) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in (*map(asdict, records.values()), summary):
            file.write(json.dumps(line) + "\n")
    for reason, ids in sorted(failed.items()):
        print(f"{reason}: {len(ids)} files, {_some(ids)}")


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (" ..." if len(ids) > _NAMED else "")
