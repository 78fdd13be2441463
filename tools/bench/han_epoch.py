"""Time one epoch of HAN: the official algorithm and this project, in turn, on the same clips.

python tools/bench/han_epoch.py --clips 10000 --rounds 3

The official side is written from its description (Tian et al., ECCV 2020): float32 files of single
clips, 80 frames each, through a DataLoader, then HAN and Adam. Its modules that never get a
gradient are left out: they cost its optimiser nothing. Our side packs the same files once and
runs the train loop of launch/finetune.py with configs/finetune/han.yaml, in float32 and with
trainer.precision=bf16. Validation, checkpoints and exports are timed on neither side. Nothing
empties the page cache: on a machine with memory to spare both sides read from there.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from avvp_dist.annotations.llp import Annotations, read_annotations
from avvp_dist.commit import MANIFEST
from avvp_dist.config import FinetuneConfig, PackConfig, TrackingConfig
from avvp_dist.config.files import load
from avvp_dist.entry import run
from avvp_dist.errors import DataError, NumericsError
from avvp_dist.loading.mixture import Mixture
from avvp_dist.packing.job import pack
from avvp_dist.runtime.ranks import Ranks, connect
from avvp_dist.shards.schema import LLP_CLASSES
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.finetuning import ParsingTask
from avvp_dist.tracking.records import read_records, read_series
from avvp_dist.tracking.run import Run
from avvp_dist.training.trainer import Trainer

CONFIG = "finetune/han"
FILES = {"vggish": (10, 128), "res152": (80, 2048), "r2plus1d_18": (10, 512)}
"""Feature folders of HAN's release and the shape of a clip's float32 array in each."""
BATCH, LR, WIDTH, SEED = 16, 3e-4, 512, 1
SHARD_BYTES = 60_000
"""Approximate size of a clip in a shard set."""


@dataclass(frozen=True)
class Epoch:
    """Measurements of one side in one round."""

    seconds: float
    clips: int
    loss: float
    """Mean over the second half of the epoch."""
    waited: float = math.nan
    """Seconds in which the loop waited for its loader."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=10_000, help="clips of an epoch")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path.cwd().parent / "han_epoch.tmp",
        help="where the clips are made, or lie from an earlier run (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=1, help="epochs of each side, interleaved")
    parser.add_argument(
        "--max-batches",
        type=int,
        default=0,
        help="batches of both sides; 0: whole epoch",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    csvs = make_clips(folder, arguments.clips)
    shards, pack_seconds = packed(folder, csvs)
    ranks = connect()
    torch.set_num_threads(arguments.threads)
    annotations = read_annotations(csvs, "val")
    rounds: dict[str, list[Epoch]] = {"official": [], "ours": [], "ours_bf16": []}
    limit = arguments.max_batches
    for _ in range(arguments.rounds):
        rounds["official"].append(official_epoch(folder, csvs, ranks.device, limit))
        for side, precision in (("ours", "fp32"), ("ours_bf16", "bf16")):
            epoch = our_epoch(shards, csvs, annotations, ranks, limit, precision)
            rounds[side].append(epoch)
    report(arguments, rounds, pack_seconds, ranks.device)


# The clips


def make_clips(folder: Path, clips: int) -> Path:
    """Random features in HAN's layout, only those that are missing; the folder of their csv files.

    The features of a clip are one random block times a number of its own. Clip n is the same in
    every run, so a folder serves any number of clips.
    """
    ids = [f"clip{n:07d}_0_10" for n in range(clips)]
    rng = np.random.default_rng(SEED)
    blocks = {name: rng.random(shape, np.float32) for name, shape in FILES.items()}
    scales = rng.uniform(0.5, 1.5, clips).astype(np.float32)
    missing: list[tuple[Path, NDArray[np.float32], np.float32]] = []
    for name, block in blocks.items():
        (folder / "feats" / name).mkdir(parents=True, exist_ok=True)
        whole = io.BytesIO()
        np.save(whole, block)
        for clip, scale in zip(ids, scales, strict=True):
            path = folder / "feats" / name / f"{clip[:11]}.npy"
            if not path.is_file() or path.stat().st_size != whole.tell():
                missing.append((path, block, scale))
    csvs = folder / f"clips-{clips}"
    shards = 0 if (csvs / "train" / MANIFEST).exists() else clips * SHARD_BYTES
    check_space(folder, sum(block.nbytes for _, block, _ in missing) + shards)
    for path, block, scale in tqdm(missing, desc="making clips", unit=" files"):
        np.save(path, block * scale)
    write_csvs(csvs, ids)
    return csvs


def check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder} has {free / 1e9:.1f} GB free, the clips need {needed / 1e9:.1f} GB",
            remedy="Choose another --folder or fewer --clips",
        )


