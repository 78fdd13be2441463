"""The supervisor around launchers that lie, die or stop listening, and around real training."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from avvp_dist.runtime.lock import claim
from avvp_dist.shards.shard_set import ShardSet
from tests.forked_ranks import FIXED
from tests.tracking.servers import free_port

pytestmark = pytest.mark.launch

SCRIPT = "tests/runtime/member.py"
MEMBER = f"{shlex.quote(sys.executable)} {SCRIPT}"
SENTINEL = "s3ntinel-of-the-tracking-server"
TRAINING = (
    "encoder.size=tiny",
    "trainer.max_steps=100000",
    "trainer.epochs=100000",
    "trainer.batch_size=16",
    "trainer.log_every=1",
    "trainer.checkpoint_every=200",
    "trainer.resume=auto",
    "tracking.figures=false",
    "trainer.hang_seconds=60",  # progress is written each second, not every ten
)

Supervise = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def supervise(root: Path) -> Iterator[Supervise]:
    """Start `supervise.py ARGUMENTS`; afterwards nothing of it may be left."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "launch/supervise.py", *arguments],
            cwd=root,
            env={**os.environ, **FIXED, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Tests that run in the background inherit that it is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            for one in [*family, process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def deepspeed(*words: str) -> list[str]:
    return ["deepspeed", "--num_accelerators", "2", "--master_port", str(free_port()), *words]


def training(shards: ShardSet, out: Path, *keys: str) -> list[str]:
    return [f"data.shards={shards.folder}", f"trainer.out={out}", *TRAINING, *keys]


def steps(out: Path, minimum: int) -> dict[int, dict[str, Any]]:
    """Heartbeats of two ranks, once both have made `minimum` steps."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError):
            beats = [json.loads((out / f"ranks/rank-{n:05d}.json").read_text()) for n in (0, 1)]
            if all(one["step"] >= minimum for one in beats):
                return dict(enumerate(beats))
        time.sleep(0.1)
    raise AssertionError("the ranks make no steps")


def ends(process: subprocess.Popen[str], within: float) -> tuple[int, str, str]:
    """Exit code and output, when none of the processes that it has now is left."""
    family = psutil.Process(process.pid).children(recursive=True)
    started = time.monotonic()
    out, err = process.communicate(timeout=120)
    assert time.monotonic() - started < within, err
    left = [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert left == [], err
    return process.returncode, out, err


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    """Until two ranks of `SCRIPT` have said so, among what launchers say."""
    assert process.stdout is not None
    for _ in range(2):
        assert any(line == "ready\n" for line in process.stdout), ends(process, 60)


def verdict(err: str) -> str:
    (line,) = [line for line in err.splitlines() if line.startswith("supervisor:")]
    return line


@pytest.mark.parametrize(
    ("told", "code", "kind"),
    [
        ("2", 2, " (configuration)"),
        ("3", 3, " (data)"),
        ("4", 4, " (checkpoint)"),
        ("5", 5, " (cluster)"),
        ("6", 6, " (numerics)"),
        ("7", 7, " (preempted)"),
        ("1", 1, ""),
    ],
)
def test_the_exit_code_is_the_ranks_whatever_the_launcher_says(
    told: str, code: int, kind: str, supervise: Supervise
) -> None:
    process = supervise("sh", "-c", f"{MEMBER} {told}; exit 0")
    found, _, err = ends(process, 60)
    assert found == code
    assert f"exit code {code}{kind}: rank 0 (pid " in verdict(err)


def test_a_rank_that_ends_without_reporting_is_a_fault_of_the_cluster(supervise: Supervise) -> None:
    process = supervise("sh", "-c", f"(RANK=1 {MEMBER} waits & echo $!; wait $!; exit 0)")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert process.stdout.readline() == "ready\n"
    os.kill(pid, signal.SIGKILL)
    code, _, err = ends(process, 15)
    assert code == 5
    line = verdict(err)
    # The shell may have waited for it before the supervisor could look.
    killed = f"rank 1 (pid {pid}, {socket.gethostname()}) was killed by SIGKILL"
    assert killed in line or "ended without reporting how" in line


def test_ranks_save_when_the_supervisor_is_asked_to_end(supervise: Supervise) -> None:
    # A launcher that ignores signals, and orphans: neither is in the way.
    process = supervise("sh", "-c", f"trap '' TERM; RANK=1 {MEMBER} saves & {MEMBER} saves; wait")
    wait_until_ready(process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    code, _, err = ends(process, 30)
    assert code == 7
    assert "preempted: saved" in err
    assert "trainer.resume=auto" in verdict(err)


def test_a_rank_that_ignores_signals_is_killed_after_the_grace(supervise: Supervise) -> None:
    script = f"trap '' TERM; RANK=1 {MEMBER} deaf & {MEMBER} deaf; wait"
    process = supervise("--grace", "4", "sh", "-c", script)
    wait_until_ready(process)
    process.send_signal(signal.SIGTERM)
    code, _, err = ends(process, 8)
    assert code == 5
    assert "did not end in time after SIGTERM and was killed" in verdict(err)


def test_ctrl_c_twice_does_not_wait(supervise: Supervise) -> None:
    process = supervise("sh", "-c", f"{MEMBER} deaf")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert ends(process, 8)[0] == 5


def test_the_launcher_gets_no_secrets_and_the_rank_does(
    supervise: Supervise, tmp_path: Path
) -> None:
    secrets = {"MLFLOW_TRACKING_PASSWORD": SENTINEL, "MY_TOKEN": "mine", "MY_OTHER": "dropped"}
    script = f"env; ls -l $AVVP_ENV_FILE; echo; {MEMBER} environment"
    process = supervise(
        "--pass", "MY_TOKEN", "--env-dir", str(tmp_path), "sh", "-c", script, **secrets
    )
    code, out, _ = ends(process, 30)
    assert code == 0
    launcher, rank = out.split("\n\n", 1)
    assert SENTINEL not in launcher and "mine" not in launcher
    assert "-rw-------" in launcher and str(tmp_path) in launcher
    assert f"MLFLOW_TRACKING_PASSWORD={SENTINEL}" in rank.splitlines()
    assert "MY_TOKEN=mine" in rank.splitlines()
    assert "dropped" not in out
    assert list(tmp_path.iterdir()) == []


PDSH = """#!/bin/sh
# What pdsh does with its arguments, on one host that is this one: a clean environment, a shell.
shift 5
command=$(echo "$*" | sed s/%n/0/)
echo "REMOTE $command"
exec env -i HOME="$HOME" PATH="$PATH" PYTHONPATH="$PYTHONPATH" sh -c "$command"
"""


def test_other_hosts_get_settings_by_command_line_and_secrets_by_file(
    supervise: Supervise, tmp_path: Path
) -> None:
    for name, text in (("pdsh", PDSH), ("ssh", "#!/bin/sh\nexit 0\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    process = supervise(
        *("deepspeed", "--hostfile", str(tmp_path / "hosts"), "--force_multi"),
        *("--master_addr", "localhost", SCRIPT, "environment"),
        MLFLOW_TRACKING_PASSWORD=SENTINEL,
        NCCL_SOCKET_IFNAME="eth7",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    code, out, err = ends(process, 60)
    assert code == 0, err
    (remote,) = [line for line in out.splitlines() if line.startswith("REMOTE")]
    assert "NCCL_SOCKET_IFNAME=eth7" in remote and "AVVP_ENV_FILE=" in remote
    assert SENTINEL not in remote + err
    assert f"MLFLOW_TRACKING_PASSWORD={SENTINEL}" in out.splitlines()


@pytest.mark.parametrize(
    ("victim", "why"),
    [
        # The first has the second below it, which has the ranks.
        ("bin/deepspeed", "ranks lost their launcher"),
        ("deepspeed.launcher.launch", "ranks lost their launcher"),
        ("--local_rank=1", "rank 1 (pid {pid}, {host}) was killed by SIGKILL"),
    ],
    ids=["runner", "launcher", "rank"],
)
def test_whichever_process_is_killed_the_others_save_and_the_job_fails(
    victim: str, why: str, supervise: Supervise
) -> None:
    process = supervise(*deepspeed(SCRIPT, "saves"))
    wait_until_ready(process)
    family = psutil.Process(process.pid).children(recursive=True)
    killed = next(one for one in family if victim in " ".join(one.cmdline()[:5]))
    killed.kill()
    code, _, err = ends(process, 30)
    assert code == 5
    assert why.format(pid=killed.pid, host=socket.gethostname()) in verdict(err)
    assert "preempted: saved" in err


def test_a_stopped_rank_is_named_and_its_stacks_are_written(
    fork_ranks: Any, grounded: ShardSet, tmp_path: Path
) -> None:
    keys = training(grounded, tmp_path, "trainer.hang_seconds=3", "tracking.enabled=false")
    (supervised := tmp_path / "supervised").mkdir()
    process = fork_ranks("launch/pretrain.py", *keys, AVVP_SUPERVISED=str(supervised))
    pid = steps(tmp_path, 2)[1]["pid"]
    os.kill(pid, signal.SIGSTOP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5
    (line,) = [line for line in err.splitlines() if line.startswith("error: no rank has moved")]
    assert f"behind are: rank 1 ({socket.gethostname()}, process {pid}, stopped or gone)" in line
    stacks = tmp_path / "ranks/rank-00001.stacks"
    assert str(stacks) in line
    assert "trainer.py" in stacks.read_text()
    assert "trainer.py" in (tmp_path / "ranks/rank-00000.stacks").read_text()
    reported = [json.loads(end.read_text())["code"] for end in supervised.glob("*.end")]
    assert 5 in reported, "a supervisor would not know"


def test_without_a_supervisor_ranks_do_not_outlive_their_launcher(
    launch: Any, tmp_path: Path
) -> None:
    process = launch(SCRIPT, "watched", str(tmp_path), "60")
    ranks = [psutil.Process(one["pid"]) for one in steps(tmp_path, 2).values()]
    process.kill()  # what is below it becomes an orphan
    _, left = psutil.wait_procs(ranks, timeout=30)
    assert left == []


def test_tasks_of_a_slurm_step_are_ranks(
    fork_ranks: Any, grounded: ShardSet, tmp_path: Path
) -> None:
    """With the variables of `srun`, and no launcher."""
    keys = training(grounded, tmp_path, "trainer.max_steps=3", "tracking.enabled=false")
    tasks = fork_ranks("tests/runtime/slurm_task.py", *keys, SLURM_STEP_NODELIST="localhost")
    _, err = tasks.communicate(timeout=120)
    assert tasks.returncode == 0, err
    assert all(one["ended"] for one in steps(tmp_path, 3).values())


def test_a_training_holds_its_folder_and_its_secret_and_saves_at_sigterm(
    supervise: Supervise, grounded: ShardSet, fork_ranks: Any, empty_store: Path, tmp_path: Path
) -> None:
    out, store = tmp_path / "run", shutil.copy(empty_store, tmp_path)
    keys = training(grounded, out, "trainer.log_every=10")
    process = supervise(
        *deepspeed("launch/pretrain.py", *keys),
        MLFLOW_TRACKING_PASSWORD=SENTINEL,
        MLFLOW_TRACKING_URI=f"sqlite:///{store}",
    )
    ranks = steps(out, 12)
    family = psutil.Process(process.pid).children(recursive=True)
    searched = 0
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # ranks call programs that soon end
            assert SENTINEL not in " ".join(one.cmdline())
            if one.ppid() not in {rank["pid"] for rank in ranks.values()}:  # those have all of it
                assert SENTINEL not in str(one.environ())  # as it was started
                searched += 1
    assert searched >= 4

    second = fork_ranks("launch/pretrain.py", *keys, "tracking.enabled=false", ranks=1)
    _, refused = second.communicate(timeout=60)
    assert second.returncode == 5
    held = f"{out} belongs to a running job: process {ranks[0]['pid']} on {socket.gethostname()}"
    assert held in refused

    process.send_signal(signal.SIGTERM)
    code, printed, err = ends(process, 30)
    assert code == 7
    assert "exit code 7 (preempted)" in verdict(err)
    (saved,) = re.findall(r"preempted: SIGTERM, saved at step (\d+)", err)
    assert (out / f"checkpoints/step-{int(saved):08d}/manifest.json").is_file()
    with claim(out):  # by the next job at once
        pass
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(SENTINEL.encode() in file.read_bytes() for file in written)
    assert SENTINEL not in printed + err
