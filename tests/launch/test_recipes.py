"""Recipes for clusters: what they run is what the tools take."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from avvp_dist.command_line import load
from avvp_dist.config import GroundConfig


def test_the_kubernetes_job_is_a_command_that_exists(root: Path) -> None:
    job: Any = OmegaConf.to_container(OmegaConf.load(root / "launch/kubernetes/ground.yaml"))
    assert (job["kind"], job["apiVersion"]) == ("RayJob", "ray.io/v1")
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    python, script, *keys = shlex.split(job["spec"]["entrypoint"])
    assert python == "python" and (root / script).is_file()
    config = load(GroundConfig, None, keys)
    (mount,) = {
        mount["mountPath"]
        for group in (
            job["spec"]["rayClusterSpec"]["headGroupSpec"],
            *job["spec"]["rayClusterSpec"]["workerGroupSpecs"],
        )
        for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]
    }
    assert config.shards.startswith(f"{mount}/"), "every node sees the shards"


def test_the_slurm_job_runs_its_command_on_a_cluster_of_all_nodes(
    root: Path, tmp_path: Path
) -> None:
    """With commands in the place of Slurm's and Ray's that say how they were called."""
    for name, script in {
        "scontrol": "echo node7; echo node8",
        "srun": 'echo "$@"; echo "mode $RAY_AUTH_MODE"',
        "ray": "true",
    }.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    (tmp_path / "bin" / "activate").write_text(f"PATH={tmp_path / 'bin'}:$PATH\n")
    environment = {
        "PATH": "/usr/bin:/bin",
        "VENV": str(tmp_path),
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
    }
    recipe = str(root / "launch/slurm/ground.sbatch")
    done = subprocess.run(
        ["bash", recipe, "shards=/data/A B"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    called, mode = done.stdout.splitlines()
    assert called == (
        "ray symmetric-run --address node7:6379 --min-nodes 2 -- env RAY_ADDRESS=node7:6379 "
        "python tools/ground.py shards=/data/A B"
    )
    assert mode == "mode token"
