"""Hosts that join a Ray cluster while tasks wait for them, and who sees which of their GPUs."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import DecontaminateConfig, TrackingConfig
from avvp_dist.decontamination import job
from avvp_dist.errors import ClusterError
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.runtime.cluster.hosts import capacity, gpus_of_tasks, may_grow
from avvp_dist.runtime.cluster.tasks import map_tasks, ray_cluster
from avvp_dist.shards.schema import Clip
from avvp_dist.similarity import embeddings
from avvp_dist.task_gpu import use_gpu

pytestmark = pytest.mark.launch

FAISS = '''
"""The installed faiss, as a build for GPUs that writes down who uses which of them."""

import json, os, sys

sys.path.remove(os.path.dirname(os.path.dirname(__file__)))
del sys.modules["faiss"]
import faiss

def told(what, device=None):
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    with open(os.environ["FAISS_CALLS"], "a") as file:
        print(json.dumps([os.getpid(), visible, what, device]), file=file)

class StandardGpuResources:
    def __init__(self):
        told("resources")

def index_cpu_to_gpu(resources, device, index):
    assert isinstance(resources, StandardGpuResources)
    told("index", device)
    return index

def get_num_gpus():
    return len(os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) or 2

faiss.StandardGpuResources = StandardGpuResources
faiss.index_cpu_to_gpu, faiss.get_num_gpus = index_cpu_to_gpu, get_num_gpus
'''


@pytest.fixture(scope="module")
def calls_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calls") / "calls"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, calls_file: Path) -> Iterator[Any]:
    """A head without cores that RAY_ADDRESS names; its hosts have a faiss that claims two GPUs."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("modules")
    (folder / "faiss").mkdir()
    (folder / "faiss/__init__.py").write_text(FAISS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.setenv("FAISS_CALLS", str(calls_file))
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        head = {"num_cpus": 0, "include_dashboard": False, "no_monitor": True}
        started = Cluster(True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", started.address)
        with ray_cluster():
            yield started
        started.shutdown()


WITHOUT_AUTOSCALER, AUTOSCALER = (("ab", "node_ab"),), (("ab", "node_ab"), ("cd", "workers"))
"""Types of hosts as Ray 2.60 reports them."""


def report(*types: tuple[str, str]) -> None:
    """Report the types of hosts in the place of Ray's monitor."""
    from ray.experimental.internal_kv import _internal_kv_put

    told = {"monitor_pid": 1, "autoscaler_report": {"node_type_mapping": dict(types)}}
    _internal_kv_put("__autoscaling_status", json.dumps(told), overwrite=True)


class Calls(Sequence[tuple[int]]):
    """Forty calls that are taken from an iterator."""

    def __init__(self, calls: Iterator[tuple[int]]) -> None:
        self._calls = calls

    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Iterator[tuple[int]]:
        return self._calls

    def __getitem__(self, number: Any) -> Any:
        raise NotImplementedError


def test_an_autoscaler_is_known_by_the_types_of_its_hosts(cluster: Any) -> None:
    assert may_grow() is None
    report(*WITHOUT_AUTOSCALER)
    assert may_grow() is False
    report(*AUTOSCALER)
    assert may_grow() is True


def test_tasks_wait_for_hosts_and_use_those_that_join(
    cluster: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(number: int) -> tuple[float, float]:
        began = time.monotonic()
        time.sleep(0.2)
        return began, time.monotonic()

    def run() -> None:
        spans = []
        with closing(map_tasks(work, [(n,) for n in range(200)], 0, "a task")) as results:
            for span in results:
                spans.append(span)
                most.append(max(sum(a <= b < c for a, c in spans) for b, _ in spans))
                if most[-1] == 3:
                    break

    report(*WITHOUT_AUTOSCALER)
    most = [0]
    tasks = threading.Thread(target=run, daemon=True)
    tasks.start()
    add_hosts(cluster)
    tasks.join(60)
    line = "waiting for a host with 1 core and 0 GPUs, which a task needs"
    assert capfd.readouterr().err.count(line) == 1
    assert most[-1] == 3  # at once, although the cluster had no core when the tasks began


@pytest.fixture
def hosts(cluster: Any) -> None:
    """A host with one core, and one with two cores and two GPUs."""
    if not cluster.worker_nodes:
        add_hosts(cluster)


def add_hosts(cluster: Any) -> None:
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=2, num_gpus=2)


def test_what_fits_no_host_is_refused_where_none_is_added(hosts: None) -> None:
    assert (capacity(1, 0), capacity(2, 0), capacity(1, 0.5), capacity(1, 2)) == (3, 1, 2, 1)
    report(*WITHOUT_AUTOSCALER)
    with pytest.raises(ClusterError, match=r"a task needs 1 core and 3 GPUs .*has 2 and 2"):
        gpus_of_tasks(1, 3, "a task")


def test_an_autoscaler_is_asked_for_hosts_by_tasks_that_wait(
    hosts: None, capfd: pytest.CaptureFixture[str]
) -> None:
    report(*AUTOSCALER)
    assert gpus_of_tasks(1, 3, "a task") == 3
    line = "waiting for a host with 1 core and 3 GPUs, which a task needs"
    assert line in capfd.readouterr().err
    for limit, in_flight in ((0, 40), (2, 2)):
        calls = iter((n,) for n in range(40))
        with closing(map_tasks(abs, Calls(calls), limit, "a task")) as results:
            next(results)
        assert len(list(calls)) == 40 - in_flight


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_task_sees_its_own_gpu_and_no_other(hosts: None, gpus: int) -> None:
    def see(_: int) -> tuple[str, bool, str]:
        variables = os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("DS_ACCELERATOR", "")
        return variables[0], use_gpu("torch", lambda: True), variables[1]

    found = set(map_tasks(see, [(1,), (2,)], 0, "a task", gpus=gpus))
    assert found <= ({("0", True, ""), ("1", True, "")} if gpus else {("", False, "cpu")})


def test_decontamination_searches_on_the_gpu_of_each_task_alone(
    hosts: None, calls_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).standard_normal((12, 10, 8)).astype(np.float32)
    clips = (Clip(f"c{n}", {"audio": rows[n % 10], "visual": rows[n % 10]}) for n in range(12))
    shards = write_shard_set(clips, tmp_path / "set", clips_per_shard=12).folder
    monkeypatch.setattr(embeddings, "BLOCK", 3)
    monkeypatch.setattr(job, "GPU", True)
    keys = {"shards": str(shards), "against": [], "tracking": TrackingConfig(enabled=False)}
    excluded = job.decontaminate(DecontaminateConfig(**keys)).read_text()
    calls = [json.loads(line) for line in calls_file.read_text().splitlines()]
    with monkeypatch.context() as patch:
        patch.delenv("RAY_ADDRESS")
        alone = job.decontaminate(DecontaminateConfig(**keys, workers=1, gpus=0.0)).read_text()
    assert excluded == alone
    assert excluded.count("duplicate") == 2
    assert {visible for _, visible, _, _ in calls} <= {"0", "1"}
    by_process = defaultdict(Counter[Any])
    for process, _, what, device in calls:
        by_process[process][what, device] += 1
    assert len(by_process) == 2  # a task for each GPU has half of the ten pairs of blocks
    assert all(one == {("resources", None): 1, ("index", 0): 5} for one in by_process.values())
