"""Recipes that the tables and the studies share: their data, and the commands of their jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from avvp_dist import __version__
from avvp_dist.commit import digest, sha256
from avvp_dist.config import (
    CalibrateConfig,
    EvaluateConfig,
    FinetuneConfig,
    GroundConfig,
    PretrainConfig,
    SweepConfig,
    TrackingConfig,
)
from avvp_dist.config.files import load
from avvp_dist.grounding.summary import SUMMARY
from avvp_dist.grounding.version import Grounding
from avvp_dist.reproduction.jobs import Command
from avvp_dist.shards.schema import HAN_EXTRACTOR
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.run import Run

UNTRAINED = ["optimizer.lr=0", "trainer.max_steps=1"]
"""Keys that make an encoder a control: it keeps its random weights."""

Splits = dict[str, ShardSet]
TrainingConfig = TypeVar("TrainingConfig", PretrainConfig, FinetuneConfig)


def open_splits(config: SweepConfig) -> Splits:
    """Open the shard sets train, val and test, in this order."""
    return {split: ShardSet(Path(config.shards) / split) for split in ("train", "val", "test")}


def ensure_grounding(shards: ShardSet, tracking: TrackingConfig, grounding: str = "") -> Grounding:
    """The grounding of a shard set; a set without one is calibrated and grounded.

    Args:
        grounding: its folder; empty: the only one beside the shards.
    """
    if (
        not grounding
        and not shards.remote
        and not any(shards.folder.glob(f"grounding/*/{SUMMARY}"))
    ):
        from avvp_dist.grounding.calibrate import calibrate
        from avvp_dist.grounding.job import ground

        if not (shards.folder / "thresholds.yaml").is_file():
            calibrate(CalibrateConfig(shards=shards.name, tracking=tracking))
        ground(GroundConfig(shards=shards.name, tracking=tracking))
    return Grounding(shards, grounding)


def parent_run(experiment: str, out: Path, config: SweepConfig, shards: Splits) -> Run:
    """The run that the runs of all jobs are nested under; running again resumes it."""
    inputs = {one.name: one.digest for one in shards.values()}
    tags = {f"manifest.{split}": one.digest for split, one in shards.items()}
    return Run(experiment, out, config, tags, inputs=inputs, resume=True)


def described_features(test: ShardSet) -> str:
    """Words for every title that say which features its numbers belong to."""
    extractor = test.extractor
    if extractor == HAN_EXTRACTOR:
        return "HAN's features"
    if "simulated" in extractor:
        return "Simulated features: no statement about LLP"
    return f"Features of {extractor or 'an unnamed extractor'}: not comparable with the paper's"


def parsing_digest(config: SweepConfig, shards: Splits) -> str:
    """Hash of everything that parsers are trained on and scored with."""
    csvs = {path.name: sha256(path) for path in sorted(Path(config.annotations).glob("AVVP_*"))}
    return digest([__version__, csvs, *(one.digest for one in shards.values())])


def parser_keys(config: SweepConfig, shards: Splits, seed: int) -> list[str]:
    """KEY=VALUE of every parser's training."""
    return [
        *config.finetune,
        f"data.train={shards['train'].name}",
        f"data.val={shards['val'].name}",
        f"data.test={shards['test'].name}",
        f"data.annotations={Path(config.annotations).absolute()}",
        f"data.audio_annotations={config.audio_annotations}",
        f"trainer.seed={seed}",
    ]


def training(
    stage: str,
    kind: type[TrainingConfig],
    files: Sequence[str],
    keys: Sequence[str],
    out: Path,
    config: SweepConfig,
) -> Command[TrainingConfig]:
    """A training into `out`, a folder in its job's, that resumes where it was cut off.

    Args:
        stage: `pretrain` or `finetune`.
        files: paths or names of configs, such as `finetune/han`.
        keys: KEY=VALUE that count more than the files.

    Raises:
        ConfigError: for a wrong file, key or value.
    """
    made = load(kind, files, [*keys, f"trainer.out={out}", "trainer.resume=auto"])
    made.tracking = nested(config, out.parent)
    return Command(out.name, stage, made, out)


def evaluation(
    config: SweepConfig, parser: Path, shards: ShardSet, split: str, out: Path, prefix: str = ""
) -> Command[EvaluateConfig]:
    """The scores of an exported parser on a split, into `out`, a folder in its job's."""
    judged = EvaluateConfig(
        parser=str(parser),
        shards=shards.name,
        annotations=str(Path(config.annotations).absolute()),
        audio_annotations=config.audio_annotations,
        split=split,
        rule=config.rule,
        out=str(out),
        tracking=nested(config, out.parent),
    )
    return Command(out.name, "evaluate", judged, out, prefix)


def nested(config: SweepConfig, job: Path) -> TrackingConfig:
    """Tracking under the job's run. Nothing is registered: a table's parsers are no candidates."""
    return replace(config.tracking, name="", register=False, parent=str(job))
