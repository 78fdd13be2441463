"""Packing: the same bytes in any folder, resuming after a kill, and folders that must be refused.

Its tasks run in this process; tests/runtime/test_ray_tasks.py has them on Ray.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import PackConfig, TrackingConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.packing.job import pack
from avvp_dist.shards.shard_set import ShardSet

OFF = TrackingConfig(enabled=False)
RECORDS = ("records.jsonl", "origin.json", "mlflow.cursor")


def write_source(folder: Path, clips: int = 20, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {
        "filenames": np.array([f"-a.{n}_0_10" for n in range(clips)]),
        "audio": rng.random((clips, 10, 4), np.float32),
        "visual": rng.random((clips, 10, 6), np.float32),
        **changes,
    }
    np.savez(folder / "features_train.npz", **arrays)
    return folder


def run(source: Path, out: Path, **keys: Any) -> ShardSet:
    given = {"clips_per_shard": 6, "workers": 1, "extractor": "x", **keys}
    return pack(PackConfig(source=str(source), out=str(out), tracking=OFF, **given))


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.suffix in (".tar", ".npy") or path.name == "manifest.json"
    }


def test_the_folder_does_not_change_the_bytes(tmp_path: Path) -> None:
    one = run(write_source(tmp_path / "here"), tmp_path / "one")
    two = run(write_source(tmp_path / "there"), tmp_path / "two")
    assert [shard.clips for shard in one.shards] == [6, 6, 6, 2]
    assert content(one.folder) == content(two.folder)
    assert one.digest == two.digest
    assert not (tmp_path / "one" / ".pack").exists()


def test_the_arrays_of_the_source_come_back(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    packed = run(source, tmp_path / "out")
    with np.load(source / "features_train.npz") as file:
        gathered = packed.gather(np.arange(20))
        for name in ("audio", "visual"):
            np.testing.assert_array_equal(gathered[name], file[name].astype(np.float16))


def test_tiny_values_come_back_from_float32(tmp_path: Path) -> None:
    tiny = {
        name: np.random.default_rng(0).random((20, 10, 4)) * 1e-9 for name in ("audio", "visual")
    }
    source = write_source(tmp_path / "source", **tiny)
    with pytest.raises(DataError, match=r"too small for float16.*dtype=float32"):
        run(source, tmp_path / "out")
    packed = run(source, tmp_path / "out", dtype="float32")
    for name, stored in packed.gather(np.arange(20)).items():
        np.testing.assert_array_equal(stored, tiny[name].astype(np.float32))
    assert packed.manifest.streams["audio"].dtype == "float32"
    with pytest.raises(DataError, match=r"'dtype': 'float32'"):
        run(source, tmp_path / "out")


def test_t_can_be_larger_than_in_the_source(tmp_path: Path) -> None:
    packed = run(write_source(tmp_path / "source"), tmp_path / "out", snippets=12)
    assert packed.snippets == 12 and set(packed.lengths.tolist()) == {10}
    with pytest.raises(DataError, match=r"6 of 20 clips are broken: clip -a\.0_0_10: length 10"):
        run(tmp_path / "source", tmp_path / "small", snippets=8)


_SLOW = """
import sys, time
from avvp_dist.packing import job as packing
whole = packing.write_tar
def slow(*arguments):
    time.sleep(0.3)
    return whole(*arguments)
packing.write_tar = slow
from avvp_dist.config import PackConfig, TrackingConfig
packing.pack(PackConfig(source=sys.argv[1], out=sys.argv[2], clips_per_shard=2, workers=1,
    extractor="x", tracking=TrackingConfig(enabled=False)))
"""


def test_a_killed_pack_goes_on_with_the_missing_shards(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", _SLOW, str(source), str(out)])
    while not (out / ".pack" / "shard-000002.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match="let a cut-off run of it finish"):
        ShardSet(out)
    done = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}
    assert 3 <= len(done) < 10
    again = run(source, out, clips_per_shard=2)
    assert sum(path.stat().st_mtime_ns == then for path, then in done.items()) >= 3
    assert again.digest == run(source, tmp_path / "other", clips_per_shard=2).digest
    assert not list(out.glob(".*.tmp")) or all(p.stat().st_size for p in out.glob(".*.tmp"))


@pytest.mark.parametrize("changed", ["source", "tar", "ledger", "keys"])
def test_changed_inputs_are_packed_again(tmp_path: Path, changed: str) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    broken = np.random.default_rng(0).random((20, 10, 4), np.float32)
    broken[15, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"1 of 20 clips are broken: clip -a\.15_0_10"):
        run(write_source(source, audio=broken), out)
    keys: dict[str, Any] = {}
    if changed == "source":
        write_source(source)
    elif changed == "tar":
        (out / "shard-000000.tar").write_bytes(b"half")
    elif changed == "ledger":
        (out / ".pack" / "shard-000001.json").write_text("{")
    else:
        keys = {"clips_per_shard": 11}
    if changed != "source":
        keys["max_bad_fraction"] = 0.05
    again = run(source, out, **keys)
    fresh = run(source, tmp_path / "fresh", **keys)
    assert content(again.folder) == content(fresh.folder)
    assert len(again) == (20 if changed == "source" else 19)
    again.gather(np.arange(len(again)))


def test_a_clip_that_occurs_twice_is_named_before_any_work(tmp_path: Path) -> None:
    names = np.array([f"c{n % 15}" for n in range(20)])
    with pytest.raises(DataError, match="clip c0 occurs twice"):
        run(write_source(tmp_path / "source", filenames=names), tmp_path / "out")
    assert not list(tmp_path.glob("out/*.tar"))


def test_a_full_disk_is_named_and_the_same_command_resumes(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        source = write_source(tmp_path / "source")
        with pytest.raises(DataError, match=r"no space left for .*shard-00000\d\.tar"):
            run(source, small / "out")
        assert not (small / "out" / "manifest.json").exists()
        tars = sorted(path.name for path in (small / "out").glob("*.tar"))
        assert tars and not list((small / "out").glob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        packed = run(source, small / "out")
        assert packed.digest == run(source, tmp_path / "other").digest
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert os.path.ismount(small) is False


def test_foreign_tars_are_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "shard-000007.tar").write_bytes(b"precious")
    with pytest.raises(DataError, match="holds tars that no unfinished pack has left"):
        run(write_source(tmp_path / "source"), out)
    assert (out / "shard-000007.tar").read_bytes() == b"precious"


def test_a_second_pack_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", _SLOW, str(source), str(out)])
    while not (out / ".pack" / "shard-000000.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    with pytest.raises(DataError, match="another process packs into it"):
        run(source, out, clips_per_shard=2)
    assert process.wait() == 0
    assert len(ShardSet(out)) == 20


@pytest.mark.parametrize(
    ("keys", "kind", "named"),
    [
        ({"out": "s3://bucket/set"}, ConfigError, "out=s3://bucket/set is no local folder"),
        ({"annotations": "nowhere"}, DataError, "annotations: nowhere holds no AVVP"),
    ],
)
def test_impossible_places_are_named(
    tmp_path: Path, keys: dict[str, str], kind: type[Exception], named: str
) -> None:
    given = {"source": str(write_source(tmp_path / "source")), "out": str(tmp_path / "out"), **keys}
    with pytest.raises(kind, match=named):
        pack(PackConfig(tracking=OFF, **given))
