"""Keys of the stages that make and read shard sets."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.option import option, section
from avvp_dist.config.tracking import TrackingConfig

RULES = ("or", "and")
GROUPINGS = ("components", "mutual-knn", "average-link")
"""Those that look at the features; the controls do not."""


@dataclass
class SimulateConfig:
    """tools/simulate.py: a seeded corpus of simulated clip features with annotations."""

    out: str = option("", "folder to write features_*.npz and AVVP_*.csv into", required=True)
    annotations: str = option(
        "",
        "folder of AVVP_*.csv whose clips, all of them, get simulated features (train=, val= and "
        "test= are ignored, no csv is written); empty: a corpus with labels of its own",
    )
    train: int = option(600, "clips with weak labels", minimum=1)
    val: int = option(80, "clips with dense labels for validation", minimum=1)
    test: int = option(160, "clips with dense labels for the test", minimum=1)
    audio_dim: int = option(96, "audio feature size", minimum=1)
    visual_dim: int = option(128, "visual feature size", minimum=1)
    noise: float = option(1.0, "deviation of the snippet noise, in units of a prototype", minimum=0)
    seed: int = option(0, "of everything drawn", minimum=0)


@dataclass
class PackConfig:
    """tools/pack.py: features on disk into a shard set."""

    source: str = option("", "folder that holds the features", required=True)
    out: str = option("", "folder of the shard set", required=True)
    format: str = option(
        "arrays",
        "arrays: features_SPLIT.npz with `filenames` and one [N, T, D] array per stream; "
        "han: feats/{vggish,res152,r2plus1d_18}/ID.npy; audioset: the official 8 bit embeddings, "
        "SPLIT/*.tfrecord",
        choices=("arrays", "han", "audioset"),
    )
    split: str = option("train", "split to pack: train, val, test, or AudioSet's bal_train, ...")
    annotations: str = option(
        "", "folder of the AVVP_*.csv or of class_labels_indices.csv; empty: the source folder"
    )
    snippets: int = option(0, "T of the set; 0: the source's", minimum=0, maximum=254)
    short: str = option(
        "pad",
        "clips with fewer snippets: padded, their length kept, or left out (parsers read whole "
        "clips)",
        choices=("pad", "drop"),
    )
    clips_per_shard: int = option(2000, "clips in a shard", minimum=1)
    extractor: str = option("", "name and version of what made the features; empty: the format's")
    max_bad_fraction: float = option(
        0.0, "share of the clips that may be broken: named and left out", minimum=0, maximum=1
    )
    workers: int = option(0, "shards written at once, on Ray; 0: one per CPU", minimum=0)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class ReadConfig:
    """How shard sets are opened."""

    verify: str = option(
        "sha256",
        "what a shard must pass before its first clip is read: the SHA-256 of its manifest, or its "
        "size and first header alone",
        choices=("sha256", "size"),
    )
    cache: str = option(
        "", "folder of fetched shards (s3://, gs://, https://); empty: ~/.cache/avvp_dist"
    )
    cache_gib: float = option(200.0, "GiB it may hold; the least recently used go first", minimum=0)


@dataclass
class LoaderConfig(ReadConfig):
    """The order of the clips, and how they are read ahead."""

    order: str = option(
        "global",
        "an epoch is a permutation of all clips, or of blocks of shards and within each (slow or "
        "remote storage)",
        choices=("global", "block"),
    )
    block_shards: int = option(8, "shards in a block", minimum=1)
    last_batch: str = option(
        "drop",
        "the incomplete batch at the end of an epoch: left out, or filled up with empty clips that "
        "add nothing to the loss",
        choices=("drop", "pad"),
    )
    prefetch: int = option(2, "batches read ahead of the step in a thread; 0: none", minimum=0)
    max_bad_fraction: float = option(
        0.0, "share of the clips that may be unreadable: named and left out", minimum=0, maximum=1
    )


@dataclass
class LinkConfig:
    """Which snippets of a clip belong together, given thresholds."""

    rule: str = option(
        "or",
        "join two snippets when any (or) or all (and) streams reach their threshold",
        choices=RULES,
    )
    grouping: str = option(
        "components",
        "connected components (Algorithm 1); over edges of mutual nearest neighbours alone; groups "
        "by mean likeness, which do not chain; controls: all of a clip, every snippet for itself",
        choices=(*GROUPINGS, "clip", "snippet"),
    )
    neighbours: int = option(3, "nearest neighbours of grouping=mutual-knn", minimum=1)
    silent_audio: str = option(
        "", ".npy of a silent audio vector [D]; a snippet like it joins nothing; empty: no rule"
    )
    silent_similarity: float = option(
        0.99, "cosine to silent_audio above which a snippet is silent", minimum=-1, maximum=1
    )
    silent_energy: float = option(
        0.0,
        "length of the audio vector below which a snippet is silent, joining nothing",
        minimum=0,
    )
    undirected: str = option(
        "stream",
        "zero and not finite vectors: the snippet joins nothing through that stream, or not at all",
        choices=("stream", "snippet"),
    )


@dataclass
class CalibrateConfig(LinkConfig, ReadConfig):
    """tools/calibrate.py: similarity thresholds of a shard set, with faiss."""

    shards: str = option("", "shard set", required=True)
    out: str = option("", "thresholds file; empty: SHARDS/thresholds.yaml")
    streams: list[str] = option(["audio", "visual"], "streams whose similarity joins two snippets")
    target: str = option(
        "false-links",
        "what a threshold is chosen for: a share of false links across clips, a mean number of "
        "components a clip, a share of clips that are one component, or the best F1 of pairs "
        "against dense labels",
        choices=("false-links", "components", "one-component", "labels"),
    )
    false_link_rate: float = option(
        0.01,
        "share of snippet pairs of different clips that may reach a threshold",
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
    clips: int = option(4096, "clips sampled over all shards", minimum=2)
    duplicate_similarity: float = option(
        0.98,
        "of two sampled clips that are as alike in every stream one is left out; 1: none is",
        minimum=0,
        maximum=1,
    )
    seed: int = option(0, "of the sample", minimum=0)
    workers: int = option(0, "shards read at once, on Ray; 0: one per CPU", minimum=0)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class GroundConfig(LinkConfig, ReadConfig):
    """tools/ground.py: component ids of every clip (Algorithm 1), one Ray task per shard."""

    shards: str = option("", "shard set", required=True)
    thresholds: str = option("", "thresholds file; empty: SHARDS/thresholds.yaml")
    max_bad_fraction: float = option(
        0.0,
        "share of the clips that may be unreadable: named, and without labels",
        minimum=0,
        maximum=1,
    )
    version: str = option("", "name of the grounding; empty: made from rule and thresholds")
    out: str = option("", "folder of the groundings; empty: SHARDS/grounding")
    workers: int = option(0, "tasks at once; 0: one per CPU of the cluster", minimum=0)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class DecontaminateConfig(ReadConfig):
    """tools/decontaminate.py: which clips of a shard set training must not see, and why."""

    shards: str = option("", "shard set on a disk", required=True)
    against: list[str] = option(
        ["llp"],
        "what must stay unseen: shard sets, csv or txt lists of names, or llp, LLP's validation "
        "and test videos; []: nothing",
    )
    ids: bool = option(True, "leave out clips of the same videos, whatever part of them")
    embeddings: bool = option(True, "leave out near-duplicates of the clips of shard sets")
    duplicates: bool = option(True, "keep one clip of near-duplicates within the shard set")
    similarity: float = option(
        0.95,
        "cosine that every stream of two near-duplicates reaches, in the mean over their snippets",
        minimum=0.01,
        maximum=1,
    )
    workers: int = option(0, "tasks at once; 0: one per CPU of the cluster", minimum=0)
    tracking: TrackingConfig = section(TrackingConfig)
