"""A parser applied to the annotated clips of a shard set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.annotations.alignment import align
from avvp_dist.annotations.llp import Annotations
from avvp_dist.errors import CheckpointError
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.models.parser import Parser
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.shards.schema import AUDIO
from avvp_dist.shards.shard_set import ShardSet


@torch.no_grad()
def predict(
    parser: Parser,
    shards: ShardSet,
    clips: NDArray[np.integer],
    ranks: Ranks,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 64,
    pictures: NDArray[np.integer] | None = None,
) -> Predictions:
    """What the parser says of `clips [N]`, in their order, on every rank; a collective.

    With `pictures [N]`, of the audio of `clips` beside the visual streams of those.
    """
    parser.eval()
    mine = ranks.part(clips)
    theirs = mine if pictures is None else ranks.part(pictures)
    found: list[list[NDArray[np.float32]]] = [[], [], []]
    batches = max(1, -(-len(mine) // batch_size))
    for part, seen in zip(
        np.array_split(mine, batches), np.array_split(theirs, batches), strict=True
    ):
        streams = load_streams(shards, part, ranks.device, dtype)
        if pictures is not None:
            foreign = load_streams(shards, seen, ranks.device, dtype)
            streams = {**foreign, AUDIO: streams[AUDIO]}
        parsed = parser(streams)
        for kept, prob in zip(
            found, (parsed.frame_prob, parsed.video_prob, parsed.modality_prob), strict=True
        ):
            kept.append(prob.float().cpu().numpy())
    ids = tuple(shards.id(number) for number in clips)
    return Predictions(ids, *(ranks.join(np.concatenate(kept)) for kept in found))


def load_streams(
    shards: ShardSet, clips: NDArray[np.integer], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Features of `clips [B]` as tensors `[B, T, D]` by stream."""
    gathered = shards.gather(clips)
    return {name: torch.from_numpy(array).to(device).to(dtype) for name, array in gathered.items()}


def check_fit(
    folder: Path, meta: dict[str, Any], shards: ShardSet, classes: tuple[str, ...]
) -> None:
    """Raise `CheckpointError` unless the parser in `folder` fits these features and classes."""
    if meta["dims"] != shards.dims or meta["extractor"] != shards.extractor:
        raise CheckpointError(
            f"parser: {folder} was trained on {meta['dims']} of {meta['extractor']!r}, the "
            f"shard set holds {shards.dims} of {shards.extractor!r}"
        )
    if tuple(meta["classes"]) != classes:
        raise CheckpointError(f"parser: {folder} knows other classes than the annotations")


def match_clips(
    shards: ShardSet, annotations: Annotations
) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    """Clip numbers in csv order and their dense events `[N, T, 2, C]`.

    Raises:
        DataError: if annotated clips are missing from the shard set, with their number.
    """
    assert annotations.events is not None
    clips = align(
        annotations.ids,
        shards.ids,
        place=shards.name,
        what=f"{annotations.split} clips",
        remedy="Scores over fewer clips are not comparable: pack the whole split",
    )
    return clips, annotations.events
