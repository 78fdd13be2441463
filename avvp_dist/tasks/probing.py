"""Probes: an encoder judged by a labelled shard set, beside raw features and a random encoder.

Each rank encodes a part of the clips. Rank 0 gets the vectors of all, judges them, and tells the
others. Their number is bounded by `data.probe_clips`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from avvp_dist.annotations.alignment import align
from avvp_dist.annotations.llp import read_annotations
from avvp_dist.annotations.video_ids import HeldOutVideos, videos
from avvp_dist.config import EncoderConfig, PretrainConfig, PretrainDataConfig, ReadConfig
from avvp_dist.errors import DataError
from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.evaluation.linear_probe import FOLDS
from avvp_dist.evaluation.probe import ProbeFigures, ProbeLabels, ProbeVectors, probe_figures
from avvp_dist.evaluation.scores import Mask
from avvp_dist.loading.heldout import training_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.models.encoder import Encoder, represent
from avvp_dist.models.export import load_encoder
from avvp_dist.models.specification import EncoderSpec
from avvp_dist.runtime.ranks import Ranks, single_rank
from avvp_dist.shards.schema import AUDIO
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.finetuning import read_weak_labels
from avvp_dist.tasks.prediction import load_streams
from avvp_dist.training.task import Panels

PREFIX = "val/probe_"
"""Beginning of the names of all metrics of probes."""
SOURCES = {"": "the encoder", "raw_": "raw features", "random_": "a random encoder"}
"""Things that are judged, by the part of a metric's name that stands before the figure's."""
_CLIPS_AT_ONCE = 256
"""Clips in a forward pass."""


def _of_both(figure: str) -> list[str]:
    """Metrics of a figure of both modalities: of the encoder, then of raw features."""
    return [f"{PREFIX}{who}{figure}_{name}" for who in ("", "raw_") for name in MODALITIES]


PANELS: Panels = (
    ("probe: labels of clips", [f"{PREFIX}{who}clip_map" for who in SOURCES], "mAP"),
    ("probe: classes across clips", _of_both("across_auc"), "AUC"),
    ("probe: classes within a clip", _of_both("within_auc"), "AUC"),
    ("probe: different classes in a clip", _of_both("different_cosine"), "cosine"),
)
"""Panels of the training curves."""

Encode = Callable[[dict[str, Tensor], Tensor | None], tuple[Tensor, Tensor]]
"""Audio and visual vectors `[B, T, D]` of features `[B, T, D]` by stream and their lengths."""


@dataclass(frozen=True)
class ProbeSet:
    """Labelled clips of a shard set."""

    shards: ShardSet
    clips: NDArray[np.integer]
    """Numbers of the N clips that are judged, ascending."""
    labels: ProbeLabels

    def __str__(self) -> str:
        each = "clips alone" if self.labels.events is None else "each second"
        return (
            f"{len(self.clips):,} clips of {self.shards.name}, {self.labels.probed} classes, "
            f"labels of {each}"
        )


def open_probe_set(
    place: str, config: ReadConfig | None = None, *, annotations: str = "", maximum: int = 512
) -> ProbeSet:
    """Open a labelled shard set and read its labels; excluded clips are left out.

    Args:
        annotations: folder of AVVP_*.csv with the labels of each second; empty: labels of clips
            alone.
        maximum: number of clips; those with the smallest hash are taken.

    Raises:
        DataError: if the set or its labels cannot be read, or no class is in enough clips.
    """
    shards = ShardSet(place, config)
    weak = read_weak_labels(shards, shards.manifest.classes).numpy() > 0
    usable = np.flatnonzero(~shards.excluded & (shards.lengths > 0))
    order = np.argsort(shards.hashes[usable], kind="stable")
    clips = np.sort(usable[order[:maximum]])
    labels = ProbeLabels(
        weak=weak[clips],
        events=_events(shards, clips, annotations) if annotations else None,
        lengths=shards.lengths[clips].astype(np.int64),
        folds=(videos(shards.index["id"][clips]).fingerprints % np.uint64(FOLDS)).astype(np.int64),
    )
    if not labels.probed:
        raise DataError(
            f"{shards.name}: none of its {len(shards.manifest.classes)} classes is in enough of "
            f"the {len(clips)} clips to be probed",
            remedy="Probe a shard set with more labelled clips",
        )
    return ProbeSet(shards, clips, labels)


def open_unseen(config: PretrainDataConfig, data: Mixture) -> ProbeSet | None:
    """The probe set of a pretraining on `data`; None if the config names none.

    Raises:
        DataError: if it has features of other backbones, or clips of videos that are trained on.
    """
    if not config.probe:
        return None
    probed = open_probe_set(
        config.probe,
        config,
        annotations=config.probe_annotations,
        maximum=config.probe_clips,
    )
    _check_backbones(probed.shards, data, data.name)
    own = HeldOutVideos.of(probed.shards.name, probed.shards.index["id"][probed.clips], "")
    trained = training_clips(data, config.heldout) & ~data.excluded
    for part, start in zip(data.sets, data.starts.tolist(), strict=False):
        seen = own.find(videos(part.index["id"]).fingerprints) >= 0
        shared = np.flatnonzero(seen & trained[start : start + len(part)])
        if len(shared):
            raise DataError(
                f"data.probe: {len(shared)} clips of {part.name} that are trained on are cut from "
                f"videos of {own.name}, first {part.id(int(shared[0]))}",
                remedy=f"Leave them out of the training with: avvp decontaminate "
                f"shards={part.name} against=[{own.name}]; or probe other clips",
            )
    return probed


class Probe:
    """The probe set of a pretraining, and what its encoder is compared with.

    Args:
        config: that of the pretraining; its encoder with fresh weights is the random one.
    """

    def __init__(self, probed: ProbeSet, config: PretrainConfig, ranks: Ranks) -> None:
        self.probed, self.config, self.ranks = probed, config, ranks
        self.hidden = config.data.hidden_streams
        self._figures: dict[str, ProbeFigures] = {}

    def metrics(self, encoder: Encoder) -> dict[str, float]:
        """Figures of the encoder, of raw features and of a random encoder; a collective.

        Raw features and the random encoder are judged the first time. Rank 0 prints what is new.
        """
        new: dict[str, ProbeFigures] = {}
        if not self._figures:
            shards, seed = self.probed.shards, self.config.trainer.seed
            random = random_encoder(self.config.encoder, shards.dims, shards.snippets, seed)
            new["raw_"] = raw_figures(self.probed, self.ranks, self.hidden)
            random.to(self.ranks.device)
            new["random_"] = encoder_figures(self.probed, random, self.ranks, self.hidden)
        new[""] = encoder_figures(self.probed, encoder, self.ranks, self.hidden)
        self._figures.update(new)
        if self.ranks.is_main:
            for who, figures in new.items():
                values = (f"{name} {value:.3g}" for name, value in figures.metrics().items())
                tqdm.write(f"probe of {SOURCES[who]}: {', '.join(values)}")
        return {
            f"{PREFIX}{who}{name}": value
            for who in SOURCES
            for name, value in self._figures[who].metrics().items()
        }


def probe(folder: Path, place: str, *, annotations: str = "", maximum: int = 512) -> ProbeFigures:
    """Figures of an exported encoder on a labelled shard set, see `open_probe_set`.

    Raises:
        CheckpointError: if the folder is no exported encoder.
        DataError: if the set cannot be read, or has features of other backbones.
    """
    encoder, spec = load_encoder(folder)
    probed = open_probe_set(place, annotations=annotations, maximum=maximum)
    _check_backbones(probed.shards, spec, str(folder))
    ranks = single_rank()
    return encoder_figures(probed, encoder.eval().to(ranks.device), ranks)


def encoder_figures(
    probed: ProbeSet, encoder: Encoder, ranks: Ranks, hidden: Sequence[str] = ()
) -> ProbeFigures:
    """Figures of an encoder's representations, on every rank; a collective.

    Args:
        encoder: an encoder in evaluation mode, on this rank's device.
        hidden: visual streams that it does not see.
    """

    def encode(streams: dict[str, Tensor], lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        return represent(encoder, streams, lengths, hidden)

    return _judged(probed, encode, ranks)


def raw_figures(probed: ProbeSet, ranks: Ranks, hidden: Sequence[str] = ()) -> ProbeFigures:
    """Figures of the features themselves, on every rank; a collective.

    Each stream counts at unit length, so that none outweighs another.

    Args:
        hidden: visual streams that are left out.
    """

    def encode(streams: dict[str, Tensor], lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        visual = [x for name, x in streams.items() if name not in (AUDIO, *hidden)]
        return streams[AUDIO], torch.cat([F.normalize(x, dim=-1) for x in visual], -1)

    return _judged(probed, encode, ranks)


def random_encoder(
    config: EncoderConfig, dims: dict[str, int], snippets: int, seed: int
) -> Encoder:
    """An encoder with fresh weights that depend on the seed alone, in evaluation mode."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        return Encoder(config, dims, snippets).eval()


