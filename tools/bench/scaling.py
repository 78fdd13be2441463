"""Estimate of scaling to many GPUs, by the formulas of docs/scaling.md and your numbers.

    python tools/bench/scaling.py                        # 1 to 512 GPUs
    python tools/bench/scaling.py --negatives 0          # or --global-batch 8192
    python tools/bench/scaling.py --count                # sizes of messages, measured

The table is not measured: it follows from the numbers given. `--count` trains on two gloo ranks
under each ZeRO stage and counts the bytes of every collective of a step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from avvp_dist.commit import write_json
from avvp_dist.config import (
    SIZES,
    EncoderConfig,
    GroundConfig,
    PretrainConfig,
    TrackingConfig,
    TrainerConfig,
)
from avvp_dist.config.files import load
from avvp_dist.entry import run
from avvp_dist.errors import ClusterError
from avvp_dist.grounding.job import ground
from avvp_dist.models.encoder import Encoder
from avvp_dist.objectives.negatives import CELLS
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.runtime.ranks import Ranks, connect
from avvp_dist.shards.schema import Clip
from avvp_dist.tasks.pretraining import open_pretraining
from avvp_dist.tracking.run import Run
from avvp_dist.training.footprint import BUCKET, FLAT, Weights, exchanged, messages
from avvp_dist.training.trainer import Trainer

PAIRS = {"uni": 2, "cross": 2, "multi": 4}
"""Pairs of modalities that an objective compares: q."""
COUNTED = ("weights", "weights_planned", "exchange", "exchange_planned")
"""Bytes that a rank sends in a step: counted, and by formula."""


@dataclass(frozen=True)
class Job:
    """Sizes of the model and of its input."""

    weights: Weights
    layers: int
    """P: weights of the transformer's layers, where the FLOP are."""
    width: int
    snippets: int
    features: int
    """F: numbers of a snippet over all streams, all of which are compared."""
    pairs: int


@dataclass(frozen=True)
class Cluster:
    """Rates stated or assumed, in FLOP/s, bytes/s and seconds, per GPU where not said otherwise."""

    tflops: float
    compared: float
    """FLOP/s of products of representations and features with those of negatives."""
    memory: float
    intra: float
    inter: float
    read: float
    latency: float
    overlap: float
    node: int


