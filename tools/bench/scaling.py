"""Estimate of scaling to many GPUs, by the formulas of docs/scaling.md and your numbers.

    python tools/bench/scaling.py                        # 1 to 512 GPUs
    python tools/bench/scaling.py --negatives 0          # or --global-batch 8192
    python tools/bench/scaling.py --measured FILE        # the JSON of `make gpu-check`

The table is not measured: it follows from the numbers given. With `--measured`, the time of one
GPU's step is measured, and what more GPUs add to it is not.
"""

from __future__ import annotations

import argparse
import json
import math
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from avvp_dist.config import SIZES, EncoderConfig, TrainerConfig
from avvp_dist.entry import run
from avvp_dist.errors import ConfigError
from avvp_dist.models.encoder import Encoder
from avvp_dist.objectives.negatives import CELLS
from avvp_dist.training.footprint import BUCKET, FLAT, Weights, exchanged, messages

PAIRS = {"uni": 2, "cross": 2, "multi": 4}
"""Pairs of modalities that an objective compares: q."""
LAUNCHES = {
    (0, "fp32"): (469, 46),
    (1, "fp32"): (571, 64),
    (2, "fp32"): (571, 64),
    (3, "fp32"): (569, 105),
    (0, "bf16"): (482, 68),
    (1, "bf16"): (722, 142),
    (2, "bf16"): (722, 142),
    (3, "bf16"): (573, 105),
}
"""Operations of a step by ZeRO stage and precision, and those of each layer (counting.py)."""
SYNCHRONISATIONS = {0: (0, 0), 1: (4, 0), 2: (4, 0), 3: (91, 66)}
"""Results that the host waits for by ZeRO stage, in the same way."""
MEASURED_POOL = 256
"""Clips in the pool of negatives where steps were measured: the default."""


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
    depth: int = 0
    """Layers of the transformer."""


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
    launch: float = 0.0
    """Seconds of the host for each operation that it launches."""
    wait: float = 0.0
    """Seconds lost at each result that the host waits for."""


@dataclass(frozen=True)
class Measured:
    """Steps of one GPU, which `make gpu-check` measured."""

    clips: tuple[int, ...]
    """Sizes of a micro-batch, ascending."""
    seconds: tuple[float, ...]
    """Seconds of a step of each size."""
    host: float | None
    """Seconds in which the host launches a step; None where that was not measured."""

    @classmethod
    def read(cls, file: Path, size: str, trainer: TrainerConfig) -> Measured:
        """Steps of an encoder in one precision and ZeRO stage, not compiled.

        Raises:
            ConfigError: for another file, or if it has no such steps.
        """
        form = (size, trainer.precision, trainer.zero_stage)
        try:
            found = json.loads(file.read_text())
            rows = [{"size": found["size"], **row} for row in found["throughput"]]
            steps = {
                row["clips"]: row["clips"] / row["clips_per_second"]
                for row in rows
                if _form(row) == form and not row["compiled"]
            }
            profile = {"size": found["size"], **found.get("profile", {})}
            host = profile["host_seconds_per_step"] if _form(profile) == form else None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is no result of make gpu-check: {error!r}") from None
        if not steps:
            there = sorted({" ".join(map(str, _form(row))) for row in rows})
            raise ConfigError(
                f"{file} has no step of {size} at --precision {trainer.precision} --zero "
                f"{trainer.zero_stage}",
                remedy=f"It has {', '.join(there) or 'none at all'}",
            )
        clips = tuple(sorted(steps))
        return cls(clips, tuple(steps[n] for n in clips), host)

    def step(self, clips: int) -> float:
        """Seconds of a step of any size, on the straight line through the two nearest ones."""
        if len(self.clips) == 1:
            return self.seconds[0] * clips / self.clips[0]
        after = min(max(bisect(self.clips, clips), 1), len(self.clips) - 1)
        (x, end), (y, z) = self.clips[after - 1 : after + 1], self.seconds[after - 1 : after + 1]
        return y + (z - y) * (clips - x) / (end - x)


