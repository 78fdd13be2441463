"""Time the train loop beside a plain PyTorch loop of the same model, batch and precision.

python tools/bench/training.py --rounds 3 --corpus 200000

One core for each rank, float32. The plain loop has its batches in memory; ours reads shards.
`tracked` logs every step to an MLflow server, `dead` to one that does not answer, each beside the
same loop that logs nothing: on a smaller encoder, where what logging costs weighs more. `corpus`
trains an epoch of small clips and looks at the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from omegaconf import OmegaConf
from torch import nn

from avvp_dist.commit import write_json
from avvp_dist.config import GroundConfig, PretrainConfig, TrackingConfig
from avvp_dist.config.files import load
from avvp_dist.entry import run
from avvp_dist.errors import ClusterError
from avvp_dist.grounding.job import ground
from avvp_dist.grounding.version import Grounding
from avvp_dist.loading.loader import read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.runtime.ranks import Ranks, connect
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.pretraining import PretrainingTask
from avvp_dist.tracking.run import Run
from avvp_dist.training.engine import parameter_groups
from avvp_dist.training.task import StepInfo
from avvp_dist.training.throughput import flops_per_clip, peak_flops
from avvp_dist.training.trainer import Trainer

SNIPPETS, DIMS = 10, {"audio": 128, "visual": 2048}
WORKERS = {  # rows that share a process and take turns: ranks, encoder size, rows
    "one": (1, "base", ("plain", "zero0", "zero1")),
    "two": (2, "base", ("plain", "zero0", "zero1")),
    "tracked": (1, "small", ("silent", "logged")),
    "dead": (1, "small", ("silent", "logged")),
}


@dataclass(frozen=True)
class Steps:
    """Measurements of one worker's rows."""

    seconds: dict[str, list[float]]
    """Of each step, by row."""
    batch: int
    """Clips of a step."""
    flops_per_clip: float = 0.0
    peak: float = 0.0
    """FLOP/s that this machine reaches."""
    data_wait: float = 0.0
    """Fraction of the last step in which the loop waited for clips."""


@dataclass(frozen=True)
class Corpus:
    """Measurements of an epoch."""

    clips: int
    seconds: float
    memory_mib: list[float]
    """Median memory in each tenth of the steps."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="steps of each row, in turn")
    parser.add_argument("--batch", type=int, default=256, help="clips a step")
    parser.add_argument("--size", default="", help="another encoder than base and small")
    parser.add_argument("--corpus", type=int, default=0, help="clips of the corpus of an epoch")
    parser.add_argument("--only", nargs="*", default=[*WORKERS], choices=[*WORKERS, "none"])
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder = Path(temporary)
        make_set(folder / "shards", 4 * arguments.batch, DIMS)
        measured, corpus = {}, None
        for name in WORKERS:
            if name in arguments.only:
                with tracking_server(folder / "mlflow", name) as uri:
                    figures = run_worker(name, arguments, MLFLOW_TRACKING_URI=uri)
                    measured[name] = Steps(**json.loads(figures))
        if arguments.corpus:
            make_set(folder / "corpus", arguments.corpus, {"audio": 32, "visual": 64})
            corpus = Corpus(**json.loads(run_worker("corpus", arguments)))
    report(measured, corpus)


def make_set(folder: Path, clips: int, dims: dict[str, int]) -> None:
    """Write a shard set of random clips, with a grounding."""
    rng = np.random.default_rng(0)
    block = {
        name: rng.standard_normal((997, SNIPPETS, dim), np.float32) for name, dim in dims.items()
    }
    made = (
        Clip(f"clip{n:07d}", {name: array[n % 997] for name, array in block.items()})
        for n in range(clips)
    )
    write_shard_set(made, folder, clips_per_shard=2000)
    chosen = OmegaConf.create({"thresholds": dict.fromkeys(dims, 0.5), "extractor": ""})
    OmegaConf.save(chosen, folder / "thresholds.yaml")
    ground(
        GroundConfig(
            shards=str(folder), grouping="snippet", workers=1, tracking=TrackingConfig(False)
        )
    )


@contextmanager
def tracking_server(folder: Path, name: str) -> Iterator[str]:
    """Address of an MLflow server for `tracked`, and of no server for the other workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    if name != "tracked":
        yield uri
        return
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}.db",
        "--artifacts-destination",
        str(folder),
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    server = psutil.Popen([*command, *store], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as client:
                if not client.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        yield uri
    finally:
        for process in [*server.children(recursive=True), server]:
            process.kill()


def run_worker(name: str, arguments: argparse.Namespace, **environment: str) -> str:
    """Run the ranks of one worker; the figures of its rank 0 as JSON."""
    ranks = WORKERS[name][0] if name in WORKERS else 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, __file__, "--worker", name, *sys.argv[1:]]
    command += ["--folder", str(arguments.folder)]
    processes = [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "1",  # rows take turns: one's freed activations serve the next
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                **environment,
            },
        )
        for rank in range(ranks)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise ClusterError(f"worker {name} failed")
    return (arguments.folder / f"{name}.json").read_text()


