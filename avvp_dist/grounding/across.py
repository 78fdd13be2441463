"""Grounding across clips, beyond the paper: which snippets of other clips are near to a snippet.

Negatives from other clips are cheap, and some of them are false. For each stream and snippet,
`SHARD.across.npz` holds the nearest snippets of other clips that reach the stream's threshold, so
that an objective can leave them out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import digest, sha256, staged, write_json
from avvp_dist.config import GroundConfig, ReadConfig
from avvp_dist.runtime.progress import Progress
from avvp_dist.runtime.ray_tasks import map_tasks
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad
from avvp_dist.shards.worker import open_once, read_config_of
from avvp_dist.similarity.search import nearest, unit

_CLIPS_AT_ONCE = 512
"""Of the database: so much of it is compared with a shard at a time."""


class AcrossClips:
    """Near snippets of other clips, of a whole shard set.

    Args:
        parts: for each shard in order, its arrays as `across_shard` wrote them.
        snippets: T of the set.
    """

    def __init__(self, parts: Sequence[Mapping[str, NDArray[np.uint32]]], snippets: int) -> None:
        self.snippets = snippets
        names = sorted({key.rpartition("/")[0] for key in parts[0]})
        self._starts, self._near = {}, {}
        for name in names:
            near = [part[f"{name}/near"] for part in parts]
            counts = [np.diff(part[f"{name}/starts"].astype(np.int64)) for part in parts]
            self._starts[name] = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
            self._near[name] = np.concatenate(near)

    def mask(self, stream: str, clips: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which snippets of a batch are near to which of its other clips, `[B, T, B, T]`.

        Symmetric: it is enough that one is among the other's nearest. `clips [B]` are different
        numbers of clips in the shard set.
        """
        size, total = len(clips), len(clips) * self.snippets
        rows = (clips[:, None] * self.snippets + np.arange(self.snippets)).ravel()
        starts, ends = self._starts[stream][rows], self._starts[stream][rows + 1]
        counts = ends - starts
        first = np.repeat(starts - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        near = self._near[stream][first + np.arange(counts.sum())].astype(np.int64)
        asked = np.repeat(np.arange(total), counts)
        owner, snippet = np.divmod(near, self.snippets)
        order = np.argsort(clips)
        place = np.minimum(np.searchsorted(clips, owner, sorter=order), size - 1)
        here = clips[order[place]] == owner
        mask = np.zeros((total, total), bool)
        mask[asked[here], order[place[here]] * self.snippets + snippet[here]] = True
        mask |= mask.T
        return mask.reshape(size, self.snippets, size, self.snippets)

    @classmethod
    def load(cls, contents: Sequence[bytes], snippets: int) -> AcrossClips:
        """From the bytes of each shard's file."""
        parts = []
        for content in contents:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                parts.append(dict(arrays))
        return cls(parts, snippets)


def compare(
    config: GroundConfig, shards: ShardSet, folder: Path, thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """Compare every shard with every other, one task a shard; what the summary says of it.

    Raises:
        AvvpError: the first error of a task; the same command goes on with what is missing.
    """
    made = [
        digest([number, shards.digest, dict(thresholds), config.across])
        for number in range(len(shards.shards))
    ]
    paths = [folder / f"{shard.stem}.across.npz" for shard in shards.shards]
    entries = {n: _entry(path, key) for n, (path, key) in enumerate(zip(paths, made, strict=True))}
    missing = [number for number, entry in entries.items() if entry is None]
    place = (shards.name, shards.digest, read_config_of(config), dict(thresholds), config.across)
    calls = [(str(paths[n].absolute()), made[n], n, *place) for n in missing]
    clips = sum(shards.shards[number].clips for number in missing)
    with Progress("comparing", len(calls), clips) as progress:
        for number, entry in map_tasks(across_shard, calls, config.workers, "a comparing task"):
            entries[number] = entry
            progress.update(shards.shards[number].clips)
    done = [entry for _, entry in sorted(entries.items()) if entry is not None]
    counts = {key: sum(entry["counts"][key] for entry in done) for key in done[0]["counts"]}
    files = [
        {"name": path.name, "sha256": entry["sha256"]}
        for path, entry in zip(paths, done, strict=True)
    ]
    return {"neighbours": config.across, **counts, "shards": files}


def across_shard(
    out: str,
    made_from: str,
    number: int,
    place: str,
    manifest: str,
    reading: ReadConfig,
    thresholds: dict[str, float],
    neighbours: int,
) -> tuple[int, dict[str, Any]]:
    """Write the near snippets of other clips of one shard; returns its number and its entry.

    A snippet of the set has the number `clip * T + snippet`. `STREAM/near` holds, ascending, those
    that are near to each of the shard's snippets in turn, `STREAM/starts` where each begins.
    """
    shards = open_once(place, manifest, reading)
    arrays: dict[str, NDArray[np.uint32]] = {}
    counts: dict[str, int] = {}
    for name, limit in sorted(thresholds.items()):
        near, more = _near(shards, number, name, limit, neighbours)
        arrays[f"{name}/starts"] = np.cumsum([0] + [len(row) for row in near]).astype(np.uint32)
        arrays[f"{name}/near"] = np.concatenate([*near, np.zeros(0, np.int64)]).astype(np.uint32)
        counts[f"near/{name}"] = sum(map(len, near))
        counts[f"cut off/{name}"] = more
    path = Path(out)
    with staged(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    entry = {"made_from": made_from, "sha256": sha256(path), "counts": counts}
    write_json(path.with_suffix(".json"), entry)
    return number, entry


def _near(
    shards: ShardSet, number: int, stream: str, limit: float, neighbours: int
) -> tuple[list[NDArray[np.int64]], int]:
    """For each snippet of a shard the numbers of those near to it, and how many had too many.

    One more than are kept is looked for, beside the T - 1 others of the own clip and itself, which
    are dropped: GPU indexes ignore selectors.
    """
    snippets = shards.snippets
    numbers, queries = _vectors(shards, np.asarray(shards.clips_of(number)), stream)
    kept = neighbours + 1
    best = np.full((len(queries), kept), -np.inf, np.float32)
    found = np.full((len(queries), kept), -1, np.int64)
    for start in range(0, len(shards), _CLIPS_AT_ONCE):
        clips = np.arange(start, min(start + _CLIPS_AT_ONCE, len(shards)))
        known, database = _vectors(shards, clips, stream)
        if not len(database) or not len(queries):
            continue
        cosines, rows = nearest(queries, database, min(kept + snippets, len(database)))
        others = known[rows]
        own = others // snippets == numbers[:, None] // snippets
        cosines[own | (cosines < np.float32(limit)) | (rows < 0)] = -np.inf
        best = np.concatenate([best, cosines], 1)
        found = np.concatenate([found, others], 1)
        # Ties by number: the result does not depend on the blocks.
        order = np.lexsort((found, -best))[:, :kept]
        best, found = np.take_along_axis(best, order, 1), np.take_along_axis(found, order, 1)
        shards.release(set(shards.owners(clips).tolist()) - {number})
    reached = best > -np.inf
    first = int(shards.starts[number]) * snippets
    near = [np.zeros(0, np.int64)] * (shards.shards[number].clips * snippets)
    for row, snippet in enumerate(numbers - first):
        near[snippet] = np.sort(found[row, :neighbours][reached[row, :neighbours]])
    return near, int(reached[:, neighbours].sum())


def _vectors(
    shards: ShardSet, clips: NDArray[np.integer], stream: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Numbers `[n]` and unit vectors `[n, D]` of the real snippets of clips that have a direction
    in a stream; clips that cannot be read have none."""
    arrays, good = shards.read(clips, ignore_bad)
    real = np.arange(shards.snippets) < (shards.lengths[clips] * good)[:, None]
    vectors = unit(arrays[stream][real])
    numbers = (clips[:, None] * shards.snippets + np.arange(shards.snippets))[real]
    directed = vectors.any(1)
    return numbers[directed].astype(np.int64), vectors[directed]


def _entry(path: Path, made_from: str) -> dict[str, Any] | None:
    """What the JSON of a shard that is done says."""
    try:
        entry: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        return entry if path.is_file() and entry["made_from"] == made_from else None
    except (OSError, ValueError, KeyError):
        return None
