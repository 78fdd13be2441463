"""The structured config of every stage: each key with its type, default, range and line of help."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.option import option, section


@dataclass
class Tracking:
    """MLflow: SQLite in the working folder, or the server in MLFLOW_TRACKING_URI."""

    enabled: bool = option(True, "log this run to MLflow")
    name: str = option("", "name of the run; empty: named after the output folder")
    register: bool = option(True, "register the exported model, alias `candidate`")
    parent: str = option("", "output folder of the run that this one is a part of")


@dataclass
class SimulateConfig:
    """tools/simulate.py: a seeded corpus of simulated clip features with annotations."""

    out: str = option("", "folder to write features_*.npz and AVVP_*.csv into", required=True)
    annotations: str = option(
        "",
        "folder of AVVP_*.csv whose clips, all of them, get simulated features (train=, val= and "
        "test= are ignored, no csv is written); empty: a corpus with labels of its own",
    )
    train: int = option(600, "clips with weak labels", least=1)
    val: int = option(80, "clips with dense labels for validation", least=1)
    test: int = option(160, "clips with dense labels for the test", least=1)
    audio_dim: int = option(96, "audio feature size", least=1)
    visual_dim: int = option(128, "visual feature size", least=1)
    noise: float = option(1.0, "deviation of the snippet noise, in units of a prototype", least=0)
    seed: int = option(0, "of everything drawn", least=0)


@dataclass
class PackConfig:
    """tools/pack.py: features on disk into a shard set."""

    source: str = option("", "folder that holds the features", required=True)
    out: str = option("", "folder of the shard set", required=True)
    format: str = option(
        "arrays",
        "arrays: features_SPLIT.npz with `filenames` and one [N, T, D] array per stream; "
        "han: feats/{vggish,res152,r2plus1d_18}/ID.npy",
        choices=("arrays", "han"),
    )
    split: str = option("train", "split to pack", choices=("train", "val", "test"))
    annotations: str = option("", "folder of the AVVP_*.csv; empty: the source folder")
    clips_per_shard: int = option(2000, "clips in a shard", least=1)
    extractor: str = option(
        "", "name and version of what made the features; empty: HAN's for format=han"
    )
    tracking: Tracking = section(Tracking)


@dataclass
class CalibrateConfig:
    """tools/calibrate.py: similarity thresholds of a shard set, with faiss."""

    shards: str = option("", "shard set", required=True)
    out: str = option("", "thresholds file; empty: SHARDS/thresholds.yaml")
    streams: list[str] = option(["audio", "visual"], "streams whose similarity joins two snippets")
    false_link_rate: float = option(
        0.01,
        "share of snippet pairs of different clips that may lie above a threshold",
        least=0,
        most=1,
    )
    queries: int = option(4096, "snippets compared, all from different clips if enough", least=1)
    database: int = option(
        2048, "snippets they are compared with; GPU faiss takes 2048 at most", least=1, most=2048
    )
    seed: int = option(0, "of the sample", least=0)
    tracking: Tracking = section(Tracking)


@dataclass
class GroundConfig:
    """tools/ground.py: component ids of every clip (Algorithm 1), one Ray task per shard."""

    shards: str = option("", "shard set", required=True)
    thresholds: str = option("", "thresholds file; empty: SHARDS/thresholds.yaml")
    rule: str = option(
        "or",
        "join two snippets when any (or) or all (and) streams reach their threshold",
        choices=("or", "and"),
    )
    silent_audio: str = option(
        "", ".npy of a silent audio vector [D]; a snippet like it joins nothing; empty: no rule"
    )
    silent_similarity: float = option(
        0.99, "cosine to silent_audio above which a snippet is silent", least=-1, most=1
    )
    version: str = option("", "name of the grounding; empty: made from rule and thresholds")
    workers: int = option(0, "tasks at once; 0: one per CPU of the cluster", least=0)
    tracking: Tracking = section(Tracking)


SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (2, 128, 4, 512),
    "small": (4, 256, 4, 1024),
    "base": (12, 768, 12, 3072),
    "paper": (12, 1024, 8, 3072),
    "large": (24, 1024, 16, 4096),
}
"""Layers, width, heads and feed-forward width of each encoder size."""


@dataclass
class Encoder:
    """The UNITER-style encoder."""

    size: str = option("base", "layers x width of the transformer", choices=tuple(SIZES))
    dropout: float = option(0.1, "dropout of embeddings and layers", least=0, most=1)
    input_dropout: float = option(0.0, "dropout of the input features", least=0, most=1)
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
class Objective:
    """The grounding losses, equations (4) to (6)."""

    name: str = option(
        "multi", "u-avg (4), x-avg (5) or their sum m-avg (6)", choices=("uni", "cross", "multi")
    )
    positive_margin: float = option(0.7, "p: similarity a positive pair must reach", most=1)
    negative_margin: float = option(0.3, "n: similarity a negative pair may keep", least=-1)
    anchors: str = option(
        "all",
        "every snippet, one of each clip at random, or the same one of all clips of a batch (the "
        "authors' code)",
        choices=("all", "one", "shared"),
    )
    alternate: bool = option(
        False, "multi as cross in even epochs and uni in odd ones, as in the authors' code"
    )
    reduction: str = option(
        "mean", "over the snippets j of an anchor (the paper: sum)", choices=("mean", "sum")
    )
    other_clips: float = option(
        1.0, "weight of the negatives from other clips of the rank's batch; 0: none", least=0
    )


@dataclass
class Optimizer:
    """AdamW and its schedule."""

    lr: float = option(5e-4, "peak learning rate", least=0)
    weight_decay: float = option(0.01, "of weights, not of biases and norms", least=0)
    warmup: float = option(0.05, "share of the steps that warm up linearly", least=0, most=1)
    schedule: str = option(
        "cosine",
        "after warm-up: cosine to 0, constant, or down a step every few epochs",
        choices=("cosine", "constant", "step"),
    )
    decay: float = option(0.5, "factor of each step of schedule=step", least=0, most=1)
    decay_every: int = option(5, "epochs between its steps", least=1)
    clip: float = option(1.0, "largest gradient norm; 0: no clipping", least=0)


@dataclass
class TrainerSection:
    """The train loop, its engine and its checkpoints."""

    out: str = option("", "folder of checkpoints, exports, records and figures", required=True)
    epochs: int = option(30, "passes over the clips", least=1)
    max_steps: int = option(0, "stop after this many steps; 0: after the epochs", least=0)
    batch_size: int = option(64, "clips a step, over all ranks", least=1)
    accumulate: int = option(1, "micro-batches a step on each rank", least=1)
    precision: str = option("fp32", "of weights and activations", choices=("fp32", "bf16"))
    zero_stage: int = option(0, "DeepSpeed ZeRO stage", least=0, most=3)
    seed: int = option(1, "of weights, order and dropout", least=0)
    log_every: int = option(10, "steps between two records", least=1)
    checkpoint_every: int = option(
        0, "steps between two checkpoints; 0: one at the end of each epoch", least=0
    )
    keep: int = option(2, "newest checkpoints kept", least=1)
    export: str = option(
        "best",
        "which epoch's model is exported: the best on held-out clips (ties: the later) or the last",
        choices=("best", "last"),
    )
    resume: str = option(
        "never",
        "auto: go on from the newest whole checkpoint in `out`, if there is one",
        choices=("auto", "never"),
    )


@dataclass
class PretrainData:
    """What pretraining reads."""

    shards: str = option("", "shard set", required=True)
    grounding: str = option("", "grounding folder; empty: the only one in SHARDS/grounding")
    heldout: float = option(
        0.05, "share of the clips kept for the grounding AUC, chosen by id", least=0, most=0.5
    )
    heldout_clips: int = option(2048, "at most so many of them are used", least=1)
    hidden_streams: list[str] = option(
        [], "visual streams that pretraining does not see (the authors' code: motion)"
    )


@dataclass
class PretrainConfig:
    """launch/pretrain.py: the encoder, trained on grounding."""

    data: PretrainData = section(PretrainData)
    encoder: Encoder = section(Encoder)
    objective: Objective = section(Objective)
    optimizer: Optimizer = section(Optimizer)
    trainer: TrainerSection = section(TrainerSection, export="last")
    tracking: Tracking = section(Tracking)


@dataclass
class ParsingData:
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
class Pretrained:
    """A pretrained encoder in front of the parser."""

    checkpoint: str = option(
        "", "exported encoder: a folder or models:/avvp-encoder@candidate; empty: none"
    )
    tune: bool = option(False, "train the encoder with the parser; false: frozen features")
    lr_scale: float = option(0.1, "its learning rate relative to the parser's", least=0)
    raw: bool = option(True, "the parser also sees the raw features, beside the encoder's")
    scale: float = option(0.3, "of its layer-normed outputs, against the raw features", least=0)


@dataclass
class Parser:
    """The parser family: each row of the paper's tables is a choice of switches."""

    width: int = option(512, "feature size", least=1)
    heads: int = option(1, "attention heads", least=1)
    dropout: float = option(0.1, "dropout", least=0, most=1)
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
class ParsingLoss:
    """Equation (3)."""

    lambda_guided: float = option(0.6, "weight of the per-modality loss L_g", least=0)
    lambda_adversarial: float = option(0.4, "weight of the discriminator's loss L_ad", least=0)
    ramp: bool = option(
        True, "the reversed gradient grows from 0 to full over the training; false: full at once"
    )
    smooth_audio: float = option(1.0, "confidence in a weak label for audio", least=0, most=1)
    smooth_visual: float = option(0.9, "the same for vision (HAN: 0.9)", least=0, most=1)
    lambda_contrastive: float = option(
        0.0, "weight of MA's loss: audio at t against the clip's visual snippets", least=0
    )
    temperature: float = option(0.2, "of its similarities", least=1e-6)
    smooth_time: float = option(0.9, "confidence in its snippet t", least=0, most=1)
    alias_audio_labels: bool = option(
        False, "fidelity: a label refined away for audio also goes from the video, as in MA's code"
    )


