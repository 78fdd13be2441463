"""A seeded sample of clips over all shards, and the cosines in it: within clips and across them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from avvp_dist.config import CalibrateConfig, ReadConfig
from avvp_dist.errors import DataError
from avvp_dist.grounding.sketch import Sketch
from avvp_dist.hashing import splitmix64
from avvp_dist.runtime.ray_tasks import map_tasks
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad
from avvp_dist.shards.worker import open_once, read_config_of
from avvp_dist.similarity.duplicates import near_duplicates
from avvp_dist.similarity.search import MOST_NEIGHBOURS, nearest, unit


@dataclass(frozen=True)
class Sample:
    """Clips that stand for a shard set."""

    clips: NDArray[np.integer]
    """Their numbers, `[n]`, in the order of their draw."""
    streams: dict[str, NDArray[np.float16]]
    """`[n, T, D]` each."""
    lengths: NDArray[np.integer]
    """Real snippets, `[n]`."""
    draws: NDArray[np.uint64]
    """Random numbers that belong to seed and clip, `[n]`."""
    drawn: int
    unreadable: int
    near_duplicates: int


def draw(shards: ShardSet, config: CalibrateConfig) -> Sample:
    """The `config.clips` clips whose ids and the seed hash lowest: the same ones however the clips
    are cut into shards and ordered. Excluded clips are not drawn, near-duplicates left out.

    Raises:
        DataError: if fewer than two clips are left.
    """
    key = splitmix64(np.array([config.seed + 1], np.uint64))
    draws = splitmix64(shards.hashes ^ key)
    order = np.argsort(draws, kind="stable")
    order = order[(shards.lengths[order] > 0) & ~shards.excluded[order]][: config.clips]
    streams, found = _read(shards, np.sort(order), config)
    in_turn = np.argsort(draws[found], kind="stable")
    clips = found[in_turn]
    streams = {name: array[in_turn] for name, array in streams.items()}
    lengths, drawn_by = shards.lengths[clips].astype(np.int64), draws[clips]
    twice = np.zeros(len(clips), bool)
    if config.duplicate_similarity < 1:
        compared = {name: streams[name] for name in config.streams}
        twice = near_duplicates(compared, lengths, config.duplicate_similarity, drawn_by)
    kept = ~twice
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
        drawn_by[kept],
        len(order),
        len(order) - len(clips),
        int(twice.sum()),
    )


def _read(
    shards: ShardSet, clips: NDArray[np.integer], config: CalibrateConfig
) -> tuple[dict[str, NDArray[np.float16]], NDArray[np.integer]]:
    """The features of clips in ascending order, one task a shard, and which could be read."""
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
    place: str, digest: str, reading: ReadConfig, clips: NDArray[np.integer]
) -> tuple[dict[str, NDArray[np.float16]], NDArray[np.integer]]:
    shards = open_once(place, digest, reading)
    streams, good = shards.read(clips, ignore_bad)
    shards.release(set(shards.owners(clips).tolist()))
    return {name: array[good] for name, array in streams.items()}, clips[good]


@dataclass(frozen=True)
class Across:
    """Cosines of snippets of different clips: one snippet of each against one of up to 2,048."""

    cosines: dict[str, NDArray[np.float32]]
    """By stream, `[n, m]`; the same pairs in all; -inf for the own clip and where a vector has no
    direction."""

    @property
    def sketches(self) -> dict[str, Sketch]:
        """The distribution of each stream."""
        return {name: Sketch.of(cosines) for name, cosines in self.cosines.items()}

    def joint(self, thresholds: Mapping[str, float], rule: str) -> float:
        """Share of the pairs that the rule joins."""
        near: Any = [self.cosines[name] >= np.float32(limit) for name, limit in thresholds.items()]
        first = next(iter(self.cosines.values()))
        pairs = first.size - min(first.shape)  # its own clip is no pair
        joined = (np.any if rule == "or" else np.all)(near, axis=0)
        return float(joined.sum() / max(pairs, 1))


def across(sample: Sample, streams: list[str]) -> Across:
    """Compare snippets of different clips by exact search.

    The database is as large as the most neighbours that GPU faiss finds: so the search finds all
    of it, the distribution is whole, and dropping a clip's own snippet afterwards takes nothing
    else away (GPU indexes ignore selectors).
    """
    clips = len(sample.clips)
    rows = np.arange(clips)
    lengths = sample.lengths.astype(np.uint64)
    asked = (splitmix64(sample.draws + np.uint64(1)) % lengths).astype(np.int64)
    known = (splitmix64(sample.draws + np.uint64(2)) % lengths).astype(np.int64)[:MOST_NEIGHBOURS]
    cosines = {}
    for name in streams:
        features = sample.streams[name]
        queries = unit(features[rows, asked])
        database = unit(features[rows[: len(known)], known])
        found, numbers = nearest(queries, database, len(database))
        table = np.empty((clips, len(database)), np.float32)
        np.put_along_axis(table, numbers, found, 1)
        table[~queries.any(1)] = -np.inf
        table[:, ~database.any(1)] = -np.inf
        table[rows[: len(known)], rows[: len(known)]] = -np.inf
        cosines[name] = table
    return Across(cosines)


def within(
    cosines: Mapping[str, NDArray[np.float32]], lengths: NDArray[np.integer]
) -> dict[str, Sketch]:
    """Distribution of each stream over two different snippets of a clip."""
    found = {}
    for name, cosine in cosines.items():
        first, second = np.triu_indices(cosine.shape[1], 1)
        found[name] = Sketch.of(cosine[:, first, second][second < lengths[:, None]])
    return found
