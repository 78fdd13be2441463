"""Label refinement by track swapping: MA's second stage (Wu & Yang, CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.refined import save_refined
from avvp_dist.config import RefineConfig
from avvp_dist.errors import DataError
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.models.export import load_parser
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.finetuning import check_parsable, read_weak_labels
from avvp_dist.tasks.prediction import check_fit, predict
from avvp_dist.tracking.registry import resolve
from avvp_dist.tracking.run import stage_run

Mask = NDArray[np.bool_]


def refine(config: RefineConfig) -> Path:
    """Write the weak labels that each modality keeps, `[N, 2, C]`, in the form of `save_refined`.

    Each clip gets a partner that shares no label with it. A modality loses a label when a parser
    that reads this modality beside the partner's other one finds the label in neither.

    Raises:
        AvvpError: with what was wrong and what to do, for anything a user can put right.
    """
    shards, out = ShardSet(config.shards, config), Path(config.out)
    folder, version, _ = resolve(config.parser, out.parent / "parser")
    parser, spec = load_parser(folder)
    classes = tuple(spec.classes)
    check_fit(folder, spec, shards, classes)
    check_parsable(shards)
    weak = read_weak_labels(shards, classes).numpy() > 0
    partners = draw_partners(weak, shards.ids, config.seed)
    device = single_rank().device
    parser.to(device)
    clips = np.arange(len(shards))
    lineage = {"manifest": shards.digest, "parser": version or str(folder)}
    inputs = {shards.name: shards.digest}
    with stage_run("refine", out.with_name(f"{out.stem}.run"), config, lineage, inputs) as run:
        # The clips as they are, their sound beside foreign pictures, and the reverse.
        own, heard, seen = (
            predict(parser, shards, sound, device, batch_size=config.batch_size, pictures=pictures)
            for sound, pictures in ((clips, None), (clips, partners), (partners, clips))
        )
        labels = keep_labels(weak, own, (heard, seen), config.threshold)
        save_refined(out, shards.ids, labels)
        run.artifact(out)
        given = int(weak.sum())
        for modality, name in enumerate(("audio", "visual")):
            gone = weak & ~labels[:, modality]
            run.log(0, **{f"{name}_labels_dropped": int(gone.sum())})
            counts = sorted(zip(gone.sum(0).tolist(), classes, strict=True), reverse=True)
            named = ", ".join(f"{label} {count}" for count, label in counts[:3] if count)
            print(f"{name}: {int(gone.sum())} of {given} labels dropped ({named or 'none'})")
    print(out)
    return out


def draw_partners(weak: Mask, ids: Sequence[str], seed: int) -> NDArray[np.integer]:
    """A partner for each clip, `[N]`: another clip that shares no label with it.

    Args:
        weak: labels of the clips `[N, C]`.
        ids: their ids, for errors.

    Raises:
        DataError: if a clip has no such partner.
    """
    rng = np.random.default_rng(seed)
    partners = np.zeros(len(weak), np.int64)
    left = np.arange(len(weak))
    for _ in range(64):
        partners[left] = rng.integers(0, len(weak), len(left))
        left = left[(weak[left] & weak[partners[left]]).any(1)]
    for clip in left:
        others = np.flatnonzero(~(weak & weak[clip]).any(1))
        if not len(others):
            raise DataError(
                f"clip {ids[int(clip)]} shares a label with every other clip",
                remedy="Its tracks cannot be swapped: refine a shard set with more varied labels",
            )
        partners[clip] = rng.choice(others)
    return partners


def keep_labels(
    weak: Mask,
    own: Predictions,
    swapped: tuple[Predictions, Predictions],
    threshold: float,
) -> Mask:
    """The weak labels `[N, C]` that each modality keeps, `[N, 2, C]`.

    Args:
        own: predictions for the clips themselves.
        swapped: predictions for the clips' sound beside foreign pictures, and for their pictures
            beside foreign sound.
        threshold: a label goes when both probabilities, divided by the class's error, are below
            it. The error of a class is the fraction of clips on which the parser is wrong about it,
            divided by the largest such fraction: a class that is hardly ever wrong keeps its
            labels.
    """
    kept = np.zeros((len(weak), 2, weak.shape[1]), bool)
    for modality, beside in enumerate(swapped):
        assert own.modality_prob is not None and beside.modality_prob is not None
        error = ((own.modality_prob[:, modality] > 0.5) != weak).mean(0)
        error /= max(error.max(), 1e-12)
        kept[:, modality] = weak & (beside.modality_prob >= threshold * error).any(1)
    return kept
