"""Config of the extraction: which media, which backbones, within which bounds."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.option import option, section
from avvp_dist.config.tracking import TrackingConfig


@dataclass
class MediaConfig:
    """Keys of every stage that decodes media: weights of backbones, and limits of files."""

    weights: dict[str, str] = option(
        {}, "file of a backbone's weights, as in weights.yamnet=FILE; they are known by their hash"
    )
    download: bool = option(False, "fetch weights that are not there, from their published address")
    max_pixels: int = option(8192 * 4320, "pixels of a picture, at most", minimum=1)
    max_seconds: float = option(3600.0, "seconds of a file, at most", minimum=0)
    max_bytes: int = option(4 << 30, "bytes of a file, at most", minimum=1)
    timeout: float = option(120.0, "seconds that the decoding of a file may take", minimum=0)
    max_packet_errors: int = option(0, "damaged packets that are skipped", minimum=0)


@dataclass
class ExtractConfig(MediaConfig):
    """Keys of `avvp extract`: videos or sounds into a shard set."""

    source: str = option(
        "",
        "folder of media files or tars, a list of paths or URLs, or tars: DIR/a-{000..127}.tar; "
        "also at a URL",
        required=True,
    )
    cut: str = option(
        "none",
        "part of a file that is a clip: none: all of it; json: start to end of its sample's JSON; "
        "FILE.csv: AudioSet's table of segments, clips FILE_START_END",
    )
    out: str = option("", "folder of the shard set", required=True)
    backbones: list[str] = option(
        ["yamnet", "efficientnet-lite0"],
        "networks that describe a second, one per stream; module:class for one of your own",
    )
    annotations: str = option(
        "", "folder of AVVP_*.csv: the clips of the split are taken, with their labels; empty: all"
    )
    split: str = option("train", "split of the annotations")
    window: int = option(10, "snippets per clip, T, in seconds", minimum=1, maximum=254)
    long: str = option(
        "windows",
        "longer files: all their windows, ID_START_END, the first one, or an error",
        choices=("windows", "first", "error"),
    )
    missing: str = option(
        "skip", "files without sound or pictures: left out, or zeros", choices=("skip", "zeros")
    )
    short: str = option(
        "pad", "clips with fewer seconds: padded, or left out", choices=("pad", "drop")
    )
    dtype: str = option(
        "float16", "type in which features are stored", choices=("float16", "float32")
    )
    clips_per_shard: int = option(100, "number of files in a shard", minimum=1)
    extractor: str = option("", "name of the extractor; empty: backbones, weights and decoding")
    max_bad_fraction: float = option(
        0.05, "fraction of files that may fail; each is in ledger.jsonl", minimum=0, maximum=1
    )
    workers: int = option(0, "shards made at once, on Ray; 0: one per CPU", minimum=0)
    gpus: float = option(0.0, "GPUs of each of them", minimum=0)
    threads: int = option(
        0, "threads of each that decode files ahead of the backbones, for GPUs; 0: none", minimum=0
    )
    batch: int = option(16, "seconds of clips that a backbone describes together", minimum=1)
    tracking: TrackingConfig = section(TrackingConfig)

    @property
    def snippets(self) -> int:
        """T of the shard set."""
        return self.window
