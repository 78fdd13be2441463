"""Keys of the stages that parse clips into event timelines."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.option import option, section
from avvp_dist.config.parsers import DecisionConfig
from avvp_dist.config.shards import ReadConfig
from avvp_dist.config.tracking import TrackingConfig

TIMELINE_FORMATS = ("json", "csv", "audacity", "webvtt", "elan", "png", "html")


@dataclass
class ParseConfig(DecisionConfig, ReadConfig):
    """Keys of `avvp parse`: event timelines of the clips of a shard set."""

    parser: str = option(
        "", "exported parser: a folder or models:/avvp-parser@candidate", required=True
    )
    shards: str = option("", "shard set of the clips", required=True)
    out: str = option("", "folder of the timelines", required=True)
    formats: list[str] = option(
        ["json", "html"],
        "forms of a timeline: json, csv (LLP's), audacity (labels), webvtt (subtitles), elan, png, "
        "html (a page)",
        choices=TIMELINE_FORMATS,
    )
    ids: list[str] = option([], "ids of the clips to parse; empty: all of them")
    max_clips: int = option(0, "number of clips to parse, in the set's order; 0: all", minimum=0)
    batch_size: int = option(64, "clips per step", minimum=1)
    device: str = option(
        "auto", "auto: the accelerator if there is one, else the CPU", choices=("auto", "cpu")
    )
    tracking: TrackingConfig = section(TrackingConfig)
