"""The grounding's bench: it runs on a small set, and its last line is what others read."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.warm_workers import WarmWorkers


@pytest.mark.launch
def test_its_last_line_names_every_ratio(
    root: Path, warm_workers: WarmWorkers, tmp_path: Path
) -> None:
    keys = ["--clips", "200", "--memory", "60", "--rounds", "1", "--simulated", "40"]
    python, script = warm_workers.variables["WARM_PYTHON"], "tools/bench/grounding.py"
    done = subprocess.run(
        [python, script, *keys, "--folder", str(tmp_path)],
        cwd=root,
        env={**os.environ, **warm_workers.variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bench"] == "grounding"
    assert {"ours_over_authors", "ours_over_networkx", "ours_over_matmul"} <= set(found["ratios"])
    assert {"job_over_parts", "two_over_one"} <= set(found["ratios"])
    assert found["figures"]["simulated"]["redone_shards"] == 10
    assert found["figures"]["ours_clips_per_s"] > 0