@dataclass
class FinetuneConfig:
    """launch/finetune.py: the parser, trained on weak labels."""

    data: ParsingData = section(ParsingData)
    encoder: Pretrained = section(Pretrained)
    parser: Parser = section(Parser)
    loss: ParsingLoss = section(ParsingLoss)
    optimizer: Optimizer = section(
        Optimizer, lr=3e-4, weight_decay=0.0, warmup=0.0, schedule="step", clip=0.0
    )
    trainer: TrainerSection = section(TrainerSection, epochs=40)
    tracking: Tracking = section(Tracking)


@dataclass
class RefineConfig:
    """tools/refine_labels.py: which weak labels each modality keeps (MA, stage 2)."""

    parser: str = option(
        "", "exported parser: a folder or models:/avvp-parser@candidate", required=True
    )
    shards: str = option("", "shard set with weak labels", required=True)
    out: str = option("", "npz file of the refined labels", required=True)
    threshold: float = option(
        0.5, "a label goes when both swapped probabilities, over its error, are below", least=0
    )
    batch_size: int = option(256, "clips a step", least=1)
    seed: int = option(1, "of the partners drawn", least=0)
    tracking: Tracking = section(Tracking)


@dataclass
class EvaluateConfig:
    """launch/evaluate.py: a parser's scores with the official metrics."""

    parser: str = option(
        "", "exported parser: a folder or models:/avvp-parser@candidate", required=True
    )
    shards: str = option("", "shard set of the split", required=True)
    annotations: str = option("", "folder of the AVVP_*.csv", required=True)
    audio_annotations: str = option(
        "2024", "version of the dense audio labels", choices=("2020", "2024")
    )
    split: str = option("test", "split to score", choices=("val", "test"))
    rule: str = option(
        "video",
        "clip probability that must reach the threshold beside the snippet's: the video's (HAN, "
        "the paper) or the modality's (MA, JoMoLD)",
        choices=("video", "modality"),
    )
    threshold: str = option(
        "0.5", "on snippet and clip probability: a number, or a .npy file [2, C] of one per class"
    )
    batch_size: int = option(64, "clips a step", least=1)
    clip: str = option("", "clip to draw as a timeline; empty: the one with most events")
    out: str = option("", "folder of scores.json, predictions.npz and figures", required=True)
    tracking: Tracking = section(Tracking)


