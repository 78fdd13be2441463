"""Keys of the stages that run other stages: the demo, the paper's tables, the study."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.grounding import GROUPINGS, RULES
from avvp_dist.config.option import option, section
from avvp_dist.config.parsers import AUDIO_ANNOTATIONS, DECISION_RULES
from avvp_dist.config.pretraining import OBJECTIVES
from avvp_dist.config.tracking import TrackingConfig

DEMO_ROWS = ("han", "base_adv_skip_gcaa", "pretrain_multi")
"""Rows of the demo's table, by the names that they have in the paper's tables too."""


@dataclass
class DemoConfig:
    """Keys of `avvp demo`: every stage in turn, on a simulated corpus, real features or videos."""

    out: str = option("runs/demo", "folder of everything the demo makes")
    features: str = option("", "folder of features_*.npz and AVVP_*.csv; empty: a simulated corpus")
    videos: str = option("", "folder of videos and AVVP_*.csv, from which features are extracted")
    rows: list[str] = option([], "rows of the table; empty: all", choices=DEMO_ROWS)
    seeds: int = option(1, "number of parsers trained per row of the table", minimum=1)
    ranks: int = option(2, "number of DeepSpeed ranks; at most one per GPU", minimum=1)
    finetune: list[str] = option([], "KEY=VALUE for every parser, such as trainer.epochs=2")
    pretrain: list[str] = option([], "KEY=VALUE for the encoder, such as encoder.size=base")


@dataclass
class SweepConfig:
    """Keys of a sweep: many trainings and their scores, as jobs on Ray."""

    shards: str = option("", "folder of the shard sets train, val and test", required=True)
    annotations: str = option("", "folder of the AVVP_*.csv", required=True)
    audio_annotations: str = option(
        "2024", "version of the dense audio labels", choices=AUDIO_ANNOTATIONS
    )
    rule: str = option(
        "video", "decision rule of the scores, as in avvp evaluate", choices=DECISION_RULES
    )
    finetune: list[str] = option([], "KEY=VALUE for every parser, such as trainer.epochs=2")
    pretrain: list[str] = option([], "KEY=VALUE for every encoder, such as encoder.size=tiny")
    cpus: int = option(1, "CPU cores of each training", minimum=1)
    gpus: float = option(1.0, "GPUs of each training, if the cluster has any", minimum=0)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class TablesConfig(SweepConfig):
    """Keys of `avvp tables`: Tables 1 and 2, every row trained from several seeds."""

    pretraining: str = option("", "shard set the encoders are trained on; empty: SHARDS/train")
    out: str = option("runs/tables", "folder of all results, on a disk that all nodes see")
    rows: list[str] = option([], "rows to make, by the name of their config; empty: all")
    seeds: int = option(3, "number of parsers trained per row", minimum=1)
    released: bool = option(
        False, "fidelity: train as the authors' code does, with its faults and schedules"
    )
    compare: list[str] = option(
        ["han", "pretrain_multi"], "two rows whose F-scores per class are plotted (Figure 4)"
    )


@dataclass
class StudyConfig(SweepConfig):
    """Keys of `avvp study-grounding`: groundings judged by the parsers trained on them."""

    out: str = option("runs/study", "folder of all results, on a disk that all nodes see")
    rules: list[str] = option(["or", "and"], "rules of the grid, as in avvp ground", choices=RULES)
    false_link_rates: list[float] = option(
        [0.003, 0.01, 0.03],
        "false-link rates of the grid, for which thresholds are calibrated",
        minimum=0,
        maximum=1,
    )
    groupings: list[str] = option(
        ["components", "average-link"],
        "groupings of the grid, as in avvp ground",
        choices=GROUPINGS,
    )
    objectives: list[str] = option(
        ["multi"], "objectives of the grid, as in avvp pretrain", choices=OBJECTIVES
    )
    seeds: int = option(2, "number of encoders, each with its parser, per point: 2 or more")
    encoder_config: str = option("pretrain/demo", "config of every encoder: a file or a name")
    parser_config: str = option(
        "finetune/demo_pretrain_multi", "config of every parser: a file or a name"
    )


@dataclass
class LabelsStudyConfig(SweepConfig):
    """Keys of `avvp study-labels`: parsers with and without pretraining, by number of labels."""

    out: str = option("runs/labels", "folder of all results, on a disk that all nodes see")
    labels: list[int] = option(
        [120, 0], "numbers of labelled clips; 0: all of SHARDS/train", minimum=0
    )
    corpora: list[str] = option(
        ["train"],
        "shard sets of each pretraining, joined by +, with a fraction of their clips before a *, "
        "as in 0.5*train+wide; names are folders in `shards`, or paths",
    )
    objectives: list[str] = option(
        ["multi", "masked", "multi+masked"],
        "objectives of each pretraining, joined by +, with a weight before a *, as in "
        "multi+0.5*masked",
    )
    encoders: list[str] = option(
        ["frozen", "tuned"],
        "uses of each encoder: its features as they are, or trained with the parser",
        choices=("frozen", "tuned"),
    )
    learning_rates: list[float] = option(
        [5e-4, 1e-3, 2e-3],
        "learning rates of the parsers, of which validation chooses one for each arm",
        minimum=0,
    )
    seeds: int = option(10, "number of encoders, each with its labelled clips, per arm: 2 or more")
    parsers: int = option(1, "number of parsers over each encoder", minimum=1)
    tuning_seeds: int = option(
        3, "number of seeds, of these, that try every learning rate", minimum=1
    )
    effect: float = option(
        1.0, "difference in points for which the number of seeds is computed", minimum=1e-6
    )
    encoder_config: str = option("pretrain/study", "config of every encoder: a file or a name")
    parser_config: str = option("finetune/few_labels", "config of every parser: a file or a name")
