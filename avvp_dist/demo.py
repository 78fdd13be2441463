"""The whole chain in one command: every stage as a user would type it, then a table.

On a simulated corpus the numbers show that the chain works, and nothing about videos.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.commit import digest, write_json
from avvp_dist.config import DemoConfig
from avvp_dist.errors import AvvpError, ConfigError
from avvp_dist.evaluation.parsing_figures import class_figure
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.evaluation.scores import score_per_class
from avvp_dist.shards.exclusion import EXCLUDED

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "val", "test")
ROWS = {
    "HAN": "configs/finetune/demo_han.yaml",
    "Base+Adv+Skip+GCAA": "configs/finetune/demo_base_adv_skip_gcaa.yaml",
    "+ encoder (multi)": "configs/finetune/demo_pretrain_multi.yaml",
}
"""Rows of the demo's table and their configs."""
COLUMNS = {
    "audio": "segment_audio",
    "visual": "segment_visual",
    "av": "segment_av",
    "Type@AV": "segment_type_av",
    "Event@AV": "segment_event_av",
    "event-level Type@AV": "event_type_av",
}
"""Columns of the table and the scores they show."""


@dataclass(frozen=True)
class Command:
    """One command of the chain; `out` is what a changed command has to make anew."""

    name: str
    command: list[str]
    out: Path
    expect: float
    """Seconds it takes about, for the reader."""


def demo(config: DemoConfig) -> None:
    """Run what is missing of the chain, print and write its table.

    Raises:
        ConfigError: if this is no checkout, or the feature folder does not exist.
        AvvpError: if a stage fails; running the demo again goes on with it.
    """
    if not (ROOT / "launch" / "pretrain.py").is_file():
        raise ConfigError(f"{ROOT} holds no launch/: the demo runs from a checkout of the project")
    if config.features and not Path(config.features).is_dir():
        raise ConfigError(f"features: {config.features} does not exist")
    out = Path(config.out)
    if config.features and config.out == DemoConfig().out:
        out = out.with_name(f"demo-{Path(config.features).resolve().name}")
    out = out.absolute()
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{out / 'mlflow.db'}")
    started = time.monotonic()
    key = ""
    for stage in stages(config, out):
        key = _run(stage, out, key)
    _report(config, out, time.monotonic() - started)


def stages(config: DemoConfig, out: Path) -> list[Command]:
    """The chain's commands, in order."""
    features = Path(config.features).absolute() if config.features else out / "features"
    shards = {split: out / "shards" / split for split in SPLITS}
    made: list[Command] = []

    def add(name: str, out: Path, script: str, *keys: str, expect: float) -> None:
        made.append(Command(name, [*_launcher(script, config.ranks), script, *keys], out, expect))

    if not config.features:
        add("simulate", features, "tools/simulate.py", f"out={features}", expect=5)
    extractor = f"extractor={features.name if config.features else 'simulated'}"
    for split, folder in shards.items():
        keys = (f"source={features}", f"split={split}", f"out={folder}", extractor)
        add(f"pack {split}", folder, "tools/pack.py", *keys, expect=3)
    thresholds = shards["train"] / "thresholds.yaml"
    source = f"shards={shards['train']}"
    held_out = f"against=[{shards['val']},{shards['test']}]"
    excluded = shards["train"] / EXCLUDED
    add("decontaminate", excluded, "tools/decontaminate.py", source, held_out, expect=20)
    add("calibrate", thresholds, "tools/calibrate.py", source, expect=15)
    add("ground", shards["train"] / "grounding", "tools/ground.py", source, expect=25)
    add(
        "pretrain", out / "pretrain", "launch/pretrain.py",
        "--config", "configs/pretrain/demo.yaml", f"data.{source}",
        f"trainer.out={out / 'pretrain'}", "trainer.resume=auto", expect=60,
    )  # fmt: skip
    for seed in range(1, config.seeds + 1):
        for row, file in ROWS.items():
            run = out / "parsers" / f"{Path(file).stem}-seed{seed}"
            add(
                f"finetune {row}, seed {seed}", run, "launch/finetune.py", "--config", file,
                f"data.train={shards['train']}", f"data.val={shards['val']}",
                f"data.annotations={features}", f"trainer.seed={seed}", f"trainer.out={run}",
                "trainer.resume=auto", expect=45,
            )  # fmt: skip
            add(
                f"evaluate {row}, seed {seed}", _scores(out, file, seed).parent,
                "launch/evaluate.py", f"parser={run / 'model'}", f"shards={shards['test']}",
                f"annotations={features}", f"out={_scores(out, file, seed).parent}", expect=10,
            )  # fmt: skip
    return made


