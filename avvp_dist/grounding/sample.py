"""A seeded sample of clips over all shards, and the cosines in it, within and between clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from avvp_dist.config import CalibrateConfig, ReadConfig
from avvp_dist.errors import DataError
from avvp_dist.grounding.histogram import CosineHistogram
from avvp_dist.hashing import splitmix64
from avvp_dist.runtime.cluster.tasks import map_tasks
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad
from avvp_dist.shards.worker import open_once, read_config_of
from avvp_dist.similarity.duplicates import near_duplicates
from avvp_dist.similarity.search import MAX_NEIGHBOURS, nearest, unit


@dataclass(frozen=True)
class Sample:
    """Clips that represent a shard set, in ascending order of their hashes."""

    clips: NDArray[np.integer]
    """Clip numbers, `[n]`."""
    streams: dict[str, NDArray[np.floating]]
    """Features by stream, `[n, T, D]`."""
    lengths: NDArray[np.integer]
    """Number of real snippets, `[n]`."""
    hashes: NDArray[np.uint64]
    """Hash of seed and clip id, `[n]`: a random number that does not depend on the sharding."""
    sampled: int
    """Number of clips before unreadable ones and near-duplicates were left out."""
    unreadable: int
    near_duplicates: int


def sample_clips(shards: ShardSet, config: CalibrateConfig) -> Sample:
    """Sample the `config.clips` clips with the lowest hashes of seed and id.

    They are the same clips, however these are cut into shards and ordered. Excluded clips are not
    sampled, and of near-duplicates one is kept.

    Raises:
        DataError: if fewer than two clips are left.
    """
    key = splitmix64(np.array([config.seed + 1], np.uint64))
    hashes = splitmix64(shards.hashes ^ key)
    order = np.argsort(hashes, kind="stable")
    order = order[(shards.lengths[order] > 0) & ~shards.excluded[order]][: config.clips]
    streams, readable = _read(shards, np.sort(order), config)
    by_hash = np.argsort(hashes[readable], kind="stable")
    clips = readable[by_hash]
    streams = {name: array[by_hash] for name, array in streams.items()}
    lengths, hashes = shards.lengths[clips].astype(np.int64), hashes[clips]
    duplicate = np.zeros(len(clips), bool)
    if config.duplicate_similarity < 1:
        compared = {name: streams[name] for name in config.streams}
        duplicate = near_duplicates(compared, lengths, config.duplicate_similarity, hashes)
    kept = ~duplicate
    if kept.sum() < 2:
        raise DataError(
            f"{shards.name}: of {len(order)} sampled clips {len(clips)} can be read and "
            f"{kept.sum()} are left without near-duplicates: calibration needs two",
            remedy="Sample more, or raise duplicate_similarity",
        )
    return Sample(
        clips[kept],
        {name: array[kept] for name, array in streams.items()},
        lengths[kept],
        hashes[kept],
        sampled=len(order),
        unreadable=len(order) - len(clips),
        near_duplicates=int(duplicate.sum()),
    )


def _read(
    shards: ShardSet, clips: NDArray[np.integer], config: CalibrateConfig
) -> tuple[dict[str, NDArray[np.floating]], NDArray[np.integer]]:
    """Features of the readable ones of `clips`, which ascend, and their numbers.

    One task reads each shard.
    """
    owners, place = shards.owners(clips), (shards.name, shards.digest, read_config_of(config))
    calls = [(*place, clips[owners == number]) for number in np.unique(owners)]
    parts = []
    tasks = map_tasks(_read_shard, calls, config.workers, "a sampling task")
    for part in tqdm(tasks, "sampling", len(calls), unit=" shards"):
        parts.append(part)
    parts.sort(key=lambda part: int(part[1][0]) if len(part[1]) else -1)
    names = parts[0][0]
    streams = {name: np.concatenate([part[0][name] for part in parts]) for name in names}
    return streams, np.concatenate([part[1] for part in parts])


def _read_shard(
    place: str, digest: str, config: ReadConfig, clips: NDArray[np.integer]
) -> tuple[dict[str, NDArray[np.floating]], NDArray[np.integer]]:
    shards = open_once(place, digest, config)
    streams, good = shards.read(clips, ignore_bad)
    shards.release(set(shards.owners(clips).tolist()))
    return {name: array[good] for name, array in streams.items()}, clips[good]


@dataclass(frozen=True)
class CrossClipCosines:
    """Cosines between clips: one snippet of each clip against one of each of up to 2,048 clips."""

    cosines: dict[str, NDArray[np.float32]]
    """`[n, m]` by stream, the same pairs in all streams. It is -inf for a clip with itself and
    where a vector has no direction."""

    @property
    def histograms(self) -> dict[str, CosineHistogram]:
        """Distribution in each stream."""
        return {name: CosineHistogram.of(cosines) for name, cosines in self.cosines.items()}

    def joined_fraction(self, thresholds: Mapping[str, float], rule: str) -> float:
        """Fraction of the pairs that the rule joins under `thresholds`."""
        reached = [self.cosines[name] >= np.float32(limit) for name, limit in thresholds.items()]
        first = next(iter(self.cosines.values()))
        pairs = first.size - min(first.shape)  # a clip is in no pair with itself
        joined = np.stack(reached).any(0) if rule == "or" else np.stack(reached).all(0)
        return float(joined.sum() / max(pairs, 1))


def cross_clip_cosines(sample: Sample, streams: Sequence[str]) -> CrossClipCosines:
    """Compare snippets of different clips by exact search.

    The database has at most `MAX_NEIGHBOURS` rows, and a search returns all of it. So the whole
    distribution is known, and a clip's own snippet can be dropped afterwards without losing
    another one.
    """
    clips = len(sample.clips)
    rows = np.arange(clips)
    lengths = sample.lengths.astype(np.uint64)
    query_snippet = (splitmix64(sample.hashes + np.uint64(1)) % lengths).astype(np.int64)
    known_snippet = (splitmix64(sample.hashes + np.uint64(2)) % lengths).astype(np.int64)
    known = rows[:MAX_NEIGHBOURS]
    tables = {}
    for name in streams:
        features = sample.streams[name]
        queries = unit(features[rows, query_snippet])
        database = unit(features[known, known_snippet[known]])
        cosines, numbers = nearest(queries, database, len(database))
        table = np.empty((clips, len(database)), np.float32)
        np.put_along_axis(table, numbers, cosines, 1)
        table[~queries.any(1)] = -np.inf
        table[:, ~database.any(1)] = -np.inf
        table[known, known] = -np.inf
        tables[name] = table
    return CrossClipCosines(tables)


def within_clip_histograms(
    cosines: Mapping[str, NDArray[np.float32]], lengths: NDArray[np.integer]
) -> dict[str, CosineHistogram]:
    """Distribution in each stream over pairs of different real snippets of a clip.

    Args:
        cosines: `[N, T, T]` by stream.
        lengths: number of real snippets of each clip, `[N]`.
    """
    histograms = {}
    for name, cosine in cosines.items():
        first, second = np.triu_indices(cosine.shape[1], 1)
        pairs = cosine[:, first, second][second < lengths[:, None]]
        histograms[name] = CosineHistogram.of(pairs)
    return histograms
