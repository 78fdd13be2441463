"""Two hosts, one job: started over ssh, and started on each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.records import read_series
from tests.cluster.hosts import SSH_PORT, Host, skip_without, two_hosts
from tests.cluster.slurm import slurm
from tests.forked_ranks import FIXED

pytestmark = pytest.mark.launch

SENTINEL = "s3ntinel-of-the-tracking-server"
STEPS = 60
PORT = "29507"
"""Free on hosts that have just been made."""
ENVIRONMENT = {**FIXED, "GLOO_SOCKET_IFNAME": "eth0", "MLFLOW_TRACKING_PASSWORD": SENTINEL}
Hosts = tuple[Host, Host]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both hosts see: keys, the list of hosts, and the supervisor's folder."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "hostfile").write_text("hosta slots=1\nhostb slots=1\n")
    (folder / "environment").mkdir()
    return folder


@pytest.fixture(scope="module")
def hosts(folder: Path) -> Iterator[Hosts]:
    skip_without("ip", "sshd", "pdsh")
    with two_hosts(folder) as both:
        yield both


@pytest.fixture(scope="module")
def single_rank(
    fork_ranks: Any, grounded: ShardSet, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run of two ranks on one host."""
    out = tmp_path_factory.mktemp("alone")
    process = fork_ranks(*training(grounded, out))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def training(shards: ShardSet, out: Path, steps: int = STEPS) -> list[str]:
    return [
        "launch/pretrain.py",
        f"data.shards={shards.folder}",
        f"trainer.out={out}",
        "encoder.size=tiny",
        f"trainer.max_steps={steps}",
        f"trainer.epochs={steps}",
        "trainer.batch_size=16",
        "optimizer.schedule=constant",  # a step's loss then does not depend on how many follow
        "optimizer.warmup=0",
        "trainer.log_every=1",
        "trainer.resume=auto",
        "trainer.hang_seconds=60",  # progress is written each second, not every ten
        "tracking.enabled=false",
        "tracking.figures=false",
    ]


