"""Count what a training step sends to other ranks, launches on a device, and waits for.

    python tools/bench/counting.py                       # every ZeRO stage and precision
    python tools/bench/counting.py --only 0:bf16 1:bf16

Two gloo ranks train with the project's own loop and engine, so no GPU is needed. Bytes are those of
every collective of a step, as a ring would send them. Operations are counted by a dispatch mode,
dropout and attention as on a GPU, where each is one. Their number grows with the layers alone:
encoders of 2 and 4 layers give that of any.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from avvp_dist.commit import write_json
from avvp_dist.config import SIZES, GroundConfig, PretrainConfig, TrackingConfig
from avvp_dist.config.files import load
from avvp_dist.entry import run
from avvp_dist.errors import ClusterError
from avvp_dist.grounding.job import ground
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.runtime.ranks import Ranks, connect
from avvp_dist.shards.schema import Clip
from avvp_dist.tasks.pretraining import open_pretraining
from avvp_dist.tracking.run import Run
from avvp_dist.training.footprint import Weights, exchanged, messages
from avvp_dist.training.trainer import Trainer

RANKS, BATCH, POOL, SNIPPETS, DIMS = 2, 16, 8, 10, {"audio": 12, "visual": 16}
FORMS = [f"{stage}:{precision}" for precision in ("fp32", "bf16") for stage in range(4)]
FOUND = "counted.json"
_WITHOUT_KERNEL = ("empty", "detach", "_unsafe_view", "_reshape_alias", "resize_", "set_")
"""Operations that compute nothing although they are no views."""
_WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
"""Operations whose result the host waits for."""


@dataclass
class Counts:
    """Counts of one step of one rank."""

    weights: int = 0
    """Bytes sent for gradients and parameters."""
    exchange: int = 0
    """Bytes sent for the pool of negatives, and for flags."""
    launches: int = 0
    """Operations that start kernels or messages."""
    synchronisations: int = 0
    """Operations whose result the host waits for."""


@dataclass(frozen=True)
class Counted:
    """Counts of one encoder, and the bytes that the formulas give."""

    layers: int
    counts: Counts
    weights_planned: float
    exchange_planned: float


class Counting(TorchDispatchMode):
    """Counts every operation of torch that would run on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        name = func._schema.name.split("::")[1]
        if name in _WAITING:
            self.counts.synchronisations += 1
        elif not func.is_view and not name.startswith(_WITHOUT_KERNEL):
            self.counts.launches += 1
        return func(*args, **(kwargs or {}))


class AsOnGpu(TorchFunctionMode):
    """Runs dropout and attention as the one operation each that they are on a GPU."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given = dict(kwargs or {})
        if func is torch.nn.functional.dropout:
            x, p = args[0], given["p"]
            assert isinstance(x, Tensor) and isinstance(p, float)
            return torch.native_dropout(x, p, True)[0] if given["training"] and p else x
        if func.__name__ == "scaled_dot_product_attention":
            return func(*args[:4])  # without dropout the CPU has a fused kernel too
        return func(*args, **given)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="*", default=FORMS, choices=FORMS, metavar="STAGE:PRECISION"
    )
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"], choices=SIZES)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # launchers add it
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.only, arguments.sizes)
        return
    if len(arguments.sizes) != 2:
        parser.error("--sizes takes two sizes: their difference is the part of a layer")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_set(folder / "shards")
        run_ranks(folder)
        found = {
            form: [Counted(**{**one, "counts": Counts(**one["counts"])}) for one in two]
            for form, two in json.loads((folder / FOUND).read_text()).items()
        }
    print(messages_table(found), launches_table(found), sep="\n\n")


def messages_table(found: Mapping[str, Sequence[Counted]]) -> str:
    """Markdown: bytes that a rank of two sends in a step, counted and by formula."""
    head = "| ZeRO | precision | weights: counted | formula | exchange: counted | formula |"
    rows = {
        form: (c.counts.weights, c.weights_planned, c.counts.exchange, c.exchange_planned)
        for form, (c, _) in found.items()
    }
    return _table(head, rows)


def launches_table(found: Mapping[str, Sequence[Counted]]) -> str:
    """Markdown: operations of a step, as a constant and a number for each layer."""
    head = "| ZeRO | precision | launches | per layer | synchronisations | per layer |"
    rows = {}
    for form, (one, two) in found.items():
        cells: list[float] = []
        for name in ("launches", "synchronisations"):
            first, second = getattr(one.counts, name), getattr(two.counts, name)
            slope = (second - first) / (two.layers - one.layers)
            cells += [first - slope * one.layers, slope]
        rows[form] = cells
    return _table(head, rows)


def _table(head: str, rows: Mapping[str, Sequence[float]]) -> str:
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for form, cells in rows.items():
        stage, precision = form.split(":")
        lines.append(f"| {stage} | {precision} | {' | '.join(f'{x:,.0f}' for x in cells)} |")
    return "\n".join(lines)


def make_set(folder: Path) -> None:
    """Write a shard set of random clips, with a grounding."""
    rng = np.random.default_rng(0)
    clips = (
        Clip(
            f"clip{n}", {k: rng.standard_normal((SNIPPETS, d), np.float32) for k, d in DIMS.items()}
        )
        for n in range(96)
    )
    write_shard_set(clips, folder, clips_per_shard=96)
    chosen = OmegaConf.create({"thresholds": dict.fromkeys(DIMS, 0.5), "extractor": ""})
    OmegaConf.save(chosen, folder / "thresholds.yaml")
    ground(GroundConfig(shards=str(folder), workers=1, tracking=TrackingConfig(enabled=False)))


def run_ranks(folder: Path) -> None:
    """Count on two ranks, each a process of its own with the words of this command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", str(folder)]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(RANKS))
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise ClusterError("a rank failed")


