"""The demo: the whole chain in one command, each stage as a user would type it, then a table.

On a simulated corpus the numbers show that the chain works. They say nothing about videos.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.config import DemoConfig
from avvp_dist.config.experiments import DEMO_ROWS
from avvp_dist.config.files import load
from avvp_dist.errors import AvvpError, ConfigError
from avvp_dist.evaluation.parsing_figures import class_figure
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.evaluation.scores import score_per_class
from avvp_dist.extraction.files import item_of, media_files, media_items
from avvp_dist.packing.sources import labels_of
from avvp_dist.reproduction.jobs import Command, Job, run_missing
from avvp_dist.reproduction.table_format import markdown_table, mean_cell
from avvp_dist.runtime.devices import warn_of_cpu
from avvp_dist.shards.exclusion import EXCLUDED
from avvp_dist.stages import STAGES

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SPLITS = ("train", "val", "test")
ROWS = dict(zip(DEMO_ROWS, ("HAN", "Base+Adv+Skip+GCAA", "+ encoder (multi)"), strict=True))
"""Rows of the demo's table and their names in it. Their configs are `finetune/demo_ROW`."""
COLUMNS = {
    "audio": "segment_audio",
    "visual": "segment_visual",
    "av": "segment_av",
    "Type@AV": "segment_type_av",
    "Event@AV": "segment_event_av",
    "event-level Type@AV": "event_type_av",
}
"""Columns of the table and the scores they show."""
_SECONDS = {
    "simulate": 5,
    "pack": 3,
    "decontaminate": 20,
    "calibrate": 15,
    "ground": 25,
    "pretrain": 60,
    "finetune": 45,
    "evaluate": 10,
    "extract": 60,
    "parse-video": 20,
}
"""About how long each stage takes on two cores, for the reader."""


_PARSED = 5
"""Number of test videos that are parsed into timelines."""


def demo(config: DemoConfig) -> None:
    """Run what is missing of the chain, print and write its table.

    Raises:
        ConfigError: if the feature folder does not exist.
        AvvpError: if a stage fails; the demo then resumes with it.
    """
    real = config.features or config.videos
    if config.features and config.videos:
        raise ConfigError("features and videos are both given", remedy="Choose one")
    if real and not Path(real).is_dir():
        key = "features" if config.features else "videos"
        raise ConfigError(f"{key}: {real} does not exist")
    out = Path(config.out)
    if real and config.out == DemoConfig().out:
        out = out.with_name(f"demo-{Path(real).resolve().name}")
    out = out.absolute()
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{out / 'mlflow.db'}")
    started = time.monotonic()
    warn_of_cpu()
    job = demo_job(config, out)
    for command in job.commands[: job.finished]:
        print(f"== {command.name}: done before", flush=True)
    run_missing(job, lambda command: _execute(command, config.ranks))
    _report(config, out, time.monotonic() - started)


def demo_job(config: DemoConfig, out: Path) -> Job:
    """The chain of commands, from the features to the scores of every parser."""
    features = _corpus(config, out)
    shards = {split: out / "shards" / split for split in SPLITS}
    train = shards["train"]
    commands: list[Command[DataclassInstance]] = []

    def add(name: str, stage: str, out: Path, *keys: str, file: str = "") -> None:
        kind = STAGES[stage].config
        assert kind is not None
        words = (*(("--config", file) if file else ()), *keys)
        commands.append(Command(name, stage, load(kind, file or None, keys), out, words=words))

    if not (config.features or config.videos):
        add("simulate", "simulate", features, f"out={features}")
    extractor = f"extractor={features.name if config.features else 'simulated'}"
    for split, folder in shards.items():
        keys = [f"source={features}", f"split={split}", f"out={folder}"]
        if config.videos:
            add(f"extract {split}", "extract", folder, *keys, f"annotations={features}")
        else:
            add(f"pack {split}", "pack", folder, *keys, extractor)
    against = f"against=[{shards['val']},{shards['test']}]"
    add("decontaminate", "decontaminate", train / EXCLUDED, f"shards={train}", against)
    add("calibrate", "calibrate", train / "thresholds.yaml", f"shards={train}")
    add("ground", "ground", train / "grounding", f"shards={train}")
    run = out / "pretrain"
    # Videos may be fewer than a batch.
    padded = ["data.last_batch=pad"] if config.videos else []
    keys = [*padded, *config.pretrain, f"data.shards={train}"]
    keys += [f"trainer.out={run}", "trainer.resume=auto"]
    add("pretrain", "pretrain", run, *keys, file="pretrain/demo")
    for seed in range(1, config.seeds + 1):
        for name in _chosen(config):
            row, file = ROWS[name], f"finetune/demo_{name}"
            run = out / "parsers" / f"{name}-seed{seed}"
            keys = [*config.finetune, f"data.train={train}"]
            keys += [f"data.{split}={shards[split]}" for split in ("val", "test")]
            keys += [f"data.annotations={features}", f"trainer.seed={seed}"]
            keys += [f"trainer.out={run}", "trainer.resume=auto"]
            add(f"finetune {row}, seed {seed}", "finetune", run, *keys, file=file)
            scores = _scores(out, name, seed).parent
            keys = [f"parser={run / 'model'}", f"shards={shards['test']}"]
            keys += [f"annotations={features}", f"out={scores}"]
            add(f"evaluate {row}, seed {seed}", "evaluate", scores, *keys)
    if config.videos:
        add("parse videos", "parse-video", _timelines(out), *_parsed(config, out))
    return Job("demo", out, "", tuple(commands))