def _launcher(script: str, ranks: int) -> list[str]:
    import torch

    if torch.accelerator.is_available():
        ranks = min(ranks, torch.accelerator.device_count())
    if script in ("launch/pretrain.py", "launch/finetune.py"):
        deepspeed = str(Path(sys.executable).with_name("deepspeed"))
        return [deepspeed, "--num_accelerators", str(ranks), "--log_level", "error"]
    return [sys.executable]


def _run(stage: Command, out: Path, before: str) -> str:
    """Run a stage unless it has ended well: the same command and config, after the same stages.

    Returns its key, which is `before` for the next one.
    """
    ledger = out / "stages.json"
    done = json.loads(ledger.read_text()) if ledger.exists() else {}
    files = [ROOT / word for word in stage.command if word.endswith(".yaml")]
    key = digest([before, stage.command, *(file.read_text() for file in files)])
    if done.get(stage.name) == {"key": key, "done": True}:
        print(f"== {stage.name}: done before", flush=True)
        return key
    if done.get(stage.name, {}).get("key", key) != key:
        _remove(stage.out)
    write_json(ledger, {**done, stage.name: {"key": key, "done": False}})
    shown = shlex.join([Path(stage.command[0]).name, *stage.command[1:]])
    print(f"\n== {stage.name} (about {stage.expect:.0f} s)\n$ {shown}", flush=True)
    code = subprocess.run(stage.command, cwd=ROOT, check=False, env=_environment()).returncode
    if code:
        error = AvvpError(
            f"stage {stage.name} ended with exit code {code}",
            remedy="Its message stands above; the same command goes on from here",
        )
        error.exit_code = code % 256
        raise error
    write_json(ledger, {**done, stage.name: {"key": key, "done": True}})
    return key


def _environment() -> dict[str, str]:
    import torch

    environment = dict(os.environ)
    if not torch.accelerator.is_available():
        # Said before the launcher looks for a GPU, it saves three warnings per launch.
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _scores(out: Path, file: str, seed: int) -> Path:
    return out / "scores" / f"{Path(file).stem}-seed{seed}" / "scores.json"


def _report(config: DemoConfig, out: Path, seconds: float) -> None:
    what = f"real features of {config.features}" if config.features else "SIMULATED features"
    lines = [
        f"F-scores on the test split, segment level unless said; {what}; "
        + ("one seed" if config.seeds == 1 else f"mean ± deviation over {config.seeds} seeds"),
        "",
        f"| {'parser':22} | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for row, file in ROWS.items():
        seeds = range(1, config.seeds + 1)
        scores = [json.loads(_scores(out, file, s).read_text())["scores"] for s in seeds]
        cells = [_cell([s[key] for s in scores]) for key in COLUMNS.values()]
        lines.append(f"| {row:22} | " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    (out / "table.md").write_text(table + "\n")
    figure = _class_figure(config, out, what)
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
    mlflow = Path(sys.executable).with_name("mlflow")
    print(
        f"\n{seconds / 60:.1f} minutes; table: {out / 'table.md'}\nruns, figures and models:  "
        f"{mlflow} ui --backend-store-uri {os.environ['MLFLOW_TRACKING_URI']}"
    )


def _cell(values: list[float]) -> str:
    mean = f"{np.mean(values):.1f}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _class_figure(config: DemoConfig, out: Path, what: str) -> Path:
    """F per class of each row, mean of audio and visual, over all seeds."""
    folder = Path(config.features) if config.features else out / "features"
    annotations = read_annotations(folder, "test")
    assert annotations.events is not None
    means = {}
    for row, file in ROWS.items():
        per_seed = []
        for seed in range(1, config.seeds + 1):
            saved = Predictions.load(_scores(out, file, seed).with_name("predictions.npz"))
            found = score_per_class(saved.decided("video", 0.5), annotations.events)
            per_seed += [found["segment_audio"], found["segment_visual"]]
        stacked = np.stack(per_seed)
        known = ~np.isnan(stacked)
        total = np.where(known, stacked, 0).sum(0)
        means[row] = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
    title = f"segment F by class, mean of audio and visual; {what}"
    return class_figure(out / "classes.png", annotations.classes, means, title)
