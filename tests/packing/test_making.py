"""Making a shard set: it resumes after a kill, and refuses folders that hold something else.

Its tasks run in this process; tests/runtime/cluster/test_tasks.py has them on Ray.
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

from avvp_dist.errors import DataError
from avvp_dist.shards.shard_set import ShardSet
from tests.packing.packed import content, run, write_source

_SLOW = """
import sys, time
from avvp_dist.packing import shard_tasks
from avvp_dist.packing.job import pack
whole = shard_tasks.write_tar
def slow(*arguments):
    time.sleep(0.3)
    return whole(*arguments)
shard_tasks.write_tar = slow
from avvp_dist.config import PackConfig, TrackingConfig
pack(PackConfig(source=sys.argv[1], out=sys.argv[2], clips_per_shard=2, workers=1,
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
