"""Keys of the stages that make and read shard sets."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.option import option, section
from avvp_dist.config.tracking import TrackingConfig


@dataclass
class SimulateConfig:
    """Keys of `avvp simulate`: a seeded corpus of simulated clip features with annotations."""

    out: str = option("", "folder to write features_*.npz and AVVP_*.csv into", required=True)
    annotations: str = option(
        "",
        "folder of AVVP_*.csv whose clips all get simulated features (train, val and test are "
        "ignored, no csv is written); empty: a corpus with labels of its own",
    )
    train: int = option(600, "number of clips with weak labels", minimum=1)
    val: int = option(80, "number of clips with dense labels for validation", minimum=1)
    test: int = option(160, "number of clips with dense labels for the test", minimum=1)
    audio_dim: int = option(96, "width of the audio features", minimum=1)
    visual_dim: int = option(128, "width of the visual features", minimum=1)
    noise: float = option(
        1.0, "standard deviation of the snippet noise, in units of a class prototype", minimum=0
    )
    seed: int = option(0, "seed of all random draws", minimum=0)


@dataclass
class PackConfig:
    """Keys of `avvp pack`: features on disk into a shard set."""

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
    snippets: int = option(
        0, "snippets per clip, T, of the shard set; 0: as in the source", minimum=0, maximum=254
    )
    rates: dict[str, float] = option(
        {},
        "rows a second of streams that have not 1 (han: visual 8), as in rates.visual=2; they are "
        "averaged or repeated to one row a second",
        minimum=0,
    )
    dtype: str = option(
        "float16",
        "type in which features are stored; float32 takes twice the space, for values that float16 "
        "cannot hold",
        choices=("float16", "float32"),
    )
    short: str = option(
        "pad",
        "clips with fewer snippets: padded, with their length recorded, or left out (parsers read "
        "whole clips)",
        choices=("pad", "drop"),
    )
    clips_per_shard: int = option(2000, "number of clips in a shard", minimum=1)
    extractor: str = option(
        "", "name and version of the model that made the features; empty: the format's"
    )
    max_bad_fraction: float = option(
        0.0,
        "fraction of clips that may be broken; they are named and left out",
        minimum=0,
        maximum=1,
    )
    workers: int = option(0, "shards written at once, on Ray; 0: one per CPU", minimum=0)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class ReadConfig:
    """Keys of every stage that opens shard sets."""

    verify: str = option(
        "sha256",
        "check of a shard before its first clip is read: the SHA-256 in the manifest, or only its "
        "size and first header",
        choices=("sha256", "size"),
    )
    cache: str = option(
        "", "folder of fetched shards (s3://, gs://, https://); empty: ~/.cache/avvp_dist"
    )
    cache_gib: float = option(
        200.0, "capacity of the cache in GiB; least recently used shards are evicted", minimum=0
    )


@dataclass
class InspectConfig(ReadConfig):
    """Keys of `avvp inspect`: what a shard set holds, and every fault in it."""

    shards: str = option("", "folder or URL of the shard set", required=True, positional=True)
    deep: bool = option(False, "read everything and check every SHA-256 and every number")
    skip_incomplete: bool = option(
        False, "tars of others are indexed without the clips that lack arrays"
    )


@dataclass
class LoaderConfig(ReadConfig):
    """Keys of the clips of a training, their order, and reading ahead."""

    clips: list[int] = option(
        [], "number of training clips of each shard set; empty: all", minimum=1
    )
    subset: int = option(
        0, "seed by which data.clips are chosen; with one seed, fewer are among more", minimum=0
    )
    order: str = option(
        "global",
        "an epoch is a permutation of all clips, or of blocks of shards and of the clips within "
        "each block (for slow or remote storage)",
        choices=("global", "block"),
    )
    block_shards: int = option(8, "number of shards in a block", minimum=1)
    last_batch: str = option(
        "drop",
        "the incomplete batch at the end of an epoch: left out, or filled up with empty clips that "
        "add nothing to the loss",
        choices=("drop", "pad"),
    )
    prefetch: int = option(
        2, "batches read ahead of the step in a thread; 0: read in the step itself", minimum=0
    )
    max_bad_fraction: float = option(
        0.0,
        "fraction of clips that may be unreadable; they are named and left out",
        minimum=0,
        maximum=1,
    )
