"""The extraction job: media files into a shard set, and a ledger of what became of each of them."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from avvp_dist.commit import staged
from avvp_dist.config import ExtractConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.extraction.cuts import JSON, NONE, cut_items
from avvp_dist.extraction.files import ENDINGS, TAR, MediaItem, ending_of, item_of, media_items
from avvp_dist.extraction.journal import BEGUN, JOURNALS, MediaRecord, read_journal, watched
from avvp_dist.extraction.listing import source_files
from avvp_dist.extraction.part import MediaPart
from avvp_dist.extraction.tars import samples_of
from avvp_dist.features.backbones.registry import backbone_class, check_streams, extractor_of
from avvp_dist.features.media import Bounds
from avvp_dist.ledger import Ledger
from avvp_dist.packing.making import Recipe, make_set
from avvp_dist.packing.shard_tasks import PackedShard
from avvp_dist.packing.sources import SourceFile, labels_of
from avvp_dist.runtime.devices import warn_of_cpu
from avvp_dist.shards.indexing import PLAN, UNKNOWN
from avvp_dist.shards.remote import is_url
from avvp_dist.shards.shard_set import ShardSet

LEDGER = "ledger.jsonl"
"""File beside the manifest with a line for each media file."""
INDEXED = ".tars"
"""Folder beside it, until the set is finished: the samples of each tar."""
_NAMED = 5
_KNOWN = f"Known: {' '.join(ENDINGS)}"


def extract(config: ExtractConfig) -> ShardSet:
    """Describe media files by backbones, second by second, and write a shard set; see `make_set`.

    Raises:
        ConfigError: for an unknown backbone, missing weights, or two backbones of one stream.
        DataError: if there are no media files, or more of them fail than may.
    """
    check_streams(config.backbones)
    for name in config.backbones:  # before any process starts
        backbone_class(name).weights.find(name, config.weights, download=config.download)
    if config.cut not in (NONE, JSON) and not Path(config.cut).is_file():
        raise ConfigError(f"cut={config.cut} is no file, and neither {NONE} nor {JSON}")
    if config.gpus:
        warn_of_cpu()  # here, because nobody sees what a Ray task prints
    files = cache(lambda: source_files(config.source))
    source = cache(lambda: MediaSource(config, files()))
    return make_set(
        config,
        Recipe(
            stage="extract",
            what="extracting",
            origin=_origin(config),
            files=lambda: [*files(), *([] if config.cut in (NONE, JSON) else [Path(config.cut)])],
            source=source,
            kept={"format": "media", "backbones": list(config.backbones)},
            watched=lambda files: watched(Path(config.out) / PLAN, files),
            cpus=max(1, config.threads),
            gpus=config.gpus,
            finish=lambda out, shards: _finish(out, source().paths, shards, config.clips_per_shard),
        ),
    )


class MediaSource:
    """The media of `source`, each of which becomes one clip or several."""

    def __init__(self, config: ExtractConfig, files: Sequence[SourceFile]) -> None:
        labelled = config.annotations
        labels = labels_of(labelled, config.split, True) if labelled else None
        items = cut_items(_found(config, files), config.cut)
        self._items = _classes_only(media_items(items, labels))
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


def _found(config: ExtractConfig, files: Sequence[SourceFile]) -> list[MediaItem]:
    """Files and samples of tars, in order."""
    tars = [file for file in files if ending_of(str(file)) == TAR]
    samples = samples_of(tars, Ledger(Path(config.out) / INDEXED), config.workers)
    if tars and not any(samples.values()):
        raise DataError(f"{tars[0]} and the other tars hold no media", remedy=_KNOWN)
    return [
        one for file in files for one in (samples[file] if file in samples else [item_of(file)])
    ]


def _classes_only(items: list[MediaItem]) -> list[MediaItem]:
    """The items; without their labels if these are more than a shard set may have classes."""
    words = {word for item in items for word in item.labels or ()}
    if len(words) <= UNKNOWN:
        return items
    print(f"{len(words)} different labels are texts and no classes: they are left out")
    return [replace(item, labels=None) for item in items]


def _origin(config: ExtractConfig) -> dict[str, object]:
    return {
        "source": config.source if is_url(config.source) else str(Path(config.source).absolute()),
        "cut": config.cut,
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


def _finish(out: Path, paths: Sequence[str], shards: Sequence[PackedShard], files: int) -> None:
    """Write the ledger, remove the index of tars, and print how many files failed for which reason.

    Args:
        paths: all media files, in order.
        files: number of them in a shard.
    """
    ended: dict[str, MediaRecord] = {}
    for journal in sorted((out / PLAN).glob(JOURNALS)):
        ended |= {one.source: one for one in read_journal(journal) if one.state not in BEGUN}
    # Journals of an earlier command may tell of files that are no longer in the source.
    records = [
        one
        for number, shard in enumerate(shards)
        for one in _in_shard(ended, paths[number * files : (number + 1) * files], shard)
    ]
    failed: defaultdict[str, list[str]] = defaultdict(list)
    for one in records:
        if one.state == "failed":
            failed[one.reason].append(one.id)
    summary = {
        "files": len(records),
        "done": len(records) - sum(map(len, failed.values())),
        "failed": {reason: len(ids) for reason, ids in sorted(failed.items())},
        "examples": {reason: ids[:_NAMED] for reason, ids in sorted(failed.items())},
    }
    with staged(out / LEDGER) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in (*map(asdict, records), summary):
            file.write(json.dumps(line) + "\n")
    shutil.rmtree(out / INDEXED, ignore_errors=True)
    for reason, ids in sorted(failed.items()):
        print(f"{reason}: {len(ids)} files, {_some(ids)}")


def _in_shard(
    ended: Mapping[str, MediaRecord], paths: Sequence[str], shard: PackedShard
) -> list[MediaRecord]:
    """Records of a shard's files; those in its tar with its name and their part of its time."""
    records = [ended[path] for path in paths if path in ended]
    done = sum(one.state == "done" for one in records)
    if shard.scan is None or not done:
        return records
    name, seconds = shard.scan.name, round(shard.write_seconds / done, 6)
    return [
        replace(one, shard=name, write_seconds=seconds) if one.state == "done" else one
        for one in records
    ]


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (" ..." if len(ids) > _NAMED else "")
