"""Metrics of pretraining on held-out clips, of which each rank has judged some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from avvp_dist.evaluation.collapse import collapsed, spread_and_rank
from avvp_dist.evaluation.scores import Mask, auc_of_counts, grounding_auc, similarity_counts
from avvp_dist.objectives.grounding import pair_masks
from avvp_dist.runtime.ranks import Ranks

PAIRS = ("audio", "visual", "cross")
"""Similarities whose AUC is reported: within audio, within vision, audio to vision."""
MODALITIES = ("audio", "visual")
MAXIMUM_RANKED = 1024
"""Clips whose effective rank is measured: the time grows with the square of width."""
MAXIMUM_EXACT = 4096
"""Clips whose cosines are sent and sorted; those of more are counted in bins."""
_MINIMUM_FOR_COLLAPSE = 16
"""Vectors needed to tell a collapse."""
_AGAINST_COLLAPSE = (
    "Lower optimizer.lr, raise objective.other_clips, or ground with higher thresholds"
)


@dataclass(frozen=True)
class HeldoutResults:
    """Results of the encoder on B held-out clips."""

    cosines: NDArray[np.float32]
    """Within audio, within vision, and between them, `[B, 3, T, T]`."""
    losses: NDArray[np.float32]
    """Grounding loss within the clip, `[B]`."""
    vectors: NDArray[np.float32]
    """Audio and visual representation of the middle snippet of sampled clips, `[b, 2, D]`."""
    good: NDArray[np.bool_]
    """Whether the clip could be read, `[B]`."""


def concatenated(chunks: Sequence[HeldoutResults]) -> HeldoutResults:
    """The results for the clips of all chunks."""
    names = [field.name for field in fields(HeldoutResults)]
    return HeldoutResults(
        *(np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in names)
    )


def vector_sample(clips: int) -> NDArray[np.bool_]:
    """Mask of the clips whose vectors are compared, `[clips]`: a regular sample.

    Every set of a mixture is in it, because held-out clips are in the order of the sets.
    """
    sampled = np.zeros(clips, bool)
    sampled[:: -(-clips // MAXIMUM_RANKED)] = True
    return sampled


def heldout_metrics(
    own: HeldoutResults, components: NDArray[np.integer], ranks: Ranks
) -> dict[str, float]:
    """Metrics by name, equal on every rank, and a warning of collapse; a collective.

    Rank 0 gets 5 bytes of each clip, the vectors of the sample, and the cosines of up to
    `MAXIMUM_EXACT` clips.

    Args:
        own: results for this rank's clips, `ranks.own_slice` of all.
        components: component ids of all held-out clips `[N, T]`.
    """
    exact = len(components) <= MAXIMUM_EXACT
    aucs = (_exact_aucs if exact else _binned_aucs)(own, components, ranks)
    losses, good = ranks.interleave(own.losses), ranks.interleave(own.good)
    parts = ranks.gather_object(own.vectors)
    metrics: dict[str, float] = {}
    if ranks.is_main:
        by_pair = {f"val/auc_{pair}": auc for pair, auc in zip(PAIRS, aucs, strict=True)}
        vectors = np.concatenate(parts)
        figures = spread_and_rank({name: vectors[:, row] for row, name in enumerate(MODALITIES)})
        if len(vectors) >= _MINIMUM_FOR_COLLAPSE:
            for line in collapsed(figures):
                tqdm.write(f"warning: {line}. {_AGAINST_COLLAPSE}")
        metrics = {
            **by_pair,
            "val/auc": float(np.mean(aucs)),
            "val/loss": float(losses[good].mean()),
            **{f"val/{name}": value for name, value in figures.items()},
        }
    return ranks.broadcast_object(metrics)


def _exact_aucs(
    own: HeldoutResults, components: NDArray[np.integer], ranks: Ranks
) -> Sequence[float]:
    """Grounding AUC of each pair of modalities on rank 0, none elsewhere."""
    cosines, good = ranks.interleave(own.cosines), ranks.interleave(own.good)
    if not ranks.is_main:
        return ()
    masks = _masks(components[good])
    return [grounding_auc(cosines[good, row], *pair) for row, pair in enumerate(masks)]


def _binned_aucs(
    own: HeldoutResults, components: NDArray[np.integer], ranks: Ranks
) -> Sequence[float]:
    """Grounding AUC of each pair of modalities, from counts that are summed over the ranks."""
    masks = _masks(ranks.own_slice(components)[own.good])
    cosines = own.cosines[own.good]
    if ranks.maximum([float(np.isnan(cosines).any())]).item():
        return [float("nan")] * len(PAIRS)
    counts = [similarity_counts(cosines[:, row], *pair) for row, pair in enumerate(masks)]
    total = ranks.all_reduce_sum(torch.from_numpy(np.stack(counts)).to(ranks.device))
    return [auc_of_counts(pair) for pair in total.cpu().numpy()]


def _masks(components: NDArray[np.integer]) -> list[tuple[Mask, Mask]]:
    """For each pair of modalities: pairs of one component, and all pairs, bool `[B, T, T]`."""
    masks = pair_masks(torch.from_numpy(components), ((0, 0), (1, 1), (0, 1)))
    different = ~np.eye(components.shape[1], dtype=bool)
    return [
        (same.numpy(), valid.numpy() if pair == "cross" else valid.numpy() & different)
        for pair, (same, valid) in zip(PAIRS, masks, strict=True)
    ]
