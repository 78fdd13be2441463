"""Pretraining: the encoder learns which snippets of a clip belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from avvp_dist.commit import digest
from avvp_dist.config import LoaderConfig, ObjectiveConfig, PretrainConfig
from avvp_dist.decontamination.contamination import contaminated
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.evaluation.scores import grounding_auc
from avvp_dist.grounding.version import Grounding
from avvp_dist.hashing import hash_uniform
from avvp_dist.loading.heldout import training_clips, validation_clips
from avvp_dist.loading.loader import ClipBatch, read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.export import read_meta, validated_tags
from avvp_dist.objectives.grounding import clip_losses, grounding_loss, pair_masks, unit
from avvp_dist.objectives.negative_pool import NegativePool
from avvp_dist.objectives.negatives import LinkRule, OtherClips
from avvp_dist.runtime.lock import claim
from avvp_dist.runtime.ranks import Ranks, connect, single_rank
from avvp_dist.runtime.watchdog import Watchdog
from avvp_dist.shards.schema import AUDIO, PADDING
from avvp_dist.tracking.promotion import VALIDATED_ON
from avvp_dist.tracking.run import Run
from avvp_dist.training.checkpoint import check_unclaimed
from avvp_dist.training.collapse import collapsed, health
from avvp_dist.training.engine import parameter_groups
from avvp_dist.training.trainer import Batch, Panels, Trainer

PAIRS = ("audio", "visual", "cross")
"""Similarities whose AUC is reported: within audio, within vision, audio to vision."""
MODALITIES = ("audio", "visual")
_AGAINST_COLLAPSE = (
    "Lower optimizer.lr, raise objective.other_clips, or ground with higher thresholds"
)
_ENOUGH_TO_TELL = 16
"""Held-out clips, fewer than which say nothing about a collapse."""
_MOST_RANKED = 1024
"""Representations whose effective rank is measured: the time grows with the square of width."""


def pretrain(config: PretrainConfig) -> None:
    """Train an encoder by `config`; the exported model lies in `trainer.out/model`.

    Raises:
        AvvpError: with what was wrong and what to do, for anything a user can put right.
    """
    with claim(Path(config.trainer.out)):
        _pretrain(config)


def _pretrain(config: PretrainConfig) -> None:
    data, groundings, contamination = open_data(config)
    ranks = connect(config.trainer.hang_seconds)
    torch.manual_seed(config.trainer.seed)
    task = PretrainingTask(config, data, groundings, ranks)
    lineage = {"manifest": task.manifest, "grounding": task.grounding, **contamination}
    run = Run(
        "pretrain",
        Path(config.trainer.out),
        config,
        {**lineage, "objective": config.objective.name},
        inputs={part.name: part.digest for part in data.sets},
        resume=config.trainer.resume == "auto",
        active=ranks.is_main,
    )
    dog = Watchdog(Path(config.trainer.out), ranks, config.trainer.hang_seconds)
    with dog, run:
        trainer = Trainer(task, config.trainer, config.optimizer, run, ranks, dog.beat)
        trainer.train()
        if config.tracking.register and ranks.is_main:
            model = trainer.out / "model"
            step = read_meta(model, "encoder").get("step", trainer.step)
            tags = {
                **lineage,
                **validated_tags(model, "encoder"),
                **task.validated_on,
                "objective": config.objective.name,
                "clips_seen": str(trainer.clips_seen(step)),
            }
            run.register("avvp-encoder", model, tags, ("candidate", config.objective.name))


def open_data(config: PretrainConfig) -> tuple[Mixture, list[Grounding], dict[str, str]]:
    """What is trained on, its groundings, and a tag where there are clips of held-out videos.

    Raises:
        AvvpError: for all that is refused before a rank takes a device.
    """
    check_unclaimed(Path(config.trainer.out), config.trainer.resume)
    data = Mixture.open(config.data.shards, config.data.weights, config.data)
    contamination = _contamination(data, config.data.allow_contaminated)
    groundings = _groundings(data, config.data.grounding)
    _check_contrast(groundings, config.objective)
    return data, groundings, contamination


class PretrainingTask:
    """The encoder, its grounded clips, and the held-out grounding AUC."""

    panels: Panels = (
        # Of these only the own clip's part is what validation measures.
        ("grounding loss", ["loss", "train/own", "val/loss"], "hinge"),
        ("held-out grounding", [f"auc/{pair}" for pair in PAIRS], "AUC"),
        ("similarity", ["train/positive", "train/negative"], "cosine"),
        ("representations: spread", [f"spread/{name}" for name in MODALITIES], "std x sqrt(D)"),
        ("representations: rank", [f"rank/{name}" for name in MODALITIES], "effective rank"),
    )

    def __init__(
        self,
        config: PretrainConfig,
        data: Mixture,
        groundings: Sequence[Grounding],
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.data = config, data
        self.loading: LoaderConfig = config.data
        hidden = config.data.hidden_streams
        _check_hidden(hidden, data)
        self.manifest = "+".join(data.digests)
        versions = [one.version for one in groundings]
        self.grounding = "+".join(versions)
        self.lineage = {"shard sets": data.digests, "groundings": versions}
        self.components = np.concatenate([one.components for one in groundings])
        self.encoder = Encoder(config.encoder, data.dims, data.snippets)
        self.link_rules = _likenesses(groundings, config.objective)
        self.module: nn.Module = GroundingModel(
            self.encoder, config, self.link_rules, ranks or single_rank()
        )
        trained = training_clips(data, config.data.heldout)
        self.pools = data.pools(trained)
        self.heldout = validation_clips(data, trained, config.data.heldout_clips)
        if config.trainer.export == "best" and not len(self.heldout):
            raise ConfigError("trainer.export=best needs held-out clips: data.heldout holds none")
        self.validated_on = {
            VALIDATED_ON + "shards": "+".join(part.content for part in data.sets),
            VALIDATED_ON + "grounding": self.grounding,
            VALIDATED_ON + "clips": digest([data.id(int(clip)) for clip in self.heldout]),
        }
        """What two encoders' metrics are comparable on, as tags."""
        self.lengths = data.lengths
        self.tokens = float(self.lengths.mean()) * len(self.encoder.groups)

    def groups(self) -> list[dict[str, Any]]:
        optimizer = self.config.optimizer
        named = list(self.module.named_parameters())
        return parameter_groups(named, optimizer.lr, optimizer.weight_decay)

    def batch(self, read: ClipBatch, device: torch.device, dtype: torch.dtype) -> Batch:
        clips = read.clips
        components = torch.from_numpy(self.components[clips])
        if not read.count:  # what stands in for an empty batch is no negative of others
            components.fill_(PADDING)
        batch = {
            "streams": read.to(device, dtype),
            "lengths": torch.from_numpy(self.lengths[clips].astype(np.int64)).to(device),
            "components": components.to(device),
            "clips": torch.from_numpy(clips),
        }
        if self.link_rules:
            batch["likeness"] = torch.from_numpy(self.data.owners(clips)).to(device)
            # As they are stored: thresholds are finer than bfloat16.
            stored = read.to(device, torch.float16)
            batch["features"] = {name: stored[name] for name in _compared_streams(self.link_rules)}
        return batch

    def validate(self, ranks: Ranks, dtype: torch.dtype) -> dict[str, float]:
        mine = ranks.part(self.heldout)
        if not len(self.heldout):
            return {}
        found = [
            self._judge(part, ranks.device, dtype)
            for part in np.array_split(mine, max(1, -(-len(mine) // 256)))
        ]
        similarity, losses, vectors, good = (
            ranks.join(np.concatenate(kind)) for kind in zip(*found, strict=True)
        )
        if self.loading.order == "block":  # the loader closes only what it opened
            for part in self.data.sets:
                part.release(range(len(part.shards)))
        if not good.any():
            raise DataError("no held-out clip can be read", remedy="Mend the shard sets")
        similarity, losses = similarity[good], losses[good]
        components = torch.from_numpy(self.components[self.heldout[good]])
        same, valid = (mask.numpy() for mask in pair_masks(components))
        others = valid & ~np.eye(same.shape[1], dtype=bool)
        scores = {
            f"auc/{pair}": grounding_auc(
                similarity[:, row], same, valid if pair == "cross" else others
            )
            for row, pair in enumerate(PAIRS)
        }
        auc = float(np.mean(list(scores.values())))
        some = vectors[good][:: -(-int(good.sum()) // _MOST_RANKED)]  # of all sets of a mixture
        healthy = health({name: some[:, row] for row, name in enumerate(MODALITIES)})
        if ranks.is_main and len(some) >= _ENOUGH_TO_TELL:
            for line in collapsed(healthy):
                tqdm.write(f"warning: {line}. {_AGAINST_COLLAPSE}")
        return {**scores, "auc": auc, "val/loss": float(losses.mean()), **healthy}

    def score(self, metrics: dict[str, float]) -> float:
        return -metrics["val/loss"]

    def exported(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        weights = {
            name.removeprefix("encoder."): tensor
            for name, tensor in state.items()
            if name.startswith("encoder.")
        }
        return weights, {
            "kind": "encoder",
            "encoder": asdict(self.config.encoder),
            "objective": asdict(self.config.objective),
            "dims": self.data.dims,
            "snippets": self.data.snippets,
            "extractor": self.data.extractor,
            "manifest": self.manifest,
            "grounding": self.grounding,
        }

    @torch.no_grad()
    def _judge(
        self, clips: NDArray[np.integer], device: torch.device, dtype: torch.dtype
    ) -> tuple[NDArray[np.generic], ...]:
        """Of each clip: cosines within audio, within vision and across `[B, 3, T, T]`, the loss
        `[B]`, both representations of its middle snippet `[B, 2, D]`, could it be read `[B]`."""
        read, good = read_clips(self.data, clips)
        batch = self.batch(read, device, dtype)
        batch["components"][torch.from_numpy(~good)] = PADDING
        x = unit(*compared(self.encoder, batch, self.config.data.hidden_streams))
        losses = clip_losses(x, batch["components"], self.config.objective)
        cosines = [x[:, i] @ x[:, j].transpose(1, 2) for i, j in ((0, 0), (1, 1), (0, 1))]
        # One place in all clips: positions alone must not look like a spread.
        middle = x[torch.arange(len(x), device=device), :, (batch["lengths"] - 1) // 2]
        found = (torch.stack(cosines, 1), losses, middle)
        return *(each.float().cpu().numpy() for each in found), good


def compared(encoder: Encoder, batch: Batch, hidden: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The representations that grounding compares, `[B, T, D]` each: audio, and vision as the mean
    of the visual tokens that are not hidden."""
    audio, *visual = encoder(batch["streams"], batch["lengths"], hidden)
    _, *streams = encoder.groups.values()
    seen = [x for names, x in zip(streams, visual, strict=True) if not set(names) <= set(hidden)]
    return audio, torch.stack(seen).mean(0)


class GroundingModel(nn.Module):
    """The encoder under its objective: a batch to its loss.

    Args:
        likenesses: of the groundings, where likely-false negatives are left out.
        ranks: whose clips are each other's negatives.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: PretrainConfig,
        link_rules: Sequence[LinkRule],
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, config.objective
        self.hidden, self.seed = config.data.hidden_streams, config.trainer.seed
        self.link_rules, self.ranks = link_rules, ranks
        self.clips = config.trainer.batch_size // (
            ranks.size * config.trainer.gradient_accumulation
        )

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        others = self._others(batch) if self.objective.other_clips else None
        audio, visual = compared(self.encoder, batch, self.hidden)
        components, epoch = batch["components"], batch["epoch"]
        draws = self._draws(batch)
        return grounding_loss(audio, visual, components, self.objective, epoch, draws, others)

    def _others(self, batch: Batch) -> OtherClips:
        components, clips = batch["components"], batch["clips"]
        draws = torch.from_numpy(hash_uniform(clips.numpy(), "negatives", self.seed, batch["step"]))
        draws = draws.to(components.device).masked_fill((components == PADDING).all(1), torch.inf)
        return OtherClips(
            clips.to(components.device),
            batch.get("features", {}),
            self.link_rules,
            batch.get("likeness"),
            NegativePool(draws, self.clips, self.objective.negatives, self.ranks),
        )

    def _draws(self, batch: Batch) -> Tensor | None:
        """What chooses the anchors: of seed, step and clip, so the same however clips are spread
        over ranks and micro-batches."""
        if self.objective.anchors == "all":
            return None
        clips = batch["clips"].numpy()
        if self.objective.anchors == "shared":
            clips = np.zeros_like(clips)
        draws = hash_uniform(clips, "anchors", self.seed, batch["step"])
        return torch.from_numpy(draws).float().to(batch["components"].device)


def _likenesses(groundings: Sequence[Grounding], objective: ObjectiveConfig) -> list[LinkRule]:
    """By which snippets of other clips are left out; empty where none are."""
    if not objective.other_clips or objective.false_negatives == "keep":
        return []
    found = [LinkRule(one.thresholds, one.rule) for one in groundings]
    return found if _compared_streams(found) else []


def _compared_streams(link_rules: Sequence[LinkRule]) -> list[str]:
    return sorted({name for one in link_rules for name in one.thresholds})


def _contamination(data: Mixture, allowed: bool) -> dict[str, str]:
    """A tag that counts the clips of LLP's held-out videos, if there are any and they may be."""
    count = 0
    for part in data.sets:
        found = contaminated(part)
        count += sum(map(len, found.values()))
        if found and not allowed:
            kinds = ", ".join(f"{len(clips)} of {name}" for name, clips in found.items())
            first = min(int(clips[0]) for clips in found.values())
            raise DataError(
                f"{part.name} holds clips of held-out videos: {kinds}, first {part.id(first)}",
                remedy=f"Leave them out with: python tools/decontaminate.py shards={part.name} "
                "(or set data.allow_contaminated=true)",
            )
    return {"contaminated": str(count)} if count else {}


def _groundings(data: Mixture, places: Sequence[str]) -> list[Grounding]:
    if places and len(places) != len(data.sets):
        raise ConfigError(
            f"data.grounding={list(places)} is not one folder for each of the "
            f"{len(data.sets)} shard sets"
        )
    chosen = places or [""] * len(data.sets)
    return [Grounding(part, place) for part, place in zip(data.sets, chosen, strict=True)]


def _check_contrast(groundings: Sequence[Grounding], objective: ObjectiveConfig) -> None:
    """Raise `ConfigError` where no two snippets would be a negative pair."""
    parts = [one.components for one in groundings]
    if objective.other_clips or any(((ids > 0) & (ids != PADDING)).any() for ids in parts):
        return
    names = " + ".join(one.place for one in groundings)
    raise ConfigError(
        f"objective.other_clips=0, but every clip of {names} is one component: no pair is negative",
        remedy="Take negatives from other clips, or ground with higher thresholds",
    )


def _check_hidden(hidden: Sequence[str], data: Mixture) -> None:
    visual = [name for name in data.dims if name != AUDIO]
    if not visual or AUDIO not in data.dims:
        raise DataError(
            f"{data.name} has the streams {sorted(data.dims)}: pretraining needs {AUDIO} and vision"
        )
    if not set(hidden) < set(visual):
        raise ConfigError(
            f"data.hidden_streams={list(hidden)}: some, not all, of the visual streams {visual} of "
            f"{data.name} can be hidden"
        )
