"""The list of excluded clips: written, read where a set lies, and refused when it is damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.errors import DataError
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.order import epoch_order
from avvp_dist.shards.exclusion import Exclusion, write_excluded
from avvp_dist.shards.manifest import ComparedList
from avvp_dist.shards.shard_set import ShardSet
from tests.shards.origins import Origin, reading, write

NAN = float("nan")
FOUND = (
    Exclusion(1, "clip1_1.5_10", "id", "a, video", (NAN, NAN)),
    Exclusion(2, "clip2_2.5_10", "duplicate", "clip6_6.5_10", (0.987654, 1.0)),
    Exclusion(5, "clip5_5.5_10", "embedding", 'a "held-out" clip', (NAN, 0.96)),
)


def exclude(shards: ShardSet, *found: Exclusion, similarity: float = 0.95) -> ShardSet:
    """The set again, without these clips."""
    against = [ComparedList("llp", 3, "0" * 64)]
    write_excluded(
        shards.folder,
        shards.manifest,
        found,
        list(shards.dims),
        against=against,
        similarity=similarity,
    )
    return ShardSet(shards.folder)


def test_a_list_says_why_and_is_read_back(local: ShardSet) -> None:
    assert not local.excluded.any()
    shards = exclude(local, *FOUND)
    assert np.flatnonzero(shards.excluded).tolist() == [1, 2, 5]
    lines = (shards.folder / "excluded.csv").read_text().splitlines()
    assert lines == [
        "clip,id,reason,match,audio,visual",
        '1,clip1_1.5_10,id,"a, video",,',
        "2,clip2_2.5_10,duplicate,clip6_6.5_10,0.9877,1.0000",
        '5,clip5_5.5_10,embedding,"a ""held-out"" clip",,0.9600',
    ]
    entry = shards.manifest.excluded
    assert entry is not None
    assert entry.clips == 3
    assert entry.reasons == {"id": 1, "embedding": 1, "duplicate": 1}
    assert entry.similarity == 0.95
    assert entry.against == (ComparedList("llp", 3, "0" * 64),)


def test_the_digest_changes_and_the_content_does_not(local: ShardSet) -> None:
    assert local.content == local.digest
    once, twice = exclude(local, *FOUND), exclude(exclude(local, *FOUND), FOUND[0])
    assert len({local.digest, once.digest, twice.digest}) == 3
    assert once.content == twice.content == local.digest


def test_the_same_list_again_is_the_same_bytes(local: ShardSet) -> None:
    def files() -> dict[str, bytes]:
        names = ("excluded.csv", "manifest.json")
        return {name: (local.folder / name).read_bytes() for name in names}

    exclude(local, *FOUND)
    first = files()
    exclude(exclude(ShardSet(local.folder), FOUND[1]), *FOUND)
    assert files() == first


def test_cut_off_before_the_new_list_is_whole_the_old_one_counts(local: ShardSet) -> None:
    def cut_off() -> Iterator[Exclusion]:
        yield FOUND[0]
        raise KeyboardInterrupt

    shards = exclude(local, *FOUND)
    with pytest.raises(KeyboardInterrupt):
        write_excluded(
            shards.folder, shards.manifest, cut_off(), list(shards.dims), against=[], similarity=1
        )
    assert ShardSet(local.folder).excluded.sum() == 3


def test_cut_off_between_list_and_manifest_nothing_is_excluded(local: ShardSet) -> None:
    shards = exclude(local, *FOUND)
    (local.folder / "excluded.csv").unlink()
    (local.folder / "excluded.csv").mkdir()  # the new list cannot take its place
    with pytest.raises(OSError):
        exclude(shards, FOUND[0])
    found = ShardSet(local.folder)
    assert not found.excluded.any()
    assert found.digest == local.digest


def test_excluded_clips_never_come_in_the_order(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a"), exclude(write(tmp_path / "b"), *FOUND)
    mixture = Mixture([one, two], [1, 2])
    gone = {8, 9, 12}
    assert set(np.flatnonzero(mixture.excluded)) == gone
    chosen = np.ones(14, bool)
    chosen[0] = False
    for pools, left in ((mixture.pools(), set()), (mixture.pools(chosen), {0})):
        for block in (0, 2):
            seen = [set(epoch_order(pools, 1, epoch, block).tolist()) for epoch in range(3)]
            assert seen == [set(range(14)) - gone - left] * 3


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_damaged_list_is_named(local: ShardSet, damage: str) -> None:
    path = exclude(local, *FOUND).folder / "excluded.csv"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"2,clip2", b"3,clip2"))
    shards = ShardSet(local.folder)
    assert len(shards.gather(np.arange(7))["audio"]) == 7
    with pytest.raises(DataError, match=rf"{path} .*avvp decontaminate"):
        _ = shards.excluded
    with pytest.raises(DataError, match=str(path)):
        Mixture([shards]).pools()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../excluded.csv"},
        {"name": ".excluded.csv"},
        {"sha256": None},
        {"clips": -1},
        {"clips": "3"},
        {"reasons": {}},
        {"against": [{"name": "llp"}]},
        {"against": 3},
        {"similarity": "much"},
        None,
    ],
)
def test_a_damaged_entry_is_named(local: ShardSet, change: dict[str, Any] | None) -> None:
    exclude(local, *FOUND)
    path = local.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["excluded"] = change and {**manifest["excluded"], **change}
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=rf"{path} is damaged: excluded.*avvp decontaminate"):
        ShardSet(local.folder)


def test_the_list_of_a_remote_set_is_read_there(
    origin: Origin, local: ShardSet, tmp_path: Path, quick: None
) -> None:
    exclude(local, *FOUND)
    shards = ShardSet(origin.upload(local.folder, "set"), reading(tmp_path))
    assert np.flatnonzero(shards.excluded).tolist() == [1, 2, 5]
    origin.remove("set/excluded.csv")
    with pytest.raises(DataError, match=r"set/excluded\.csv is missing"):
        _ = ShardSet(shards.name, reading(tmp_path)).excluded
