"""The decontamination job: which clips of a shard set training must not see, and why.

Ids are compared in this process. Embeddings are written by one Ray task per shard into a temporary
folder beside the shards, and compared by one task per pair of blocks of clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from avvp_dist.annotations.name_lists import SUFFIXES, read_names
from avvp_dist.annotations.video_ids import LLP, HeldOutVideos, llp_heldout
from avvp_dist.commit import sha256
from avvp_dist.config import DecontaminateConfig
from avvp_dist.decontamination.findings import Findings, Matches
from avvp_dist.errors import DataError
from avvp_dist.runtime.cluster.tasks import map_tasks
from avvp_dist.shards.exclusion import write_excluded
from avvp_dist.shards.manifest import ComparedList
from avvp_dist.shards.remote import is_url
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad
from avvp_dist.shards.worker import read_config_of
from avvp_dist.similarity.duplicates import Rows, duplicate_links, merge, nearest_duplicates
from avvp_dist.similarity.embeddings import EmbeddingStore, embed_shard
from avvp_dist.similarity.search import GPU, searches_on_gpu
from avvp_dist.tracking.run import stage_run

_PAIRS_PER_GPU_TASK = 32
"""A GPU compares two blocks in less time than a process takes to start and to prepare it."""


@dataclass(frozen=True)
class BlockPair:
    """Two blocks of clips to compare; the first is always of the corpus."""

    source: int | None
    """Number of the shard set of the second block; None: it is of the corpus too."""
    first: range
    second: range


Links = tuple[Rows, Rows]
"""Pairs of corpus clips that link its near-duplicates, `[P]` each."""


def decontaminate(config: DecontaminateConfig) -> Path:
    """Find the clips of `config.shards` to exclude, and list them beside the shards.

    Returns:
        The list, `excluded.csv`; the manifest names it.

    Raises:
        DataError: for a shard set or list that is damaged, remote or not comparable, and if more
            than half of the clips would be excluded.
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
        findings = Findings(shards, lists, sets, config.similarity)
        if config.ids:
            findings.add_ids()
        compared = sets if config.embeddings else []
        if compared or config.duplicates:
            run.log(0, unreadable_clips=_compare_content(config, findings, compared))
        findings.check()
        path = write_excluded(
            shards.folder,
            shards.manifest,
            findings.exclusions(),
            list(shards.dims),
            against=[ComparedList(one.name, one.ids, one.sha256) for one in lists],
            similarity=config.similarity,
        )
        counts = findings.counts()
        run.artifact(path)
        run.log(0, clips=len(shards), **{f"excluded/{name}": n for name, n in counts.items()})
    reasons = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(
        f"{sum(counts.values())} of {len(shards)} clips are excluded ({reasons}), compared with "
        f"{', '.join(one.name for one in lists) or 'nothing else'}"
    )
    if config.ids:
        print(findings.names_read())
    print(path)
    return path


def compare(
    corpus: EmbeddingStore, other: EmbeddingStore, pair: BlockPair, similarity: float
) -> tuple[BlockPair, Links | Matches]:
    """Find near-duplicates between two blocks of clips; a task of its own process.

    Returns:
        The pair, and links within the corpus or matches in another set, as clip numbers.

    Raises:
        ClusterError: if Ray gave this task a GPU that faiss does not find.
    """
    import faiss

    faiss.omp_set_num_threads(1)  # Ray reuses workers, and each one has a single core
    streams = _common(corpus.dims, other.dims)
    dims = [corpus.dims[name] for name in streams]
    first, second = np.array(pair.first), np.array(pair.second)
    gpu = searches_on_gpu()
    one = corpus.load(first, streams)
    if pair.source is not None:
        two = other.load(second, streams)
        rows, match, cosines = nearest_duplicates(one, two, dims, similarity, gpu=gpu)
        return pair, Matches(first[rows], second[match], streams, cosines)
    if pair.first == pair.second:
        one_end, other_end = duplicate_links(one, None, dims, similarity, gpu=gpu)
        return pair, (first[one_end], first[other_end])
    both = np.concatenate([first, second])
    two = corpus.load(second, streams)
    one_end, other_end = duplicate_links(one, two, dims, similarity, gpu=gpu)
    return pair, (both[one_end], both[other_end])


