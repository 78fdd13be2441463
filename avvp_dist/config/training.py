"""Keys of pretraining and fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.data import LoaderConfig
from avvp_dist.config.option import option, section
from avvp_dist.config.tracking import TrackingConfig

SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (2, 128, 4, 512),
    "small": (4, 256, 4, 1024),
    "base": (12, 768, 12, 3072),
    "paper": (12, 1024, 8, 3072),
    "large": (24, 1024, 16, 4096),
}
"""Layers, width, heads and feed-forward width of each encoder size."""
OBJECTIVES = ("uni", "cross", "multi")


@dataclass
class EncoderConfig:
    """The UNITER-style encoder."""

    size: str = option("base", "layers x width of the transformer", choices=tuple(SIZES))
    dropout: float = option(0.1, "dropout of embeddings and layers", minimum=0, maximum=1)
    input_dropout: float = option(0.0, "dropout of the input features", minimum=0, maximum=1)
    joint: bool = option(
        True, "audio and visual tokens attend to each other; false: each modality to itself"
    )
    visual_tokens: str = option(
        "summed",
        "one visual token a snippet, or one for each visual stream (the authors' code)",
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
    """The grounding losses, equations (4) to (6)."""

    name: str = option("multi", "u-avg (4), x-avg (5) or their sum m-avg (6)", choices=OBJECTIVES)
    positive_margin: float = option(0.7, "p: similarity a positive pair must reach", maximum=1)
    negative_margin: float = option(0.3, "n: similarity a negative pair may keep", minimum=-1)
    anchors: str = option(
        "all",
        "every snippet, one of each clip at random, or one draw for all clips of a batch (the "
        "authors' code)",
        choices=("all", "one", "shared"),
    )
    alternate: bool = option(
        False, "multi as cross in even epochs and uni in odd ones, as in the authors' code"
    )
    reduction: str = option(
        "mean", "over the snippets j of an anchor (the paper: sum)", choices=("mean", "sum")
    )
    other_clips: float = option(1.0, "weight of the negatives from other clips; 0: none", minimum=0)
    negatives: int = option(
        256,
        "clips of the micro-batch of all ranks, drawn anew each step, whose snippets are those "
        "negatives; 0: all of them, which costs the square of the batch",
        minimum=0,
    )
    false_negatives: str = option(
        "leave-out",
        "snippets of other clips whose features the grounding's thresholds and rule would join: no "
        "negatives, or negatives like all others",
        choices=("leave-out", "keep"),
    )


@dataclass
class OptimizerConfig:
    """AdamW and its schedule."""

    lr: float = option(5e-4, "peak learning rate", minimum=0)
    weight_decay: float = option(0.01, "of weights, not of biases and norms", minimum=0)
    warmup: float = option(0.05, "share of the steps that warm up linearly", minimum=0, maximum=1)
    schedule: str = option(
        "cosine",
        "after warm-up: cosine to 0, constant, or down a step every few epochs",
        choices=("cosine", "constant", "step"),
    )
    decay: float = option(0.5, "factor of each step of schedule=step", minimum=0, maximum=1)
    decay_every: int = option(5, "epochs between its steps", minimum=1)
    max_grad_norm: float = option(1.0, "largest gradient norm; 0: no clipping", minimum=0)


@dataclass
class TrainerConfig:
    """The train loop, its engine and its checkpoints."""

    out: str = option("", "folder of checkpoints, exports, records and figures", required=True)
    epochs: int = option(30, "passes over the clips", minimum=1)
    max_steps: int = option(0, "stop after this many steps; 0: after the epochs", minimum=0)
    batch_size: int = option(64, "clips a step, over all ranks", minimum=1)
    gradient_accumulation: int = option(1, "micro-batches a step on each rank", minimum=1)
    precision: str = option("fp32", "of weights and activations", choices=("fp32", "bf16"))
    zero_stage: int = option(0, "DeepSpeed ZeRO stage", minimum=0, maximum=3)
    deepspeed: str = option("", "JSON file of further DeepSpeed keys, such as zero_optimization")
    activation_checkpointing: bool = option(
        False, "activations of a layer are computed again for its gradient: less memory"
    )
    compile: bool = option(False, "torch.compile of the encoder's layers")
    seed: int = option(1, "of weights, order and dropout", minimum=0)
    log_every: int = option(10, "steps between two records", minimum=1)
    checkpoint_every: int = option(
        0, "steps between two checkpoints; 0: one at the end of each epoch", minimum=0
    )
    checkpoint_minutes: float = option(
        0.0, "one also whenever so many minutes have passed since the last; 0: no", minimum=0
    )
    max_minutes: float = option(
        0.0, "save and end as if preempted after so many minutes; 0: no limit", minimum=0
    )
    keep: int = option(2, "newest checkpoints kept, beside the best validated one", minimum=1)
    max_skipped: int = option(
        10, "steps in a row that may be skipped since a value is not finite", minimum=0
    )
    export: str = option(
        "best",
        "which epoch's model is exported: the best on held-out clips (ties: the later) or the last",
        choices=("best", "last"),
    )
    hang_seconds: float = option(
        600.0,
        "without progress on any rank, the job ends and names who is behind; longer than the "
        "longest of a step, a validation, a save; 0: never",
        minimum=0,
    )
    resume: str = option(
        "never",
        "auto: go on from the newest whole checkpoint in `out`, on any number of ranks; start if "
        "none was ever saved there",
        choices=("auto", "never"),
    )


@dataclass
class PretrainDataConfig(LoaderConfig):
    """What pretraining reads."""

    shards: list[str] = option([], "shard set, or several that are mixed", required=True)
    weights: list[float] = option(
        [], "how often an epoch sees the clips of each set, such as [1, 0.5]; empty: once"
    )
    grounding: list[str] = option(
        [], "grounding folder of each set; empty: the only one in SHARDS/grounding"
    )
    heldout: float = option(
        0.05, "share of the clips kept for the grounding AUC, chosen by id", minimum=0, maximum=0.5
    )
    heldout_clips: int = option(2048, "at most so many of them are used", minimum=1)
    allow_contaminated: bool = option(
        False, "train although there are clips of LLP's validation or test videos"
    )
    hidden_streams: list[str] = option(
        [], "visual streams that pretraining does not see (the authors' code: motion)"
    )


@dataclass
class PretrainConfig:
    """launch/pretrain.py: the encoder, trained on grounding."""

    data: PretrainDataConfig = section(PretrainDataConfig)
    encoder: EncoderConfig = section(EncoderConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    trainer: TrainerConfig = section(TrainerConfig, export="last")
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class FinetuneDataConfig(LoaderConfig):
    """What fine-tuning reads."""

    train: str = option("", "shard set with weak labels", required=True)
    val: str = option("", "shard set of the validation clips", required=True)
    annotations: str = option("", "folder of the AVVP_*.csv", required=True)
    audio_annotations: str = option(
        "2024", "version of the dense audio labels", choices=("2020", "2024")
    )
    refined_labels: str = option(
        "", "file of tools/refine_labels.py: the weak labels that each modality keeps; empty: all"
    )


@dataclass
class PretrainedEncoderConfig:
    """A pretrained encoder in front of the parser."""

    checkpoint: str = option(
        "", "exported encoder: a folder or models:/avvp-encoder@candidate; empty: none"
    )
    tune: bool = option(False, "train the encoder with the parser; false: frozen features")
    lr_scale: float = option(0.1, "its learning rate relative to the parser's", minimum=0)
    raw: bool = option(True, "the parser also sees the raw features, beside the encoder's")
    scale: float = option(0.3, "of its layer-normed outputs, against the raw features", minimum=0)


@dataclass
class ParserConfig:
    """The parser family: each row of the paper's tables is a choice of switches."""

    width: int = option(512, "feature size", minimum=1)
    heads: int = option(1, "attention heads", minimum=1)
    dropout: float = option(0.1, "dropout", minimum=0, maximum=1)
    separate_self_attention: bool = option(
        True, "own self-attention layer per modality; false: HAN's one shared layer"
    )
    fusion: str = option(
        "attended",
        "what cross-attention reads: self-attended features (Base) or the inputs (HAN); none: no "
        "attention and no skip, the heads read the inputs (the authors' Pretrain rows)",
        choices=("attended", "inputs", "none"),
    )
    skip: bool = option(True, "self-attended features are added after cross-attention")
    attention: str = option("gcaa", "attention layers", choices=("multihead", "gcaa"))
    gcaa_first_snippet: bool = option(
        False, "fidelity: GCAA gives every snippet the first one's output, as in the authors' code"
    )
    discriminator: bool = option(True, "modality discriminator behind gradient reversal")


