"""Shard sets: what is written comes back, others can read it, and every damage is named."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.data.schema import Clip, decode_key
from avvp_dist.data.shards import ShardSet, index_shard, write_shard_set
from avvp_dist.errors import DataError

DIMS = {"audio": 4, "motion": 3, "visual": 6}
TAR = "shard-000001.tar"


def clips(count: int = 7) -> list[Clip]:
    """Clips with ids as in LLP, of which some are without labels and some are padded."""
    rng = np.random.default_rng(0)
    return [
        Clip(
            f"-_clip{n}_{n}.5_10",
            {name: rng.standard_normal((10, dim)).astype(np.float32) for name, dim in DIMS.items()},
            labels=None if n == 2 else ("Dog", "Frying_(food)")[: n % 3],
            length=10 - n % 2,
        )
        for n in range(count)
    ]


def write(out: Path, made: list[Clip] | None = None) -> ShardSet:
    return write_shard_set(
        made or clips(), out, clips_per_shard=3, extractor="test 1", source={"folder": "here"}
    )


@pytest.fixture
def shard_set(tmp_path: Path) -> ShardSet:
    """Shards of 3, 3 and 1 clips."""
    return write(tmp_path / "set")


def copy_tar(path: Path, change: Callable[[str, bytes], Iterator[tuple[str, bytes]]]) -> None:
    """Rewrite a tar with each member changed, left out or multiplied."""
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member in members:
            for name, data in change(*member):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3, 4, 5, 6], [6, 0, 5, 1], [4, 4, 2, 4], [3], [], [2, 3, 5, 6]]
)
def test_gather_gives_back_what_was_written(shard_set: ShardSet, order: list[int]) -> None:
    gathered = shard_set.gather(np.array(order, int))
    assert set(gathered) == set(DIMS)
    for name, dim in DIMS.items():
        assert gathered[name].dtype == np.float16
        assert gathered[name].shape == (len(order), 10, dim)
        for row, clip in enumerate(order):
            expected = clips()[clip].streams[name].astype(np.float16)
            np.testing.assert_array_equal(gathered[name][row], expected)


def test_ids_lengths_and_labels_come_back(shard_set: ShardSet) -> None:
    assert len(shard_set) == 7
    assert shard_set.ids == [clip.id for clip in clips()]
    assert shard_set.lengths.tolist() == [clip.length for clip in clips()]
    assert shard_set.labels == [clip.labels for clip in clips()]


def test_length_is_all_snippets_unless_told(tmp_path: Path) -> None:
    made = [replace(clip, length=None) for clip in clips(2)]
    assert write(tmp_path, made).lengths.tolist() == [10, 10]


def test_clips_of_many_labels_and_none_make_records_of_one_size(tmp_path: Path) -> None:
    made = clips(3)
    made[1] = replace(made[1], labels=tuple(f"class {n}" for n in range(100)))
    shard_set = write(tmp_path, made)
    assert shard_set.labels == [clip.labels for clip in made]
    expected = made[2].streams["motion"].astype(np.float16)
    np.testing.assert_array_equal(shard_set.gather(np.array([2]))["motion"][0], expected)


def test_the_manifest_tells_what_is_there(shard_set: ShardSet) -> None:
    manifest = json.loads((shard_set.folder / "manifest.json").read_text())
    shards = manifest.pop("shards")
    assert manifest == {
        "format": "avvp-shards-1",
        "clips": 7,
        "snippets": 10,
        "streams": {name: {"dim": dim, "dtype": "float16"} for name, dim in DIMS.items()},
        "extractor": "test 1",
        "source": {"folder": "here"},
    }
    assert [entry["clips"] for entry in shards] == [3, 3, 1]
    for number, entry in enumerate(shards):
        data = (shard_set.folder / f"shard-{number:06d}.tar").read_bytes()
        assert entry["name"] == f"shard-{number:06d}.tar"
        assert entry["bytes"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()


def test_equal_clips_give_equal_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one").folder, write(tmp_path / "two").folder
    contents = {path.name: path.read_bytes() for path in one.iterdir()}
    assert len(contents) == 7
    assert {path.name: path.read_bytes() for path in two.iterdir()} == contents


def test_webdataset_reads_the_same(shard_set: ShardSet) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(shard.path) for shard in shard_set.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(samples) == 7
    for sample, clip in zip(samples, clips(), strict=True):
        assert decode_key(sample["__key__"]) == clip.id
        labels = None if clip.labels is None else list(clip.labels)
        assert sample["json"] == {"id": clip.id, "length": clip.length, "labels": labels}
        for name in DIMS:
            expected = clip.streams[name].astype(np.float16)
            np.testing.assert_array_equal(sample[f"{name}.npy"], expected)


@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_a_lost_index_is_built_again(shard_set: ShardSet, content: bytes | None) -> None:
    path = (shard_set.folder / TAR).with_suffix(".index.json")
    written = json.loads(path.read_text())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    again = ShardSet(shard_set.folder)
    assert again.ids == shard_set.ids
    assert again.shards[1].index == written
    everything = np.arange(7)
    for name, array in shard_set.gather(everything).items():
        np.testing.assert_array_equal(again.gather(everything)[name], array)


def _nan(clip: Clip) -> Clip:
    clip.streams["visual"][4, 1] = np.nan
    return clip


def _huge(clip: Clip) -> Clip:
    clip.streams["visual"][4, 1] = 70000
    return clip


def _wider(clip: Clip) -> Clip:
    return replace(clip, streams=clip.streams | {"visual": np.ones((10, 7))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nan, "visual holds values that are not finite"),
        (_huge, "visual exceeds float16"),
        (_wider, r"visual is \[10, 7\]"),
        (lambda clip: replace(clip, streams={}), "has the streams"),
        (lambda clip: replace(clip, length=11), "11"),
        (lambda clip: replace(clip, id="-_clip0_0.5_10"), "occurs twice"),
    ],
)
@pytest.mark.parametrize("number", [1, 5])  # in the first shard and in the second
def test_a_wrong_clip_is_refused(
    tmp_path: Path, change: Callable[[Clip], Clip], message: str, number: int
) -> None:
    made = clips()
    made[number] = change(made[number])
    with pytest.raises(DataError, match=message) as caught:
        write(tmp_path, made)
    assert f"clip {made[number].id}" in str(caught.value)
    with pytest.raises(DataError, match=r"is no shard set: manifest\.json is missing"):
        ShardSet(tmp_path)


@pytest.mark.parametrize("clip_id", ["x" * 200, "ü" * 30, "a/" * 60, ""], ids=len)
def test_an_id_too_strange_for_a_tar_is_named_or_works(tmp_path: Path, clip_id: str) -> None:
    made = [*clips(2), replace(clips()[2], id=clip_id)]
    try:
        assert write(tmp_path, made).ids[2] == clip_id
    except DataError as error:
        assert f"clip {clip_id}" in str(error)


def test_no_clips_are_no_shard_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no clips to write into {tmp_path}"):
        write_shard_set([], tmp_path)


def test_a_cut_off_writer_leaves_no_shard_set(tmp_path: Path) -> None:
    def cut_off() -> Iterator[Clip]:
        yield from clips(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard_set(cut_off(), tmp_path, clips_per_shard=3)
    assert (tmp_path / "shard-000000.tar").exists()
    with pytest.raises(DataError, match=f"{tmp_path} is no shard set"):
        ShardSet(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"format": "other"}', "[]"])
def test_a_foreign_manifest_is_named(shard_set: ShardSet, text: str) -> None:
    (shard_set.folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        ShardSet(shard_set.folder)


def test_a_missing_shard_is_named(shard_set: ShardSet) -> None:
    (shard_set.folder / TAR).unlink()
    with pytest.raises(DataError, match=f"{TAR} is missing"):
        ShardSet(shard_set.folder)


def test_a_truncated_shard_is_named(shard_set: ShardSet) -> None:
    path = shard_set.folder / TAR
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=f"{TAR} has .* bytes, its manifest says"):
        ShardSet(shard_set.folder)


def test_a_feature_gone_bad_on_disk_is_named(shard_set: ShardSet) -> None:
    path, index = shard_set.folder / TAR, shard_set.shards[1].index
    data = bytearray(path.read_bytes())
    at = 2 * index["stride"] + index["offsets"]["motion"] + 2 * 17
    data[at : at + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    again = ShardSet(shard_set.folder)
    with pytest.raises(DataError) as caught:
        again.gather(np.array([0, 5, 6]))
    assert str(caught.value) == f"{path}: clip {clips()[5].id}: motion is not finite"
    assert np.isfinite(again.gather(np.array([0, 3, 4, 6]))["motion"]).all()


@pytest.mark.parametrize("member", range(3 * 4))
def test_a_damaged_tar_header_is_named(shard_set: ShardSet, member: int) -> None:
    path = shard_set.folder / TAR
    path.with_suffix(".index.json").unlink()
    with tarfile.open(path) as tar:
        at = tar.getmembers()[member].offset
    data = bytearray(path.read_bytes())
    data[at + 3] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=TAR):
        assert ShardSet(shard_set.folder).ids


def _without(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    if name != "-_clip4_4=2E5_10.motion.npy":
        yield name, data


def _twice(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, data
    if name == "-_clip4_4=2E5_10.motion.npy":
        yield name, data


def _becomes(suffix: str, content: bytes) -> Callable[[str, bytes], Iterator[tuple[str, bytes]]]:
    def change(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
        yield name, content if name == f"-_clip4_4=2E5_10.{suffix}" else data

    return change


@pytest.mark.parametrize(
    "change",
    [
        _without,
        _twice,
        _becomes("visual.npy", npy(np.ones((10, 7), np.float16))),
        _becomes("visual.npy", npy(np.ones((9, 6), np.float16))),
        _becomes("visual.npy", npy(np.ones((10, 6), np.float32))),
        _becomes("visual.npy", npy(np.asfortranarray(np.ones((10, 6), np.float16)))),
        _becomes("visual.npy", b"no numbers"),
        _becomes("visual.npy", b""),
        _becomes("json", b"no json"),
        _becomes("json", b'{"title": "another corpus"}'),
        _becomes("json", b"[]"),
    ],
    ids=[
        *("member missing", "member twice", "other dim", "other T", "float32", "fortran"),
        *("no array", "empty array", "no json", "other json", "list"),
    ],
)
def test_a_foreign_tar_is_named(
    shard_set: ShardSet, change: Callable[[str, bytes], Iterator[tuple[str, bytes]]]
) -> None:
    path = shard_set.folder / TAR
    copy_tar(path, change)
    with pytest.raises(DataError) as caught:
        index_shard(path, 10, DIMS)
    assert str(path) in str(caught.value)
    assert "clip4_4" in str(caught.value)


def test_records_of_different_sizes_are_refused(shard_set: ShardSet) -> None:
    path = shard_set.folder / TAR
    meta: dict[str, Any] = {"id": "a", "length": 10, "labels": None, "more": "x" * 2000}
    copy_tar(path, _becomes("json", json.dumps(meta).encode()))
    with pytest.raises(DataError, match=f"{TAR}: its records are not of one size"):
        index_shard(path, 10, DIMS)


@pytest.mark.parametrize("suffix", ["motion.npy", "json"])
@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE], ids=["folder", "link"])
def test_a_member_that_is_no_plain_file_is_named(
    shard_set: ShardSet, suffix: str, kind: bytes
) -> None:
    path, name = shard_set.folder / TAR, f"-_clip4_4=2E5_10.{suffix}"
    with tarfile.open(path) as tar:
        members = [(m, (tar.extractfile(m) or io.BytesIO()).read()) for m in tar]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            if member.name == name:
                member.type, member.size, member.linkname = kind, 0, "elsewhere"
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError, match=f"{TAR}: .*{suffix}"):
        index_shard(path, 10, DIMS)