def write_csvs(folder: Path, ids: list[str]) -> None:
    """One to three random weak labels per clip; validation, never run here, has one clip."""
    folder.mkdir(exist_ok=True)
    weak = []
    for n, clip in enumerate(ids):
        rng = np.random.default_rng([SEED, n])
        weak.append(f"{clip}\t{','.join(rng.choice(LLP_CLASSES, rng.integers(1, 4), False))}")
    head, dense = "filename\tevent_labels", "filename\tonset\toffset\tevent_labels"
    for name, rows in {
        "AVVP_train.csv": [head, *weak],
        "AVVP_val_pd.csv": [head, weak[0]],
        "AVVP_test_pd.csv": [head],
        "AVVP_eval_audio.csv": [dense],
        "AVVP_eval_visual.csv": [dense],
    }.items():
        (folder / name).write_text("\n".join(rows) + "\n")


def packed(folder: Path, csvs: Path) -> tuple[ShardSet, float]:
    """The clips as a shard set, and the seconds it took to pack them, now or in an earlier run."""
    out = csvs / "train"
    untracked = TrackingConfig(enabled=False)
    shards = pack(
        PackConfig(str(folder), str(out), "han", annotations=str(csvs), tracking=untracked)
    )
    times = {record.kind: record.time for record, _ in read_records(out)}
    return shards, (times["end"] - times["run"]) / 1000


# The official algorithm