@dataclass
class ParsingLossConfig:
    """Equation (3)."""

    lambda_guided: float = option(0.6, "weight of the per-modality loss L_g", minimum=0)
    lambda_adversarial: float = option(0.4, "weight of the discriminator's loss L_ad", minimum=0)
    ramp: bool = option(
        True, "the reversed gradient grows from 0 to full over the training; false: full at once"
    )
    smooth_audio: float = option(1.0, "confidence in a weak label for audio", minimum=0, maximum=1)
    smooth_visual: float = option(0.9, "the same for vision (HAN: 0.9)", minimum=0, maximum=1)
    lambda_contrastive: float = option(
        0.0, "weight of MA's loss: audio at t against the clip's visual snippets", minimum=0
    )
    temperature: float = option(0.2, "of its similarities", minimum=1e-6)
    smooth_time: float = option(0.9, "confidence in its snippet t", minimum=0, maximum=1)
    alias_audio_labels: bool = option(
        False, "fidelity: a label refined away for audio also goes from the video, as in MA's code"
    )


@dataclass
class FinetuneConfig:
    """launch/finetune.py: the parser, trained on weak labels."""

    data: FinetuneDataConfig = section(FinetuneDataConfig)
    pretrained: PretrainedEncoderConfig = section(PretrainedEncoderConfig)
    parser: ParserConfig = section(ParserConfig)
    loss: ParsingLossConfig = section(ParsingLossConfig)
    optimizer: OptimizerConfig = section(
        OptimizerConfig, lr=3e-4, weight_decay=0.0, warmup=0.0, schedule="step", max_grad_norm=0.0
    )
    trainer: TrainerConfig = section(TrainerConfig, epochs=40)
    tracking: TrackingConfig = section(TrackingConfig)
