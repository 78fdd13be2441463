"""Keys of what is made of trained models: labels, scores, tables, the demo."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.data import GROUPINGS, RULES, ReadConfig
from avvp_dist.config.option import option, section
from avvp_dist.config.tracking import TrackingConfig
from avvp_dist.config.training import OBJECTIVES


@dataclass
class RefineConfig(ReadConfig):
    """tools/refine_labels.py: which weak labels each modality keeps (MA, stage 2)."""

    parser: str = option(
        "", "exported parser: a folder or models:/avvp-parser@candidate", required=True
    )
    shards: str = option("", "shard set with weak labels", required=True)
    out: str = option("", "npz file of the refined labels", required=True)
    threshold: float = option(
        0.5, "a label goes when both swapped probabilities, over its error, are below", minimum=0
    )
    batch_size: int = option(256, "clips a step", minimum=1)
    seed: int = option(1, "of the partners drawn", minimum=0)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class EvaluateConfig(ReadConfig):
    """launch/evaluate.py: a parser's scores with the official metrics."""

    parser: str = option(
        "", "exported parser: a folder or models:/avvp-parser@candidate", required=True
    )
    shards: str = option("", "shard set of the split", required=True)
    annotations: str = option("", "folder of the AVVP_*.csv", required=True)
    audio_annotations: str = option(
        "2024", "version of the dense audio labels", choices=("2020", "2024")
    )
    split: str = option("test", "split to score", choices=("val", "test"))
    rule: str = option(
        "video",
        "clip probability that must reach the threshold beside the snippet's: the video's (HAN, "
        "the paper) or the modality's (MA, JoMoLD)",
        choices=("video", "modality"),
    )
    threshold: str = option(
        "0.5", "on snippet and clip probability: a number, or a .npy file [2, C] of one per class"
    )
    batch_size: int = option(64, "clips a step", minimum=1)
    clip: str = option("", "clip to draw as a timeline; empty: the one with most events")
    out: str = option("", "folder of scores.json, predictions.npz and figures", required=True)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class DemoConfig:
    """tools/demo.py: every stage in turn, on a simulated corpus or on real features."""

    out: str = option("runs/demo", "folder of everything the demo makes")
    features: str = option("", "folder of features_*.npz and AVVP_*.csv; empty: a simulated corpus")
    seeds: int = option(1, "parsers trained per row of the table", minimum=1)
    ranks: int = option(2, "DeepSpeed ranks", minimum=1)


@dataclass
class SweepConfig:
    """Many trainings and their scores, as jobs on Ray."""

    shards: str = option("", "folder of the shard sets train, val and test", required=True)
    annotations: str = option("", "folder of the AVVP_*.csv", required=True)
    audio_annotations: str = option(
        "2024", "version of the dense audio labels", choices=("2020", "2024")
    )
    rule: str = option("video", "decision rule, see evaluate.py", choices=("video", "modality"))
    finetune: list[str] = option([], "KEY=VALUE for every parser, such as trainer.epochs=2")
    pretrain: list[str] = option([], "KEY=VALUE for every encoder, such as encoder.size=tiny")
    cpus: int = option(1, "CPU cores for each training", minimum=1)
    gpus: float = option(1.0, "GPUs for each training, where the cluster has any", minimum=0)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class TablesConfig(SweepConfig):
    """tools/reproduce_tables.py: Tables 1 and 2, every row trained from some seeds, on Ray."""

    pretraining: str = option("", "shard set the encoders are trained on; empty: SHARDS/train")
    out: str = option("runs/tables", "folder of everything made, on a disk that all nodes see")
    rows: list[str] = option([], "rows to make, by their config's name; empty: all")
    seeds: int = option(3, "parsers trained per row", minimum=1)
    released: bool = option(False, "fidelity: the authors' code, with its faults and schedules")
    compare: list[str] = option(
        ["han", "pretrain_multi"], "two rows whose F per class is drawn (Figure 4)"
    )


@dataclass
class StudyConfig(SweepConfig):
    """tools/study_grounding.py: groundings judged by the parsers over encoders trained on them."""

    out: str = option("runs/study", "folder of everything made, on a disk that all nodes see")
    rules: list[str] = option(["or", "and"], "rules of the grid, see ground.py", choices=RULES)
    false_link_rates: list[float] = option(
        [0.003, 0.01, 0.03],
        "rates of the grid that thresholds are calibrated for",
        minimum=0,
        maximum=1,
    )
    groupings: list[str] = option(
        ["components", "average-link"], "groupings of the grid, see ground.py", choices=GROUPINGS
    )
    objectives: list[str] = option(
        ["multi"], "objectives of the grid, see pretrain.py", choices=OBJECTIVES
    )
    seeds: int = option(2, "encoders, each with its parser, trained per point: at least two")
    encoder_config: str = option("", "YAML of every encoder; empty: configs/pretrain/demo.yaml")
    parser_config: str = option(
        "", "YAML of every parser; empty: configs/finetune/demo_pretrain_multi.yaml"
    )
