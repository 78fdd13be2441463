"""A parser applied to the annotated clips of a shard set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.annotations.alignment import align
from avvp_dist.annotations.llp import Annotations
from avvp_dist.errors import CheckpointError
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.models.parser import Parser, probabilities
from avvp_dist.models.specification import ParserSpec
from avvp_dist.shards.schema import AUDIO
from avvp_dist.shards.shard_set import ShardSet


@torch.no_grad()
def predict(
    parser: Parser,
    shards: ShardSet,
    clips: NDArray[np.integer],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 64,
    passes: int = 0,
    pictures: NDArray[np.integer] | None = None,
) -> Predictions:
    """Predictions for `clips [N]`, in their order.

    Args:
        dtype: of the features, as the parser's weights.
        batch_size: maximum number of clips in a forward pass.
        passes: number of forward passes, instead of as few as `batch_size` allows; 0: those.
        pictures: clips `[N]` whose visual streams replace those of `clips`.
    """
    parser.eval()
    chunks = passes or max(1, -(-len(clips) // batch_size))
    sound_chunks = np.array_split(clips, chunks)
    picture_chunks = sound_chunks if pictures is None else np.array_split(pictures, chunks)
    outputs: list[list[NDArray[np.float32]]] = [[], [], []]
    for sound, picture in zip(sound_chunks, picture_chunks, strict=True):
        streams = load_streams(shards, sound, device, dtype)
        if pictures is not None:
            foreign = load_streams(shards, picture, device, dtype)
            streams = {**foreign, AUDIO: streams[AUDIO]}
        for output, probability in zip(outputs, probabilities(parser, streams), strict=True):
            output.append(probability)
    ids = tuple(shards.id(number) for number in clips)
    return Predictions(ids, *map(np.concatenate, outputs))


def load_streams(
    shards: ShardSet, clips: NDArray[np.integer], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Features of `clips [B]` as tensors `[B, T, D]` by stream."""
    gathered = shards.gather(clips)
    return {name: torch.from_numpy(array).to(device).to(dtype) for name, array in gathered.items()}


def check_fit(folder: Path, spec: ParserSpec, shards: ShardSet, classes: Sequence[str]) -> None:
    """Raise `CheckpointError` unless the parser in `folder` fits these features and classes."""
    if spec.dims != shards.dims or spec.extractor != shards.extractor:
        raise CheckpointError(
            f"parser: {folder} was trained on {spec.dims} of {spec.extractor!r}, the "
            f"shard set holds {shards.dims} of {shards.extractor!r}"
        )
    if spec.classes != list(classes):
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
