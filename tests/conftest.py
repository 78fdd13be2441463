"""Fixtures of every test: the checkout, the shared reference data, a small packed corpus."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from avvp_dist.config import (
    CalibrateConfig,
    GroundConfig,
    PackConfig,
    SimulateConfig,
    TrackingConfig,
)
from avvp_dist.grounding.calibrate import calibrate
from avvp_dist.grounding.job import ground
from avvp_dist.packing.job import pack
from avvp_dist.packing.simulation import simulate
from avvp_dist.shards.shard_set import ShardSet
from tests.forked_ranks import FIXED, RANK_VARIABLES, Job
from tests.tracking.servers import Server, free_port
from tests.warm_workers import WarmWorkers

ROOT = Path(__file__).resolve().parents[1]
gc.set_threshold(50_000)  # as in tests/startup: little of what tests import and make is garbage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that start processes first: two workers then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("launch")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data beside the checkout; a test that asks for it is marked `shared`."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data is not here")
    return folder


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated features with annotations: 96 train, 24 val and 24 test clips."""
    out = tmp_path_factory.mktemp("features")
    return simulate(
        SimulateConfig(out=str(out), train=96, val=24, test=24, audio_dim=12, visual_dim=16)
    )


@pytest.fixture(scope="session")
def packed(features: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    """The splits of `features` as shard sets; train has three shards of 40, 40 and 16 clips."""
    out = tmp_path_factory.mktemp("shards")
    return {
        split: pack(
            PackConfig(
                source=str(features),
                split=split,
                out=str(out / split),
                clips_per_shard=40,
                extractor="simulated",
                workers=1,
                tracking=TrackingConfig(enabled=False),
            )
        )
        for split in ("train", "val", "test")
    }


@pytest.fixture(scope="session")
def grounded(packed: dict[str, ShardSet]) -> ShardSet:
    """The train shards of `packed`, calibrated and grounded."""
    train, tracking = packed["train"], TrackingConfig(enabled=False, figures=False)
    calibrate(CalibrateConfig(shards=str(train.folder), workers=1, tracking=tracking))
    ground(GroundConfig(shards=str(train.folder), workers=1, tracking=tracking))
    return train


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `connect` would put into the environment for good, for training in this process."""
    for key in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(key, "0")
    for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(key, "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """Start `deepspeed SCRIPT KEY=VALUE ...` on two ranks; what still runs ends with the tests."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *keys: str, ranks: int = 2, **environment: str) -> subprocess.Popen[str]:
        deepspeed = Path(sys.executable).with_name("deepspeed")
        process = subprocess.Popen(
            [
                deepspeed,
                "--num_accelerators",
                str(ranks),
                "--master_port",
                str(free_port()),
                script,
                *keys,
            ],
            cwd=ROOT,
            env={**os.environ, **FIXED, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for child in psutil.Process(process.pid).children(recursive=True) if _runs(process) else []:
            child.kill()
        process.kill()


Fork = Callable[..., Job]


@pytest.fixture(scope="session")
def fork_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fork]:
    """Start the ranks of `SCRIPT KEY=VALUE ...` in a second, without a launcher (two of them)."""
    logs = tmp_path_factory.mktemp("logs")
    started: list[Job] = []

    def start(script: str, *keys: str, ranks: int = 2, **environment: str) -> Job:
        to_meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        kept = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        variables = {**kept, **FIXED, **to_meet, **environment}
        started.append(Job([script, *keys], variables, ranks, logs / str(len(started))))
        return started[-1]

    yield start
    for job in started:
        job.kill()


@pytest.fixture(scope="session")
def warm_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmWorkers]:
    """Ray's workers start in a second where the driver has `warm_workers.variables`."""
    made = WarmWorkers(tmp_path_factory.mktemp("warm"))
    yield made
    made.end()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables, which take seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def server(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server that MLFLOW_TRACKING_URI names."""
    shutil.copy(empty_store, tmp_path / "server.db")
    made = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    try:
        made.start()
        yield made
    finally:
        made.kill()


Disk = Callable[[str], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of its own, of a size such as `200k`."""
    folder = tmp_path / "disk"
    mounted = False

    def mount(size: str) -> Path:
        nonlocal mounted
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting needs root")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def _runs(process: subprocess.Popen[str]) -> bool:
    return process.poll() is None
