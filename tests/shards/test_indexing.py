"""Tars that others wrote become a shard set at first use, whole or not at all."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.errors import DataError
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.indexing import index_tars
from avvp_dist.shards.schema import Clip, encode_key
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.tars import scan_tar

DIMS = {"audio": 4, "visual": 6}
MADE = {"manifest.json", "index.npy"}


def clips(count: int = 5, snippets: int = 10, **dims: int) -> list[Clip]:
    rng = np.random.default_rng(0)
    return [
        Clip(
            f"clip_{n}.5",
            {
                name: rng.standard_normal((snippets, dim)).astype(np.float16)
                for name, dim in (DIMS | dims).items()
            },
            labels=None if n == 2 else ("Dog", "Cat")[: n % 3],
            length=snippets,
        )
        for n in range(count)
    ]


def write_tar(path: Path, made: list[Clip]) -> None:
    """A tar as a user's own script might write it."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for clip in made:
            for name, array in clip.streams.items():
                add(tar, f"{encode_key(clip.id)}.{name}.npy", npy(array))


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of two tars of 3 and 2 clips, without a manifest."""
    write_tar(tmp_path / "set" / "x-0.tar", clips()[:3])
    write_tar(tmp_path / "set" / "x-1.tar", clips()[3:])
    return tmp_path / "set"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".index.lock"}


def test_tars_of_webdataset_become_the_same_set_as_ours(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    ours = write_shard_set(clips(), tmp_path / "ours", clips_per_shard=3)
    folder = tmp_path / "set"
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "x-%06d.tar"), maxcount=3, verbose=0) as writer:
        for clip in clips():
            meta = {"length": clip.length, "labels": clip.labels}
            arrays = {f"{name}.npy": array for name, array in clip.streams.items()}
            writer.write({"__key__": encode_key(clip.id), "json": meta, **arrays})
    found = ShardSet(folder)
    assert [(shard.name, shard.clips) for shard in found.shards] == [
        ("x-000000.tar", 3),
        ("x-000001.tar", 2),
    ]
    assert found.ids == ours.ids
    assert found.labels == ours.labels == [clip.labels for clip in clips()]
    np.testing.assert_array_equal(found.lengths, ours.lengths)
    np.testing.assert_array_equal(found.hashes, ours.hashes)
    for what in ("clips", "snippets", "streams", "classes", "extractor"):
        assert getattr(found.manifest, what) == getattr(ours.manifest, what)
    order = np.array([4, 0, 2])
    expected = ours.gather(order)
    for name, array in found.gather(order).items():
        np.testing.assert_array_equal(array, expected[name], strict=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_our_own_tars_get_back_the_manifest_they_had(tmp_path: Path, workers: int) -> None:
    write_shard_set(clips(), tmp_path, clips_per_shard=3)
    before = {name: (tmp_path / name).read_bytes() for name in MADE}
    for name in MADE:
        (tmp_path / name).unlink()
    index_tars(tmp_path, workers)
    assert {name: (tmp_path / name).read_bytes() for name in MADE} == before


def test_tars_in_float32_are_read_as_they_are(tmp_path: Path) -> None:
    made = clips()
    for clip in made:
        for name, array in clip.streams.items():
            clip.streams[name] = array.astype(np.float32) * np.float32(1e-9)
    write_tar(tmp_path / "set" / "x-0.tar", made)
    shards = ShardSet(tmp_path / "set")
    assert {stream.dtype for stream in shards.manifest.streams.values()} == {"float32"}
    for name, array in shards.gather(np.arange(5)).items():
        np.testing.assert_array_equal(array, np.stack([clip.streams[name] for clip in made]))
    write_tar(tmp_path / "mixed" / "x-0.tar", made[:2])
    write_tar(tmp_path / "mixed" / "x-1.tar", clips()[2:])
    with pytest.raises(DataError, match=r"x-1\.tar .* in float16 .*x-0\.tar .* in float32"):
        ShardSet(tmp_path / "mixed")


def test_the_second_use_reads_what_the_first_one_wrote(foreign: Path) -> None:
    first = ShardSet(foreign)
    assert names(foreign) == {"x-0.tar", "x-1.tar"} | MADE
    times = {name: (foreign / name).stat().st_mtime_ns for name in names(foreign)}
    second = ShardSet(foreign)
    assert second.digest == first.digest
    assert {name: (foreign / name).stat().st_mtime_ns for name in names(foreign)} == times


def test_the_remains_of_a_cut_off_indexing_are_replaced(foreign: Path) -> None:
    (foreign / ".index.lock").touch()
    (foreign / "index.npy").write_bytes(b"\x93NUMPY")
    found = ShardSet(foreign)
    assert found.ids == [clip.id for clip in clips()]
    assert found.labels == [None] * 5


def test_two_processes_at_once_both_get_it(foreign: Path, tmp_path: Path, root: Path) -> None:
    code = """
