"""Time Algorithm 1 on one core, and the grounding job, beside what each could be at best.

python tools/bench/grounding.py --clips 20000 --rounds 3 --simulated 2000000

Components are computed for clips in memory: float16, 10 snippets of 128 + 2048 numbers. The job
reads a shard set of such clips from the page cache. Ray is started before it and timed by itself,
for the simulated corpus too.
`parts` is the job's work in one process: verify, read, compute components. The simulated corpus
has tiny clips in 1,000 shards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import networkx
import numpy as np
import psutil
import ray
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from avvp_dist.commit import MANIFEST, sha256, staged
from avvp_dist.config import GroundConfig, LinkConfig
from avvp_dist.entry import run
from avvp_dist.grounding.job import ground
from avvp_dist.grounding.labels import label, measure
from avvp_dist.grounding.version import Grounding
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.runtime.cluster.tasks import map_tasks, start_ray
from avvp_dist.shards.manifest import INDEX, FileEntry
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

DIMS, SNIPPETS, AT_ONCE, SHARD = {"audio": 128, "visual": 2048}, 10, 1024, 2000
LIMITS = {"audio": 0.65, "visual": 0.65}
AUTHORS_CLIPS_PER_S = 135  # of their own function, measured once on one core of a busy machine
RATIOS = {  # two rows, whose median rates are compared
    "ours_over_authors": ("ours", "authors"),
    "ours_over_matmul": ("ours", "matmul"),
    "ours_over_networkx": ("ours", "networkx"),
    "ours_over_pairs": ("ours", "pairs"),
    "two_over_one": ("job_2", "job_1"),
}

Streams = dict[str, NDArray[np.float16]]


@dataclass
class Row:
    """A row of the table: work on a number of clips, and its seconds in each round."""

    name: str
    label: str
    clips: int
    work: Callable[[], object]
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=20_000, help="clips of the job")
    parser.add_argument("--memory", type=int, default=2_000, help="clips of the components")
    parser.add_argument("--folder", type=Path, help="where shard sets are made, or lie already")
    parser.add_argument("--rounds", type=int, default=3, help="of each row, in turn")
    parser.add_argument("--simulated", type=int, default=0, help="clips of the simulated corpus")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        rows, peaks = component_rows(arguments.memory), dict[str, float]()
        timed(rows, arguments.rounds)
        jobs = job_rows(make_set(folder / f"clips-{arguments.clips}", arguments.clips), peaks)
        with started_ray(peaks):
            timed(jobs, arguments.rounds)
            steps = simulated(folder, arguments.simulated, peaks) if arguments.simulated else {}
    report(rows + jobs, steps, peaks)


def timed(rows: list[Row], rounds: int) -> None:
    for row in rows:
        row.work()  # warm
    for _ in range(rounds):
        for row in rows:
            row.seconds.append(seconds(row.work))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def made(first: int, count: int) -> Streams:
    """Clips whose snippets keep one of three directions for a while, so that components vary."""
    rng, streams = np.random.default_rng(first), {}
    change = (rng.random((count, SNIPPETS)) < 0.3).cumsum(1) % 3
    for name, dim in DIMS.items():
        directions = rng.standard_normal((count, 3, dim), np.float32)
        noise = rng.uniform(0.3, 1, (count, SNIPPETS, 1)).astype(np.float32)
        array = noise * rng.standard_normal((count, SNIPPETS, dim), np.float32)
        streams[name] = (directions[np.arange(count)[:, None], change] + array).astype(np.float16)
    return streams


def component_rows(clips: int) -> list[Row]:
    """Rows of our components, and of other ways to compute them, on the same clips."""
    streams, few = made(1, clips), min(clips, 200)

    def plain(way: Callable[[Streams, int], object]) -> Callable[[], object]:
        return lambda: [way(streams, clip) for clip in range(few)]

    rows = [Row("ours", "ours: measure, label, 1,024 clips at once", clips, lambda: ours(streams))]
    for block in (8, 16, 32, 64, 128):
        work = products(streams, block)
        rows.append(Row(f"matmul_{block}", f"only the product, {block} clips at once", clips, work))
    return [
        *rows,
        Row("networkx", "cosine and networkx a clip", few, plain(with_networkx)),
        Row("pairs", "a cosine a pair, in Python", few, plain(pair_by_pair)),
    ]


def ours(streams: Streams) -> NDArray[np.uint8]:
    parts, joining = [], LinkConfig()
    for start in range(0, len(streams["audio"]), AT_ONCE):
        part = {name: array[start : start + AT_ONCE] for name, array in streams.items()}
        lengths = np.full(len(part["audio"]), SNIPPETS)
        parts.append(label(measure(part, lengths, joining, None), LIMITS, joining)[0])
    return np.concatenate(parts)


def products(streams: Streams, block: int) -> Callable[[], None]:
    """X X^T of every clip, converted block by block into a buffer that fits a core's cache."""
    stored = [torch.from_numpy(array) for array in streams.values()]
    buffers = [torch.empty(block, SNIPPETS, array.shape[2]) for array in stored]
    out = torch.empty(len(stored[0]), SNIPPETS, SNIPPETS)

    def work() -> None:
        for array, buffer in zip(stored, buffers, strict=True):
            for start in range(0, len(array), block):
                part = array[start : start + block]
                one = buffer[: len(part)].copy_(part)
                torch.matmul(one, one.transpose(1, 2), out=out[start : start + len(part)])

    return work


