"""The grounding job under faults: whatever dies, its labels end as those of a job in peace."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from omegaconf import OmegaConf

from avvp_dist.config import GroundConfig
from avvp_dist.errors import AvvpError, ClusterError, DataError
from avvp_dist.grounding.job import ground
from avvp_dist.grounding.version import Grounding
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.runtime.ray_tasks import map_tasks
from avvp_dist.shards.schema import PADDING, Clip
from avvp_dist.shards.shard_set import ShardSet

pytestmark = pytest.mark.launch

SHARDS = 40


def started_cluster() -> Any:
    from ray.cluster_utils import Cluster

    return Cluster(True, head_node_args={"num_cpus": 2, "include_dashboard": False})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster that RAY_ADDRESS names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = started_cluster()
        patch.setenv("RAY_ADDRESS", started.address)
        yield started
        started.shutdown()


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of many small shards with its thresholds, grounded without Ray."""
    folder = tmp_path_factory.mktemp("grounding") / "peaceful"
    rng = np.random.default_rng(0)
    clips = (
        Clip(f"c{n}", {name: rng.standard_normal((10, 8)) + 0.5 for name in ("audio", "visual")})
        for n in range(2 * SHARDS)
    )
    write_shard_set(clips, folder, clips_per_shard=2)
    chosen = {"thresholds": {"audio": 0.6, "visual": 0.6}, "extractor": ""}
    OmegaConf.save(OmegaConf.create(chosen), folder / "thresholds.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ground(config(folder, workers=1))
    return folder


@pytest.fixture
def many(peaceful: Path, tmp_path: Path) -> Path:
    """The same, without its labels."""
    ignored = shutil.ignore_patterns("grounding")
    return shutil.copytree(peaceful, tmp_path / "many", ignore=ignored)


def config(folder: Path, **keys: Any) -> GroundConfig:
    made = GroundConfig(shards=str(folder), version="tested", **keys)
    made.tracking.enabled = False
    return made


def results(folder: Path) -> Path:
    return folder / "grounding" / "tested"


def labels(folder: Path) -> dict[str, bytes]:
    """Every file that a shard's task commits."""
    return {path.name: path.read_bytes() for path in results(folder).glob("shard-*")}


def done(folder: Path) -> int:
    return len(list(results(folder).glob("shard-*.json")))


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
    return found


def workers(raylet: int) -> list[psutil.Process]:
    """The processes of a Ray node that label a shard just now."""
    found = []
    for process in psutil.Process(raylet).children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::ground_shard"):
                found.append(process)
    return found


def raylet(node: Any) -> int:
    (info,) = node.all_processes["raylet"]
    return int(info.process.pid)


@contextmanager
def meanwhile(fault: Callable[[], None]) -> Iterator[None]:
    """Something happens beside; it must have."""
    failed: list[BaseException] = []

    def act() -> None:
        try:
            fault()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    yield
    thread.join()
    assert not failed, failed


def command(root: Path, folder: Path) -> list[str]:
    keys = [f"shards={folder}", "version=tested", "tracking.enabled=false"]
    return [sys.executable, str(root / "tools" / "ground.py"), *keys]


def test_killed_workers_change_nothing(many: Path, peaceful: Path, cluster: Any) -> None:
    dice, node = random.Random(0), raylet(cluster.head_node)

    def kill() -> None:
        part = SHARDS // 8
        for turn in range(5):
            after = 1 + turn * part + dice.randrange(part)
            wait_for(lambda after=after: done(many) >= after)
            dice.choice(wait_for(lambda: workers(node))).kill()

    with meanwhile(kill):
        ground(config(many))
    assert labels(many) == labels(peaceful)


def test_a_lost_node_changes_nothing(many: Path, peaceful: Path, cluster: Any) -> None:
    node = cluster.add_node(num_cpus=2)

    def kill() -> None:
        wait_for(lambda: workers(raylet(node)))
        cluster.remove_node(node, allow_graceful=False)

    with meanwhile(kill):
        ground(config(many))
    assert labels(many) == labels(peaceful)


def test_a_killed_driver_is_followed_by_one_that_does_the_rest(
    many: Path, peaceful: Path, root: Path, cluster: Any
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    line = command(root, many)
    process = subprocess.Popen(line, env=environment, start_new_session=True, **quiet)
    try:
        wait_for(lambda: done(many) >= 2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = {path: path.stat().st_mtime_ns for path in results(many).glob("shard-*.json")}
    assert 2 <= len(before) < SHARDS
    (results(many) / f".shard-{SHARDS - 1:06d}.npy.0123456789ab.tmp").write_bytes(b"half")
    with pytest.raises(DataError, match="no finished grounding"):
        Grounding(ShardSet(many), results(many))
    ground(config(many))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert labels(many) == labels(peaceful)
    Grounding(ShardSet(many))


def test_a_head_that_dies_ends_the_command_with_one_line(
    many: Path, peaceful: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = started_cluster()
    process = subprocess.Popen(
        command(root, many),
        env={**os.environ, "RAY_ADDRESS": doomed.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: done(many) >= 2)
        process.send_signal(signal.SIGSTOP)  # or the workers may do the rest before they die too
        family = psutil.Process(raylet(doomed.head_node)).children(recursive=True)
        for kind in ("gcs_server", "raylet"):
            for info in doomed.head_node.all_processes[kind]:
                info.process.kill()
        psutil.wait_procs(family, timeout=10)  # agents live longer
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        doomed.shutdown()
    assert process.returncode == ClusterError.exit_code
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if not line.startswith("grounding:")]
    assert line.startswith("error: ") and "same command again" in line
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ground(config(many, workers=1))
    assert labels(many) == labels(peaceful)


def test_a_shard_that_never_succeeds_is_named_and_the_others_are_done(
    many: Path, peaceful: Path, cluster: Any
) -> None:
    (results(many) / "shard-000007.npy").mkdir(parents=True)  # no file can take its place
    with pytest.raises(
        ClusterError, match=rf"1 of {SHARDS} shards are not grounded.*shard-000007\.tar"
    ):
        ground(config(many))
    assert done(many) == SHARDS - 1
    (results(many) / "shard-000007.npy").rmdir()
    ground(config(many))
    assert labels(many) == labels(peaceful)


def test_a_call_that_kills_its_worker_is_tried_four_times(tmp_path: Path, cluster: Any) -> None:
    def deadly(number: int) -> int:
        if number == 3:
            with (tmp_path / "tries").open("a") as file:
                file.write("x")
            os._exit(9)
        return number

    calls = [(number,) for number in range(8)]
    found = list(map_tasks(deadly, calls, 0, "the task", keep_going=True))
    (error,) = [outcome for outcome in found if isinstance(outcome, AvvpError)]
    assert "the task was lost" in str(error)
    assert sorted(set(found) - {error}) == [0, 1, 2, 4, 5, 6, 7]
    assert (tmp_path / "tries").read_text() == "xxxx"


def test_a_damaged_shard_is_left_out_and_labelled_when_it_is_mended(
    many: Path, peaceful: Path, cluster: Any
) -> None:
    shard = many / "shard-000007.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    with pytest.raises(
        DataError, match=rf"2 of {2 * SHARDS} clips cannot be read: .*shard-000007\.tar"
    ):
        ground(config(many))
    assert done(many) == SHARDS
    ground(config(many, max_bad_fraction=0.03))
    grounding = Grounding(ShardSet(many))
    assert grounding.summary.counts["unreadable"] == 2
    unlabelled = np.flatnonzero((grounding.components == PADDING).all(1))
    np.testing.assert_array_equal(unlabelled, [14, 15])

    shard.write_bytes(whole)
    before = {path: path.stat().st_mtime_ns for path in results(many).glob("shard-*")}
    ground(config(many))
    redone = {path.stem for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert redone == {"shard-000007"}
    assert labels(many) == labels(peaceful)


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
def test_no_more_tasks_wait_than_two_a_core(cluster: Any, keep_going: bool) -> None:
    calls, given = Counted(40), []
    for value in map_tasks(lambda n: n, calls, 0, "the task", keep_going=keep_going):
        assert calls.taken <= len(given) + 2 * 2
        given.append(value)
    assert sorted(given) == list(range(40))


def test_two_jobs_at_once_end_with_the_same_bytes(
    many: Path, peaceful: Path, root: Path, cluster: Any
) -> None:
    pipe = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    jobs = [subprocess.Popen(command(root, many), **pipe) for _ in range(2)]
    errors = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    assert labels(many) == labels(peaceful)
    Grounding(ShardSet(many))