def work(folder: Path, forms: Sequence[str], sizes: Sequence[str]) -> None:
    """In one rank: train a few steps in each form and write the counts of their last ones."""
    counting = Counting()
    _watch_collectives(counting)
    ranks = connect()
    found = {
        form: [last_step(folder, form, size, ranks, counting) for size in sizes] for form in forms
    }
    if ranks.is_main:
        write_json(folder / FOUND, {form: [asdict(c) for c in two] for form, two in found.items()})


def last_step(folder: Path, form: str, size: str, ranks: Ranks, counting: Counting) -> Counted:
    """Train a few steps and count the last one."""
    stage, precision = form.split(":")
    keys = {
        "data.shards": folder / "shards",
        "data.heldout": 0,
        "encoder.size": size,
        "objective.negatives": POOL,
        "trainer.out": folder / f"{form}:{size}",
        "trainer.batch_size": BATCH,
        "trainer.max_steps": 3,
        "trainer.zero_stage": stage,
        "trainer.precision": precision,
        "tracking.enabled": False,
        "tracking.figures": False,
    }
    config = load(PretrainConfig, None, [f"{key}={value}" for key, value in keys.items()])
    task = open_pretraining(config, lambda: ranks)
    weights = Weights.of(task.module)
    steps: list[Counts] = []

    def watch(step: int, doing: str) -> None:
        if doing == "updating":
            counting.counts = Counts()
        elif doing == "reading":
            steps.append(replace(counting.counts))

    with Run("pretrain", Path(config.trainer.out), config, {}, active=ranks.is_main) as record:
        trainer = Trainer(task, config, record, watch)
        with AsOnGpu(), counting:
            trainer.train()
    shapes = (POOL, SNIPPETS, task.encoder.width, sum(DIMS.values()), RANKS)
    return Counted(
        layers=SIZES[size][0],
        counts=steps[-1],
        weights_planned=sum(messages(weights, config.trainer, RANKS).values()),
        exchange_planned=sum(exchanged(*shapes).values()),
    )


def _watch_collectives(counting: Counting) -> None:
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
        setattr(dist, name, _counting(getattr(dist, name), place, copies, counting))


def _counting(
    call: Callable[..., object], place: int, copies: float, counting: Counting
) -> Callable[..., object]:
    """`call`, with the bytes of its tensors counted."""

    def counted(*arguments: torch.Tensor, **keys: torch.Tensor) -> object:
        value = arguments[place] if len(arguments) > place else list(keys.values())[place]
        tensors = value if isinstance(value, list) else [value]
        caller = sys._getframe(1).f_globals["__name__"]
        sent = int(copies * sum(t.numel() * t.element_size() for t in tensors))
        if caller == Ranks.__module__:
            counting.counts.exchange += sent
        else:
            counting.counts.weights += sent
        return call(*arguments, **keys)

    return counted


if __name__ == "__main__":
    run(main)
