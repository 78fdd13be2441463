"""tools/score.py: the official numbers for anyone's file, one line for a bad one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.data.llp import read_annotations


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "tools" / "score.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.shared
def test_official_numbers_exactly(root: Path, shared: Path, tmp_path: Path) -> None:
    recipes = json.loads((shared / "llp" / "official_scores.json").read_text())["results"]
    for recipe in [r for r in recipes if "seed" in r]:
        annotations = read_annotations(shared / "llp", recipe["split"])
        rng = np.random.default_rng(recipe["seed"])
        frame = rng.random((len(annotations.ids), 10, 2, 25), dtype=np.float32)
        video = rng.random((len(annotations.ids), 25), dtype=np.float32)
        video *= np.float32(recipe["video_scale"])
        ids = np.array(annotations.ids)
        np.savez(tmp_path / "p.npz", filenames=ids, frame_prob=frame, video_prob=video)
        version = ["--audio-annotations", recipe["audio_annotations"]]
        data = ["--predictions", str(tmp_path / "p.npz"), "--annotations", str(shared / "llp")]
        out = ["--split", recipe["split"], "--json", str(tmp_path / "out.json")]
        done = run(root, *data, *version, *out)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "out.json").read_text())
        assert found["scores"] == recipe["scores"]
        assert found["audio_annotations"] == recipe["audio_annotations"]
        assert f"audio annotations {recipe['audio_annotations']}" in done.stdout


def test_a_bad_file_is_one_line(root: Path, features: Path, tmp_path: Path) -> None:
    (tmp_path / "p.npz").write_bytes(b"text")
    data = ["--predictions", str(tmp_path / "p.npz"), "--annotations", str(features)]
    done = run(root, *data)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "p.npz" in line
