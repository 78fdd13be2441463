"""The loader's bench: it runs on a small set, and its last line is what others read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_its_last_line_names_every_ratio_it_could_measure(root: Path, tmp_path: Path) -> None:
    keys = ["--clips", "300", "--rounds", "1", "--batch", "32", "--folder", str(tmp_path)]
    command = [sys.executable, str(root / "tools" / "bench" / "loader.py"), *keys]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bench"] == "loader"
    assert {"cpu", "cores", "cores_used"} <= set(found["machine"])
    assert {"ours_over_raw", "ours_over_webdataset"} <= set(found["ratios"])
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert found["figures"]["ours_clips_per_s"]["median"] > 0