def with_networkx(streams: Streams, clip: int) -> list[int]:
    edges = np.zeros((SNIPPETS, SNIPPETS), bool)
    for name, array in streams.items():
        x = array[clip].astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        edges |= x @ x.T >= LIMITS[name]
    return ids_of(networkx.from_numpy_array(edges))


def pair_by_pair(streams: Streams, clip: int) -> list[int]:
    """Components by one cosine per pair of snippets, as in the published code."""
    graph = networkx.Graph()
    graph.add_nodes_from(range(SNIPPETS))
    x = {name: array[clip].astype(np.float32) for name, array in streams.items()}
    for i in range(SNIPPETS):
        for j in range(SNIPPETS):
            for name, rows in x.items():
                lengths = np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])
                if rows[i] @ rows[j] / lengths >= LIMITS[name]:
                    graph.add_edge(i, j)
    return ids_of(graph)


def ids_of(graph: networkx.Graph) -> list[int]:
    ids = [0] * SNIPPETS
    for group in networkx.connected_components(graph):
        for snippet in group:
            ids[snippet] = min(group)
    return ids


def make_set(folder: Path, clips: int) -> Path:
    """Shard set of random clips, which is made unless an earlier run has made it."""
    if not (folder / MANIFEST).exists():
        write_shard_set(random_clips(clips), folder, clips_per_shard=min(SHARD, -(-clips // 2)))
    write_thresholds(folder, LIMITS)
    return folder


def random_clips(clips: int) -> Iterator[Clip]:
    for start in range(0, clips, 200):
        streams = made(start, min(200, clips - start))
        for n in range(min(200, clips - start)):
            yield Clip(f"clip{start + n:07d}", {name: x[n] for name, x in streams.items()})


def write_thresholds(folder: Path, limits: dict[str, float]) -> None:
    chosen = OmegaConf.create({"thresholds": limits, "extractor": ""})
    OmegaConf.save(chosen, folder / "thresholds.yaml")


def job_rows(folder: Path, peaks: dict[str, float]) -> list[Row]:
    clips = len(ShardSet(folder))

    def parts() -> None:
        shards = ShardSet(folder)
        for start in range(0, clips, AT_ONCE):
            ours(shards.gather(np.arange(start, min(start + AT_ONCE, clips))))

    def job(workers: int) -> Callable[[], None]:
        def work() -> None:
            shutil.rmtree(folder / "grounding", ignore_errors=True)
            with watched(f"job_{workers}", peaks):
                labelled(folder, workers)

        return work

    def single_rank() -> None:
        address = os.environ.pop("RAY_ADDRESS")  # without it one worker needs no Ray
        job(1)()
        os.environ["RAY_ADDRESS"] = address

    return [
        Row("parts", "verify, read, components: one process", clips, parts),
        Row("job_alone", "the job without Ray", clips, single_rank),
        Row("job_1", "the job on a Ray that runs, 1 worker", clips, job(1)),
        Row("job_2", "the job on a Ray that runs, 2 workers", clips, job(2)),
    ]


def ready(_: int) -> None:
    """Import what a shard's task needs. It takes long enough that every worker has its turn."""
    import avvp_dist.grounding.job  # noqa: F401

    time.sleep(0.5)


@contextmanager
def started_ray(times: dict[str, float]) -> Iterator[None]:
    """Start Ray with two workers that have imported what they need, and time it."""
    from ray.cluster_utils import Cluster

    begun = time.perf_counter()
    cluster = Cluster(True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    start_ray()
    list(map_tasks(ready, [(n,) for n in range(4)], 2, "a start"))
    times["Ray's start, s"] = time.perf_counter() - begun
    try:
        yield
    finally:
        ray.shutdown()
        del os.environ["RAY_ADDRESS"]
        cluster.shutdown()


def labelled(folder: Path, workers: int) -> Path:
    config = GroundConfig(shards=str(folder), version="bench", workers=workers)
    config.tracking.enabled = False
    return ground(config)


@contextmanager
def watched(name: str, peaks: dict[str, float]) -> Iterator[None]:
    """Record the maximum resident memory, in MiB, of a worker and of this process."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                with suppress(psutil.Error):
                    kind = "worker" if " ".join(process.cmdline()).startswith("ray::") else "driver"
                    if kind == "worker" or process.pid == os.getpid():
                        key, now = f"{name}_{kind}", process.memory_info().rss / 2**20
                        peaks[key] = max(peaks.get(key, 0.0), now)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# A corpus of millions of clips


def simulated(out: Path, clips: int, peaks: dict[str, float]) -> dict[str, float]:
    """Seconds of the job over many shards, of a resumption with ten, and of loading its labels."""
    folder, steps = out / f"simulated-{clips}", dict[str, float]()
    steps["write"] = seconds(lambda: write_simulated(folder, clips))

    def job(name: str) -> None:
        with watched(f"simulated_{name}", peaks):
            steps[name] = seconds(lambda: labelled(folder, 0))

    shutil.rmtree(folder / "grounding", ignore_errors=True)
    job("ground")
    results = folder / "grounding" / "bench"
    before = {path: path.stat().st_mtime_ns for path in results.glob("shard-*.json")}
    for path in sorted(before)[:: max(1, len(before) // 10)][:10]:
        path.unlink()
    job("resume")
    steps["redone_shards"] = sum(path.stat().st_mtime_ns != at for path, at in before.items())
    job("nothing_left")
    with watched("simulated_load", peaks):
        steps["load"] = seconds(lambda: Grounding(ShardSet(folder), results))
    return steps


def write_simulated(folder: Path, clips: int) -> None:
    """Write 1,000 tars of tiny clips: one is packed, the others are its bytes with other ids."""
    if (folder / MANIFEST).exists():
        return
    count = max(1, min(1000, clips // 2))
    per_shard = clips // count
    values = np.random.default_rng(0).standard_normal((per_shard, 2, 4, 2))
    clip_list = [
        Clip(f"s000000-{n:06d}", {"audio": values[n, 0], "visual": values[n, 1]})
        for n in range(per_shard)
    ]
    first = write_shard_set(clip_list, folder, clips_per_shard=per_shard)
    (entry,) = first.shards
    tar, index = (folder / entry.name).read_bytes(), np.tile(np.asarray(first.index), count)
    shards = []
    for number in range(count):
        path = folder / f"shard-{number:06d}.tar"
        patched = renamed(tar, number)
        path.write_bytes(patched)
        shards.append(replace(entry, name=path.name, sha256=sha256(patched)))
    index["id"] = [f"s{n // per_shard:06d}-{n % per_shard:06d}" for n in range(len(index))]
    hashes = (hashlib.sha256(name).digest() for name in index["id"].tolist())
    index["hash"] = [int.from_bytes(one[:8], "big") for one in hashes]
    with staged(folder / INDEX) as temporary, temporary.open("wb") as file:
        np.save(file, index)
    entry_of_index = FileEntry((folder / INDEX).stat().st_size, sha256(folder / INDEX))
    made = replace(first.manifest, clips=len(index), index=entry_of_index, shards=tuple(shards))
    made.save(folder)
    write_thresholds(folder, {"audio": 0.5, "visual": 0.5})


def renamed(tar: bytes, shard: int) -> bytes:
    """The tar with the ids of another shard, and with the checksum of each header corrected."""
    data = bytearray(tar.replace(b"s000000-", b"s%06d-" % shard))
    more = sum(b"%06d" % shard) - sum(b"000000")
    for at in range(0, len(data) - 512, 512):
        if more and data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 154] = b"%06o" % (int(data[at + 148 : at + 154], 8) + more)
    return bytes(data)


def report(rows: list[Row], steps: dict[str, float], peaks: dict[str, float]) -> None:
    """Print the tables, then the line of JSON."""
    info = Path("/proc/cpuinfo").read_text()
    cpu = info.partition("model name\t: ")[2].partition("\n")[0]
    machine = {"cpu": cpu, "cores": os.cpu_count(), "torch": torch.__version__}
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()) + "\n")
    print("| work | s, min | median | clips/s, median |\n" + "|---" * 4 + "|")
    rate: dict[str, float] = {}
    figures: dict[str, object] = {}
    for row in rows:
        low, middle = min(row.seconds), median(row.seconds)
        rate[row.name] = row.clips / middle
        print(f"| {row.label} | {low:.3f} | {middle:.3f} | {rate[row.name]:.0f} |")
        figures[f"{row.name}_s"] = {"min": low, "median": middle}
        figures[f"{row.name}_clips_per_s"] = rate[row.name]
    rate["matmul"] = max(value for name, value in rate.items() if name.startswith("matmul_"))
    rate["authors"] = AUTHORS_CLIPS_PER_S
    print(f"| the authors' own function, as recorded | | | {AUTHORS_CLIPS_PER_S} |\n")
    for name, value in [*steps.items(), *peaks.items()]:
        print(f"{name}: {value:.1f}" + (" MiB" if name in peaks and name[-1] != "s" else ""))
    ratios = {name: rate[one] / rate[other] for name, (one, other) in RATIOS.items()}
    ratios["job_over_parts"] = rate["parts"] / rate["job_1"]
    print("\n" + ", ".join(f"{name.replace('_', ' ')}: {x:.2f}" for name, x in ratios.items()))
    figures |= {"simulated": steps, "peak_mib": peaks}
    line = {"bench": "grounding", "machine": machine, "figures": figures, "ratios": ratios}
    print(json.dumps(line))


if __name__ == "__main__":
    run(main)
