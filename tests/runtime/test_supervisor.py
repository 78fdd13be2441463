"""The supervisor around launchers that lie, die or stop listening, and around real training."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
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

pytestmark = pytest.mark.launch

MEMBER = f"{shlex.quote(sys.executable)} tests/runtime/member.py"
SENTINEL = "s3ntinel-of-the-tracking-server"
TRAINING = (
    "encoder.size=tiny",
    "trainer.max_steps=100000",
    "trainer.epochs=100000",
    "trainer.batch_size=16",
    "trainer.log_every=1",
    "trainer.checkpoint_every=200",
    "trainer.resume=auto",
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
            env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **environment},
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
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    return ["deepspeed", "--num_accelerators", "2", "--master_port", port, *words]


def training(shards: ShardSet, out: Path, *keys: str) -> list[str]:
    data = (f"data.shards={shards.folder}", f"trainer.out={out}")
    return deepspeed("launch/pretrain.py", *data, *TRAINING, "tracking.enabled=false", *keys)


def steps(out: Path, minimum: int) -> dict[int, dict[str, Any]]:
    """What two ranks say of themselves, once both have made `least` steps."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError):
            found = [json.loads((out / f"ranks/rank-{n:05d}.json").read_text()) for n in (0, 1)]
            if all(one["step"] >= minimum for one in found):
                return dict(enumerate(found))
        time.sleep(0.1)
    raise AssertionError("the ranks make no steps")


def ends(process: subprocess.Popen[str], within: float) -> tuple[int, str, str]:
    """Exit code and output; of the family that it has now, nobody is left."""
    family = psutil.Process(process.pid).children(recursive=True)
    started = time.monotonic()
    out, err = process.communicate(timeout=120)
    assert time.monotonic() - started < within, err
    left = [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert left == [], err
    return process.returncode, out, err


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
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    code, _, err = ends(process, 30)
    assert code == 7
    assert "preempted: saved" in err
    assert "trainer.resume=auto" in verdict(err)


def test_a_rank_that_ignores_signals_is_killed_after_the_grace(supervise: Supervise) -> None:
    process = supervise("--grace", "4", *deepspeed("tests/runtime/member.py", "deaf"))
    assert process.stdout is not None
    for _ in range(2):
        assert any(line == "ready\n" for line in process.stdout), ends(process, 60)
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
        *("--master_addr", "localhost", "tests/runtime/member.py", "environment"),
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


def test_a_killed_rank_ends_the_job_which_held_its_folder_and_its_secret(
    supervise: Supervise, grounded: ShardSet, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = supervise(
        *training(grounded, out, "tracking.enabled=true", "trainer.checkpoint_every=5"),
        MLFLOW_TRACKING_PASSWORD=SENTINEL,
        MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}",
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

    second = subprocess.run(
        [sys.executable, *training(grounded, out)[5:]],
        cwd=root,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 5
    held = f"{out} belongs to a running job: process {ranks[0]['pid']} on {socket.gethostname()}"
    assert held in second.stderr

    os.kill(ranks[1]["pid"], signal.SIGKILL)
    code, printed, err = ends(process, 15)
    assert code == 5
    assert f"rank 1 (pid {ranks[1]['pid']}, {socket.gethostname()}) was killed" in verdict(err)
    with claim(out):  # by the next job at once, though rank 0 may have had no time to let go
        pass
    assert list(out.glob("checkpoints/step-*")), "nothing was searched"
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(SENTINEL.encode() in file.read_bytes() for file in written)
    assert SENTINEL not in printed + err


@pytest.mark.parametrize("victim", ["bin/deepspeed", "deepspeed.launcher.launch"])
def test_a_killed_launcher_leaves_no_ranks_and_no_success(
    victim: str, supervise: Supervise, grounded: ShardSet, tmp_path: Path
) -> None:
    process = supervise(*training(grounded, tmp_path))
    steps(tmp_path, 2)
    family = psutil.Process(process.pid).children(recursive=True)
    launcher = next(one for one in family if victim in " ".join(one.cmdline()[:5]))
    # The first has the second below it, which has the ranks.
    launcher.kill()
    code, _, err = ends(process, 35)
    assert code == 5
    assert "ranks lost their launcher" in verdict(err)
    assert list(tmp_path.glob("checkpoints/step-*/manifest.json")), "they have saved"


def test_a_stopped_rank_is_named_and_its_stacks_are_written(
    supervise: Supervise, grounded: ShardSet, tmp_path: Path
) -> None:
    process = supervise(*training(grounded, tmp_path, "trainer.hang_seconds=5"))
    pid = steps(tmp_path, 2)[1]["pid"]
    os.kill(pid, signal.SIGSTOP)
    code, _, err = ends(process, 30)
    assert code == 5
    (line,) = [line for line in err.splitlines() if line.startswith("error: no rank has moved")]
    assert f"behind are: rank 1 ({socket.gethostname()}, process {pid}, stopped or gone)" in line
    stacks = tmp_path / "ranks/rank-00001.stacks"
    assert str(stacks) in line
    assert "trainer.py" in stacks.read_text()
    assert "trainer.py" in (tmp_path / "ranks/rank-00000.stacks").read_text()


def test_without_a_supervisor_ranks_do_not_outlive_their_launcher(
    launch: Any, grounded: ShardSet, tmp_path: Path
) -> None:
    process = launch(*training(grounded, tmp_path)[5:])
    ranks = [psutil.Process(one["pid"]) for one in steps(tmp_path, 2).values()]
    process.kill()  # what is below it becomes an orphan
    _, left = psutil.wait_procs(ranks, timeout=30)
    assert left == []


def test_tasks_of_a_slurm_step_are_ranks(grounded: ShardSet, root: Path, tmp_path: Path) -> None:
    """With the variables of `srun`, and no launcher."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, *training(grounded, tmp_path, "trainer.max_steps=3")[5:]],
            cwd=root,
            env={**os.environ, **step, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in (0, 1)
    ]
    errors = [task.communicate(timeout=120)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], errors
    assert {one["pid"] for one in steps(tmp_path, 3).values()} == {task.pid for task in tasks}


def test_sigterm_saves_and_says_so(
    supervise: Supervise, grounded: ShardSet, tmp_path: Path
) -> None:
    process = supervise(*training(grounded, tmp_path))
    steps(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    code, _, err = ends(process, 30)
    assert code == 7
    assert "exit code 7 (preempted)" in verdict(err)
    assert "preempted: SIGTERM, saved at step" in err
    assert list(tmp_path.glob("checkpoints/step-*/manifest.json"))