# In a worker


def work(arguments: argparse.Namespace) -> None:
    """Run the rows of one worker in turn and write their measurements."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["RANK"]) % 2]})
    ranks = connect()
    torch.set_num_threads(1)
    name, folder = arguments.worker, arguments.folder
    if name == "corpus":
        figures = asdict(epoch_of_a_corpus(folder, ranks))
    else:
        _, size, names = WORKERS[name]
        rows = [
            (plain_steps if row == "plain" else our_steps)(
                folder, row, arguments.size or size, arguments, ranks
            )
            for row in names
        ]
        seconds: dict[str, list[float]] = {row: [] for row in names}
        extra: dict[str, float] = {}
        for turn in range(1 + arguments.rounds * (5 if size == "small" else 1)):
            for row, steps in zip(names, rows, strict=True):
                ranks.barrier()
                begun = time.perf_counter()
                extra |= next(steps)
                if turn:  # the first one allocates
                    seconds[row].append(time.perf_counter() - begun)
        figures = asdict(Steps(seconds, arguments.batch, **extra))
    if ranks.is_main:
        write_json(folder / f"{name}.json", figures)
    os._exit(0)  # threads of the loops wait for turns that do not come


def config_of(folder: Path, row: str, size: str, arguments: argparse.Namespace) -> PretrainConfig:
    """Config of a row. An epoch takes each clip 10,000 times, so that none ends while steps are
    timed."""
    logged = row == "logged"
    keys = {
        "data.shards": folder / "shards",
        "data.weights": "[10000]",
        "data.heldout": 0,
        "encoder.size": size,
        "trainer.out": folder / f"{arguments.worker}-{row}-{os.environ['WORLD_SIZE']}",
        "trainer.batch_size": arguments.batch,
        "trainer.zero_stage": 1 if row == "zero1" else 0,
        "trainer.log_every": 1 if logged else 1000,
        "tracking.enabled": logged,
    }
    return load(PretrainConfig, None, [f"{key}={value}" for key, value in keys.items()])


def task_of(config: PretrainConfig, ranks: Ranks) -> PretrainingTask:
    """Task of a config, with seeded weights."""
    shards = ShardSet(config.data.shards[0], config.data)
    data = Mixture([shards], config.data.weights)
    torch.manual_seed(1)
    return PretrainingTask(config, data, [Grounding(shards)], ranks)


def plain_steps(
    folder: Path, row: str, size: str, arguments: argparse.Namespace, ranks: Ranks
) -> Iterator[dict[str, float]]:
    """Steps of torch alone, with DistributedDataParallel on two ranks; one for each request."""
    task = task_of(config_of(folder, row, size, arguments), ranks)
    groups = parameter_groups(task.module.parameters(), 5e-4, 0.01)
    adam = torch.optim.AdamW([{**vars(group)} for group in groups], lr=5e-4, fused=True)
    model: nn.Module = task.module
    if ranks.size > 1:
        model = nn.parallel.DistributedDataParallel(model)
    clips = np.arange(arguments.batch // ranks.size)
    batch = task.make_batch(read_clips(task.data, clips)[0], StepInfo(0, 0, 0.0))
    while True:
        adam.zero_grad()
        loss, _ = model(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        yield {}


class Turns:
    """The project's train loop, held before each step until it is its turn again."""

    def __init__(self, config: PretrainConfig, ranks: Ranks) -> None:
        out = Path(config.trainer.out)
        record = Run("pretrain", out, config, {}, active=ranks.is_main)
        self.trainer = Trainer(task_of(config, ranks), config, record, self._beat)
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._passed, self._waited = 0.0, 0.0

    def steps(self) -> Iterator[dict[str, float]]:
        """Make a step for each request; its data wait, as a fraction of the step."""
        threading.Thread(target=self.trainer.train, daemon=True).start()
        self._done.acquire()
        while True:
            begun = time.perf_counter()
            self._go.release()
            self._done.acquire()
            yield {"data_wait": self._waited / (time.perf_counter() - begun)}

    def _beat(self, step: int, doing: str) -> None:
        now = time.perf_counter()
        if doing == "reading":
            self._passed = now
        elif doing == "updating":
            self._waited = now - self._passed
            self._done.release()
            self._go.acquire()