class OfficialClips(Dataset[dict[str, Tensor]]):
    """Clip n as its three arrays `[T, D]` and its label `[25]`, from three files and a csv row."""

    def __init__(self, folder: Path, csv: Path) -> None:
        self.feats = folder / "feats"
        self.rows = [line.split("\t") for line in csv.read_text().splitlines()[1:]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        clip, names = self.rows[n]
        label = torch.zeros(len(LLP_CLASSES))
        label[[LLP_CLASSES.index(name) for name in names.split(",")]] = 1
        arrays = {name: np.load(self.feats / name / f"{clip[:11]}.npy") for name in FILES}
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | {"label": label}


class OfficialLayer(nn.Module):
    """HAN's hybrid layer, sequence first: `(query, other) [T, B, 512] -> [T, B, 512]`."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(WIDTH, 1, dropout)
        self.cross_attention = nn.MultiheadAttention(WIDTH, 1, dropout)
        self.linear1, self.linear2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.drop1, self.drop2, self.drop3, self.drop4 = (nn.Dropout(dropout) for _ in range(4))

    def forward(self, query: Tensor, other: Tensor) -> Tensor:
        crossed = self.cross_attention(query, other, other)[0]
        attended = self.self_attention(query, query, query)[0]
        query = self.norm1(query + self.drop1(crossed) + self.drop2(attended))
        hidden = self.drop3(F.relu(self.linear1(query)))
        out: Tensor = self.norm2(query + self.drop4(self.linear2(hidden)))
        return out


class OfficialHAN(nn.Module):
    """HAN on raw frames; gives the audio, visual and video probabilities, `[B, 25]` each."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_a, self.fc_v, self.fc_st = (nn.Linear(dim, WIDTH) for _, dim in FILES.values())
        self.fc_fusion = nn.Linear(2 * WIDTH, WIDTH)
        self.layer = OfficialLayer()
        self.prob, self.frame_att, self.av_att = (
            nn.Linear(WIDTH, len(LLP_CLASSES)) for _ in range(3)
        )

    def forward(
        self, audio: Tensor, frames: Tensor, motion: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`audio [B, 10, 128]`, `frames [B, 80, 2048]`, `motion [B, 10, 512]`."""
        seconds = self.fc_v(frames).unflatten(1, (-1, 8)).mean(2)
        visual = self.fc_fusion(torch.cat([seconds, self.fc_st(motion)], -1))
        a, v = self.fc_a(audio).permute(1, 0, 2), visual.permute(1, 0, 2)
        a, v = self.layer(a, v).permute(1, 0, 2), self.layer(v, a).permute(1, 0, 2)
        both = torch.stack([a, v], 2)
        temporal = self.frame_att(both).softmax(1) * torch.sigmoid(self.prob(both))
        video = (temporal * self.av_att(both).softmax(2)).sum((1, 2))
        pooled = temporal.sum(1)
        return pooled[:, 0], pooled[:, 1], video


def official_epoch(folder: Path, csvs: Path, device: torch.device, max_batches: int) -> Epoch:
    """Train a fresh HAN for one epoch, as the official script does by default."""
    torch.manual_seed(SEED)
    clips = OfficialClips(folder, csvs / "AVVP_train.csv")
    loader = DataLoader(clips, BATCH, shuffle=True, num_workers=1, pin_memory=device.type == "cuda")
    model = OfficialHAN().to(device).train()
    adam = torch.optim.Adam(model.parameters(), LR)
    losses: list[Tensor] = []
    seen, waited = 0, 0.0
    batches = min(max_batches or len(loader), len(loader))
    bar = tqdm(loader, desc="official", total=batches, unit=" steps")
    started = asked = time.perf_counter()
    for batch in bar:
        waited += time.perf_counter() - asked
        *features, label = (batch[name].to(device) for name in (*FILES, "label"))
        adam.zero_grad()
        audio, visual, video = model(*features)
        loss = official_loss(audio, visual, video, label)
        loss.backward()
        adam.step()
        losses.append(loss.detach())
        seen += len(label)
        if len(losses) == batches:
            break
        asked = time.perf_counter()
    loss_value = second_half(losses)
    seconds = time.perf_counter() - started
    bar.close()
    return Epoch(seconds, seen, loss_value, waited)


def official_loss(audio: Tensor, visual: Tensor, video: Tensor, label: Tensor) -> Tensor:
    """BCE(a, y) + BCE(v, smoothed y) + BCE(video, y)."""
    targets = ((audio, label), (visual, 0.9 * label + 0.05), (video, label))
    parts = [F.binary_cross_entropy(p.clamp(1e-7, 1 - 1e-7), y) for p, y in targets]
    return parts[0] + parts[1] + parts[2]


# Ours


def our_epoch(
    shards: ShardSet,
    csvs: Path,
    annotations: Annotations,
    ranks: Ranks,
    max_batches: int,
    precision: str,
) -> Epoch:
    """Train a fresh parser for one epoch by configs/finetune/han.yaml."""
    keys = {
        "data.train": shards.folder,
        "data.val": shards.folder,
        "data.annotations": csvs,
        "trainer.out": csvs / f"ours-{precision}",
        "trainer.precision": precision,
        "trainer.epochs": 1,
        "trainer.max_steps": max_batches,
        "trainer.seed": SEED,
        "tracking.enabled": False,
        "tracking.figures": False,
    }
    config = load(FinetuneConfig, CONFIG, [f"{key}={value}" for key, value in keys.items()])
    torch.manual_seed(SEED)
    task = ParsingTask(config, Mixture([shards]), shards, annotations, ranks=ranks)
    out, times = Path(config.trainer.out), [0.0, 0.0]

    def watch(step: int, doing: str) -> None:
        if doing == "updating" and step == 0:
            times[0] = time.perf_counter()
        elif doing == "reading":
            times[1] = time.perf_counter()

    with Run("finetune", out, config, {}) as record:
        trainer = Trainer(task, config, record, watch)
        trainer.train()
    seconds = times[1] - times[0]  # without what precedes the first step and follows the last
    losses = list(read_series(out)["train/loss"].values())
    return Epoch(seconds, trainer.step * config.trainer.batch_size, second_half(losses))


# The report


def second_half(losses: Iterable[Tensor] | Iterable[float]) -> float:
    """Mean over the second half of an epoch's losses."""
    values = [float(loss) for loss in losses]
    return fmean(values[len(values) // 2 :])


def report(
    arguments: argparse.Namespace,
    rounds: dict[str, list[Epoch]],
    pack_seconds: float,
    device: torch.device,
) -> None:
    """Print the table, then the line of JSON."""
    machine = describe_machine(device)
    per_epoch = {
        side: [epoch.seconds / epoch.clips * arguments.clips for epoch in epochs]
        for side, epochs in rounds.items()
    }
    losses = {side: epochs[-1].loss for side, epochs in rounds.items()}
    waited = median(epoch.waited / epoch.seconds for epoch in rounds["official"])
    figures: dict[str, object] = {"pack_s": pack_seconds, "official_data_wait": waited}
    shown = ", ".join(f"{name} {value}" for name, value in machine.items())
    part = f", from its first {arguments.max_batches} batches" if arguments.max_batches else ""
    print(f"\n{shown}\nan epoch of {arguments.clips} clips{part}; rounds: {arguments.rounds}\n")
    print("| HAN       | s per epoch, min | median | clips/s, min | median |\n" + "|---" * 5 + "|")
    for side, seconds in per_epoch.items():
        speeds = [arguments.clips / value for value in seconds]
        cells = (min(seconds), median(seconds), min(speeds), median(speeds))
        print(f"| {side:9} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
        figures[f"{side}_epoch_s"] = {"min": cells[0], "median": cells[1]}
        figures[f"{side}_clips_per_s"] = {"min": cells[2], "median": cells[3]}
        figures[f"{side}_loss"] = losses[side]
    print(f"\npacking, once: {pack_seconds:.1f} s, {arguments.clips / pack_seconds:.0f} clips/s")
    print(f"the official loop waits for its loader for {waited:.0%} of its time")
    print("loss, second half: " + ", ".join(f"{side} {loss:.4f}" for side, loss in losses.items()))
    if not all(map(math.isfinite, losses.values())):
        raise NumericsError(f"a loss is not finite: {losses}")
    ratios = {
        f"{side}_over_official": median(per_epoch["official"]) / median(per_epoch[side])
        for side in ("ours", "ours_bf16")
    }
    print(", ".join(f"{name.replace('_', ' ')}: {ratio:.2f}" for name, ratio in ratios.items()))
    line = {"bench": "han_epoch", "machine": machine, "figures": figures, "ratios": ratios}
    print(json.dumps(line), flush=True)


def describe_machine(device: torch.device) -> dict[str, object]:
    """Machine that the figures depend on, in the order in which it is printed."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    machine: dict[str, object] = {"cpu": (models or [platform.processor()])[0]}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return machine | {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    run(main)
