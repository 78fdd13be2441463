"""Fine-tuning: the audio-visual video parser, trained on weak labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from avvp_dist.annotations.llp import Annotations, read_annotations
from avvp_dist.annotations.refined import load_refined
from avvp_dist.commit import sha256, verify_folder, write_json
from avvp_dist.config import DecontaminateConfig, FinetuneConfig
from avvp_dist.decontamination.leakage import count_leaked, report_leakage
from avvp_dist.errors import CheckpointError, DataError
from avvp_dist.evaluation.scores import SELECTION, THRESHOLD, score
from avvp_dist.loading.loader import ClipBatch
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.subset import subset
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.export import build_parser, load_encoder, load_spec
from avvp_dist.models.parsing_model import ParsingBatch, ParsingModel
from avvp_dist.models.specification import AttachedEncoder, EncoderSpec, ParserSpec
from avvp_dist.objectives.parsing import weak_labels
from avvp_dist.runtime.launched import launched_rank
from avvp_dist.runtime.ranks import Ranks, single_rank
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.prediction import match_clips, predict
from avvp_dist.tracking.promotion import VALIDATED_ON
from avvp_dist.tracking.registry import PREFIX, Model, resolve
from avvp_dist.training.dry_run import print_plan
from avvp_dist.training.engine import ParameterGroup, parameter_groups
from avvp_dist.training.precision import autocasts, model_dtype
from avvp_dist.training.runner import run_training
from avvp_dist.training.task import Panels, StepInfo

_CLIPS_AT_ONCE = 64
"""Validation clips in a forward pass."""


def finetune(config: FinetuneConfig) -> None:
    """Train a parser by `config`; the best epoch's export lies in `trainer.out/model`.

    Raises:
        AvvpError: with what was wrong and what to do, for anything a user can put right.
    """
    run_training("finetune", config, open_finetuning)


def plan_finetuning(config: FinetuneConfig, ranks: int) -> None:
    """Print what `finetune` would do on this number of ranks.

    Raises:
        AvvpError: as `finetune` would before its first step.
    """
    print_plan("fine-tuning", config, open_finetuning, ranks)


def open_finetuning(
    config: FinetuneConfig, connect: Callable[[], Ranks], *, scratch: Path | None = None
) -> ParsingTask:
    """Open both shard sets and the pretrained encoder, and build the parser; see `OpenTask`."""
    data = Mixture.open([config.data.train], [], config.data)
    val = ShardSet(config.data.val, config.data)
    heldout = [val, *(ShardSet(place, config.data) for place in [config.data.test] if place)]
    for other in heldout:
        check_same_streams(other, data.sets[0])
    annotations = read_annotations(
        config.data.annotations,
        "val",
        audio_version=config.data.audio_annotations,
        snippets=val.snippets,
    )
    contaminated = count_leaked(
        data.sets[0], heldout, Path(config.data.annotations), allowed=config.data.allow_contaminated
    )
    # One rank asks the registry, before it waits for the others or takes a device.
    model = find_encoder(config, data.sets[0], scratch) if launched_rank() == 0 else None
    ranks = connect()
    model = ranks.broadcast_object(model)
    encoder, attached = attach_encoder(config, model, ranks)
    task = ParsingTask(config, data, val, annotations, encoder, attached, ranks, contaminated)
    if ranks.is_main:
        report_leakage(data.sets[0], heldout, DecontaminateConfig().similarity)
    return task


class ParsingTask:
    """The parser, its weakly labelled clips, and the official scores on validation clips.

    Args:
        data: the training clips, one shard set.
        val: the validation clips.
        annotations: dense labels of the validation clips.
        encoder: the pretrained encoder, or None.
        attached: where it comes from, or None.
        ranks: ranks that train together; None: this process alone.
        contaminated: number of training clips of validation or test videos.

    Raises:
        DataError: for clips without weak labels, of other sizes, or missing validation clips.
    """

    registered_name = "avvp-parser"
    aliases: tuple[str, ...] = ("candidate",)
    panels: Panels = (
        ("loss", ["train/loss"], "loss"),
        (
            "its parts",
            [f"train/{part}" for part in ("weak", "audio", "visual", "adversarial", "contrastive")],
            "cross-entropy",
        ),
        (
            "validation, segment level",
            [f"val/segment_{name}" for name in ("audio", "visual", "av", "type_av")],
            "F (%)",
        ),
    )

    def __init__(
        self,
        config: FinetuneConfig,
        data: Mixture,
        val: ShardSet,
        annotations: Annotations,
        encoder: Encoder | None = None,
        attached: AttachedEncoder | None = None,
        ranks: Ranks | None = None,
        contaminated: int = 0,
    ) -> None:
        self.config, self.data, self.val, self.annotations = config, data, val, annotations
        self.contaminated = contaminated
        self.ranks = ranks or single_rank()
        self.dtype = model_dtype(config.trainer)
        self.train, self.attached = data.sets[0], attached
        check_parsable(self.train)
        check_parsable(val)
        everything = np.ones(len(data), bool)
        self.pools = data.pools(subset(data, everything, config.data.clips, config.data.subset))
        self.weak = read_weak_labels(self.train, annotations.classes)
        self.kept = self._kept(config.data.refined_labels)
        self.val_clips, self.val_events = match_clips(val, annotations)
        self.validated_on = {
            VALIDATED_ON + "shards": val.content,
            VALIDATED_ON + "annotations": hashlib.sha256(self.val_events.tobytes()).hexdigest(),
        }
        self.tags = self._tags()
        self.inputs = self._inputs()
        labels = (self.weak if self.kept is None else self.kept).numpy().tobytes()
        self.lineage = {
            "shard sets": data.digests,
            "labels (data.refined_labels)": [hashlib.sha256(labels).hexdigest()],
            "validation (data.val, data.annotations)": list(self.validated_on.values()),
        }
        with self.ranks.init_device:
            self.parser = build_parser(self._spec(0, {}), encoder)
            self.module: nn.Module = ParsingModel(
                self.parser, config.loss, autocast=autocasts(config.trainer)
            )
        self.tokens = 2.0 * self.train.snippets

    def parameter_groups(self) -> list[ParameterGroup]:
        optimizer, prefix = self.config.optimizer, "parser.encoder."
        named = list(self.module.named_parameters())
        own = [p for name, p in named if not name.startswith(prefix)]
        encoder = [p for name, p in named if name.startswith(prefix)]
        lr = optimizer.lr * self.config.pretrained.lr_scale
        return [
            *parameter_groups(own, optimizer.lr, optimizer.weight_decay),
            *parameter_groups(encoder, lr, optimizer.weight_decay),
        ]

    def make_batch(self, clips: ClipBatch, info: StepInfo) -> ParsingBatch:
        return ParsingBatch(
            streams=clips.streams,
            weak=self.weak[clips.clips],
            kept=None if self.kept is None else self.kept[clips.clips],
            progress=info.progress,
        )

    def validate(self) -> dict[str, float]:
        ranks = self.ranks
        own = ranks.own_slice(self.val_clips)
        passes = ranks.passes(len(self.val_clips), _CLIPS_AT_ONCE)
        predictions = predict(self.parser, self.val, own, ranks.device, self.dtype, passes=passes)
        decided = ranks.interleave(predictions.decided("video", THRESHOLD))
        scores = score(decided, self.val_events) if ranks.is_main else {}
        return ranks.broadcast_object({f"val/{name}": value for name, value in scores.items()})

    def score(self, metrics: Mapping[str, float]) -> float:
        return metrics[f"val/{SELECTION}"]

    def export(
        self, state: Mapping[str, Tensor], step: int, metrics: Mapping[str, float]
    ) -> tuple[dict[str, Tensor], ParserSpec]:
        weights = {name.removeprefix("parser."): tensor for name, tensor in state.items()}
        return weights, self._spec(step, dict(metrics))

    def plan(self) -> Iterator[tuple[str, str]]:
        classes, tuned = len(self.annotations.classes), self.config.pretrained.tune
        yield "held out", f"{len(self.val_clips):,} clips are validated on"
        if self.contaminated:
            yield "contaminated", f"{self.contaminated} clips"
        yield "parser", f"width {self.config.parser.width}, {classes} classes"
        if self.attached is None:
            yield "encoder", "none"
        else:
            yield "encoder", f"{self.attached.version}, {'tuned' if tuned else 'frozen'}"

    def _spec(self, step: int, validated: dict[str, float]) -> ParserSpec:
        return ParserSpec(
            parser=self.config.parser,
            dims=self.train.dims,
            snippets=self.train.snippets,
            classes=list(self.annotations.classes),
            extractor=self.train.extractor,
            manifest=self.train.digest,
            pretrained=self.attached,
            step=step,
            validated=validated,
        )

    def _tags(self) -> dict[str, str]:
        tags = {"manifest": self.train.digest}
        if self.contaminated:
            tags["contaminated"] = str(self.contaminated)
        if self.attached is None:
            return {**tags, "encoder": "none"}
        return {
            **tags,
            "encoder": self.attached.version,
            "grounding": self.attached.spec.grounding,
            "encoder_run": self.attached.run,
        }

    def _inputs(self) -> dict[str, str]:
        inputs = {shards.name: shards.digest for shards in (self.train, self.val)}
        if self.config.data.refined_labels:
            labels = Path(self.config.data.refined_labels).absolute()
            inputs[str(labels)] = sha256(labels)
        return inputs

    def _kept(self, file: str) -> Tensor | None:
        """The argument `kept` of `parsing_loss` for every training clip, `[N, 2, C]`."""
        if not file:
            return None
        labels = load_refined(Path(file), self.train.ids, self.weak.numpy() > 0)
        return (torch.from_numpy(labels) | (self.weak == 0)[:, None]).float()


def read_weak_labels(shards: ShardSet, classes: tuple[str, ...]) -> Tensor:
    """The weak labels of every clip of a shard set, float `[N, C]`, 0 or 1.

    Raises:
        DataError: for clips without labels, or labels that are no classes.
    """
    unlabelled = [n for n, names in enumerate(shards.labels) if names is None]
    if unlabelled:
        raise DataError(
            f"{shards.name}: {len(unlabelled)} clips have no weak labels, first "
            f"{shards.id(unlabelled[0])}",
            remedy="Pack them with annotations=FOLDER",
        )
    unknown = [
        (shards.id(n), name)
        for n, names in enumerate(shards.labels)
        for name in names or ()
        if name not in classes
    ]
    if unknown:
        clip, name = unknown[0]
        raise DataError(f"{shards.name}: clip {clip} has the label {name}, which is no class here")
    return weak_labels(shards.labels, classes)


def check_parsable(shards: ShardSet) -> None:
    """Raise `DataError` unless all clips are whole.

    Clips of length 0 are not finite; they are met as damage when they are read.
    """
    short = np.flatnonzero((shards.lengths < shards.snippets) & (shards.lengths > 0))
    if short.size:
        raise DataError(
            f"{shards.name}: {short.size} clips have fewer than {shards.snippets} snippets, "
            f"first {shards.id(short[0])}",
            remedy="The parser reads whole clips: pack with short=drop",
        )


def check_same_streams(shards: ShardSet, train: ShardSet) -> None:
    """Raise `DataError` unless the clips are of the sizes of those of `train`."""
    if (shards.dims, shards.snippets) != (train.dims, train.snippets):
        raise DataError(
            f"{shards.name} holds {shards.dims} x {shards.snippets} snippets, {train.name} "
            f"{train.dims} x {train.snippets}",
            remedy="Training, validation and test need features of the same backbones",
        )


def find_encoder(
    config: FinetuneConfig, shards: ShardSet, scratch: Path | None = None
) -> Model | None:
    """The exported encoder that `config.pretrained` asks for, checked against `shards`.

    A resumed run keeps the version it began with: an alias may have moved since, and the server
    need not answer.

    Args:
        scratch: folder for a download that is not to be kept.

    Raises:
        CheckpointError: if there is no such encoder, or it was trained on other features.
    """
    asked, kept_in = config.pretrained.checkpoint, Path(config.trainer.out) / "encoder"
    if not asked:
        return None
    memory = kept_in / "version.json"
    if config.trainer.resume == "auto" and memory.is_file():
        kept = json.loads(memory.read_text())
        if kept["asked"] == asked and not verify_folder(Path(kept["folder"])):
            return Model(Path(kept["folder"]), kept["version"], kept["run"])
    model = resolve(asked, scratch or kept_in)
    _check_features(load_spec(model.folder, EncoderSpec), model.folder, shards)
    if scratch is None and asked.startswith(PREFIX):
        folder = str(model.folder.absolute())
        write_json(
            memory,
            {"folder": folder, "version": model.version, "run": model.run, "asked": asked},
        )
    return model


def attach_encoder(
    config: FinetuneConfig, model: Model | None, ranks: Ranks
) -> tuple[Encoder | None, AttachedEncoder | None]:
    """The encoder of an exported model with its weights, and its record for the parser's export.

    Raises:
        CheckpointError: if its weights do not fit.
    """
    if model is None:
        return None, None
    with ranks.init_device:
        encoder, spec = load_encoder(
            model.folder, activation_checkpointing=config.trainer.activation_checkpointing
        )
    version = model.version or str(model.folder)
    if ranks.is_main:  # loading is strict
        tensors = len(encoder.state_dict())
        print(f"{version}: all {tensors} tensors loaded, none missing, none unexpected")
    return encoder, AttachedEncoder(config.pretrained, spec, version, model.run)


def _check_features(spec: EncoderSpec, folder: Path, shards: ShardSet) -> None:
    """Raise `CheckpointError` if an encoder was not trained on features as those of `shards`."""
    if spec.dims != shards.dims or spec.snippets != shards.snippets:
        raise CheckpointError(
            f"pretrained.checkpoint: {folder} was trained on {spec.dims} x {spec.snippets} "
            f"snippets, the shard set holds {shards.dims} x {shards.snippets}",
            remedy="Pretrain on features of the same backbones",
        )
    if spec.extractor != shards.extractor:
        raise CheckpointError(
            f"pretrained.checkpoint: {folder} was trained on features of {spec.extractor!r}, "
            f"the shard set holds those of {shards.extractor!r}"
        )