def main() -> None:
    arguments = _arguments()
    if arguments.worker:
        count(arguments)
    elif arguments.count:
        print(counted())
    else:
        print(table(arguments))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--gpus", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    add("--size", default="paper", choices=SIZES)
    add("--audio", type=int, default=128, help="numbers of a snippet's audio features")
    add("--visual", type=int, default=2048, help="and of its visual ones, all streams")
    add("--snippets", type=int, default=10, help="T")
    add("--objective", default="multi", choices=PAIRS)
    add("--negatives", type=int, default=256, help="objective.negatives; 0: the whole batch")
    add("--batch-per-gpu", type=int, default=256, help="clips of a GPU's micro-batch")
    add("--global-batch", type=int, default=0, help="instead: clips of all GPUs' micro-batches")
    add("--zero", type=int, default=1, choices=(0, 1, 2, 3))
    add("--precision", default="bf16", choices=("bf16", "fp32"))
    add("--clips", type=int, default=2_000_000)
    add("--epochs", type=int, default=30)
    add("--node", type=int, default=8, help="GPUs of a node")
    add("--tflops", type=float, default=400, help="TFLOP/s that a GPU reaches in the layers")
    add("--compared", type=float, default=200, help="TFLOP/s in TF32, in which negatives are")
    add("--memory", type=float, default=2500, help="GB/s that a GPU reaches in its own memory")
    add("--intra", type=float, default=450, help="GB/s of a GPU to others of its node, one way")
    add("--inter", type=float, default=50, help="GB/s of a GPU out of its node, one way")
    add("--read", type=float, default=10, help="GB/s that a node reads from storage")
    add("--latency", type=float, default=10, help="microseconds of one hop of a message")
    add(
        "--overlap",
        type=float,
        default=0.7,
        help="part of the backward pass that hides messages",
    )
    add("--count", action="store_true", help="train on two ranks here and count messages")
    add("--worker", default="", help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# The formulas


def step(
    job: Job, cluster: Cluster, trainer: TrainerConfig, gpus: int, micro: int, maximum: int
) -> dict[str, float]:
    """Seconds of each part of a step of one micro-batch, and of the whole.

    Args:
        micro: clips of a GPU's micro-batch.
        maximum: clips that each clip is compared with; 0: all clips of all GPUs.
    """
    pool = min(gpus * micro, maximum or gpus * micro)
    compute = 12 * job.layers * job.snippets * micro / cluster.tflops
    negatives = negative_seconds(job, cluster, micro, pool)
    sent = messages(job.weights, trainer, gpus)
    seconds = {name: transfer(size, cluster, gpus) for name, size in sent.items()}
    hops = 2 * math.ceil(math.log2(gpus)) * cluster.latency
    buckets = math.ceil(job.weights.trained / (BUCKET if trainer.zero_stage else FLAT))
    gradients = seconds["gradients"] + buckets * hops
    # Backwards is two thirds of a step, and when it ends the last bucket has still to go.
    hidden = cluster.overlap * (compute + negatives) * 2 / 3
    gradients = max(gradients / buckets, gradients - hidden)
    # Stage 3 gathers by layers, which are about a bucket; 1 and 2 each group of parameters whole.
    gathers = {0: 0, 3: buckets}.get(trainer.zero_stage, 2)
    exchange = 0.0
    if gpus > 1:
        sent_for_pool = exchanged(pool, job.snippets, job.width, job.features, gpus)
        exchange = transfer(sum(sent_for_pool.values()), cluster, gpus)
        exchange += len(sent_for_pool) * hops
    owned = job.weights.trained / (gpus if trainer.zero_stage else 1)
    parts = {
        "layers": compute,
        "negatives": negatives,
        "gradients": gradients,
        "parameters": seconds["parameters"] + gathers * hops,
        "exchange": exchange,
        "update": 28 * owned / cluster.memory,
    }
    reading = 2 * job.snippets * job.features * micro * min(gpus, cluster.node) / cluster.read
    return {**parts, "reading": reading, "step": max(sum(parts.values()), reading)}


def negative_seconds(job: Job, cluster: Cluster, clips: int, pool: int) -> float:
    """Seconds in which a GPU compares its clips with a pool of clips.

    They are those of the products, and of the work on each cell of each pair, which is bound by
    memory (docs/scaling.md counts the bytes).
    """
    cells = clips * job.snippets * pool * job.snippets
    flop = cells * (6 * job.pairs * job.width + 2 * job.features)
    pairs = job.pairs * (62 if cells <= CELLS else 95)  # more are computed again backwards
    return flop / cluster.compared + cells * (pairs + 72) / cluster.memory


def transfer(sent: float, cluster: Cluster, gpus: int) -> float:
    """Seconds in which each GPU sends `sent` bytes of a ring collective over all GPUs.

    Only sums or copies of a node's part go between nodes, over all its links at once: of S bytes,
    S (g-1)/g stay in a node of g GPUs and S/g (M-1)/M leave it, with M nodes.
    """
    if gpus == 1:
        return 0.0
    size = sent * gpus / (gpus - 1)
    inside = min(gpus, cluster.node)
    nodes = math.ceil(gpus / cluster.node)
    within = size * (inside - 1) / inside / cluster.intra
    return within + size / inside * (nodes - 1) / nodes / cluster.inter


def job_of(arguments: argparse.Namespace) -> Job:
    """The encoder of a size, counted on the meta device."""
    dims = {"audio": arguments.audio, "visual": arguments.visual}
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig(size=arguments.size), dims, arguments.snippets)
    layers = sum(p.numel() for p in encoder.layers.parameters() if p.ndim > 1)
    features = sum(dims.values())
    pairs = PAIRS[arguments.objective]
    return Job(Weights.of(encoder), layers, encoder.width, arguments.snippets, features, pairs)


def cluster_of(arguments: argparse.Namespace) -> Cluster:
    a, giga = arguments, 1e9
    return Cluster(
        tflops=a.tflops * 1e12,
        compared=a.compared * 1e12,
        memory=a.memory * giga,
        intra=a.intra * giga,
        inter=a.inter * giga,
        read=a.read * giga,
        latency=a.latency * 1e-6,
        overlap=a.overlap,
        node=a.node,
    )


def table(arguments: argparse.Namespace) -> str:
    """Markdown: for each number of GPUs the parts of a step in ms, efficiency, and hours."""
    job, cluster = job_of(arguments), cluster_of(arguments)
    trainer = TrainerConfig(zero_stage=arguments.zero, precision=arguments.precision)
    lines = []
    for gpus in arguments.gpus:
        whole = arguments.global_batch
        micro = whole // gpus if whole else arguments.batch_per_gpu
        parts = step(job, cluster, trainer, gpus, micro, arguments.negatives)
        rate = gpus * micro / parts["step"]
        alone = step(job, cluster, trainer, 1, micro, arguments.negatives)
        one = micro / alone["step"]
        if whole:  # one GPU has the work of all, and the same pool of negatives
            work = gpus * (parts["layers"] + parts["negatives"]) + alone["update"]
            one = whole / work
        efficiency = rate / gpus / one
        hours = arguments.clips * arguments.epochs / rate / 3600
        cells = " | ".join(f"{1000 * seconds:.3g}" for seconds in parts.values())
        lines.append(
            f"| {gpus} | {gpus * micro:,} | {cells} | {rate:,.0f} | {efficiency:.1%} | "
            f"{hours:.3g} |"
        )
    names = ("layers", "negatives", "gradients", "parameters", "exchange", "update", "reading")
    head = f"| GPUs | batch | {' | '.join(names)} | step, ms | clips/s | efficiency | hours |"
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *lines])


