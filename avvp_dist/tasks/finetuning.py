"""Fine-tuning: the audio-visual video parser, trained on weak labels."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avvp_dist.annotations.llp import Annotations, read_annotations
from avvp_dist.annotations.refined import load_refined
from avvp_dist.commit import sha256, verify_folder, write_json
from avvp_dist.config import FinetuneConfig, LoaderConfig
from avvp_dist.errors import CheckpointError, DataError
from avvp_dist.evaluation.scores import score
from avvp_dist.loading.loader import ClipBatch
from avvp_dist.loading.mixture import Mixture
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.export import build_parser, load_encoder, validated_tags
from avvp_dist.models.parsing_model import ParsingModel
from avvp_dist.objectives.parsing import weak_labels
from avvp_dist.runtime.lock import claim
from avvp_dist.runtime.ranks import Ranks, connect
from avvp_dist.runtime.watchdog import Watchdog
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.prediction import match_clips, predict
from avvp_dist.tracking.promotion import VALIDATED_ON
from avvp_dist.tracking.registry import PREFIX, Model, resolve
from avvp_dist.tracking.run import Run
from avvp_dist.training.checkpoint import check_unclaimed
from avvp_dist.training.engine import parameter_groups
from avvp_dist.training.trainer import Batch, Panels, Trainer

SELECT = "val/segment_type_av"
"""The metric whose best epoch is exported, as in the official codes."""


def finetune(config: FinetuneConfig) -> None:
    """Train a parser by `config`; the best epoch's export lies in `trainer.out/model`.

    Raises:
        AvvpError: with what was wrong and what to do, for anything a user can put right.
    """
    with claim(Path(config.trainer.out)):
        _finetune(config)


def _finetune(config: FinetuneConfig) -> None:
    data, val, annotations = open_data(config)
    train = data.sets[0]
    # Before a rank takes a device or waits for another: what is refused here costs neither.
    found = find_encoder(config, train) if int(os.environ.get("RANK", "0")) == 0 else None
    ranks = connect(config.trainer.hang_seconds)
    torch.manual_seed(config.trainer.seed)
    encoder, pretrained_encoder = pretrained(config, train, ranks.broadcast_object(found))
    if encoder and pretrained_encoder and ranks.is_main:  # loading is strict
        count = len(encoder.state_dict())
        loaded = f"all {count} tensors loaded, none missing, none unexpected"
        print(f"{pretrained_encoder['version']}: {loaded}")
    task = ParsingTask(config, data, val, annotations, encoder, pretrained_encoder)
    lineage = {
        "manifest": train.digest,
        "encoder": pretrained_encoder["version"] if pretrained_encoder else "none",
    }
    if pretrained_encoder:
        lineage["grounding"] = pretrained_encoder["meta"]["grounding"]
        lineage["encoder_run"] = pretrained_encoder["run"]
    inputs = {s.name: s.digest for s in (train, val)}
    if config.data.refined_labels:
        labels = Path(config.data.refined_labels).absolute()
        inputs[str(labels)] = sha256(labels)
    run = Run(
        "finetune",
        Path(config.trainer.out),
        config,
        lineage,
        inputs=inputs,
        resume=config.trainer.resume == "auto",
        active=ranks.is_main,
    )
    dog = Watchdog(Path(config.trainer.out), ranks, config.trainer.hang_seconds)
    with dog, run:
        trainer = Trainer(task, config.trainer, config.optimizer, run, ranks, dog.beat)
        trainer.train()
        if config.tracking.register and ranks.is_main:
            model = trainer.out / "model"
            tags = {**lineage, **validated_tags(model, "parser"), **task.validated_on}
            run.register("avvp-parser", model, tags)


def open_data(config: FinetuneConfig) -> tuple[Mixture, ShardSet, Annotations]:
    """What is trained on, the validation clips, and their annotations.

    Raises:
        AvvpError: for all that is refused before a rank takes a device.
    """
    check_unclaimed(Path(config.trainer.out), config.trainer.resume)
    data = Mixture.open([config.data.train], [], config.data)
    val = ShardSet(config.data.val, config.data)
    annotations = read_annotations(
        config.data.annotations,
        "val",
        audio_version=config.data.audio_annotations,
        snippets=val.snippets,
    )
    return data, val, annotations


class ParsingTask:
    """The parser, its weakly labelled clips, and the official scores on validation clips."""

    panels: Panels = (
        ("loss", ["loss"], "loss"),
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
        encoder: Encoder | None,
        pretrained_encoder: dict[str, Any] | None,
    ) -> None:
        self.config, self.data, self.val = config, data, val
        self.loading: LoaderConfig = config.data
        train = self.train = data.sets[0]
        check_parsable(train)
        check_parsable(val, like=train)
        self.pools, self.lineage = data.pools(), {"shard sets": data.digests}
        self.weak = read_weak_labels(train, annotations.classes)
        self.kept = self._kept(config.data.refined_labels)
        self.val_clips, self.val_events = match_clips(val, annotations)
        self.validated_on = {
            VALIDATED_ON + "shards": val.content,
            VALIDATED_ON + "annotations": hashlib.sha256(self.val_events.tobytes()).hexdigest(),
        }
        self.meta = {
            "kind": "parser",
            "parser": asdict(config.parser),
            "pretrained": pretrained_encoder,
            "dims": train.dims,
            "snippets": train.snippets,
            "classes": list(annotations.classes),
            "extractor": train.extractor,
            "manifest": train.digest,
        }
        self.parser = build_parser(self.meta, encoder)
        self.module: nn.Module = ParsingModel(self.parser, config.loss)
        self.tokens = 2.0 * train.snippets

    def groups(self) -> list[dict[str, Any]]:
        optimizer, encoder = self.config.optimizer, "parser.encoder."
        named = list(self.module.named_parameters())
        own = [(name, p) for name, p in named if not name.startswith(encoder)]
        pretrained_encoder = [(name, p) for name, p in named if name.startswith(encoder)]
        lr = optimizer.lr * self.config.pretrained.lr_scale
        return [
            *parameter_groups(own, optimizer.lr, optimizer.weight_decay),
            *parameter_groups(pretrained_encoder, lr, optimizer.weight_decay),
        ]

    def batch(self, read: ClipBatch, device: torch.device, dtype: torch.dtype) -> Batch:
        return {
            "streams": read.to(device, dtype),
            "weak": self.weak[read.clips].to(device),
            "kept": None if self.kept is None else self.kept[read.clips].to(device),
        }

    def validate(self, ranks: Ranks, dtype: torch.dtype) -> dict[str, float]:
        found = predict(self.parser, self.val, self.val_clips, ranks, dtype)
        scores = score(found.decided("video", 0.5), self.val_events)
        return {f"val/{name}": value for name, value in scores.items()}

    def score(self, metrics: dict[str, float]) -> float:
        return metrics[SELECT]

    def exported(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {name.removeprefix("parser."): tensor for name, tensor in state.items()}, self.meta

    def _kept(self, file: str) -> Tensor | None:
        """What `parsing_loss` calls `kept`, of every training clip."""
        if not file:
            return None
        labels = load_refined(Path(file), self.train.ids, self.weak.numpy() > 0)
        return (torch.from_numpy(labels) | (self.weak == 0)[:, None]).float()


def read_weak_labels(shards: ShardSet, classes: tuple[str, ...]) -> Tensor:
    """The weak labels of every clip of a shard set, `[N, C]`."""
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


def check_parsable(shards: ShardSet, like: ShardSet | None = None) -> None:
    """Raise `DataError` unless all clips are whole, and of the sizes of `like`.

    Clips that are not finite, of length 0, are damage: it is met when they are read.
    """
    short = np.flatnonzero((shards.lengths < shards.snippets) & (shards.lengths > 0))
    if short.size:
        raise DataError(
            f"{shards.name}: {short.size} clips have fewer than {shards.snippets} snippets, "
            f"first {shards.id(short[0])}",
            remedy="The parser reads whole clips: pack with short=drop",
        )
    if like is not None and (shards.dims, shards.snippets) != (like.dims, like.snippets):
        raise DataError(
            f"{shards.name} holds {shards.dims} x {shards.snippets} snippets, {like.name} "
            f"{like.dims} x {like.snippets}",
            remedy="Training and validation need features of the same backbones",
        )


def find_encoder(
    config: FinetuneConfig, shards: ShardSet, scratch: Path | None = None
) -> Model | None:
    """The encoder that `config.encoder` asks for, its files and its sizes checked.

    A resumed run keeps the version it began with: an alias may have moved since, and the server
    need not answer.

    Args:
        scratch: where a registered model is downloaded to, and not remembered.
    """
    asked, into = config.pretrained.checkpoint, Path(config.trainer.out) / "encoder"
    if not asked:
        return None
    memory = into / "version.json"
    if config.trainer.resume == "auto" and memory.is_file():
        kept = json.loads(memory.read_text())
        if kept["asked"] == asked and not verify_folder(Path(kept["folder"])):
            return Model(Path(kept["folder"]), kept["version"], kept["run"])
    found = resolve(asked, scratch or into)
    pretrained(config, shards, found)
    if scratch is None and asked.startswith(PREFIX):
        folder = str(found.folder.absolute())
        write_json(memory, {**found._asdict(), "folder": folder, "asked": asked})
    return found


def pretrained(
    config: FinetuneConfig, shards: ShardSet, found: Model | None
) -> tuple[Encoder | None, dict[str, Any] | None]:
    """The encoder that was found, and what an export has to know of it."""
    if found is None:
        return None, None
    folder = found.folder
    encoder, meta = load_encoder(folder)
    if meta["dims"] != shards.dims or meta["snippets"] != shards.snippets:
        raise CheckpointError(
            f"pretrained.checkpoint: {folder} was trained on {meta['dims']} x {meta['snippets']} "
            f"snippets, the shard set holds {shards.dims} x {shards.snippets}",
            remedy="Pretrain on features of the same backbones",
        )
    if meta["extractor"] != shards.extractor:
        raise CheckpointError(
            f"pretrained.checkpoint: {folder} was trained on features of {meta['extractor']!r}, "
            f"the shard set holds those of {shards.extractor!r}"
        )
    pretrained_encoder = {"config": asdict(config.pretrained), "meta": meta}
    return encoder, {
        **pretrained_encoder,
        "version": found.version or str(folder),
        "run": found.run,
    }
