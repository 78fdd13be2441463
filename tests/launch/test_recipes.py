"""Recipes for clusters: what they run is what the tools take."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from omegaconf import OmegaConf

from avvp_dist.config import GroundConfig, PretrainConfig
from avvp_dist.config.files import load
from avvp_dist.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericsError,
    Preempted,
)

KUBERNETES = "1.31"
"""The oldest with all that the recipes use in a stable form."""


def pods(template: Any) -> Iterator[tuple[str, Any]]:
    """All pod templates within a manifest, with the names of what holds them."""
    for key, value in template.items() if isinstance(template, dict) else ():
        if key == "template":
            yield key, value
        else:
            yield from ((f"{key}.{name}", pod) for name, pod in pods(value))
    for value in template if isinstance(template, list) else ():
        yield from pods(value)


def with_rdma(text: str) -> str:
    """The recipe after the command in its head: sed 's/#rdma //'."""
    return re.sub("^( *)#rdma ", r"\1", text, flags=re.MULTILINE)


@pytest.mark.parametrize("recipe", ["train", "train with rdma", "ground"])
def test_manifests_are_as_the_schemas_of_kubernetes_say(root: Path, recipe: str) -> None:
    recipe, _, rdma = recipe.partition(" ")
    text = (root / f"launch/kubernetes/{recipe}.yaml").read_text()
    text = with_rdma(text) if rdma else text
    checked = 0
    for manifest in yaml.safe_load_all(text):
        if not manifest["apiVersion"].startswith("ray.io/"):
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        for name, template in pods(manifest):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **template}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
            checked += 1
    assert checked == {"train": 1, "ground": 2}[recipe]


def test_rdma_is_a_matter_of_lines_that_are_commented_out(root: Path) -> None:
    text = (root / "launch/kubernetes/train.yaml").read_text()
    _, plain = yaml.safe_load_all(text)
    assert "rdma" not in str(plain) and "IPC_LOCK" not in str(plain)
    _, job = yaml.safe_load_all(with_rdma(text))
    template = job["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert list(template["metadata"]["annotations"]) == ["k8s.v1.cni.cncf.io/networks"]
    assert container["resources"]["limits"]["rdma/hca_shared_devices_a"] == "1"
    context = container["securityContext"]
    assert context["capabilities"] == {"add": ["IPC_LOCK"]} and context["runAsUser"] == 0
    added = {one["name"] for one in container["env"]} - {"NCCL_DEBUG"}
    assert added == {"NCCL_NET", "NCCL_IB_HCA", "NCCL_SOCKET_IFNAME"}


def test_the_pods_of_training_find_each_other_and_the_data(root: Path) -> None:
    service, job = yaml.safe_load_all((root / "launch/kubernetes/train.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    python, supervisor, launcher, *options, script = container["command"]
    assert (python, launcher) == ("python", "torchrun")
    assert (root / supervisor).is_file() and (root / script).is_file()
    given = dict(option.removeprefix("--").split("=") for option in options)
    assert int(given["nnodes"]) == spec["completions"] == spec["parallelism"]
    assert given["nproc-per-node"] == container["resources"]["limits"]["nvidia.com/gpu"]
    names = (job["metadata"]["name"], service["metadata"]["name"])
    assert given["master-addr"] == "{}-0.{}".format(*names) and pod["subdomain"] == names[1]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": names[0]}
    assert int(given["master-port"]) == service["spec"]["ports"][0]["port"]

    files = [one.removeprefix("--config=") for one in container["args"] if one[:2] == "--"]
    config = load(PretrainConfig, files, container["args"][len(files) :])
    gpus = spec["completions"] * int(given["nproc-per-node"])
    assert config.trainer.batch_size == 256 * gpus and config.trainer.precision == "bf16"
    data = container["volumeMounts"][0]["mountPath"]
    assert config.trainer.resume == "auto"
    assert all(one.startswith(f"{data}/") for one in (*config.data.shards, config.trainer.out))


def test_pods_that_fail_are_made_again_where_that_can_help(root: Path) -> None:
    _, job = yaml.safe_load_all((root / "launch/kubernetes/train.yaml").read_text())
    codes = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    hopeless = (ConfigError, DataError, CheckpointError, NumericsError)
    assert codes == {"Ignore": [Preempted.exit_code], "FailJob": [e.exit_code for e in hopeless]}


def test_the_image_has_what_the_recipes_run(root: Path) -> None:
    file = root / "launch/container/Containerfile"
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

    lines = file.read_text().replace("\\\n", "").splitlines()
    words = [shlex.split(line) for line in lines if line and not line.startswith("#")]
    told = [(one, rest) for one, *rest in words]
    copied = [
        source
        for one, rest in told
        if one == "COPY" and not rest[0].startswith("--from=")
        for source in rest[:-1]
    ]
    assert set(copied) >= {"avvp_dist", "launch", "tools", "pyproject.toml"}
    assert all((root / source).exists() for source in copied)
    (checked,) = re.findall(r"python -m (\S+)", "\n".join(lines))
    assert (root / f"{checked.replace('.', '/')}.py").is_file()
    (extras,) = re.findall(r"-e '\.\[([\w,]+)\]'", "\n".join(lines))
    project = (root / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
    assert set(extras.split(",")) <= set(re.findall(r"^(\w+) = \[", project, re.MULTILINE))

    ((folder,),) = [rest for one, rest in told if one == "WORKDIR"]
    assert f"working_dir: {folder}\n" in (root / "launch/kubernetes/ground.yaml").read_text()
    ((user,),) = [rest for one, rest in told if one == "USER"]
    _, job = yaml.safe_load_all((root / "launch/kubernetes/train.yaml").read_text())
    context = job["spec"]["template"]["spec"]["securityContext"]
    assert user == f"{context['runAsUser']}:{context['fsGroup']}"


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
