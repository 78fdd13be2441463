"""Shard sets: written clips come back, and each shard is opened once."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from avvp_dist.commit import sha256
from avvp_dist.config import ReadConfig
from avvp_dist.errors import DataError
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards import verification
from avvp_dist.shards.manifest import FileEntry
from avvp_dist.shards.mapping import Gather
from avvp_dist.shards.schema import Clip, decode_key
from avvp_dist.shards.shard_set import ShardSet

DIMS = {"audio": 4, "motion": 3, "visual": 6}


def clips(count: int = 7) -> list[Clip]:
    """Clips with ids as in LLP; some have no labels, some are short."""
    rng = np.random.default_rng(0)
    return [
        Clip(
            f"-_clip{n}_{n}.5_10",
            {
                name: rng.standard_normal((10 - n % 2, dim)).astype(np.float32)
                for name, dim in DIMS.items()
            },
            labels=None if n == 2 else ("Dog", "Frying_(food)")[: n % 3],
        )
        for n in range(count)
    ]


def stored(clip: Clip, name: str) -> np.ndarray:
    array = np.zeros((10, DIMS[name]), np.float16)
    array[: len(clip.streams[name])] = clip.streams[name]
    return array


@pytest.fixture
def shard_set(tmp_path: Path) -> ShardSet:
    """Shards of 3, 3 and 1 clips."""
    return write_shard_set(clips(), tmp_path / "set", clips_per_shard=3, extractor="test 1")


@pytest.mark.parametrize("verify", ["sha256", "size"])
@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3, 4, 5, 6], [6, 0, 5, 1], [4, 4, 2, 4], [3], [], [2, 3, 5, 6]]
)
def test_gather_gives_back_what_was_written(
    shard_set: ShardSet, order: list[int], verify: str
) -> None:
    gathered = ShardSet(shard_set.folder, ReadConfig(verify=verify)).gather(np.array(order, int))
    assert set(gathered) == set(DIMS)
    for name, dim in DIMS.items():
        assert gathered[name].dtype == np.float16
        assert gathered[name].shape == (len(order), 10, dim)
        for row, clip in enumerate(order):
            np.testing.assert_array_equal(gathered[name][row], stored(clips()[clip], name))


def test_the_buffer_of_the_caller_is_filled(shard_set: ShardSet) -> None:
    order = np.array([6, 0, 5, 1])
    buffer = np.full((4, shard_set.layout.width), 7, np.float16)
    assert shard_set.read_into(buffer, order).all()
    streams = shard_set.layout.views(buffer)
    for name, array in shard_set.gather(order).items():
        np.testing.assert_array_equal(streams[name], array)


def test_ids_lengths_and_labels_come_back(shard_set: ShardSet) -> None:
    assert len(shard_set) == 7
    assert shard_set.ids == [clip.id for clip in clips()]
    assert [shard_set.id(n) for n in (6, 0)] == [clips()[6].id, clips()[0].id]
    assert shard_set.lengths.tolist() == [10, 9, 10, 9, 10, 9, 10]
    assert shard_set.labels == [clip.labels for clip in clips()]


def test_the_manifest_tells_what_is_there(shard_set: ShardSet) -> None:
    manifest = json.loads((shard_set.folder / "manifest.json").read_text())
    shards, index, streams = (manifest.pop(key) for key in ("shards", "index", "streams"))
    assert manifest == {
        "format": "avvp-shards-2",
        "clips": 7,
        "snippets": 10,
        "extractor": "test 1",
        "classes": ["Dog", "Frying_(food)"],
        "source": {},
    }
    for name, dim in DIMS.items():
        values = np.stack([stored(clip, name) for clip in clips()])
        assert streams[name] == {
            "dim": dim, "dtype": "float16", "min": values.min(), "max": values.max(),
        }  # fmt: skip
    assert [entry["clips"] for entry in shards] == [3, 3, 1]
    for entry in [*shards, {"name": "index.npy", **index}]:
        path = shard_set.folder / entry["name"]
        assert (entry["bytes"], entry["sha256"]) == (path.stat().st_size, sha256(path))


def test_webdataset_reads_the_same(shard_set: ShardSet) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(shard_set.folder / shard.name) for shard in shard_set.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(samples) == 7
    for number, (sample, clip) in enumerate(zip(samples, clips(), strict=True)):
        assert decode_key(sample["__key__"]) == clip.id
        labels = None if clip.labels is None else list(clip.labels)
        assert sample["json"] == {"id": clip.id, "length": 10 - number % 2, "labels": labels}
        for name in DIMS:
            np.testing.assert_array_equal(sample[f"{name}.npy"], stored(clip, name))


def test_a_shard_is_verified_once_in_a_process(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr(verification, "sha256", counted)
    again = ShardSet(shard_set.folder)
    for _ in range(3):
        again.gather(np.array([0, 6]))
    again.release([0, 2])
    again.gather(np.array([6, 0]))
    assert sorted(hashed) == ["shard-000000.tar", "shard-000002.tar"]


def test_a_released_shard_is_opened_again(shard_set: ShardSet) -> None:
    before = shard_set.gather(np.arange(7))
    shard_set.prepare([0, 1, 2], warm=True)
    shard_set.release([0, 1])
    shard_set.close()
    after = shard_set.gather(np.arange(7))
    assert all((after[name] == array).all() for name, array in before.items())


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path} is no shard set: manifest.json is missing"):
        ShardSet(tmp_path)
    with pytest.raises(DataError, match="nowhere is no shard set"):
        ShardSet(tmp_path / "nowhere")


def test_memory_and_files_stay_the_same_over_many_epochs(tmp_path: Path) -> None:
    features = {"audio": np.ones((10, 128)), "visual": np.ones((10, 512))}
    made = [Clip(f"c{n}", features) for n in range(60)]
    shard_set = write_shard_set(made, tmp_path, clips_per_shard=10)
    process = psutil.Process()
    seen = []
    for epoch in range(30):
        for _ in range(20):
            shard_set.gather(np.arange(60))
            shard_set.release(range(6))
        if epoch >= 10:
            seen.append((process.memory_info().rss, process.num_fds()))
    memory, files = zip(*seen, strict=True)
    assert max(memory) - min(memory) < 4 * 2**20
    assert len(set(files)) == 1


_HUGE = """
import json, sys, time
from pathlib import Path
import numpy as np, psutil
from avvp_dist.config import LoaderConfig
started = time.process_time()
from avvp_dist.loading.loader import read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.stream import ClipStream
def private():
    return sum(m.private_dirty for m in psutil.Process().memory_maps())