def _against(
    config: DecontaminateConfig, shards: ShardSet
) -> tuple[list[HeldOutVideos], list[ShardSet]]:
    """Everything that `config.against` names as lists of videos, and the shard sets among it."""
    lists, sets = [], []
    for place in config.against:
        if place == LLP:
            lists.append(llp_heldout())
        elif not is_url(place) and _is_list(Path(place)):
            path = Path(place).absolute()
            lists.append(HeldOutVideos.of(str(path), read_names(path), sha256(path)))
        else:
            other = ShardSet(place, config, ignore_bad)
            if config.embeddings:
                _check_comparable(shards, other)
            lists.append(HeldOutVideos.of(other.name, other.index["id"], other.content))
            sets.append(other)
    return lists, sets


def _is_list(path: Path) -> bool:
    return path.is_file() or path.suffix.lower() in SUFFIXES


def _check_comparable(shards: ShardSet, other: ShardSet) -> None:
    common = _common(shards.dims, other.dims)
    same = all(shards.dims[name] == other.dims[name] for name in common)
    if not common or not same or shards.extractor != other.extractor:
        raise DataError(
            f"{other.name} holds {other.dims} of {other.extractor!r}, {shards.name} "
            f"{shards.dims} of {shards.extractor!r}: their features are not comparable",
            remedy="Compare their ids alone, with embeddings=false",
        )


def _compare_content(config: DecontaminateConfig, findings: Findings, sets: list[ShardSet]) -> int:
    """Add near-duplicates to the findings; returns how many clips cannot be read."""
    shards = findings.shards
    with TemporaryDirectory(prefix=".embeddings-", dir=shards.folder) as folder:
        corpus, *others = stores = [
            EmbeddingStore.create(one, Path(folder) / str(number))
            for number, one in enumerate([shards, *sets])
        ]
        unreadable = _embed(config, stores, [shards, *sets])
        roots = np.arange(len(shards))
        for pair, result in _search(config, corpus, others):
            if isinstance(result, Matches):
                assert pair.source is not None
                findings.add_matches(pair.source, result)
                findings.check()
            else:
                merge(roots, *result)
                findings.check(int((roots != np.arange(len(roots))).sum()))
        findings.add_duplicates(corpus, roots)
    return unreadable


def _embed(config: DecontaminateConfig, stores: list[EmbeddingStore], sets: list[ShardSet]) -> int:
    """Fill the stores; returns how many clips cannot be read."""
    calls = [
        (store, shards.name, shards.digest, read_config_of(config), number)
        for store, shards in zip(stores, sets, strict=True)
        for number in range(len(shards.shards))
    ]
    unreadable = 0
    with tqdm(total=sum(map(len, sets)), desc="embedding", unit=" clips") as bar:
        for clips, bad in map_tasks(embed_shard, calls, config.workers, "an embedding task"):
            unreadable += bad
            bar.update(clips)
    if unreadable:
        print(f"{unreadable} clips cannot be read: `avvp inspect SHARDS --deep` names every fault")
    return unreadable


def _search(
    config: DecontaminateConfig, corpus: EmbeddingStore, others: list[EmbeddingStore]
) -> Iterator[tuple[BlockPair, Links | Matches]]:
    """Yield the result of every comparison, in the order in which they end."""
    blocks = corpus.blocks()
    pairs = [
        BlockPair(source, first, second)
        for source, other in enumerate(others)
        for second in other.blocks()
        for first in blocks
    ]
    if config.duplicates:
        # Each block with itself first: a few blocks tell whether the threshold fits at all.
        pairs += [
            BlockPair(None, blocks[n], blocks[n + offset])
            for offset in range(len(blocks))
            for n in range(len(blocks) - offset)
        ]
    calls = [
        (corpus, corpus if pair.source is None else others[pair.source], pair, config.similarity)
        for pair in pairs
    ]
    results = map_tasks(
        compare,
        calls,
        config.workers,
        "a search for near-duplicates",
        gpus=config.gpus if GPU else 0.0,
        calls_per_gpu_task=_PAIRS_PER_GPU_TASK,
    )
    yield from tqdm(results, "comparing", len(calls), unit=" blocks")


def _common(one: dict[str, int], other: dict[str, int]) -> list[str]:
    return [name for name in one if name in other]
