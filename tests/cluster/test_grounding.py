"""The grounding job under faults: whatever dies, its labels end as those of a job in peace."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from omegaconf import OmegaConf

from avvp_dist.config import GroundConfig
from avvp_dist.errors import ClusterError, DataError
from avvp_dist.grounding.job import ground
from avvp_dist.grounding.version import Grounding
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.runtime.cluster.tasks import ray_cluster
from avvp_dist.shards.schema import PADDING, Clip
from avvp_dist.shards.shard_set import ShardSet

pytestmark = pytest.mark.launch

SHARDS = 40


def started_cluster() -> Any:
    from ray.cluster_utils import Cluster

    return Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster that RAY_ADDRESS names; all jobs of this process share its workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = started_cluster()
        patch.setenv("RAY_ADDRESS", started.address)
        with ray_cluster():
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
    made.tracking.enabled = made.tracking.figures = False
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


def raylet(node: Any) -> int:
    (info,) = node.all_processes["raylet"]
    return int(info.process.pid)


def workers(node: Any) -> list[psutil.Process]:
    """The processes of a Ray node that have a task or wait for one."""
    found = []
    for process in psutil.Process(raylet(node)).children():
        with suppress(psutil.Error):
            if "".join(process.cmdline()).startswith("ray::"):
                found.append(process)
    return found


def stopped_at_work(node: Any) -> psutil.Process | None:
    """A worker that labels a shard just now, stopped by SIGSTOP so that it goes no further."""
    for process in workers(node):
        with suppress(psutil.Error):
            process.suspend()
            # A process that is just ending has no words any more.
            if "".join(process.cmdline()).startswith("ray::ground_shard"):
                return process
            process.resume()
    return None


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
    return [str(root / "tools" / "ground.py"), *keys]


def test_killed_workers_change_nothing(many: Path, peaceful: Path, cluster: Any) -> None:
    dice = random.Random(0)

    def kill() -> None:
        for after in sorted(dice.sample(range(SHARDS // 2), 2)):
            wait_for(lambda after=after: done(many) >= after)
            wait_for(lambda: stopped_at_work(cluster.head_node)).kill()

    with meanwhile(kill):
        ground(config(many))
    assert labels(many) == labels(peaceful)


def test_a_lost_node_changes_nothing(many: Path, peaceful: Path, cluster: Any) -> None:
    node = cluster.add_node(num_cpus=1)
    others = workers(cluster.head_node)

    def lose() -> None:
        try:
            wait_for(lambda: done(many) >= 2)
            worker = wait_for(lambda: stopped_at_work(node))
            cluster.remove_node(node, allow_graceful=False)
            worker.kill()
        finally:
            for process in others:
                process.resume()

    for process in others:  # or they may label all shards before the node is ready
        process.suspend()
    with meanwhile(lose):
        ground(config(many))
    assert labels(many) == labels(peaceful)


def test_a_killed_driver_is_followed_by_one_that_does_the_rest(
    many: Path, peaceful: Path, root: Path, cluster: Any, fork_ranks: Any
) -> None:
    driver = fork_ranks(*command(root, many), ranks=1)
    wait_for(lambda: done(many) >= 2)
    driver.kill()
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
    many: Path, peaceful: Path, root: Path, monkeypatch: pytest.MonkeyPatch, fork_ranks: Any
) -> None:
    doomed = started_cluster()
    try:
        hasty = [str(Path(__file__).with_name("hasty_ground.py")), *command(root, many)[1:]]
        job = fork_ranks(*hasty, ranks=1, RAY_ADDRESS=doomed.address)
        (driver,) = wait_for(lambda: psutil.Process(job.pid).children())
        wait_for(lambda: done(many) >= 2)
        driver.suspend()  # or the worker may do the rest before it dies too
        family = workers(doomed.head_node)
        for kind in ("gcs_server", "raylet"):
            for info in doomed.head_node.all_processes[kind]:
                info.process.kill()
        psutil.wait_procs(family, timeout=3)
        driver.resume()
        _, errors = job.communicate(timeout=60)
    finally:
        doomed.shutdown()
    assert job.returncode == ClusterError.exit_code
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if not line.startswith("grounding:")]
    assert line.startswith("error: ") and "same command again" in line
    assert done(many) < SHARDS
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


def test_two_jobs_at_once_end_with_the_same_bytes(
    many: Path, peaceful: Path, root: Path, fork_ranks: Any
) -> None:
    alone = {"ranks": 1, "RAY_ADDRESS": ""}
    jobs = [fork_ranks(*command(root, many), "workers=1", **alone) for _ in range(2)]
    errors = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    assert labels(many) == labels(peaceful)
    Grounding(ShardSet(many))