@dataclass
class DemoConfig:
    """tools/demo.py: every stage in turn, on a simulated corpus or on real features."""

    out: str = option("runs/demo", "folder of everything the demo makes")
    features: str = option("", "folder of features_*.npz and AVVP_*.csv; empty: a simulated corpus")
    seeds: int = option(1, "parsers trained per row of the table", least=1)
    ranks: int = option(2, "DeepSpeed ranks", least=1)


@dataclass
class TablesConfig:
    """tools/reproduce_tables.py: Tables 1 and 2, every row trained from some seeds, on Ray."""

    shards: str = option("", "folder of the shard sets train, val and test", required=True)
    annotations: str = option("", "folder of the AVVP_*.csv", required=True)
    pretraining: str = option("", "shard set the encoders are trained on; empty: SHARDS/train")
    out: str = option("runs/tables", "folder of everything made, on a disk that all nodes see")
    rows: list[str] = option([], "rows to make, by their config's name; empty: all")
    seeds: int = option(3, "parsers trained per row", least=1)
    audio_annotations: str = option(
        "2024", "version of the dense audio labels", choices=("2020", "2024")
    )
    rule: str = option("video", "decision rule, see evaluate.py", choices=("video", "modality"))
    released: bool = option(False, "fidelity: the authors' code, with its faults and schedules")
    finetune: list[str] = option([], "KEY=VALUE for every parser, such as trainer.epochs=2")
    pretrain: list[str] = option([], "KEY=VALUE for every encoder, such as encoder.size=tiny")
    compare: list[str] = option(
        ["han", "pretrain_multi"], "two rows whose F per class is drawn (Figure 4)"
    )
    cpus: int = option(1, "CPU cores for each training", least=1)
    gpus: float = option(1.0, "GPUs for each training, where the cluster has any", least=0)
    tracking: Tracking = section(Tracking)
