"""Keys of the stages that parse clips into event timelines."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.extraction import MediaConfig
from avvp_dist.config.option import option, section
from avvp_dist.config.parsers import DecisionConfig
from avvp_dist.config.shards import ReadConfig
from avvp_dist.config.tracking import TrackingConfig

TIMELINE_FORMATS = ("json", "csv", "audacity", "webvtt", "elan", "png", "html")


_PARSER = "exported parser: a folder or models:/avvp-parser@candidate"


def _formats() -> list[str]:
    return option(
        ["json", "html"],
        "forms of a timeline: json, csv (LLP's), audacity (labels), webvtt (subtitles), elan, png, "
        "html (a page)",
        choices=TIMELINE_FORMATS,
    )


@dataclass
class ParseConfig(DecisionConfig, ReadConfig):
    """Keys of `avvp parse`: event timelines of the clips of a shard set."""

    parser: str = option("", _PARSER, required=True)
    shards: str = option("", "shard set of the clips", required=True)
    out: str = option("", "folder of the timelines", required=True)
    formats: list[str] = _formats()
    ids: list[str] = option([], "ids of the clips to parse; empty: all of them")
    max_clips: int = option(0, "number of clips to parse, in the set's order; 0: all", minimum=0)
    batch_size: int = option(64, "clips per step", minimum=1)
    device: str = option(
        "auto", "auto: the accelerator if there is one, else the CPU", choices=("auto", "cpu")
    )
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class ParseVideoConfig(DecisionConfig, MediaConfig):
    """Keys of `avvp parse-video`: event timelines of videos."""

    videos: list[str] = option(
        [], "media files, folders of them, or lists of their paths", required=True, positional=True
    )
    parser: str = option("", _PARSER, required=True)
    out: str = option("", "folder of the timelines", required=True)
    formats: list[str] = _formats()
    backbones: list[str] = option(
        [], "backbones that make the parser's features; empty: those its extractor names"
    )
    page_max_mib: float = option(
        64.0, "MiB of picture and sound in a page, at most; larger ones are left out", minimum=0
    )
    tracking: TrackingConfig = section(TrackingConfig)
