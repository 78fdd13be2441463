"""The formulas of scaling, where a mistake would matter, and what its table says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from avvp_dist.config import PretrainConfig, TrainerConfig
from avvp_dist.errors import ConfigError
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.grounding_model import GroundingBatch, GroundingModel
from avvp_dist.objectives.negative_pool import PoolRows, pool_places
from avvp_dist.objectives.negatives import LinkRule
from avvp_dist.training.footprint import BUCKET, PlannedRanks, Weights, measure

DIMS = {"audio": 128, "visual": 2048}


@pytest.fixture(scope="module")
def scaling(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", root / "tools/bench/scaling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module
    spec.loader.exec_module(module)
    return module


def cluster(scaling: ModuleType, **changed: float) -> object:
    slow = dict.fromkeys(("tflops", "compared", "memory", "intra", "inter", "read"), 1e30)
    return scaling.Cluster(**{**slow, "latency": 0.0, "overlap": 0.0, "node": 8, **changed})


def test_floating_point_operations_are_those_of_the_model(scaling: ModuleType) -> None:
    """With everything else free, a step takes what the module's products do on the meta device."""
    config, clips, ranks, pool = PretrainConfig(), 32, 16, 300
    config.objective.negatives = pool
    config.encoder.size, config.trainer.batch_size = "small", clips * ranks
    meta = torch.device("meta")
    with meta:
        encoder = Encoder(config.encoder, DIMS, 10)
        streams = {name: torch.empty(clips, 10, dim) for name, dim in DIMS.items()}
        components = torch.empty(clips, 10, dtype=torch.int8)
        numbers = torch.empty(clips, dtype=torch.int64)
    planned_ranks = PlannedRanks(0, ranks, meta)
    places = pool_places(pool, clips * ranks, 0, 0, 0)
    rows = PoolRows.choose(places, np.arange(clips), clips, planned_ranks)
    assert rows.order is not None
    batch = GroundingBatch(
        streams=streams,
        lengths=None,
        components=components,
        clips=numbers,
        epoch=0,
        pool_rows=rows.rows.to(meta),
        pool_empty=rows.empty.to(meta),
        pool_order=rows.order.to(meta),
    )
    link_rules = [LinkRule({"audio": 0.5, "visual": 0.5}, "or")]
    model = GroundingModel(
        encoder,
        config.objective,
        hidden_streams=[],
        link_rules=link_rules,
        ranks=planned_ranks,
    )
    found = measure(model, lambda: batch).flops

    layers = sum(p.numel() for p in encoder.layers.parameters() if p.ndim > 1)
    job = scaling.Job(Weights.of(encoder), layers, encoder.width, 10, 2176, 4)
    flop = cluster(scaling, tflops=1.0, compared=1.0)
    planned = 12 * layers * 10 * clips
    planned += scaling.negative_seconds(job, flop, clips, pool)
    # Embeddings and attention are not in the formula; cosines of features have no backward pass.
    embeddings = 6 * 2176 * encoder.width * 10 * clips
    cosines = 2 * 2 * 2176 * clips * 10 * pool * 10
    assert planned + embeddings + cosines == pytest.approx(found, rel=0.05)


def test_between_nodes_goes_a_part_for_each_link(scaling: ModuleType) -> None:
    links = cluster(scaling, intra=100.0, inter=10.0)
    sent = 1000.0 * 15 / 16  # an all-gather of 1,000 bytes on two nodes of eight
    assert scaling.transfer(sent, links, 16) == pytest.approx(8.75 + 1000 / 8 / 2 / 10)
    assert scaling.transfer(1000.0 * 7 / 8, links, 8) == pytest.approx(8.75)
    assert scaling.transfer(0.0, links, 1) == 0.0


def test_messages_hide_behind_the_backward_pass_only_under_zero(scaling: ModuleType) -> None:
    job = scaling.Job(Weights(10 * BUCKET, 0, 0), 1_000_000, 64, 10, 128, 4)

    def found(stage: int, layers: float) -> dict[str, float]:
        """Parts of a step whose gradients take a second, and whose layers take this long."""
        rates = {"tflops": 12 * 1e6 * 10 / layers, "intra": 4.0 * 10 * BUCKET}
        links = cluster(scaling, **rates, overlap=0.5)
        step: dict[str, float] = scaling.step(job, links, TrainerConfig(zero_stage=stage), 2, 1, 1)
        assert step["layers"] == pytest.approx(layers)
        return step

    assert found(0, 1 / 3)["gradients"] == pytest.approx(1.0)
    assert found(1, 1 / 3)["gradients"] == pytest.approx(1.0 - 0.5 * 2 / 3 / 3)
    assert found(1, 30.0)["gradients"] == pytest.approx(1 / 10), "the last bucket is never hidden"


