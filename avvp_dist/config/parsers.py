"""Keys of the stages that use trained parsers: label refinement, scores, import."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.option import option, section
from avvp_dist.config.shards import ReadConfig
from avvp_dist.config.tracking import TrackingConfig

AUDIO_ANNOTATIONS = ("2020", "2024")
"""Versions of LLP's dense audio labels."""
DECISION_RULES = ("video", "modality")


@dataclass
class DecisionConfig:
    """Keys of the rule that turns probabilities into events."""

    rule: str = option(
        "video",
        "clip probability that must reach the threshold beside the snippet's: the video's (HAN, "
        "the paper) or the modality's (MA, JoMoLD)",
        choices=DECISION_RULES,
    )
    threshold: str = option(
        "0.5",
        "threshold on snippet and clip probabilities: a number, or a .npy file [2, C] with one per "
        "modality and class",
    )


@dataclass
class RefineConfig(ReadConfig):
    """Keys of `avvp refine`: the weak labels that each modality keeps (MA, stage 2)."""

    parser: str = option(
        "", "exported parser: a folder or models:/avvp-parser@candidate", required=True
    )
    shards: str = option("", "shard set with weak labels", required=True)
    out: str = option("", "npz file of the refined labels", required=True)
    threshold: float = option(
        0.5,
        "a label is removed if both swapped probabilities, divided by its error, are below this",
        minimum=0,
    )
    batch_size: int = option(256, "clips per step", minimum=1)
    seed: int = option(1, "seed of the random partners", minimum=0)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class EvaluateConfig(DecisionConfig, ReadConfig):
    """Keys of `avvp evaluate`: a parser's scores with the official metrics."""

    parser: str = option(
        "", "exported parser: a folder or models:/avvp-parser@candidate", required=True
    )
    shards: str = option("", "shard set of the split", required=True)
    annotations: str = option("", "folder of the AVVP_*.csv", required=True)
    audio_annotations: str = option(
        "2024", "version of the dense audio labels", choices=AUDIO_ANNOTATIONS
    )
    split: str = option("test", "split to score", choices=("val", "test"))
    batch_size: int = option(64, "clips per step", minimum=1)
    clip: str = option("", "clip to draw as a timeline; empty: the one with most events")
    out: str = option("", "folder of scores.json, predictions.npz and figures", required=True)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class ScoreConfig(DecisionConfig):
    """Keys of `avvp score`: the official metrics of anyone's predictions.

    A prediction file holds filenames [N], frame_prob [N, T, 2, C] (audio, visual), video_prob
    [N, C] and, for rule=modality, modality_prob [N, 2, C].
    """

    predictions: list[str] = option([], "npz file, or one for each seed", required=True)
    annotations: str = option("", "folder of the AVVP_*.csv", required=True)
    split: str = option("test", "split to score", choices=("val", "test"))
    audio_annotations: str = option(
        "2024", "version of the dense audio labels", choices=AUDIO_ANNOTATIONS
    )
    json: str = option("", "file for the whole report; empty: it is only printed")


@dataclass
class ImportConfig:
    """Keys of `avvp import`: a state dict of the official codes as an exported parser."""

    file: str = option(
        "", "file that torch.save made of a state dict", required=True, positional=True
    )
    format: str = option(
        "",
        "han (Tian et al., ECCV 2020) or cross_modal (the paper's code)",
        choices=("han", "cross_modal"),
        required=True,
    )
    out: str = option("", "folder of the exported parser", required=True)
    skip: bool = option(
        True, "the cross_modal model adds the skip connection, which its names do not tell"
    )
    gcaa_first_snippet: bool = option(
        False, "keep the fault of the released GCAA, with which its weights were trained"
    )
