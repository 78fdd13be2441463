"""Shard sets from an iterator: equal bytes, all or nothing, and clips that are refused."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avvp_dist.errors import DataError
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

DIMS = {"audio": 4, "visual": 6}


def clips(count: int = 7) -> list[Clip]:
    rng = np.random.default_rng(0)
    return [
        Clip(f"-_clip{n}_{n}.5_10", {name: rng.random((10, dim)) for name, dim in DIMS.items()})
        for n in range(count)
    ]


def write(out: Path, made: list[Clip] | None = None) -> ShardSet:
    return write_shard_set(made or clips(), out, clips_per_shard=3)


def test_equal_clips_give_equal_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one").folder, write(tmp_path / "two").folder
    contents = {path.name: path.read_bytes() for path in one.iterdir()}
    assert set(contents) == {
        "manifest.json", "index.npy", *(f"shard-00000{n}.tar" for n in range(3)),
    }  # fmt: skip
    assert {path.name: path.read_bytes() for path in two.iterdir()} == contents


def test_short_clips_are_padded_to_t(tmp_path: Path) -> None:
    made = [Clip("a", {"audio": np.ones((3, 4))}), Clip("b", {"audio": np.ones((5, 4))})]
    shards = write_shard_set(made, tmp_path, snippets=6)
    assert (shards.snippets, shards.lengths.tolist()) == (6, [3, 5])
    audio = shards.gather(np.arange(2))["audio"]
    assert audio.sum((1, 2)).tolist() == [12, 20]
    with pytest.raises(DataError, match="clip b: length 5 is not within 3 snippets"):
        write_shard_set(made, tmp_path / "other")


def test_clips_with_many_labels_or_none_come_back(tmp_path: Path) -> None:
    made = clips(3)
    made[1] = replace(made[1], labels=tuple(f"class {n}" for n in range(100)))
    made[2] = replace(made[2], labels=())
    shards = write(tmp_path, made)
    assert shards.labels == [None, made[1].labels, ()]


def _nan(clip: Clip) -> Clip:
    clip.streams["visual"][4, 1] = np.nan
    return clip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nan, "visual holds values that are not finite"),
        (
            lambda clip: replace(clip, streams=clip.streams | {"visual": np.ones((10, 7))}),
            r"visual is \[10, 7\]",
        ),
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
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("clip_id", ["x" * 200, "ü" * 30, "a/" * 60], ids=len)
def test_an_id_too_long_for_a_tar_is_named(tmp_path: Path, clip_id: str) -> None:
    made = [*clips(2), replace(clips()[2], id=clip_id)]
    with pytest.raises(DataError, match=f"clip {clip_id}: its id is too long for a tar"):
        write(tmp_path, made)


@pytest.mark.parametrize(
    "clip_id", ["a.b", ".a", "-x_1.5_2", "__", "a b", "a/b", "../x", "=2E", "a\\b", "ä"]
)
def test_any_id_comes_back(tmp_path: Path, clip_id: str) -> None:
    shards = write(tmp_path, [replace(clips()[0], id=clip_id)])
    assert shards.ids == [clip_id]
    (tmp_path / "manifest.json").unlink()
    assert ShardSet(tmp_path).ids == [clip_id]  # read from the tar


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
FILE_NAMES = TEXT.filter(
    lambda name: not {"/", "\0"} & set(name) and name not in (".", "..") and len(name.encode()) < 99
)


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(codec=None), max_size=30), FILE_NAMES)
@example("x" * 80, "%41?b#c")
@example("../=2E", " ~[a]*:")
def test_any_id_and_any_folder_come_back_or_are_refused(clip_id: str, folder: str) -> None:
    """From the manifest, and from the tar alone."""
    with TemporaryDirectory() as temporary:
        place = Path(temporary, folder)
        try:
            write(place, [replace(clips()[0], id=clip_id)])
        except DataError as error:
            assert re.search("is no id of a clip|its id is too long for a tar", str(error))
            return
        assert ShardSet(place).ids == [clip_id]
        (place / "manifest.json").unlink()
        assert ShardSet(str(place)).ids == [clip_id]


@settings(deadline=None)
@given(st.sets(TEXT, min_size=1, max_size=3))
@example({"audio", "audio.wave"})
@example({"mel/80"})
@example({"a-b_C9"})
def test_any_name_of_a_stream_comes_back_or_is_refused(names: set[str]) -> None:
    made = [Clip("clip", {name: np.full((2, 3), 1 + n) for n, name in enumerate(sorted(names))})]
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        if not all(re.fullmatch("[A-Za-z0-9_-]+", name) for name in names):
            with pytest.raises(DataError, match="the name of a stream is made of"):
                write(place, made)
            assert not list(place.glob("*.tar"))
            return
        write(place, made)
        (place / "manifest.json").unlink()
        read = ShardSet(place).gather(np.array([0]))
        assert {name: int(array[0, 0, 0]) for name, array in read.items()} == {
            name: 1 + n for n, name in enumerate(sorted(names))
        }


@pytest.mark.parametrize("clip_id", ["", "a\0", "\ud800"])
def test_an_id_that_would_not_come_back_is_refused(tmp_path: Path, clip_id: str) -> None:
    with pytest.raises(DataError, match="is no id of a clip"):
        write(tmp_path, [replace(clips()[0], id=clip_id)])


def test_a_shard_set_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no clips to write into {tmp_path}"):
        write_shard_set([], tmp_path)


def test_a_cut_off_writer_leaves_no_manifest(tmp_path: Path) -> None:
    def cut_off() -> Iterator[Clip]:
        yield from clips(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard_set(cut_off(), tmp_path, clips_per_shard=3)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["shard-000000.tar"]
    with pytest.raises(DataError, match="is no shard set"):  # and it is not adopted
        ShardSet(tmp_path)


def test_a_full_disk_is_named_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"no space left for .*shard-000000\.tar"):
        write(tmp_path)
    assert list(tmp_path.glob("[!.]*")) + list(tmp_path.glob(".shard*")) == []