import pathlib, sys, time
import numpy
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.tars import scan_tar
pathlib.Path(sys.argv[2]).touch()
while not pathlib.Path(sys.argv[3]).exists():
    time.sleep(0.001)
shards = ShardSet(sys.argv[1])
print(shards.digest, float(shards.gather(numpy.arange(5))["audio"].sum()))
"""
    ready = [tmp_path / "ready 0", tmp_path / "ready 1"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(foreign), str(path), str(tmp_path / "go")],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for path in ready
    ]
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in ready) and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    assert answers[0].startswith(ShardSet(foreign).digest)


@pytest.mark.parametrize("content", ["nothing", "no tars", "a pack that is not finished"])
def test_a_folder_of_no_whole_set_is_refused(foreign: Path, content: str) -> None:
    if content == "a pack that is not finished":
        (foreign / ".pack").mkdir()
    else:
        for path in foreign.iterdir():
            path.unlink()
    if content == "no tars":
        (foreign / "notes.txt").touch()
    before = names(foreign)
    with pytest.raises(DataError, match=r"/set is no shard set: manifest.json is missing"):
        ShardSet(foreign)
    assert names(foreign) == before


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="/gone is no shard set"):
        ShardSet(tmp_path / "gone")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_one_damaged_tar_is_named_and_nothing_is_written(foreign: Path, workers: int) -> None:
    path = foreign / "x-1.tar"
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match=r"x-1\.tar is cut off"):
        index_tars(foreign, workers)
    assert names(foreign) == {"x-0.tar", "x-1.tar"}
    write_tar(path, clips()[3:])
    index_tars(foreign, workers)
    assert len(ShardSet(foreign)) == 5


def test_a_tar_that_has_just_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.tar"):
        scan_tar(tmp_path / "gone.tar")


def test_a_clip_in_two_tars_is_named(foreign: Path) -> None:
    write_tar(foreign / "x-1.tar", clips()[2:])
    with pytest.raises(DataError, match=r"clip clip_2\.5 occurs twice"):
        ShardSet(foreign)
    assert names(foreign) == {"x-0.tar", "x-1.tar"}


@pytest.mark.parametrize(
    "other", [clips(visual=5), clips(snippets=9), clips(motion=3)], ids=["dims", "T", "streams"]
)
def test_a_tar_of_other_sizes_is_named(foreign: Path, other: list[Clip]) -> None:
    write_tar(foreign / "x-1.tar", other[3:])
    with pytest.raises(DataError, match=r"x-1\.tar holds .*clip_3\.5.*x-0\.tar"):
        ShardSet(foreign)
    assert names(foreign) == {"x-0.tar", "x-1.tar"}


def test_clips_longer_than_the_index_can_tell_are_refused(foreign: Path) -> None:
    for number in range(2):
        write_tar(foreign / f"x-{number}.tar", clips(snippets=256)[3 * number : 3 + 3 * number])
    with pytest.raises(DataError, match="256"):
        ShardSet(foreign)
    assert names(foreign) == {"x-0.tar", "x-1.tar"}


def test_hidden_files_are_left_alone(foreign: Path) -> None:
    (foreign / "._x-0.tar").write_bytes(b"\0\5\26\7Mac OS X")  # macOS leaves such beside files
    assert len(ShardSet(foreign)) == 5
    assert len(ShardSet(foreign)) == 5


def test_a_clip_that_is_not_finite_is_marked_and_refused(foreign: Path) -> None:
    made = clips()[3:]
    made[1].streams["visual"][9, 5] = np.nan
    write_tar(foreign / "x-1.tar", made)
    found = ShardSet(foreign)
    assert found.lengths.tolist() == [10, 10, 10, 10, 0]
    found.gather(np.arange(4))
    with pytest.raises(DataError, match=r"clip clip_4\.5 is not finite"):
        found.gather(np.arange(5))


def test_a_set_without_one_finite_clip_opens(foreign: Path) -> None:
    (foreign / "x-0.tar").unlink()
    made = clips()[3:]
    for clip in made:
        clip.streams["audio"][0, 0] = np.inf
    write_tar(foreign / "x-1.tar", made)
    assert ShardSet(foreign).lengths.tolist() == [0, 0]
    manifest = json.loads((foreign / "manifest.json").read_text())
    assert manifest["streams"]["audio"] == {
        "dim": 4,
        "dtype": "float16",
        "min": None,
        "max": None,
    }


def test_a_folder_that_cannot_be_written_to_is_named(foreign: Path, root: Path) -> None:
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"'
    unshare = ["unshare", "-m", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            [*unshare, mount, "sh", str(foreign)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("nothing can be mounted here")
    code = "import sys; from avvp_dist.shards.shard_set import ShardSet; ShardSet(sys.argv[1])"
    done = subprocess.run(
        [*unshare, f'{mount} && exec "$2" -c "$3" "$1"', "sh", str(foreign), sys.executable, code],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "DataError" in done.stderr
    assert f"{foreign}: manifest.json cannot be written" in done.stderr
    assert names(foreign) == {"x-0.tar", "x-1.tar"}


def test_a_tar_that_came_later_or_is_gone_is_found(foreign: Path) -> None:
    ShardSet(foreign)
    shutil.copy(foreign / "x-1.tar", foreign / "x-2.tar")
    with pytest.raises(DataError, match=r"x-2\.tar is not in manifest\.json .* Remove"):
        ShardSet(foreign)
    (foreign / "x-2.tar").unlink()
    (foreign / "x-1.tar").unlink()
    with pytest.raises(DataError, match=r"x-1\.tar is missing"):
        ShardSet(foreign)


@pytest.mark.parametrize(
    ("place", "lacking", "what"),
    [
        # The first clip with arrays says which streams there are.
        *((place, ["audio", "visual"], "a .json and no array") for place in range(3)),
        *((place, [name], f"no {name}") for place in (1, 2) for name in DIMS),
    ],
)
def test_a_clip_that_lacks_arrays_is_named_and_can_be_left_out(
    place: int, lacking: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for n, clip in enumerate(clips(3)):
            for name, array in clip.streams.items():
                if n != place or name not in lacking:
                    add(tar, f"{n}.{name}.npy", npy(array))
            add(tar, f"{n}.json", b"{}")
    with pytest.raises(DataError, match=f"clip {place} has {what}, as 1 of 3 .*skip_incomplete"):
        ShardSet(tmp_path)
    index_tars(tmp_path, skip_incomplete=True)
    assert f"1 clips without all arrays are left out, first {place}" in capsys.readouterr().out
    assert ShardSet(tmp_path).ids == [str(n) for n in range(3) if n != place]


@pytest.mark.parametrize("key", ["a=b", "a=41", "a=FF", "t=2f", "=", "x==41", "size=640x480"])
def test_a_key_of_others_is_the_clips_id_as_it_is(key: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, array in clips(1)[0].streams.items():
            add(tar, f"{key}.{name}.npy", npy(array))
    assert ShardSet(tmp_path).ids == [key]
