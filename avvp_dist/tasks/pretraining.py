"""Pretraining: the encoder learns which snippets of a clip belong together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from avvp_dist.commit import digest
from avvp_dist.config import SIZES, TERMS, ObjectiveConfig, PretrainConfig
from avvp_dist.decontamination.contamination import contamination
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.grounding.version import Grounding, ModalityGrounding
from avvp_dist.loading.heldout import training_clips, validation_clips
from avvp_dist.loading.loader import ClipBatch, read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.subset import subset
from avvp_dist.loading.transfer import to_device
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.grounding_model import GroundingBatch, GroundingModel
from avvp_dist.models.specification import EncoderSpec
from avvp_dist.objectives.grounding import anchor_positions, clip_losses, unit
from avvp_dist.objectives.masked import mask_snippets
from avvp_dist.objectives.matching import partner_rows
from avvp_dist.objectives.negative_pool import PoolRows, pool_places
from avvp_dist.objectives.negatives import LinkRule
from avvp_dist.runtime.launched import launched_rank
from avvp_dist.runtime.ranks import Ranks, single_rank
from avvp_dist.shards.schema import AUDIO, PADDING
from avvp_dist.tasks.heldout import (
    MODALITIES,
    PAIRS,
    HeldoutResults,
    concatenated,
    heldout_metrics,
    vector_sample,
)
from avvp_dist.tasks.probing import PANELS, Probe, ProbeSet, open_unseen
from avvp_dist.tracking.promotion import VALIDATED_ON
from avvp_dist.training.dry_run import print_plan
from avvp_dist.training.engine import ParameterGroup, parameter_groups
from avvp_dist.training.precision import autocasts
from avvp_dist.training.runner import run_training
from avvp_dist.training.task import Panels, StepInfo

_CLIPS_AT_ONCE = 256
"""Held-out clips in a forward pass."""


def pretrain(config: PretrainConfig) -> None:
    """Train an encoder by `config`; the exported model lies in `trainer.out/model`.

    Raises:
        AvvpError: with what was wrong and what to do, for anything a user can put right.
    """
    run_training("pretrain", config, open_pretraining)


def plan_pretraining(config: PretrainConfig, ranks: int) -> None:
    """Print what `pretrain` would do on this number of ranks.

    Raises:
        AvvpError: as `pretrain` would before its first step.
    """
    print_plan("pretraining", config, open_pretraining, ranks)


def open_pretraining(
    config: PretrainConfig, connect: Callable[[], Ranks], *, scratch: Path | None = None
) -> PretrainingTask:
    """Open the shard sets and their groundings, and build the encoder; see `OpenTask`."""
    data = Mixture.open(config.data.shards, config.data.weights, config.data)
    tags = _contamination(data, config.data.allow_contaminated)
    groundings = _groundings(data, config.data.grounding, config.data.visual_grounding)
    _check_contrast(groundings, config.objective)
    probed = open_unseen(config.data, data)
    return PretrainingTask(config, data, groundings, connect(), tags, probed)


class PretrainingTask:
    """The encoder, its grounded clips, and the held-out grounding AUC.

    Args:
        groundings: one for each shard set of `data`.
        ranks: ranks that train together; None: this process alone.
        contamination: tags that count clips of held-out videos.
        probed: the clips of `data.probe`.

    Raises:
        ConfigError: for streams that cannot be hidden, or no held-out clips where they are needed.
        DataError: for shard sets without audio or vision.
    """

    registered_name = "avvp-encoder"
    panels: Panels = (
        # Of the training losses only `own` is comparable with the validation loss.
        ("grounding loss", ["train/loss", "train/own", "val/loss"], "hinge"),
        ("held-out grounding", [f"val/auc_{pair}" for pair in PAIRS], "AUC"),
        ("similarity", ["train/positive", "train/negative"], "cosine"),
        ("objectives", [f"train/{name}" for name in TERMS], "loss"),
        ("representations: spread", [f"val/spread_{name}" for name in MODALITIES], "std x sqrt(D)"),
        ("representations: rank", [f"val/rank_{name}" for name in MODALITIES], "effective rank"),
        *PANELS,
    )

    def __init__(
        self,
        config: PretrainConfig,
        data: Mixture,
        groundings: Sequence[Grounding],
        ranks: Ranks | None = None,
        contamination: Mapping[str, str] | None = None,
        probed: ProbeSet | None = None,
    ) -> None:
        self.config, self.data = config, data
        self.ranks = ranks = ranks or single_rank()
        _check_hidden(config.data.hidden_streams, data)
        versions = [grounding.version for grounding in groundings]
        self.manifest, self.grounding = "+".join(data.digests), "+".join(versions)
        self.lineage = {"shard sets": data.digests, "groundings": versions}
        self.tags = {
            "manifest": self.manifest,
            "grounding": self.grounding,
            **(contamination or {}),
            "objective": config.objective.label,
        }
        self.inputs = {part.name: part.digest for part in data.sets}
        self.aliases: tuple[str, ...] = ("candidate", config.objective.label)
        self.components = np.concatenate([grounding.components for grounding in groundings])
        self.link_rules = _link_rules(groundings, config.objective)
        self.encoder = self._build_encoder()
        with ranks.init_device:
            self.module = self.model = GroundingModel(
                self.encoder,
                config.objective,
                hidden_streams=config.data.hidden_streams,
                link_rules=self.link_rules,
                ranks=ranks,
                autocast=autocasts(config.trainer),
            )
        trained = training_clips(data, config.data.heldout)
        self.pools = data.pools(subset(data, trained, config.data.clips, config.data.subset))
        self.heldout = validation_clips(data, trained, config.data.heldout_clips)
        if config.trainer.export == "best" and not len(self.heldout):
            raise ConfigError("trainer.export=best needs held-out clips: data.heldout holds none")
        self.validated_on = {
            VALIDATED_ON + "shards": "+".join(part.content for part in data.sets),
            VALIDATED_ON + "grounding": self.grounding,
            VALIDATED_ON + "clips": digest([data.id(int(clip)) for clip in self.heldout]),
        }
        self.probe = Probe(probed, config, ranks) if probed else None
        if probed:
            self.inputs[probed.shards.name] = probed.shards.digest
        self.lengths = data.lengths
        self.whole = bool((self.lengths == data.snippets).all())
        self.tokens = float(self.lengths.mean()) * len(self.encoder.groups)

    def parameter_groups(self) -> list[ParameterGroup]:
        optimizer = self.config.optimizer
        return parameter_groups(self.module.parameters(), optimizer.lr, optimizer.weight_decay)

    def make_batch(self, clips: ClipBatch, info: StepInfo) -> GroundingBatch:
        components = torch.from_numpy(self.components[clips.clips])
        if not clips.count:  # the stand-in for an empty batch is no negative of other clips
            components.fill_(PADDING)
        seed, objective = self.config.trainer.seed, self.config.objective
        lengths = self.lengths[clips.clips].astype(np.int64)
        # With matching, another rank may lend a clip that is not whole.
        whole = self.whole or not (objective.matching or (lengths < self.data.snippets).any())
        rules = self.data.owners(clips.clips) if self.link_rules else None
        micro = self._clips_per_rank()
        negatives = pool_places(
            objective.negatives, micro * self.ranks.size, seed, info.step, info.micro_batch
        )
        pool = PoolRows.choose(negatives, clips.places, micro, self.ranks)
        masked, partners = None, None
        if objective.masked:
            real = (components != PADDING).numpy()
            masked = mask_snippets(clips.clips, real, objective, seed, info.step)
        if objective.matching:
            partners = partner_rows(clips.clips, len(negatives), seed, info.step)
        return GroundingBatch(
            streams=clips.streams,
            lengths=None if whole else torch.from_numpy(lengths),
            components=components,
            clips=torch.from_numpy(clips.clips),
            epoch=info.epoch,
            anchors=anchor_positions(clips.clips, objective, seed, info.step),
            rule_index=None if rules is None else torch.from_numpy(rules),
            pool_rows=pool.rows,
            pool_empty=pool.empty,
            pool_order=pool.order,
            masked=masked,
            partners=partners,
        )

    def validate(self) -> dict[str, float]:
        heldout = self._judge_heldout() if len(self.heldout) else {}
        return heldout | (self.probe.metrics(self.encoder) if self.probe else {})

    def score(self, metrics: Mapping[str, float]) -> float:
        return -metrics["val/loss"] if len(self.heldout) else 0.0

    def export(
        self, state: Mapping[str, Tensor], step: int, metrics: Mapping[str, float]
    ) -> tuple[dict[str, Tensor], EncoderSpec]:
        weights = {
            name.removeprefix("encoder."): tensor
            for name, tensor in state.items()
            if name.startswith("encoder.")
        }
        return weights, EncoderSpec(
            encoder=self.config.encoder,
            objective=self.config.objective,
            dims=self.data.dims,
            snippets=self.data.snippets,
            extractor=self.data.extractor,
            manifest=self.manifest,
            grounding=self.grounding,
            step=step,
            validated=dict(metrics),
        )

    def plan(self) -> Iterator[tuple[str, str]]:
        encoder, objective = self.config.encoder, self.config.objective
        layers, width, *_ = SIZES[encoder.size]
        yield "held out", f"{len(self.heldout):,} clips are validated on"
        if self.probe:
            yield "probe", str(self.probe.probed)
        yield "encoder", f"{encoder.size}, {layers} layers x {width}"
        if objective.label != objective.name:
            yield "objectives", " + ".join(f"{w:g} x {n}" for n, w in objective.weights().items())
        if "contaminated" in self.tags:
            yield "contaminated", f"{self.tags['contaminated']} clips"
        if objective.takes_negatives:
            micro, snippets = self._clips_per_rank(), self.data.snippets
            clips = micro * self.ranks.size
            pool = min(clips, objective.negatives or clips)
            cells = micro * snippets * pool * snippets
            yield (
                "negatives",
                f"{micro * snippets:,} anchors x {pool * snippets:,} snippets = {cells:,} cells of "
                "each pair of modalities on each rank",
            )

    def _build_encoder(self) -> Encoder:
        with self.ranks.init_device:
            return Encoder(
                self.config.encoder,
                self.data.dims,
                self.data.snippets,
                activation_checkpointing=self.config.trainer.activation_checkpointing,
            )

    def _clips_per_rank(self) -> int:
        """Clips in a micro-batch of one rank."""
        trainer = self.config.trainer
        return trainer.batch_size // (self.ranks.size * trainer.gradient_accumulation)

    def _judge_heldout(self) -> dict[str, float]:
        clips = self.ranks.own_slice(self.heldout)
        sampled = self.ranks.own_slice(vector_sample(len(self.heldout)))
        count = self.ranks.passes(len(self.heldout), _CLIPS_AT_ONCE)
        chunks = zip(np.array_split(clips, count), np.array_split(sampled, count), strict=True)
        results = concatenated([self._judge(*chunk) for chunk in chunks])
        if self.config.data.order == "block":  # the loader closes only the shards it opened
            for part in self.data.sets:
                part.release(range(len(part.shards)))
        if not self.ranks.maximum([float(results.good.any())]).item():
            raise DataError("no held-out clip can be read", remedy="Mend the shard sets")
        return heldout_metrics(results, self.components[self.heldout], self.ranks)

    @torch.no_grad()
    def _judge(self, clips: NDArray[np.integer], sampled: NDArray[np.bool_]) -> HeldoutResults:
        clip_batch, good = read_clips(self.data, clips)
        batch = self.make_batch(clip_batch, StepInfo(0, 0, 0.0))
        batch.components[torch.from_numpy(~good)] = PADDING
        batch = to_device(batch, self.ranks.device)
        x = unit(*self.model.representations(batch))
        losses = clip_losses(x, batch.components, self.config.objective)
        cosines = [x[:, i] @ x[:, j].transpose(1, 2) for i, j in ((0, 0), (1, 1), (0, 1))]
        # One position in every clip: positions alone must not look like a spread.
        positions = torch.from_numpy((self.lengths[clips].astype(np.int64) - 1) // 2)
        vectors = x[torch.arange(len(x)), :, positions]
        return HeldoutResults(
            _array(torch.stack(cosines, 1)), _array(losses), _array(vectors)[sampled & good], good
        )


def _array(x: Tensor) -> NDArray[np.float32]:
    return x.float().cpu().numpy()


def _link_rules(groundings: Sequence[Grounding], objective: ObjectiveConfig) -> list[LinkRule]:
    """Link rules used to drop likely-false negatives; empty if none is dropped."""
    compared = objective.takes_negatives or objective.matching
    if not compared or objective.false_negatives == "keep":
        return []
    rules = [LinkRule(grounding.thresholds, grounding.rule) for grounding in groundings]
    return rules if any(rule.thresholds for rule in rules) else []


def _contamination(data: Mixture, allowed: bool) -> dict[str, str]:
    """A tag that counts the clips of LLP's held-out videos; empty if there are none.

    Rank 0 says how many clips of each set can be told from them.

    Raises:
        DataError: if there are some and they are not allowed.
    """
    count = 0
    for part in data.sets:
        found = contamination(part)
        clips = found.clips
        if launched_rank() == 0:
            tqdm.write(found.report(part), file=sys.stderr)
        count += sum(map(len, clips.values()))
        if clips and not allowed:
            kinds = ", ".join(f"{len(numbers)} of {name}" for name, numbers in clips.items())
            first = min(int(numbers[0]) for numbers in clips.values())
            raise DataError(
                f"{part.name} holds clips of held-out videos: {kinds}, first {part.id(first)}",
                remedy=f"Leave them out with: avvp decontaminate shards={part.name} "
                "(or set data.allow_contaminated=true)",
            )
    return {"contaminated": str(count)} if count else {}


def _groundings(
    data: Mixture, places: Sequence[str], visual: Sequence[str] = ()
) -> list[Grounding]:
    """The grounding of each shard set, with a graph of each modality if vision has its own."""
    for key, given in (("grounding", places), ("visual_grounding", visual)):
        if given and len(given) != len(data.sets):
            raise ConfigError(
                f"data.{key}={list(given)} is not one folder for each of the "
                f"{len(data.sets)} shard sets"
            )
    chosen = places or [""] * len(data.sets)
    if not visual:
        return [Grounding(part, place) for part, place in zip(data.sets, chosen, strict=True)]
    return [ModalityGrounding(*each) for each in zip(data.sets, chosen, visual, strict=True)]


def _check_contrast(groundings: Sequence[Grounding], objective: ObjectiveConfig) -> None:
    """Raise `ConfigError` if no two snippets would be a negative pair."""
    parts = [grounding.components for grounding in groundings]
    needed = objective.grounding and not objective.takes_negatives
    if not needed or any(((ids > 0) & (ids != PADDING)).any() for ids in parts):
        return
    names = " + ".join(grounding.place for grounding in groundings)
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
