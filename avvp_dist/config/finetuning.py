"""Keys of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.option import option, section
from avvp_dist.config.parsers import AUDIO_ANNOTATIONS
from avvp_dist.config.shards import LoaderConfig
from avvp_dist.config.tracking import TrackingConfig
from avvp_dist.config.trainer import OptimizerConfig, TrainerConfig, schedule_conflicts


@dataclass
class FinetuneDataConfig(LoaderConfig):
    """Keys of the data that fine-tuning reads."""

    train: str = option("", "shard set with weak labels", required=True)
    val: str = option("", "shard set of the validation clips", required=True)
    test: str = option(
        "",
        "shard set of the test clips, of which no training clip may be one; empty: only the lists "
        "of test videos are compared",
    )
    annotations: str = option("", "folder of the AVVP_*.csv", required=True)
    audio_annotations: str = option(
        "2024", "version of the dense audio labels", choices=AUDIO_ANNOTATIONS
    )
    refined_labels: str = option(
        "", "file of avvp refine with the weak labels that each modality keeps; empty: all labels"
    )
    allow_contaminated: bool = option(
        False, "train although there are clips of validation or test videos"
    )


@dataclass
class PretrainedEncoderConfig:
    """Keys of a pretrained encoder in front of the parser."""

    checkpoint: str = option(
        "", "exported encoder: a folder or models:/avvp-encoder@candidate; empty: no encoder"
    )
    tune: bool = option(False, "train the encoder with the parser; false: frozen features")
    lr_scale: float = option(
        0.1, "learning rate of the encoder relative to the parser's", minimum=0
    )
    raw: bool = option(True, "the parser also sees the raw features")
    scale: float = option(
        0.3, "factor of the encoder's layer-normed outputs, against the raw features", minimum=0
    )


@dataclass
class ParserConfig:
    """Keys of the parser family: each row of the paper's tables is a choice of switches."""

    width: int = option(512, "width of the hidden features", minimum=1)
    heads: int = option(1, "number of attention heads", minimum=1)
    dropout: float = option(0.1, "dropout of the attention layers", minimum=0, maximum=1)
    separate_self_attention: bool = option(
        True, "one self-attention layer per modality; false: HAN's one shared layer"
    )
    fusion: str = option(
        "attended",
        "input of cross-attention: self-attended features (Base) or the inputs (HAN); none: no "
        "attention and no skip, the heads read the inputs (the authors' Pretrain rows)",
        choices=("attended", "inputs", "none"),
    )
    skip: bool = option(True, "add self-attended features after cross-attention")
    attention: str = option("gcaa", "kind of attention layers", choices=("multihead", "gcaa"))
    gcaa_first_snippet: bool = option(
        False, "fidelity: GCAA gives every snippet the first one's output, as in the authors' code"
    )
    discriminator: bool = option(True, "modality discriminator behind gradient reversal")


@dataclass
class ParsingLossConfig:
    """Keys of the parsing loss, equation (3)."""

    lambda_guided: float = option(0.6, "weight of the per-modality loss L_g", minimum=0)
    lambda_adversarial: float = option(0.4, "weight of the discriminator's loss L_ad", minimum=0)
    ramp: bool = option(
        True,
        "the reversed gradient grows from 0 to its full size over the training; false: full size "
        "from the start",
    )
    smooth_audio: float = option(
        1.0, "target probability of a weak label for audio", minimum=0, maximum=1
    )
    smooth_visual: float = option(
        0.9, "target probability of a weak label for vision (HAN: 0.9)", minimum=0, maximum=1
    )
    lambda_contrastive: float = option(
        0.0, "weight of MA's loss: audio at t against the clip's visual snippets", minimum=0
    )
    temperature: float = option(0.2, "temperature of the similarities of MA's loss", minimum=1e-6)
    smooth_time: float = option(
        0.9, "target probability of snippet t in MA's loss", minimum=0, maximum=1
    )
    alias_audio_labels: bool = option(
        False, "fidelity: a label refined away for audio also goes from the video, as in MA's code"
    )


@dataclass
class FinetuneConfig:
    """Keys of `avvp finetune`: the parser, trained on weak labels."""

    data: FinetuneDataConfig = section(FinetuneDataConfig)
    pretrained: PretrainedEncoderConfig = section(PretrainedEncoderConfig)
    parser: ParserConfig = section(ParserConfig)
    loss: ParsingLossConfig = section(ParsingLossConfig)
    optimizer: OptimizerConfig = section(
        OptimizerConfig, lr=3e-4, weight_decay=0.0, warmup=0.0, schedule="step", max_grad_norm=0.0
    )
    trainer: TrainerConfig = section(TrainerConfig, epochs=40)
    tracking: TrackingConfig = section(TrackingConfig)

    def conflicts(self) -> list[str]:
        """Faults of keys of several sections that do not go together."""
        return schedule_conflicts(self.optimizer, self.trainer)
