"""Tasks on Ray: those of our stages, and Ray's errors as ours."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import DecontaminateConfig, PackConfig, TrackingConfig
from avvp_dist.decontamination.job import decontaminate
from avvp_dist.errors import AvvpError, ClusterError, DataError
from avvp_dist.packing.job import pack
from avvp_dist.runtime.cluster.hosts import gpus_of_tasks
from avvp_dist.runtime.cluster.tasks import map_tasks, result, start_ray
from avvp_dist.shards.shard_set import ShardSet

pytestmark = pytest.mark.launch

CORES = 2
STREAMS = ("audio", "visual")
OFF = TrackingConfig(enabled=False)

JOIN = """
from avvp_dist.runtime.cluster.tasks import start_ray
from avvp_dist.entry import run
run(start_ray)
"""


def test_a_cluster_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at RAY_ADDRESS={address}"):
        start_ray()
    assert time.monotonic() - started < 20


def test_no_home_is_needed() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**kept, "HOME": os.devnull},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_address_that_is_none_is_said() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**os.environ, "RAY_ADDRESS": "nonsense"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == ClusterError.exit_code, ended.stderr
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error")]
    assert "RAY_ADDRESS" in line


@pytest.fixture(scope="module")
def remote(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Starts a function as a Ray task and returns its reference.

    TMPDIR is that of a Slurm job, whose path is too long for Ray's sockets.
    """
    import ray

    (folder := tmp_path_factory.mktemp("p" * 60) / "1355700/tmp.t0016").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("TMPDIR", str(folder))
        start_ray(CORES)
        # A function of this module is unknown to a worker; those within a test travel whole.
        yield lambda function: ray.remote(max_retries=0)(function).remote()
        ray.shutdown()


def test_the_cores_are_as_many_as_asked_for(remote: Any) -> None:
    import ray

    assert ray.cluster_resources()["CPU"] == CORES


def test_a_task_that_fits_no_host_is_refused(remote: Any) -> None:
    with pytest.raises(ClusterError, match=f"naming needs 99 cores .*has {CORES:g} and 0"):
        list(map_tasks(str, [(1,), (2,)], 0, "naming", cpus=99))


def test_a_cluster_without_gpus_computes_on_the_cpu_and_says_so(
    remote: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert gpus_of_tasks(1, 2.0, "naming") == 0
    assert "no host of the Ray cluster has a GPU: naming runs on the CPU" in capfd.readouterr().err


def test_a_finished_task_gives_its_value(remote: Any) -> None:
    assert result(remote(lambda: 7), "seven") == 7


def test_our_error_comes_back_as_itself(remote: Any) -> None:
    def fail() -> None:
        raise DataError("clip 3 is damaged", remedy="Pack it again")

    with pytest.raises(DataError) as error:
        result(remote(fail), "packing")
    assert str(error.value) == "clip 3 is damaged. Pack it again"
    assert error.value.exit_code == DataError.exit_code


def test_any_other_error_names_its_task(remote: Any) -> None:
    with pytest.raises(ClusterError, match=r"the quotient failed: ZeroDivisionError"):
        result(remote(lambda: 1 / 0), "the quotient")


def test_a_call_that_kills_its_worker_is_tried_four_times_and_lost(
    remote: Any, tmp_path: Path
) -> None:
    def deadly(number: int) -> int:
        if number == 3:
            with (tmp_path / "tries").open("a") as file:
                file.write("x")
            os._exit(9)
        return number

    calls = [(number,) for number in range(8)]
    found = list(map_tasks(deadly, calls, 0, "the dead one", keep_going=True))
    (error,) = [outcome for outcome in found if isinstance(outcome, AvvpError)]
    assert isinstance(error, ClusterError)
    assert re.match("the dead one was lost: .*same command again", str(error))
    assert "\n" not in str(error)
    assert sorted(set(found) - {error}) == [0, 1, 2, 4, 5, 6, 7]
    assert (tmp_path / "tries").read_text() == "xxxx"


class Counted(Sequence[tuple[Any, ...]]):
    """Calls, and how many of them were taken."""

    def __init__(self, count: int) -> None:
        self.count, self.taken = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> Any:
        if number >= self.count:
            raise IndexError
        self.taken += 1
        return (number,)


@pytest.mark.parametrize("keep_going", [False, True])
def test_no_more_tasks_wait_than_two_a_core(remote: Any, keep_going: bool) -> None:
    calls, given = Counted(40), []
    for value in map_tasks(lambda n: n, calls, 0, "the task", keep_going=keep_going):
        assert calls.taken <= len(given) + 2 * CORES
        given.append(value)
    assert sorted(given) == list(range(40))


def packed_set(source: Path, out: Path, content: np.ndarray[Any, Any], workers: int) -> Path:
    """A shard set whose clips have random streams, the same where their number is."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((20, 10, 24), np.float32) for name in STREAMS}
    source.mkdir(exist_ok=True)
    names = [f"{out.name}-{n}_0_10" for n in range(len(content))]
    given = {name: array[content] for name, array in arrays.items()}
    np.savez(source / "features_train.npz", filenames=np.array(names), **given)
    keys = {"clips_per_shard": 5, "extractor": "x", "workers": workers, "tracking": OFF}
    return pack(PackConfig(source=str(source), out=str(out), **keys)).folder


def test_stages_write_the_same_bytes_as_in_one_process(remote: Any, tmp_path: Path) -> None:
    held = packed_set(tmp_path / "source", tmp_path / "held", np.array([7, 9]), 1)
    found = []
    for workers in (1, CORES):
        out = tmp_path / str(workers) / "set"
        out.parent.mkdir()
        twice = np.array([*range(15), 3, 4])
        packed_set(tmp_path / "source", out, twice, workers)
        keys = {"against": [str(held)], "workers": workers, "tracking": OFF}
        decontaminate(DecontaminateConfig(shards=str(out), **keys))
        files = [path for path in out.iterdir() if path.suffix in (".tar", ".npy", ".csv")]
        found.append({path.name: path.read_bytes() for path in [*files, out / "manifest.json"]})
    one, several = found
    assert one == several
    assert len([name for name in one if name.endswith(".tar")]) == 4
    excluded = ShardSet(out).manifest.excluded
    assert excluded is not None
    reasons = excluded.reasons
    assert reasons == {"id": 0, "embedding": 2, "duplicate": 2}
