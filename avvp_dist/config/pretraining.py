"""Keys of pretraining."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.option import option, section
from avvp_dist.config.shards import LoaderConfig
from avvp_dist.config.tracking import TrackingConfig
from avvp_dist.config.trainer import OptimizerConfig, TrainerConfig, schedule_conflicts

SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (2, 128, 4, 512),
    "small": (4, 256, 4, 1024),
    "base": (12, 768, 12, 3072),
    "paper": (12, 1024, 8, 3072),
    "large": (24, 1024, 16, 4096),
}
"""Layers, width, heads and feed-forward width of each encoder size."""
OBJECTIVES = ("uni", "cross", "multi")
"""Grounding losses: equations (4), (5) and (6)."""
TERMS = ("grounding", "contrastive", "regularity", "masked", "matching")
"""Terms of the loss, each with a weight of its name in `ObjectiveConfig`."""


@dataclass
class EncoderConfig:
    """Keys of the UNITER-style encoder."""

    size: str = option(
        "base", "number of layers and width of the transformer", choices=tuple(SIZES)
    )
    dropout: float = option(0.1, "dropout of embeddings and layers", minimum=0, maximum=1)
    input_dropout: float = option(0.0, "dropout of the input features", minimum=0, maximum=1)
    joint: bool = option(
        True,
        "audio and visual tokens attend to one another; false: each modality attends to itself",
    )
    visual_tokens: str = option(
        "summed",
        "one visual token per snippet, or one per visual stream (the authors' code)",
        choices=("summed", "separate"),
    )
    frozen_positions: bool = option(
        False, "fidelity: random position vectors that never train, as in the authors' code"
    )
    mask_vectors: bool = option(
        False, "fidelity: a learned vector is added to all features, as in the authors' code"
    )


@dataclass
class ObjectiveConfig:
    """Keys of the objectives: the grounding loss of the paper, and others beside or instead."""

    name: str = option("multi", "u-avg (4), x-avg (5) or their sum m-avg (6)", choices=OBJECTIVES)
    grounding: float = option(
        1.0, "weight of the grounding loss `objective.name`; 0: train without it", minimum=0
    )
    positive_margin: float = option(0.7, "p: similarity a positive pair must reach", maximum=1)
    negative_margin: float = option(0.3, "n: similarity a negative pair may have", minimum=-1)
    anchors: str = option(
        "all",
        "every snippet, one random snippet per clip, or one random position for all clips of a "
        "batch (the authors' code)",
        choices=("all", "one", "shared"),
    )
    alternate: bool = option(
        False, "multi as cross in even epochs and uni in odd ones, as in the authors' code"
    )
    reduction: str = option(
        "mean",
        "reduction over the snippets j of an anchor (the paper: sum)",
        choices=("mean", "sum"),
    )
    other_clips: float = option(
        1.0, "weight of the negatives from other clips; 0: no such negatives", minimum=0
    )
    negatives: int = option(
        256,
        "number of clips that lend their snippets as negatives, chosen anew each step from the "
        "micro-batch of all ranks; 0: all of them, at a cost quadratic in the batch",
        minimum=0,
    )
    false_negatives: str = option(
        "leave-out",
        "snippets of other clips that the grounding's thresholds and rule would join: left out as "
        "likely-false negatives, or kept as negatives",
        choices=("leave-out", "keep"),
    )
    contrastive: float = option(
        0.0,
        "weight of the supervised contrastive loss over the grounding's positives; 0: off",
        minimum=0,
    )
    masked: float = option(
        0.0, "weight of masked feature modelling (UNITER); 0: no snippet is masked", minimum=0
    )
    mask_fraction: float = option(
        0.15,
        "fraction of a clip's snippets that are masked, in its audio or in its vision",
        minimum=0,
        maximum=1,
    )
    mask_span: int = option(1, "number of snippets in a row that are masked together", minimum=1)
    matching: float = option(
        0.0,
        "weight of audio-visual matching (UNITER): does the audio of an input belong to its "
        "vision; 0: no such task",
        minimum=0,
    )
    temperature: float = option(
        0.1,
        "number by which the contrastive loss and masked feature modelling divide cosines",
        minimum=0.01,
    )
    regularity: float = option(
        0.0,
        "weight of variance and covariance terms against over-smoothing, over all snippets and "
        "within clips; 0: off",
        minimum=0,
    )

    def weights(self) -> dict[str, float]:
        """Weight of each term that is not 0, by name."""
        return {name: weight for name in TERMS if (weight := getattr(self, name))}

    @property
    def label(self) -> str:
        """Names of the objectives that are on, such as `multi` or `multi-masked`."""
        return "-".join(self.name if one == "grounding" else one for one in self.weights())

    @property
    def takes_negatives(self) -> bool:
        """Whether snippets of other clips are negatives."""
        return self.grounding * self.other_clips > 0 or self.contrastive > 0

    def conflicts(self) -> list[str]:
        """Faults of keys that do not go together."""
        if self.weights().keys() - {"regularity"}:
            return []
        beside = " beside objective.regularity" if self.regularity else ""
        return [f"objective.grounding=0: no objective is on{beside}; give one a weight"]


@dataclass
class PretrainDataConfig(LoaderConfig):
    """Keys of the data that pretraining reads."""

    shards: list[str] = option([], "shard set, or several that are mixed", required=True)
    weights: list[float] = option(
        [], "passes over each set per epoch, such as [1, 0.5]; empty: one pass over every set"
    )
    grounding: list[str] = option(
        [], "grounding folder of each set; empty: the only one in SHARDS/grounding"
    )
    visual_grounding: list[str] = option(
        [],
        "grounding folder of each set for its vision, where data.grounding is for audio alone; "
        "empty: one grounding for both",
    )
    heldout: float = option(
        0.05,
        "fraction of clips held out for the grounding AUC, chosen by id",
        minimum=0,
        maximum=0.5,
    )
    heldout_clips: int = option(
        2048, "maximum number of held-out clips that are evaluated", minimum=1
    )
    allow_contaminated: bool = option(
        False, "train although there are clips of LLP's validation or test videos"
    )
    hidden_streams: list[str] = option(
        [], "visual streams that pretraining does not see (the authors' code: motion)"
    )
    probe: str = option(
        "", "labelled shard set by which each validation judges the encoder; empty: none"
    )
    probe_annotations: str = option(
        "", "folder of AVVP_*.csv with the labels of each second of its clips; empty: not known"
    )
    probe_clips: int = option(
        512, "maximum number of its clips that are judged, chosen by id", minimum=1
    )

    def conflicts(self) -> list[str]:
        """Faults of keys that do not go together."""
        if self.probe or not self.probe_annotations:
            return []
        return ["data.probe_annotations: data.probe is not given, whose clips they describe"]


@dataclass
class PretrainConfig:
    """Keys of `avvp pretrain`: the encoder, trained on grounding."""

    data: PretrainDataConfig = section(PretrainDataConfig)
    encoder: EncoderConfig = section(EncoderConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    trainer: TrainerConfig = section(TrainerConfig, export="last")
    tracking: TrackingConfig = section(TrackingConfig)

    def conflicts(self) -> list[str]:
        """Faults of keys of several sections that do not go together."""
        faults = schedule_conflicts(self.optimizer, self.trainer)
        if self.objective.matching and not self.encoder.joint:
            faults.append(
                f"objective.matching={self.objective.matching:g}, encoder.joint=false: audio and "
                "vision that do not attend to each other cannot be matched; take encoder.joint=true"
            )
        if self.trainer.patience and not self.data.heldout:
            faults.append(
                f"trainer.patience={self.trainer.patience}, data.heldout=0: without held-out clips "
                "there is no score to wait for"
            )
        return faults