def test_small_batches_take_as_long_as_the_host_launches_them(scaling: ModuleType) -> None:
    job = scaling.Job(Weights(1, 0, 0), 1_000_000, 64, 10, 128, 4, depth=12)
    fixed, layer = scaling.LAUNCHES[1, "bf16"]
    trainer = TrainerConfig(zero_stage=1, precision="bf16")
    host, waits = scaling.host_seconds(job, cluster(scaling, launch=1e-6, wait=1.0), trainer)
    assert host == pytest.approx(1e-6 * (fixed + 12 * layer))
    assert waits >= 1.0

    def step(clips: int, wait: float) -> float:
        rates = cluster(scaling, tflops=12 * 1e6 * 10 / host, launch=1e-6, wait=wait)
        seconds: float = scaling.step(job, rates, trainer, 1, clips, 1)["step"]
        return seconds

    assert step(1, 0.0) == pytest.approx(host), "a clip takes the device as long as the host a step"
    assert step(3, 0.0) == pytest.approx(3 * host)
    assert step(3, 1.0) == pytest.approx(3 * host + waits)


def measured_on_a_gpu(tmp_path: Path, **rates: float) -> Path:
    rows = [
        {"clips": int(clips[1:]), "precision": "bf16", "zero_stage": 0, "clips_per_second": rate}
        for clips, rate in rates.items()
    ]
    rows = [{**row, "compiled": False} for row in rows] + [{**rows[0], "compiled": True}]
    profile = {"precision": "bf16", "zero_stage": 0, "host_seconds_per_step": 0.25}
    file = tmp_path / "gpu-check.json"
    file.write_text(json.dumps({"size": "paper", "throughput": rows, "profile": profile}))
    return file


def test_measured_steps_take_the_place_of_assumed_rates(
    scaling: ModuleType, tmp_path: Path
) -> None:
    file = measured_on_a_gpu(tmp_path, _64=256.0, _256=512.0, _1024=1024.0)
    trainer = TrainerConfig(zero_stage=0, precision="bf16")
    measured = scaling.Measured.read(file, "paper", trainer)
    clips = (16, 64, 160, 256, 1024, 2048)
    expected = (0.1875, 0.25, 0.375, 0.5, 1.0, 1.0 + 1024 / 768 * 0.5)
    assert [measured.step(n) for n in clips] == pytest.approx(expected)
    job = scaling.Job(Weights(BUCKET, 0, 0), 1_000_000, 64, 10, 128, 4, depth=12)
    links = cluster(scaling, intra=1e9, launch=1.0, wait=1.0)
    one, two = (scaling.step(job, links, trainer, gpus, 256, 256, measured) for gpus in (1, 2))
    assert one["step"] == pytest.approx(0.5) and one["launches"] == 0.25
    assert two["step"] == pytest.approx(0.5 + two["gradients"] + two["exchange"])
    assert two["gradients"] > 0


def test_what_was_not_measured_is_named(scaling: ModuleType, tmp_path: Path) -> None:
    file = measured_on_a_gpu(tmp_path, _64=256.0)
    for size, stage in (("base", 0), ("paper", 3)):
        with pytest.raises(ConfigError, match=rf"no step of {size} .*It has paper bf16 0"):
            scaling.Measured.read(file, size, TrainerConfig(zero_stage=stage, precision="bf16"))
    file.write_text("[]")
    with pytest.raises(ConfigError, match="no result of make gpu-check"):
        scaling.Measured.read(file, "paper", TrainerConfig())


def test_the_table_is_of_the_numbers_given(root: Path) -> None:
    command = [sys.executable, str(root / "tools/bench/scaling.py"), "--gpus", "1", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    head, _, one, many = done.stdout.splitlines()
    assert head.count("|") == one.count("|") == many.count("|")
    assert "100.0%" in one and many.startswith("| 16 | 4,096 |")
