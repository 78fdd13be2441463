"""Figures of a labelled probe set: what vectors of its clips tell of their classes.

The labels of clips alone say little of one second: which of a clip's classes it has, if any, is
not known. So they judge the mean vector of a clip. Separation within a clip, and probes of single
seconds, need labels of each second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.evaluation.linear_probe import linear_probe, probed_classes
from avvp_dist.evaluation.scores import Mask
from avvp_dist.evaluation.separation import auc_across, separation_within


@dataclass(frozen=True)
class ProbeLabels:
    """Labels of N clips of up to T snippets."""

    weak: Mask
    """Classes of each clip, `[N, C]`."""
    events: Mask | None
    """Classes of each snippet, audio and visual, `[N, T, 2, C']`; None if they are not known."""
    lengths: NDArray[np.integer]
    """Number of real snippets, `[N]`."""
    folds: NDArray[np.integer]
    """Fold of cross-validation, `[N]`; clips of one video share it."""

    @property
    def probed(self) -> int:
        """Number of the clips' classes that a linear probe can judge."""
        return int(probed_classes(self.weak, self.folds).sum())


@dataclass(frozen=True)
class ProbeVectors:
    """Unit vectors of N clips, float32, zeros or anything in padding."""

    audio: NDArray[np.float32]
    """`[N, T, D]`."""
    visual: NDArray[np.float32]
    """`[N, T, D']`."""


@dataclass(frozen=True)
class ModalityFigures:
    """Figures of the vectors of one modality; nan where the set cannot tell."""

    clip_auc: float
    """AUC of the cosine of two clips' mean vectors: a shared label against none."""
    within_auc: float = math.nan
    """AUC of the cosine of two snippets of one clip: of the same class against different ones."""
    across_auc: float = math.nan
    """AUC of the cosine of two snippets of different clips."""
    different_cosine: float = math.nan
    """Mean cosine of two snippets of one clip that are of different classes."""
    snippet_map: float = math.nan
    """Mean average precision of a linear probe of snippets."""


@dataclass(frozen=True)
class ProbeFigures:
    """Figures of the vectors of a probe set."""

    clip_map: float
    """Mean average precision of a linear probe of clips, from the means of both modalities."""
    audio: ModalityFigures
    visual: ModalityFigures

    def metrics(self) -> dict[str, float]:
        """Figures by name, such as `within_auc_audio`, without those that are nan."""
        return {name: value for name, value in self._named() if not math.isnan(value)}

    def _named(self) -> Iterator[tuple[str, float]]:
        yield "clip_map", self.clip_map
        for figure in fields(ModalityFigures):
            for modality in MODALITIES:
                yield f"{figure.name}_{modality}", getattr(getattr(self, modality), figure.name)


def probe_figures(vectors: ProbeVectors, labels: ProbeLabels) -> ProbeFigures:
    """Judge the vectors of a probe set; all figures are nan if a vector is not finite."""
    real = np.arange(vectors.audio.shape[1]) < labels.lengths[:, None]
    # Copies: what stands in padding must not enter sums.
    audio, visual = (
        np.where(real[:, :, None], x, np.float32(0)) for x in (vectors.audio, vectors.visual)
    )
    if not (np.isfinite(audio).all() and np.isfinite(visual).all()):
        unknown = ModalityFigures(math.nan)
        return ProbeFigures(math.nan, unknown, unknown)
    means = [x.sum(1) / labels.lengths[:, None].astype(np.float32) for x in (audio, visual)]
    return ProbeFigures(
        linear_probe(np.concatenate(means, 1), labels.weak, labels.folds),
        *(
            _modality(x, mean, labels, real, row)
            for row, (x, mean) in enumerate(zip((audio, visual), means, strict=True))
        ),
    )


def _modality(
    x: NDArray[np.float32],
    means: NDArray[np.float32],
    labels: ProbeLabels,
    real: Mask,
    row: int,
) -> ModalityFigures:
    """Figures of one modality.

    Args:
        x: unit vectors `[N, T, D]`, zeros in padding.
        means: their means `[N, D]`.
        real: snippets that are not padding `[N, T]`.
        row: the modality's place in the labels of snippets.
    """
    clips = np.arange(len(x))
    length = np.linalg.norm(means, axis=1, keepdims=True)
    clip_auc = auc_across(means / np.maximum(length, np.float32(1e-12)), labels.weak, clips)
    if labels.events is None:
        return ModalityFigures(clip_auc)
    classes = labels.events[:, :, row] & real[:, :, None]
    within = separation_within(x, classes)
    clip_of = np.broadcast_to(clips[:, None], real.shape)[real]
    return ModalityFigures(
        clip_auc,
        within.auc,
        auc_across(x[real], classes[real], clip_of),
        within.different,
        linear_probe(x[real], classes[real], labels.folds[clip_of]),
    )