imported = private()  # a CUDA build of torch alone takes 300 MB
data = Mixture.open([sys.argv[1]], [], LoaderConfig(verify="size"))
stream = ClipStream(data.pools(), 256, seed=1)
read_clips(data, stream.batch(0))
first = time.process_time() - started
for step in range(1, 20):
    read_clips(data, stream.batch(step))
used = private() - imported
print(json.dumps({"clips": len(data), "first": first, "private": used}))
"""


def test_two_million_clips_cost_no_memory_and_no_time(tmp_path: Path) -> None:
    folder = huge_set(tmp_path, shards=1000, clips_per_shard=2000)
    started = subprocess.run(
        [sys.executable, "-c", _HUGE, str(folder)], capture_output=True, text=True, check=True
    )
    found = json.loads(started.stdout)
    assert found["clips"] == 2_000_000
    assert found["private"] < 150 * 2**20
    assert found["first"] < 8  # seconds of CPU time, imports included


def huge_set(out: Path, shards: int, clips_per_shard: int) -> Path:
    """A shard set of sparse files: one real shard, and others with its header alone."""
    rng = np.random.default_rng(0)
    first = [Clip(f"c{n:07d}", {"audio": rng.random((10, 128))}) for n in range(clips_per_shard)]
    small = write_shard_set(first, out, clips_per_shard=clips_per_shard)
    (entry,) = small.shards
    tar = (out / entry.name).read_bytes()
    index = np.tile(np.asarray(small.index), shards)
    entries = []
    for number in range(shards):
        path = out / f"shard-{number:06d}.tar"
        if number:
            path.write_bytes(tar[:512])
            os.truncate(path, len(tar))
        entries.append(replace(entry, name=path.name))
    np.save(out / "index.npy", index)
    file = FileEntry((out / "index.npy").stat().st_size, sha256(out / "index.npy"))
    whole = replace(small.manifest, clips=len(index), index=file, shards=tuple(entries))
    whole.save(out)
    return out


def test_opening_waits_for_no_other_shard(shard_set: ShardSet) -> None:
    again = ShardSet(shard_set.folder)
    started = time.monotonic()
    again.prepare([2])
    again.gather(np.array([6]))
    assert time.monotonic() - started < 5
    assert again._opening.numbers == {2}


def test_a_shard_that_is_read_is_not_closed(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation reads while the loader closes shards. Reading a closed one ends the process."""
    expected, gather = shard_set.gather(np.array([0, 6])), Gather.__call__

    def released_meanwhile(self: Gather, addresses: np.ndarray, out: np.ndarray) -> None:
        shard_set.release([0, 1, 2])
        gather(self, addresses, out)

    monkeypatch.setattr(Gather, "__call__", released_meanwhile)
    for name, array in shard_set.gather(np.array([0, 6])).items():
        np.testing.assert_array_equal(array, expected[name])
    monkeypatch.undo()
    shard_set.release([0, 2])
    assert not shard_set.all_open


def test_sets_that_are_gone_take_their_memory_and_threads_along(shard_set: ShardSet) -> None:
    gone = []
    for _ in range(5):
        again = ShardSet(shard_set.folder)
        again.gather(np.arange(7))
        gone.append(weakref.ref(again))
        del again
    gc.collect()
    assert [one() for one in gone] == [None] * 5
