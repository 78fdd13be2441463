"""Keys of the stages that decide what belongs together, and what must not be trained on."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.option import option, section
from avvp_dist.config.shards import ReadConfig
from avvp_dist.config.tracking import TrackingConfig

RULES = ("or", "and")
GROUPINGS = ("components", "mutual-knn", "average-link")
"""Groupings that look at the features; the controls do not."""


@dataclass
class LinkConfig:
    """Keys of the grouping of a clip's snippets, given similarity thresholds."""

    rule: str = option(
        "or",
        "join two snippets when any (or) or all (and) streams reach their threshold",
        choices=RULES,
    )
    grouping: str = option(
        "components",
        "components: connected components (Algorithm 1); mutual-knn: components over mutual "
        "nearest neighbours; average-link: groups by mean similarity, which do not chain; "
        "controls: clip joins all snippets, snippet joins none",
        choices=(*GROUPINGS, "clip", "snippet"),
    )
    neighbours: int = option(3, "number of nearest neighbours of grouping=mutual-knn", minimum=1)
    silent_audio: str = option(
        "",
        ".npy of a silent audio vector [D]; snippets that resemble it join nothing; empty: no rule",
    )
    silent_similarity: float = option(
        0.99, "cosine to silent_audio above which a snippet is silent", minimum=-1, maximum=1
    )
    silent_energy: float = option(
        0.0,
        "length of the audio vector below which a snippet is silent and joins nothing",
        minimum=0,
    )
    undirected: str = option(
        "stream",
        "zero or non-finite vectors: the snippet joins nothing through that stream, or nothing at "
        "all",
        choices=("stream", "snippet"),
    )


@dataclass
class CalibrateConfig(LinkConfig, ReadConfig):
    """Keys of `avvp calibrate`: similarity thresholds of a shard set."""

    shards: str = option("", "shard set", required=True)
    out: str = option("", "thresholds file to write; empty: SHARDS/thresholds.yaml")
    streams: list[str] = option(["audio", "visual"], "streams whose similarity joins two snippets")
    target: str = option(
        "false-links",
        "quantity that the thresholds are chosen for: false-links: fraction of linked pairs across "
        "clips; components: mean number of components per clip; one-component: fraction of clips "
        "that are one component; labels: best F1 of pairs against dense labels",
        choices=("false-links", "components", "one-component", "labels"),
    )
    false_link_rate: float = option(
        0.01,
        "fraction of snippet pairs of different clips that may reach a threshold",
        minimum=0,
        maximum=1,
    )
    components_per_clip: float = option(3.0, "goal of target=components", minimum=1)
    one_component_fraction: float = option(
        0.2, "goal of target=one-component", minimum=0, maximum=1
    )
    annotations: str = option("", "folder of the AVVP_*.csv for target=labels")
    split: str = option("val", "split of the dense labels", choices=("val", "test"))
    other_clips: bool = option(
        True, "pretraining also takes negatives from other clips (objective.other_clips)"
    )
    clips: int = option(4096, "number of clips sampled over all shards", minimum=2)
    duplicate_similarity: float = option(
        0.98,
        "cosine in every stream at which one of two sampled clips is left out as a duplicate; "
        "1: all are kept",
        minimum=0,
        maximum=1,
    )
    seed: int = option(0, "seed of the sample", minimum=0)
    workers: int = option(0, "shards read at once, on Ray; 0: one per CPU", minimum=0)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class GroundConfig(LinkConfig, ReadConfig):
    """Keys of `avvp ground`: component ids of every clip (Algorithm 1), one Ray task per shard."""

    shards: str = option("", "shard set", required=True)
    thresholds: str = option("", "thresholds file; empty: SHARDS/thresholds.yaml")
    max_bad_fraction: float = option(
        0.0,
        "fraction of clips that may be unreadable; they are named and get no labels",
        minimum=0,
        maximum=1,
    )
    version: str = option("", "name of the grounding; empty: made from rule and thresholds")
    out: str = option("", "folder of the groundings; empty: SHARDS/grounding")
    workers: int = option(0, "tasks at once; 0: one per CPU of the cluster", minimum=0)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class DecontaminateConfig(ReadConfig):
    """Keys of `avvp decontaminate`: clips of a shard set that training must not see, and why."""

    shards: str = option("", "shard set on a disk", required=True)
    against: list[str] = option(
        ["llp"],
        "held-out data: shard sets, csv or txt lists of names, or llp for LLP's validation and "
        "test videos; []: none",
    )
    ids: bool = option(True, "leave out clips of the same videos, whatever part of them")
    embeddings: bool = option(True, "leave out near-duplicates of clips of held-out shard sets")
    duplicates: bool = option(True, "keep one clip of near-duplicates within the shard set")
    similarity: float = option(
        0.95,
        "mean cosine over snippets that two near-duplicates reach in every stream",
        minimum=0.01,
        maximum=1,
    )
    workers: int = option(0, "tasks at once; 0: one per CPU of the cluster", minimum=0)
    gpus: float = option(
        1.0, "GPUs of each search, if GPU faiss is installed and the cluster has any", minimum=0
    )
    tracking: TrackingConfig = section(TrackingConfig)