def our_steps(
    folder: Path, row: str, size: str, arguments: argparse.Namespace, ranks: Ranks
) -> Iterator[dict[str, float]]:
    """Steps of the project's own loop; one for each request."""
    turns = Turns(config_of(folder, row, size, arguments), ranks)
    extra: dict[str, float] = {}
    if row == "zero0":
        clips = turns.trainer.loader.read(0)[0]
        batch = turns.trainer.task.make_batch(clips, StepInfo(0, 0, 0.0))
        flops = flops_per_clip(turns.trainer.engine.module, batch, len(clips.clips))
        extra = {"flops_per_clip": flops, "peak": peak_flops(ranks.device, torch.float32)}
    for waited in turns.steps():
        yield {**waited, **extra}


def epoch_of_a_corpus(folder: Path, ranks: Ranks) -> Corpus:
    """Train the tiny encoder for an epoch; its memory is counted without file pages."""
    keys = {
        "data.shards": folder / "corpus",
        "data.heldout_clips": 256,
        "encoder.size": "tiny",
        "objective.other_clips": 0,
        "trainer.out": folder / "corpus-run",
        "trainer.batch_size": 256,
        "trainer.epochs": 1,
        "tracking.enabled": False,
    }
    config = load(PretrainConfig, None, [f"{key}={value}" for key, value in keys.items()])
    memory: list[float] = []

    def watch(step: int, doing: str) -> None:
        if doing == "reading":
            used = psutil.Process().memory_full_info()
            memory.append((used.rss - used.shared) / 2**20)

    with Run("pretrain", Path(config.trainer.out), config, {}) as record:
        trainer = Trainer(task_of(config, ranks), config, record, watch)
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
    tenths = [median(part) for part in np.array_split(memory, 10)]
    clips = trainer.steps * config.trainer.batch_size
    return Corpus(clips, seconds, tenths)


# The report


def report(measured: dict[str, Steps], corpus: Corpus | None) -> None:
    """Print the tables, then the line of JSON."""
    info = Path("/proc/cpuinfo").read_text()
    cpu = info.partition("model name\t: ")[2].partition("\n")[0]
    machine = {"cpu": cpu, "cores": os.cpu_count(), "torch": torch.__version__}
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()) + "\n")
    print("| worker | row | s a step, min | median |\n" + "|---" * 4 + "|")
    figures: dict[str, object] = {}
    ratios: dict[str, float] = {}
    for name, worker in measured.items():
        for row, steps in worker.seconds.items():
            print(f"| {name} | {row} | {min(steps):.3f} | {median(steps):.3f} |")
            figures[f"{name}_{row}_s"] = {"min": min(steps), "median": median(steps)}
        first, *others = worker.seconds
        for row in others:
            # Steps of the same turn are compared, because what disturbs both cancels out.
            pairs = zip(worker.seconds[row], worker.seconds[first], strict=True)
            ratios[f"{name}_{row}_over_{first}"] = median(ours / theirs for ours, theirs in pairs)
    if one := measured.get("one"):
        ratios["step_over_plain_zero0"] = ratios["one_zero0_over_plain"]
        ratios["step_over_plain_zero1"] = ratios["one_zero1_over_plain"]
        batch_flops = one.flops_per_clip * one.batch
        ratios["mfu"] = batch_flops / median(one.seconds["zero0"]) / one.peak
        ratios["data_wait"] = one.data_wait
        figures["peak_gflops"] = one.peak / 1e9
    if corpus is not None:
        figures["corpus"] = asdict(corpus)
        print(f"\ncorpus: {corpus.clips:,} clips in {corpus.seconds:.0f} s, MiB by tenths:")
        print(" ".join(f"{value:.0f}" for value in corpus.memory_mib))
        ratios["memory_end_over_begin"] = corpus.memory_mib[-1] / corpus.memory_mib[1]
    print("\n" + ", ".join(f"{name.replace('_', ' ')}: {x:.3f}" for name, x in ratios.items()))
    line = {"bench": "training", "machine": machine, "figures": figures, "ratios": ratios}
    print(json.dumps(line))


if __name__ == "__main__":
    run(main)