@torch.no_grad()
def _judged(probed: ProbeSet, encode: Encode, ranks: Ranks) -> ProbeFigures:
    """Figures of the vectors that `encode` makes of the probe set, on every rank; a collective."""
    count = len(probed.clips)
    each = -(-count // ranks.size)
    # All ranks take equally many forward passes, because ZeRO stage 3 gathers weights in each.
    own = ranks.own_slice(np.resize(np.arange(count), each * ranks.size))
    parts = [
        _encoded(probed, rows, encode, ranks.device)
        for rows in np.array_split(own, -(-each // _CLIPS_AT_ONCE))
    ]
    vectors = ProbeVectors(
        *(ranks.interleave(np.concatenate(half))[:count] for half in zip(*parts, strict=True))
    )
    figures = ranks.broadcast_object(
        probe_figures(vectors, probed.labels) if ranks.is_main else None
    )
    assert figures is not None
    return figures


def _encoded(
    probed: ProbeSet, rows: NDArray[np.integer], encode: Encode, device: torch.device
) -> list[NDArray[np.float32]]:
    """Audio and visual unit vectors of some clips, `[B, T, D]` each."""
    lengths = probed.labels.lengths[rows]
    whole = bool((lengths == probed.shards.snippets).all())
    streams = load_streams(probed.shards, probed.clips[rows], device, torch.float32)
    pair = encode(streams, None if whole else torch.from_numpy(lengths).to(device))
    return [F.normalize(x.float(), dim=-1).cpu().numpy() for x in pair]


def _events(shards: ShardSet, clips: NDArray[np.integer], folder: str) -> Mask:
    """Classes of each second of `clips [N]`, `[N, T, 2, C]`, from LLP's files of both splits."""
    both = [read_annotations(folder, split, snippets=shards.snippets) for split in ("val", "test")]
    rows = align(
        [shards.id(int(clip)) for clip in clips],
        [clip for one in both for clip in one.ids],
        place=folder,
        what="probed clips",
        remedy="Leave out data.probe_annotations to judge by the labels of clips alone",
    )
    dense = [one.events for one in both if one.events is not None]
    found: Mask = np.concatenate(dense)[rows]
    return found


def _check_backbones(probed: ShardSet, trained: Mixture | EncoderSpec, name: str) -> None:
    """Raise `DataError` unless a probe set has features as those that are trained on."""
    for what in ("extractor", "dims", "snippets"):
        if getattr(probed, what) != getattr(trained, what):
            raise DataError(
                f"{probed.name} has the {what} {getattr(probed, what)!r}, {name} "
                f"{getattr(trained, what)!r}",
                remedy="Probe features of the same backbones, packed alike",
            )