# Counting


def counted() -> str:
    """Markdown: bytes that a rank of two sends in a step, counted and by formula."""
    lines = [
        "| ZeRO | precision | weights: counted | formula | exchange: counted | formula |",
        "|---" * 6 + "|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _make_set(folder / "shards")
        for precision in ("fp32", "bf16"):
            for stage in range(4):
                bytes_sent = _two_ranks(folder, f"{stage} {precision}")
                cells = (f"{bytes_sent[name]:,.0f}" for name in COUNTED)
                lines.append(f"| {stage} | {precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _make_set(folder: Path) -> None:
    rng = np.random.default_rng(0)
    dims = {"audio": 12, "visual": 16}
    clips = (
        Clip(f"clip{n}", {k: rng.standard_normal((10, d), np.float32) for k, d in dims.items()})
        for n in range(96)
    )
    write_shard_set(clips, folder, clips_per_shard=96)
    chosen = OmegaConf.create({"thresholds": dict.fromkeys(dims, 0.5), "extractor": ""})
    OmegaConf.save(chosen, folder / "thresholds.yaml")
    off = TrackingConfig(enabled=False)
    ground(GroundConfig(shards=str(folder), workers=1, tracking=off))


def _two_ranks(folder: Path, name: str) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder)]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise ClusterError(f"ZeRO {name}: a rank failed")
    bytes_sent: dict[str, float] = json.loads((folder / f"{name}.json").read_text())
    return bytes_sent


def count(arguments: argparse.Namespace) -> None:
    """In one of two ranks: train a few steps, and write what the last one sent."""
    stage, precision = arguments.worker.split()
    sent: Counter[str] = Counter()
    _watch(sent)
    keys = {
        "data.shards": arguments.folder / "shards",
        "data.heldout": 0,
        "encoder.size": "tiny",
        "objective.negatives": 8,
        "trainer.out": arguments.folder / arguments.worker,
        "trainer.batch_size": 16,
        "trainer.max_steps": 3,
        "trainer.zero_stage": stage,
        "trainer.precision": precision,
        "tracking.enabled": False,
    }
    config = load(PretrainConfig, None, [f"{key}={value}" for key, value in keys.items()])
    task = open_pretraining(config, connect)
    ranks, data = task.ranks, task.data
    last_step: dict[str, int] = {}

    def watch(step: int, doing: str) -> None:
        if doing == "updating":
            sent.clear()
        elif doing == "reading":
            last_step.update(sent)

    with Run("pretrain", Path(config.trainer.out), config, {}, active=ranks.is_main) as record:
        weights = Weights.of(task.module)
        Trainer(task, config, record, watch).train()
    if ranks.is_main:
        shapes = (8, data.snippets, task.encoder.width, sum(data.dims.values()), 2)
        figures = {
            "weights": last_step["weights"],
            "weights_planned": sum(messages(weights, config.trainer, 2).values()),
            "exchange": last_step["exchange"],
            "exchange_planned": sum(exchanged(*shapes).values()),
        }
        write_json(arguments.folder / f"{arguments.worker}.json", figures)


def _watch(sent: Counter[str]) -> None:
    """Count the bytes that a ring over two ranks sends in torch's collectives.

    Collectives called by `Ranks` are the exchange of negatives, those of DeepSpeed the weights.
    """
    # Place of the whole tensor among the arguments, and how often a rank sends it.
    whole: dict[str, tuple[int, float]] = {
        "all_reduce": (0, 1.0),
        "reduce": (0, 1.0),
        "all_gather": (0, 0.5),
        "all_gather_into_tensor": (0, 0.5),
        "reduce_scatter": (1, 0.5),
        "reduce_scatter_tensor": (1, 0.5),
    }
    for name, (place, copies) in whole.items():
        setattr(dist, name, _counting(getattr(dist, name), place, copies, sent))


def _counting(
    call: Callable[..., object], place: int, copies: float, sent: Counter[str]
) -> Callable[..., object]:
    """`call`, with the bytes of its tensors counted in `sent`."""

    def counting(*arguments: torch.Tensor, **keys: torch.Tensor) -> object:
        value = arguments[place] if len(arguments) > place else list(keys.values())[place]
        tensors = value if isinstance(value, list) else [value]
        caller = sys._getframe(1).f_globals["__name__"]
        name = "exchange" if caller == Ranks.__module__ else "weights"
        sent[name] += int(copies * sum(t.numel() * t.element_size() for t in tensors))
        return call(*arguments, **keys)

    return counting


if __name__ == "__main__":
    run(main)