def _form(row: Mapping[str, object]) -> tuple[object, ...]:
    return row["size"], row.get("precision"), row.get("zero_stage")


def main() -> None:
    print(table(_arguments()))


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
    add("--precision", default="bf16", choices=("bf16", "tf32", "fp32"))
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
    add("--launch", type=float, default=5, help="microseconds of the host for each launch")
    add("--wait", type=float, default=20, help="microseconds lost at each synchronisation")
    add("--measured", type=Path, help="JSON of `make gpu-check`, with the steps of one GPU")
    return parser.parse_args()


# The formulas


def step(
    job: Job,
    cluster: Cluster,
    trainer: TrainerConfig,
    gpus: int,
    micro: int,
    maximum: int,
    measured: Measured | None = None,
) -> dict[str, float]:
    """Seconds of each part of a step of one micro-batch, and of the whole.

    The host launches while the device computes, and the longer of both counts.

    Args:
        micro: clips of a GPU's micro-batch.
        maximum: clips that each clip is compared with; 0: all clips of all GPUs.
        measured: steps of one GPU, in which `layers` are all that is not said to be another part.
    """
    pool = min(gpus * micro, maximum or gpus * micro)
    compute = 12 * job.layers * job.snippets * micro / cluster.tflops
    negatives = negative_seconds(job, cluster, micro, pool)
    host, waits = host_seconds(job, cluster, trainer)
    if measured:
        host = host if measured.host is None else measured.host
        known = negative_seconds(job, cluster, micro, min(micro, MEASURED_POOL))
        known += 28 * job.weights.trained / cluster.memory
        compute, waits = max(0.0, measured.step(micro) - known), 0.0
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
    computed = sum(parts.values())
    reading = 2 * job.snippets * job.features * micro * min(gpus, cluster.node) / cluster.read
    whole = max(max(computed, host) + waits, reading)
    return {**parts, "launches": host + waits, "reading": reading, "step": whole}


def host_seconds(job: Job, cluster: Cluster, trainer: TrainerConfig) -> tuple[float, float]:
    """Seconds in which the host launches a step's operations, and those lost to waiting."""
    stage, precision = trainer.zero_stage, trainer.precision.replace("tf32", "fp32")
    launches, synchronisations = (
        fixed + layer * job.depth
        for fixed, layer in (LAUNCHES[stage, precision], SYNCHRONISATIONS[stage])
    )
    return cluster.launch * launches, cluster.wait * synchronisations


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
    return Job(
        Weights.of(encoder),
        layers,
        encoder.width,
        arguments.snippets,
        features,
        pairs,
        depth=len(encoder.layers),
    )


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
        launch=a.launch * 1e-6,
        wait=a.wait * 1e-6,
    )


def table(arguments: argparse.Namespace) -> str:
    """Markdown: for each number of GPUs the parts of a step in ms, efficiency, and hours."""
    job, cluster = job_of(arguments), cluster_of(arguments)
    trainer = TrainerConfig(zero_stage=arguments.zero, precision=arguments.precision)
    file = arguments.measured
    measured = Measured.read(file, arguments.size, trainer) if file else None
    lines = []
    for gpus in arguments.gpus:
        whole = arguments.global_batch
        micro = whole // gpus if whole else arguments.batch_per_gpu
        parts = step(job, cluster, trainer, gpus, micro, arguments.negatives, measured)
        rate = gpus * micro / parts["step"]
        alone = step(job, cluster, trainer, 1, micro, arguments.negatives, measured)
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
    names = (
        "layers",
        "negatives",
        "gradients",
        "parameters",
        "exchange",
        "update",
        "launches",
        "reading",
    )
    head = f"| GPUs | batch | {' | '.join(names)} | step, ms | clips/s | efficiency | hours |"
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *lines])


if __name__ == "__main__":
    run(main)