class Job:
    """`supervise.py LAUNCHER SCRIPT` on a host."""

    def __init__(self, host: Host, folder: Path, launcher: Sequence[str], script: Sequence[str]):
        self.log = folder / f"{time.monotonic_ns()}.log"
        supervisor = [sys.executable, "launch/supervise.py", "--env-dir", f"{folder}/environment"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                host.inside(*supervisor, *launcher, *script),
                env={**os.environ, **ENVIRONMENT, "PATH": f"{folder}/bin:{os.environ['PATH']}"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ask(self) -> None:
        """SIGTERM for the supervisor, which is below nsenter."""
        (supervisor,) = psutil.Process(self.process.pid).children()
        supervisor.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, str]:
        """Exit code and output."""
        code = self.process.wait(timeout=120)
        return code, self.log.read_text()


def deepspeed(folder: Path, *options: str) -> list[str]:
    to_meet = ("--master_addr=hosta", f"--master_port={PORT}")
    return ["deepspeed", f"--hostfile={folder}/hostfile", *to_meet, *options]


def over_ssh(hosts: Hosts, folder: Path, script: Sequence[str]) -> Job:
    ssh = ("--launcher=pdsh", f"--ssh_port={SSH_PORT}")
    return Job(hosts[0], folder, deepspeed(folder, *ssh), script)


def wait_for_steps(out: Path) -> None:
    """Until the rank on the second host has made some."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError):
            if json.loads((out / "ranks/rank-00001.json").read_text())["step"] >= 2:
                return
        time.sleep(0.1)
    raise AssertionError("the ranks make no steps")


def steps_as_alone(out: Path, single_rank: Path) -> int:
    """Number of steps of two hosts, each with the loss that it has on one host."""
    ranks = [json.loads((out / f"ranks/rank-{rank:05d}.json").read_text()) for rank in (0, 1)]
    assert [rank["host"] for rank in ranks] == ["hosta", "hostb"]
    losses = read_series(out)["train/loss"]
    assert list(losses) == list(range(1, len(losses) + 1))
    alone = read_series(single_rank)["train/loss"]
    assert losses == {step: alone[step] for step in losses}
    return len(losses)


def test_a_hostfile_over_ssh_gives_the_losses_of_one_host(
    hosts: Hosts, folder: Path, single_rank: Path, grounded: ShardSet, tmp_path: Path
) -> None:
    telling = "tests/cluster/telling_pretrain.py"
    job = over_ssh(hosts, folder, [telling, *training(grounded, tmp_path, steps=12)[1:]])
    seen: set[str] = set()
    until = time.monotonic() + 240
    while job.process.poll() is None and time.monotonic() < until:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                seen.add(" ".join(process.cmdline()))
        time.sleep(0.3)
    code, printed = job.end()
    assert code == 0, printed
    assert steps_as_alone(tmp_path, single_rank) == 12

    assert any("ssh" in line and "hostb" in line for line in seen), "nothing was searched"
    assert not any(SENTINEL in line for line in [*seen, printed])
    password = hashlib.sha256(SENTINEL.encode()).hexdigest()
    for name in ("hosta", "hostb"):  # pdsh says whose line it is
        assert f"{name}: password {password}" in printed.splitlines()
    assert list((folder / "environment").iterdir()) == []


def test_the_command_of_kubernetes_trains_as_one_host_until_a_pod_is_evicted(
    hosts: Hosts, folder: Path, single_rank: Path, grounded: ShardSet, root: Path, tmp_path: Path
) -> None:
    """With two hosts in the place of its four pods, one rank in that of eight."""
    _, job = yaml.safe_load_all((root / "launch/kubernetes/train.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    python, supervisor, *command = container["command"]
    assert (python, supervisor) == ("python", "launch/supervise.py")
    here = {"=4": "=2", "=8": "=1", "avvp-train-0.avvp-train": "hosta"}
    for word, ours in here.items():
        command = [one.replace(word, ours) for one in command]
    jobs = [
        Job(
            host,
            folder,
            [one.replace("$(JOB_COMPLETION_INDEX)", str(index)) for one in command[:-1]],
            training(grounded, tmp_path),
        )
        for index, host in enumerate(hosts)
    ]
    wait_for_steps(tmp_path)
    jobs[1].ask()
    for one in jobs:
        code, printed = one.end()
        assert code == 7, printed
    assert list((tmp_path / "checkpoints").glob("step-*/manifest.json"))
    assert steps_as_alone(tmp_path, single_rank) < STEPS


def test_the_same_command_on_each_host_starts_the_ranks_of_one_job(
    hosts: Hosts, folder: Path
) -> None:
    """Without ssh. Variables that lead ranks to each other are those that ssh has brought above."""
    jobs = [
        Job(
            host,
            folder,
            deepspeed(folder, "--no_ssh", f"--node_rank={node}"),
            ("tests/runtime/member.py", "environment"),
        )
        for node, host in enumerate(hosts)
    ]
    for node, job in enumerate(jobs):
        code, printed = job.end()
        assert code == 0, printed
        meeting = {"MASTER_ADDR=hosta", f"MASTER_PORT={PORT}", f"RANK={node}", "WORLD_SIZE=2"}
        password = f"MLFLOW_TRACKING_PASSWORD={SENTINEL}"
        assert {*meeting, "LOCAL_RANK=0", password} <= set(printed.splitlines())


def test_a_slurm_job_that_is_preempted_queues_again_and_ends_as_in_peace(
    hosts: Hosts, folder: Path, single_rank: Path, grounded: ShardSet, root: Path, tmp_path: Path
) -> None:
    with slurm(hosts, tmp_path) as command:
        log, out = tmp_path / "log", tmp_path / "run"
        job = command(
            *("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={log}"),
            *("launch/slurm/train.sbatch", *training(grounded, out)),
            **ENVIRONMENT,
            VENV=sys.prefix,
        )
        wait_for_steps(out)
        command("scancel", "--signal=USR1", job)
        said = command.end_of(job, 120)
    printed = log.read_text(errors="replace")  # progress bars of two ranks, within each other
    assert "JobState=COMPLETED" in said and "Restarts=1" in said, printed
    assert "exit code 7 (preempted)" in printed
    assert "saved at step" in printed and SENTINEL not in printed
    assert steps_as_alone(out, single_rank) == STEPS