def _corpus(config: DemoConfig, out: Path) -> Path:
    """The folder with the annotations, and with the features or videos."""
    given = config.features or config.videos
    return Path(given).absolute() if given else out / "features"


def _timelines(out: Path) -> Path:
    return out / "timelines"


def _parsed(config: DemoConfig, out: Path) -> list[str]:
    """Keys of the last stage: test videos, and the parser of the table's last row."""
    parser = out / "parsers" / f"{_chosen(config)[-1]}-seed1" / "model"
    names = labels_of(config.videos, "test", True)
    items = media_items([item_of(one) for one in media_files(Path(config.videos))], names)[:_PARSED]
    videos = ",".join(one.path for one in items)
    return [f"videos=[{videos}]", f"parser={parser}", f"out={_timelines(out)}"]


def command_line(command: Command[DataclassInstance], ranks: int) -> list[str]:
    """The words a user would type for a command of the demo."""
    if not STAGES[command.stage].plan:
        return ["avvp", command.stage, *command.words]
    import torch

    if torch.accelerator.is_available():
        ranks = min(ranks, torch.accelerator.device_count())
    launcher = ["deepspeed", "--num_accelerators", str(ranks), "--log_level", "error"]
    return [*launcher, "--module", "avvp_dist", command.stage, *command.words]


def _execute(command: Command[DataclassInstance], ranks: int) -> None:
    words = command_line(command, ranks)
    seconds = _SECONDS[command.stage]
    print(f"\n== {command.name} (about {seconds} s)\n$ {shlex.join(words)}", flush=True)
    code = subprocess.run(_started(words), check=False, env=_environment()).returncode
    if code:
        error = AvvpError(
            f"stage {command.name} ended with exit code {code}",
            remedy="Its message is above; run the demo again to resume from here",
        )
        error.exit_code = code % 256
        raise error


def _started(words: Sequence[str]) -> list[str]:
    """`words` with the programs of this Python's environment, whatever PATH says."""
    modules = {"avvp": "avvp_dist", "deepspeed": "deepspeed.launcher.runner"}
    return [sys.executable, "-m", modules[words[0]], *words[1:]]


def _environment() -> dict[str, str]:
    import torch

    environment = dict(os.environ)
    if not torch.accelerator.is_available():
        # Set before the launcher looks for a GPU, it saves three warnings per launch.
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


def _scores(out: Path, name: str, seed: int) -> Path:
    return out / "scores" / f"{name}-seed{seed}" / "scores.json"


def _chosen(config: DemoConfig) -> list[str]:
    """The rows of the table, each once."""
    return list(dict.fromkeys(config.rows or ROWS))


def _report(config: DemoConfig, out: Path, seconds: float) -> None:
    real = config.features or config.videos
    data = f"real features of {real}" if real else "SIMULATED features"
    several = f"mean ± standard deviation over {config.seeds} seeds"
    rows = []
    for name in _chosen(config):
        seeds = range(1, config.seeds + 1)
        scores = [json.loads(_scores(out, name, seed).read_text())["scores"] for seed in seeds]
        cells = [mean_cell([one[key] for one in scores]) for key in COLUMNS.values()]
        rows.append([f"{ROWS[name]:22}", *cells])
    lines = [
        f"F-scores on the test split, segment level unless said; {data}; "
        f"{'one seed' if config.seeds == 1 else several}. Each parser is its best epoch on "
        "validation. All rows have one short schedule, chosen for speed, so their differences say "
        "little: `avvp study-labels` compares",
        "",
        *markdown_table([f"{'parser':22}", *COLUMNS], rows),
    ]
    table = "\n".join(lines)
    (out / "table.md").write_text(table + "\n", "utf-8")
    figure = _class_figure(config, out, data)
    print(f"\n{table}\n\npictures:")
    train = out / "shards" / "train"
    pictures = [
        train / "thresholds.png",
        train / "thresholds.components.png",
        *sorted(train.glob("grounding/*/components.png")),
        out / "pretrain" / "curves.png",
        *sorted(out.glob("parsers/*-seed1/curves.png")),
        figure,
        *sorted(out.glob("scores/*-seed1/timeline.png")),
    ]
    for path in pictures:
        print(f"  {path}")
    if config.videos:
        print(f"\ntimelines: {_timelines(out) / 'index.html'}")
    mlflow = Path(sys.executable).with_name("mlflow")
    print(
        f"\n{seconds / 60:.1f} minutes; table: {out / 'table.md'}\nruns, figures and models:  "
        f"{mlflow} ui --backend-store-uri {os.environ['MLFLOW_TRACKING_URI']}"
    )


def _class_figure(config: DemoConfig, out: Path, data: str) -> Path:
    """Draw the F-score per class of each row, the mean of audio and visual over all seeds."""
    annotations = read_annotations(_corpus(config, out), "test")
    assert annotations.events is not None
    means = {}
    for name in _chosen(config):
        per_seed = []
        for seed in range(1, config.seeds + 1):
            saved = Predictions.load(_scores(out, name, seed).with_name("predictions.npz"))
            scored = score_per_class(saved.decided("video", 0.5), annotations.events)
            per_seed += [scored["segment_audio"], scored["segment_visual"]]
        stacked = np.stack(per_seed)
        known = ~np.isnan(stacked)
        total = np.where(known, stacked, 0).sum(0)
        means[ROWS[name]] = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
    title = f"segment F by class, mean of audio and visual; {data}"
    return class_figure(out / "classes.png", annotations.classes, means, title)
