"""Findings: which reason and which match of a clip count, in whatever order they are added."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.annotations.video_ids import HeldOutVideos
from avvp_dist.config import ReadConfig
from avvp_dist.decontamination.findings import Findings, Matches
from avvp_dist.errors import DataError
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.similarity.embeddings import EmbeddingStore, embed_shard

STREAMS = ["audio", "visual"]


def shard_set(out: Path, ids: list[str]) -> ShardSet:
    rng = np.random.default_rng(len(ids))
    return write_shard_set(
        (Clip(clip, {name: rng.standard_normal((2, 4)) for name in STREAMS}) for clip in ids), out
    )


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    """Nothing found yet about 10 clips, with a list that names clip 3 and two sets of 4 clips."""
    shards = shard_set(tmp_path / "corpus", [f"c{n}" for n in range(10)])
    sets = [shard_set(tmp_path / name, [f"{name}{n}" for n in range(4)]) for name in "ab"]
    names = HeldOutVideos.of("list", np.array([b"c3"]), "")
    return Findings(shards, [names], sets, 0.9)


def matches(clips: list[int], rows: list[int], cosines: list[float]) -> Matches:
    """Matches with the same cosine in both streams."""
    both = np.array(cosines, np.float32)[:, None].repeat(2, 1)
    return Matches(np.array(clips), np.array(rows), STREAMS, both)


def rows(findings: Findings) -> list[tuple[int, str, str]]:
    return [(found.clip, found.reason, found.match) for found in findings.exclusions()]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_nearest_match_counts_in_any_order(findings: Findings, order: tuple[int, ...]) -> None:
    added = [
        (0, matches([0, 1, 2], [0, 0, 0], [0.91, 0.95, 0.92])),
        (1, matches([0, 1, 2], [1, 1, 1], [0.96, 0.95, 0.91])),
        (1, matches([0, 1, 2], [2, 0, 3], [0.96, 0.95, 0.93])),
    ]
    for number in order:
        findings.add_matches(*added[number])
    assert rows(findings) == [
        (0, "embedding", "b1"),
        (1, "embedding", "a0"),
        (2, "embedding", "b3"),
    ]
    exclusions = list(findings.exclusions())
    np.testing.assert_allclose(exclusions[0].similarity, [0.96, 0.96], rtol=1e-6)


def test_a_match_by_id_counts_more_than_one_by_content(findings: Findings) -> None:
    findings.add_ids()
    findings.add_matches(0, matches([3, 4], [0, 1], [0.99, 0.98]))
    assert rows(findings) == [(3, "id", "c3"), (4, "embedding", "a1")]
    assert np.isnan(findings.similarity[3]).all(), "by id, no cosine was the reason"
    assert findings.counts() == {"id": 1, "embedding": 1, "duplicate": 0}


def test_streams_that_were_not_compared_have_no_similarity(findings: Findings) -> None:
    cosines = np.array([[0.97]], np.float32)
    findings.add_matches(0, Matches(np.array([5]), np.array([2]), ["visual"], cosines))
    (found,) = findings.exclusions()
    assert np.isnan(found.similarity[0]) and found.similarity[1] == pytest.approx(0.97)


def test_duplicates_of_an_excluded_clip_are_excluded_too(
    findings: Findings, tmp_path: Path
) -> None:
    shards = findings.shards
    store = EmbeddingStore.create(shards, tmp_path / "store")
    embed_shard(store, shards.name, shards.digest, ReadConfig(), 0)
    roots = np.arange(10)
    roots[[3, 4]] = 3
    roots[[6, 7, 8]] = 6
    findings.add_ids()
    findings.add_duplicates(store, roots)
    kept = min((6, 7, 8), key=lambda clip: shards.hashes[clip])
    assert rows(findings) == [(3, "id", "c3"), (4, "duplicate", "c3")] + [
        (clip, "duplicate", f"c{kept}") for clip in (6, 7, 8) if clip != kept
    ]


def test_more_than_half_of_the_clips_is_an_error_that_names_the_cause(findings: Findings) -> None:
    findings.add_matches(0, matches([0, 1, 2, 4, 5], [0] * 5, [0.95] * 5))
    findings.check()
    with pytest.raises(DataError, match=r"6 of 10 clips .* similarity=0\.9 does not fit"):
        findings.check(at_least=6)
    findings.add_ids()
    with pytest.raises(DataError, match=r"6 of 10 clips .*, or more, .* 1 by their ids"):
        findings.check()
