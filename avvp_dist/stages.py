"""The table of stages: what `avvp` runs, what the scripts of a checkout run, what jobs run.

Nothing heavy is imported here: a stage's function is imported when the stage runs. A new stage is a
config class in `avvp_dist/config/`, a function that takes it, and an entry of this table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from avvp_dist.config import (
    CalibrateConfig,
    DecontaminateConfig,
    DemoConfig,
    EvaluateConfig,
    ExtractConfig,
    FinetuneConfig,
    GroundConfig,
    ImportConfig,
    InspectConfig,
    LabelsStudyConfig,
    PackConfig,
    ParseConfig,
    ParseVideoConfig,
    PretrainConfig,
    PromoteConfig,
    RefineConfig,
    ScoreConfig,
    SimulateConfig,
    StudyConfig,
    SyncConfig,
    TablesConfig,
)
from avvp_dist.errors import KEPT_CHAMPION

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Stage:
    """One stage: its name, its config, the function that does it.

    Functions are given as `module:function`. They take the config; without a config class they
    take the words of the command line.
    """

    name: str
    config: type[DataclassInstance] | None
    function: str
    help: str
    """One line that starts with a verb."""
    example: str
    """A command line that works once its capitals are filled in."""
    plan: str = ""
    """The function of `--dry-run`: it takes the config and the number of ranks. Stages that have
    one are trainings, which a launcher starts on several ranks."""

    def run(self, config: object) -> None:
        """Do the work of the stage in this process."""
        resolve(self.function)(config)


def resolve(function: str) -> Callable[..., None]:
    """Import the function that `module:function` names."""
    module, _, name = function.partition(":")
    return cast(Callable[..., None], getattr(import_module(module), name))


_TABLE = (
    Stage(
        "simulate",
        SimulateConfig,
        "avvp_dist.packing.simulation:simulate",
        "Write a simulated corpus of clip features.",
        "avvp simulate out=DIR",
    ),
    Stage(
        "pack",
        PackConfig,
        "avvp_dist.packing.job:pack",
        "Pack features on disk into a shard set.",
        "avvp pack source=DIR split=train out=SHARDS/train",
    ),
    Stage(
        "extract",
        ExtractConfig,
        "avvp_dist.extraction.job:extract",
        "Describe videos by backbones, second by second, and write a shard set.",
        "avvp extract source=VIDEOS out=SHARDS/train",
    ),
    Stage(
        "inspect",
        InspectConfig,
        "avvp_dist.stages:_inspect",
        "Print what a shard set holds, and its faults; give foreign tars a manifest.",
        "avvp inspect SHARDS/train --deep",
    ),
    Stage(
        "decontaminate",
        DecontaminateConfig,
        "avvp_dist.decontamination.job:decontaminate",
        "Exclude clips from training that are held out elsewhere or duplicates.",
        "avvp decontaminate shards=SHARDS/train --against llp SHARDS/test",
    ),
    Stage(
        "calibrate",
        CalibrateConfig,
        "avvp_dist.grounding.calibrate:calibrate",
        "Choose the similarity thresholds of a shard set.",
        "avvp calibrate shards=SHARDS/train",
    ),
    Stage(
        "ground",
        GroundConfig,
        "avvp_dist.grounding.job:ground",
        "Label the grounding of every clip of a shard set, on Ray.",
        "avvp ground shards=SHARDS/train",
    ),
    Stage(
        "pretrain",
        PretrainConfig,
        "avvp_dist.tasks.pretraining:pretrain",
        "Pretrain the audio-visual encoder on grounding.",
        "deepspeed --module avvp_dist pretrain --config pretrain/multi data.shards=SHARDS/train "
        "trainer.out=RUN",
        plan="avvp_dist.tasks.pretraining:plan_pretraining",
    ),
    Stage(
        "finetune",
        FinetuneConfig,
        "avvp_dist.tasks.finetuning:finetune",
        "Train an audio-visual video parser on weak labels.",
        "deepspeed --module avvp_dist finetune --config finetune/base_adv_skip_gcaa "
        "data.train=SHARDS/train data.val=SHARDS/val data.annotations=DIR trainer.out=RUN",
        plan="avvp_dist.tasks.finetuning:plan_finetuning",
    ),
    Stage(
        "refine",
        RefineConfig,
        "avvp_dist.tasks.refinement:refine",
        "Find the weak labels that each modality keeps (MA, stage 2).",
        "avvp refine parser=RUN/model shards=SHARDS/train out=labels.npz",
    ),
    Stage(
        "evaluate",
        EvaluateConfig,
        "avvp_dist.tasks.evaluation:evaluate",
        "Score an exported parser with the official metrics.",
        "avvp evaluate parser=RUN/model shards=SHARDS/test annotations=DIR out=DIR",
    ),
    Stage(
        "parse",
        ParseConfig,
        "avvp_dist.parsing.job:parse",
        "Write the event timeline of each clip of a shard set, as data and as a page.",
        "avvp parse parser=RUN/model shards=SHARDS/test out=DIR",
    ),
    Stage(
        "parse-video",
        ParseVideoConfig,
        "avvp_dist.parsing.video:parse_videos",
        "Write the event timelines of videos, with a page that plays each.",
        "avvp parse-video VIDEO.mp4 parser=RUN/model out=DIR",
    ),
    Stage(
        "score",
        ScoreConfig,
        "avvp_dist.stages:_score",
        "Score anyone's prediction files with the official metrics.",
        "avvp score --predictions SEED1.npz SEED2.npz --annotations DIR --json FILE",
    ),
    Stage(
        "import",
        ImportConfig,
        "avvp_dist.stages:_import_checkpoint",
        "Turn a state dict of the official codes into an exported parser.",
        "avvp import FILE.pt --format han --out DIR",
    ),
    Stage(
        "promote",
        PromoteConfig,
        "avvp_dist.stages:_promote",
        "Make a registered model the champion if it validates better than the present one.",
        "avvp promote model=avvp-parser",
    ),
    Stage(
        "sync",
        SyncConfig,
        "avvp_dist.stages:_sync",
        "Send MLflow the records that it has not received.",
        "avvp sync RUN",
    ),
    Stage(
        "tables",
        TablesConfig,
        "avvp_dist.reproduction.tables:reproduce_tables",
        "Train every row of the paper's tables and write them beside its numbers.",
        "avvp tables shards=SHARDS annotations=DIR out=DIR",
    ),
    Stage(
        "study-grounding",
        StudyConfig,
        "avvp_dist.studies.grounding:study",
        "Judge groundings by the parsers over encoders that are trained on them.",
        "avvp study-grounding shards=SHARDS annotations=DIR out=DIR",
    ),
    Stage(
        "study-labels",
        LabelsStudyConfig,
        "avvp_dist.studies.labels:study_labels",
        "Judge pretraining by parsers trained on few and many labelled clips.",
        "avvp study-labels shards=SHARDS annotations=DIR out=DIR",
    ),
    Stage(
        "supervise",
        None,
        "avvp_dist.stages:_supervise",
        "Run a launcher so that signals reach its ranks and no process outlives it.",
        "avvp supervise deepspeed --num_gpus 8 --module avvp_dist pretrain "
        "data.shards=SHARDS/train trainer.out=RUN",
    ),
    Stage(
        "demo",
        DemoConfig,
        "avvp_dist.demo:demo",
        "Run every stage in turn, on a simulated corpus or on real features.",
        "avvp demo",
    ),
)

STAGES = {stage.name: stage for stage in _TABLE}
"""Every stage by its name, in the order in which a corpus passes them."""


# Stages whose functions take plain values.


def _inspect(config: InspectConfig) -> None:
    from avvp_dist.shards.inspection import inspect

    inspect(config.shards, deep=config.deep, skip_incomplete=config.skip_incomplete, config=config)


def _score(config: ScoreConfig) -> None:
    from avvp_dist.evaluation.predictions import score_file

    score_file(
        [Path(path) for path in config.predictions],
        Path(config.annotations),
        config.split,
        config.audio_annotations,
        config.rule,
        config.threshold,
        Path(config.json) if config.json else None,
    )


def _import_checkpoint(config: ImportConfig) -> None:
    from avvp_dist.models.official import import_checkpoint

    import_checkpoint(
        Path(config.file),
        config.format,
        Path(config.out),
        skip=config.skip,
        gcaa_first_snippet=config.gcaa_first_snippet,
    )


def _promote(config: PromoteConfig) -> None:
    from avvp_dist.tracking.promotion import promote

    if not promote(config):
        sys.exit(KEPT_CHAMPION)


def _sync(config: SyncConfig) -> None:
    from avvp_dist.tracking.mlflow_exporter import sync

    for folder in config.runs:
        print(f"{folder}: all sent, run {sync(Path(folder))}")


def _supervise(words: Sequence[str]) -> None:
    from avvp_dist.runtime.supervisor import supervise

    stage = STAGES["supervise"]
    parser = argparse.ArgumentParser(prog="avvp supervise", description=stage.help)
    parser.add_argument(
        "--grace", type=float, default=30, metavar="SECONDS", help="from a signal to the end of all"
    )
    parser.add_argument(
        "--pass",
        dest="passed",
        action="append",
        default=[],
        metavar="NAME",
        help="one more environment variable for the ranks",
    )
    parser.add_argument("--env-dir", metavar="DIR", help="a shared folder, for several hosts")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    given = parser.parse_args(words)
    if not given.command:
        parser.error("no command")
    sys.exit(supervise(given.command, grace=given.grace, passed=given.passed, folder=given.env_dir))
