"""Time the extraction of a folder of videos, and the parts that it is made of.

python tools/bench/extraction.py --videos VIDEOS --rounds 3

The job runs with one and with two processes, in turn, on a Ray that is started before. `decode` is
what the default backbones are given, without them, on one core. `ffmpeg` decodes the same files
with one thread and throws everything away; it is left out where there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from avvp_dist.config import ExtractConfig, TrackingConfig
from avvp_dist.entry import run
from avvp_dist.extraction.files import media_files
from avvp_dist.extraction.job import LEDGER, extract
from avvp_dist.features.backbones.registry import open_backbones
from avvp_dist.features.decoding import seconds_of
from avvp_dist.features.media import Bounds
from avvp_dist.runtime.cluster.tasks import map_tasks, ray_cluster
from avvp_dist.shards.shard_set import ShardSet


@dataclass
class Row:
    """A row of the table: work on all files, and its seconds in each round."""

    name: str
    label: str
    work: Callable[[], object]
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True, help="folder of the videos")
    parser.add_argument("--rounds", type=int, default=3, help="of each row, in turn")
    parser.add_argument("--backbones", nargs="+", default=ExtractConfig().backbones)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = media_files(arguments.videos)
    with tempfile.TemporaryDirectory() as folder, ray_cluster(2):
        bench = Bench(arguments.videos, paths, arguments.backbones, Path(folder))
        rows = bench.rows()
        for _ in range(arguments.rounds):
            for row in rows:
                started = time.perf_counter()
                row.work()
                row.seconds.append(time.perf_counter() - started)
        report(rows, len(paths), bench.shares)


class Bench:
    """The work of each row."""

    def __init__(self, videos: Path, paths: list[Path], backbones: list[str], folder: Path) -> None:
        self.videos, self.paths, self.backbones, self.folder = videos, paths, backbones, folder
        self.opened = open_backbones(backbones, {})
        self.shares: dict[str, float] = {}
        """Fractions of the job's time with one process, of its last round."""

    def rows(self) -> list[Row]:
        """Rows in their order; the processes of Ray have been used once."""
        list(map_tasks(loaded, [(self.backbones,)] * 4, 2, "a warm-up"))
        rows = [
            Row("job_1", "job, one process", lambda: self.job(1)),
            Row("job_2", "job, two processes", lambda: self.job(2)),
            Row("decode", "decoding alone", self.decode),
        ]
        if shutil.which("ffmpeg"):
            rows.append(Row("ffmpeg", "bare ffmpeg", self.ffmpeg))
        return rows

    def job(self, workers: int) -> None:
        out = self.folder / "set"
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        shards = extract(
            ExtractConfig(
                source=str(self.videos),
                out=str(out),
                backbones=self.backbones,
                clips_per_shard=max(1, len(self.paths) // 8),
                max_bad_fraction=1.0,
                workers=workers,
                tracking=TrackingConfig(enabled=False),
            )
        )
        if workers == 1:
            self.shares = shares(shards, time.perf_counter() - started)

    def decode(self) -> None:
        eyes = [(one.rate, one.picture) for one in self.opened if hasattr(one, "picture")]
        ears = sorted({one.rate for one in self.opened if not hasattr(one, "picture")})
        for path in self.paths:
            for _ in seconds_of(path, str(path), Bounds(), pictures=eyes, sound=ears):
                pass

    def ffmpeg(self) -> None:
        for path in self.paths:
            command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-f", "null", "-"]
            subprocess.run(command, check=False, stdin=subprocess.DEVNULL)


def shares(shards: ShardSet, seconds: float) -> dict[str, float]:
    """Fractions of a job's `seconds`, by its ledger."""
    *files, _ = (shards.folder / LEDGER).read_text().splitlines()
    records = [json.loads(line) for line in files]
    parts = {
        name: sum(one[f"{name}_seconds"] for one in records) / seconds
        for name in ("decode", "compute")
    }
    return parts | {"write_and_rest": 1 - sum(parts.values())}


def loaded(backbones: list[str]) -> int:
    """Load backbones in a process of Ray, which then has their libraries."""
    return len(open_backbones(backbones, {}))


def report(rows: list[Row], files: int, shares: dict[str, float]) -> None:
    """Print the table, then the line of JSON."""
    info = Path("/proc/cpuinfo").read_text()
    cpu = info.partition("model name\t: ")[2].partition("\n")[0] or platform.processor()
    machine = {"cpu": cpu, "cores": os.cpu_count(), "torch": torch.__version__}
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{files} files\n\n| work | s, min | median | files/s, best |\n" + "|---" * 4 + "|")
    figures: dict[str, object] = {"files": files, "shares": shares}
    best: dict[str, float] = {}
    for row in rows:
        best[row.name] = files / min(row.seconds)
        low, middle = min(row.seconds), median(row.seconds)
        print(f"| {row.label} | {low:.2f} | {middle:.2f} | {best[row.name]:.2f} |")
        figures[f"{row.name}_s"] = {"min": low, "median": middle}
        figures[f"{row.name}_files_per_s"] = best[row.name]
    print("\n" + ", ".join(f"{name.replace('_', ' ')} {x:.0%}" for name, x in shares.items()))
    ratios = {"two_over_one": best["job_2"] / best["job_1"]}
    if "ffmpeg" in best:
        ratios["decode_over_ffmpeg"] = best["decode"] / best["ffmpeg"]
    print(", ".join(f"{name.replace('_', ' ')}: {x:.2f}" for name, x in ratios.items()))
    print(
        json.dumps(
            {"bench": "extraction", "machine": machine, "figures": figures, "ratios": ratios}
        )
    )


if __name__ == "__main__":
    run(main)
