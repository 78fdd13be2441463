"""The decontamination job: which clips of a shard set training must not see, and why.

Ids are compared at once; embeddings are made by one Ray task a shard, into a folder beside the
shards that goes when the job is done, and compared by one task for each pair of blocks of clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from avvp_dist.annotations.video_ids import LLP, HeldOutVideos, llp_heldout, read_names
from avvp_dist.commit import sha256
from avvp_dist.config import DecontaminateConfig
from avvp_dist.decontamination.findings import Verdict
from avvp_dist.errors import DataError
from avvp_dist.runtime.ray_tasks import map_tasks
from avvp_dist.shards.exclusion import write_excluded
from avvp_dist.shards.manifest import ComparedList
from avvp_dist.shards.remote import is_url
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad
from avvp_dist.shards.worker import read_config_of
from avvp_dist.similarity import duplicates
from avvp_dist.similarity.embeddings import Embedded, embed_shard
from avvp_dist.similarity.search import GPU
from avvp_dist.tracking.run import stage_run

WITHIN = -1
"""The number of the corpus itself among the sets it is compared with."""


def decontaminate(config: DecontaminateConfig) -> Path:
    """Find the clips of `config.shards` to leave out, and list them beside it.

    Returns:
        The list, `excluded.csv`; the manifest names it.

    Raises:
        DataError: for a shard set or list that is damaged, remote or not comparable, and if more
            than half of the clips would go.
    """
    shards = ShardSet(config.shards, config, ignore_bad)
    if shards.remote:
        raise DataError(
            f"{shards.name} is remote: its list of excluded clips cannot be written",
            remedy="Decontaminate it where it lies on a disk, and copy excluded.csv and "
            "manifest.json",
        )
    lists, sets = _against(config, shards)
    inputs = {shards.name: shards.content} | {one.name: one.sha256 for one in lists}
    with stage_run(
        "decontaminate", shards.folder, config, {"manifest": shards.digest}, inputs
    ) as run:
        verdict = Verdict(shards, lists, sets, config.similarity)
        if config.ids:
            verdict.compare_ids()
        compared = sets if config.embeddings else []
        if compared or config.duplicates:
            run.log(0, unreadable_clips=_compare_embeddings(config, verdict, compared))
        verdict.check()
        path = write_excluded(
            shards.folder,
            shards.manifest,
            verdict.exclusions(),
            list(shards.dims),
            against=[ComparedList(one.name, one.ids, one.sha256) for one in lists],
            similarity=config.similarity,
        )
        counts = verdict.counts()
        run.artifact(path)
        run.log(0, clips=len(shards), **{f"excluded/{name}": n for name, n in counts.items()})
    reasons = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(
        f"{sum(counts.values())} of {len(shards)} clips are excluded ({reasons}), compared with "
        f"{', '.join(one.name for one in lists) or 'nothing else'}\n{path}"
    )
    return path


class Comparison(NamedTuple):
    """Two blocks of clips to compare, the second of the set number `source`, or `WITHIN` the
    corpus itself."""

    source: int
    first: range
    second: range


def compare(
    corpus: Embedded, other: Embedded, comparison: Comparison, limit: float
) -> tuple[Comparison, tuple[Any, ...]]:
    """What `duplicates.links` gives of two blocks of the corpus, or `duplicates.matches` of one
    and a block of another set; rows are clip numbers."""
    import faiss

    faiss.omp_set_num_threads(1)  # a worker that Ray uses again keeps what it once had
    source, *ranges = comparison
    streams = _common(corpus.dims, other.dims)
    dims = [corpus.dims[name] for name in streams]
    first, second = (np.array(clips) for clips in ranges)
    one = corpus.read(first, streams)
    if source != WITHIN:
        rows, match, cosine = duplicates.matches(one, other.read(second, streams), dims, limit)
        return comparison, (first[rows], second[match], streams, cosine)
    two, clips = None, first
    if comparison.first != comparison.second:
        two, clips = corpus.read(second, streams), np.concatenate([first, second])
    return comparison, tuple(clips[rows] for rows in duplicates.links(one, two, dims, limit))


def _against(
    config: DecontaminateConfig, shards: ShardSet
) -> tuple[list[HeldOutVideos], list[ShardSet]]:
    """What `config.against` names, as lists of ids, and those that are shard sets."""
    lists, sets = [], []
    for place in config.against:
        if place == LLP:
            lists.append(llp_heldout())
        elif not is_url(place) and Path(place).suffix in (".csv", ".txt"):
            path = Path(place).absolute()
            lists.append(HeldOutVideos.of(str(path), read_names(path), sha256(path)))
        else:
            other = ShardSet(place, config, ignore_bad)
            if config.embeddings:
                _check_comparable(shards, other)
            lists.append(HeldOutVideos.of(other.name, other.index["id"], other.content))
            sets.append(other)
    return lists, sets


def _check_comparable(shards: ShardSet, other: ShardSet) -> None:
    common = _common(shards.dims, other.dims)
    same = all(shards.dims[name] == other.dims[name] for name in common)
    if not common or not same or shards.extractor != other.extractor:
        raise DataError(
            f"{other.name} holds {other.dims} of {other.extractor!r}, {shards.name} "
            f"{shards.dims} of {shards.extractor!r}: their features are not comparable",
            remedy="Compare their ids alone, with embeddings=false",
        )


def _compare_embeddings(config: DecontaminateConfig, verdict: Verdict, sets: list[ShardSet]) -> int:
    """Note near-duplicates; returns how many clips cannot be read."""
    shards = verdict.shards
    with TemporaryDirectory(prefix=".embeddings-", dir=shards.folder) as folder:
        corpus, *others = embedded = [
            Embedded.of(one, Path(folder) / str(number))
            for number, one in enumerate([shards, *sets])
        ]
        unreadable = _embed(config, embedded, [shards, *sets])
        roots = np.arange(len(shards))
        for comparison, found in _search(config, corpus, others):
            if comparison.source == WITHIN:
                duplicates.join(roots, *found)
                verdict.check(int((roots != np.arange(len(roots))).sum()))
            else:
                verdict.near(comparison.source, *found)
                verdict.check()
        verdict.duplicates(corpus, roots)
    return unreadable


def _embed(config: DecontaminateConfig, embedded: list[Embedded], sets: list[ShardSet]) -> int:
    calls = [
        (made, shards.name, shards.digest, read_config_of(config), number)
        for made, shards in zip(embedded, sets, strict=True)
        for number in range(len(shards.shards))
    ]
    unreadable = 0
    with tqdm(total=sum(map(len, sets)), desc="embedding", unit=" clips") as bar:
        for clips, bad in map_tasks(embed_shard, calls, config.workers, "an embedding task"):
            unreadable += bad
            bar.update(clips)
    if unreadable:
        print(f"{unreadable} clips cannot be read: avvp inspect --deep names every fault")
    return unreadable


def _search(
    config: DecontaminateConfig, corpus: Embedded, others: list[Embedded]
) -> Iterator[tuple[Comparison, tuple[Any, ...]]]:
    """The results of all comparisons, as they come."""
    blocks = corpus.blocks()
    asked = [
        Comparison(source, first, second)
        for source, other in enumerate(others)
        for second in other.blocks()
        for first in blocks
    ]
    if config.duplicates:
        # A threshold that does not fit is told from a few blocks: each with itself goes first.
        asked += [
            Comparison(WITHIN, blocks[n], blocks[n + apart])
            for apart in range(len(blocks))
            for n in range(len(blocks) - apart)
        ]
    sets = [*others, corpus]  # which the last, WITHIN, is
    calls = [(corpus, sets[one.source], one, config.similarity) for one in asked]
    what = "a search for near-duplicates"
    found = map_tasks(compare, calls, config.workers, what, gpus=float(GPU))
    yield from tqdm(found, "comparing", len(calls), unit=" blocks")


def _common(one: dict[str, int], other: dict[str, int]) -> list[str]:
    return [name for name in one if name in other]
