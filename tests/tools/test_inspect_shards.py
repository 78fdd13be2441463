"""tools/inspect_shards.py as a user runs it: what it says and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.exclusion import Exclusion, write_excluded
from avvp_dist.shards.manifest import ComparedList
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet


def run(root: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/inspect_shards.py", *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shard set of 2 and 1 clips."""
    clips = [
        Clip(f"clip{n}", {"audio": np.ones((10, 4)), "visual": np.ones((10, 6))}, ("Dog",))
        for n in range(3)
    ]
    return write_shard_set(clips, tmp_path / "set", clips_per_shard=2, extractor="a net").folder


def test_a_whole_set_ends_with_0(root: Path, folder: Path) -> None:
    done = run(root, folder, "--deep")
    assert done.returncode == 0, done.stderr
    for line in ("3 clips in 2 shards", "extractor: a net", "Dog 3", "no fault found"):
        assert line in done.stdout


def test_only_deep_finds_a_flipped_byte(root: Path, folder: Path) -> None:
    path = folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    plain = run(root, folder)
    assert plain.returncode == 0, plain.stderr
    assert "--deep reads every byte" in plain.stdout
    deep = run(root, folder, "--deep")
    assert deep.returncode == 3
    assert f"fault: shard {path} has another SHA-256" in deep.stdout
    assert f"error: {folder} has 1 faults, 1 of 3 clips cannot be read" in deep.stderr
    assert "Traceback" not in deep.stderr


def test_excluded_clips_are_counted_and_their_list_is_checked(root: Path, folder: Path) -> None:
    write_excluded(
        folder,
        ShardSet(folder).manifest,
        [Exclusion(1, "clip1", "id", "llp val", (float("nan"),) * 2)],
        ["audio", "visual"],
        against=[ComparedList("llp", 9, "")],
        similarity=0.95,
    )
    done = run(root, folder)
    assert done.returncode == 0, done.stderr
    assert "1 clips are excluded (id 1, embedding 0, duplicate 0), compared with llp" in done.stdout
    (folder / "excluded.csv").write_text("clip\n")
    done = run(root, folder)
    assert done.returncode == 3
    assert f"fault: {folder}/excluded.csv has another SHA-256" in done.stdout


def test_every_fault_is_printed(root: Path, folder: Path) -> None:
    (folder / "shard-000000.tar").unlink()
    (folder / "shard-000001.tar").write_bytes(b"")
    done = run(root, folder)
    assert done.returncode == 3
    assert done.stdout.count("fault: ") == 2
    assert "2 faults, 3 of 3 clips" in done.stderr


def test_foreign_tars_get_a_manifest(root: Path, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "index.npy").unlink()
    done = run(root, folder)
    assert done.returncode == 0, done.stderr
    assert "extractor: not known" in done.stdout
    assert (folder / "manifest.json").exists()


def test_a_damaged_foreign_tar_is_one_line(root: Path, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:1024])
    done = run(root, folder)
    assert done.returncode == 3
    assert f"error: {path} is cut off" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "manifest.json").exists()


def test_a_missing_folder_is_named(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path / "gone")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/gone is no shard set")
