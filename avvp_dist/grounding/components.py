"""Algorithm 1, batched: which snippets of a clip belong together.

The steps are `similarity` for each stream, `join_strength` over the streams, and `components` for
the clip. All work on arrays of many clips; Python loops over blocks of clips alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from avvp_dist.errors import ConfigError
from avvp_dist.shards.schema import PADDING

_CLIPS_PER_PRODUCT = 32
"""Clips in one matrix product: their float32 features fit the cache of a core."""
_FLOAT32_SLACK = 1e-6
"""Slack at a threshold of 1, because float32 gives identical snippets a cosine of 1 - 1e-7."""


class Similarity(NamedTuple):
    """Cosines within N clips, in one stream."""

    cosine: NDArray[np.float32]
    """Cosine of every two snippets `[N, T, T]`, in [-1, 1]; -inf if a vector has no direction."""
    norm: NDArray[np.float32]
    """Length of each snippet's vector, `[N, T]`."""


def similarity(features: NDArray[np.floating]) -> Similarity:
    """Cosine of every two snippets of a clip, from the features of one stream `[N, T, D]`."""
    clips, snippets, _ = features.shape
    gram = torch.empty(clips, snippets, snippets)
    stored = torch.from_numpy(np.ascontiguousarray(features))
    # One buffer for all blocks: fresh memory for each one would cost as much as the product.
    buffer = torch.empty(min(_CLIPS_PER_PRODUCT, clips), *features.shape[1:])
    for start in range(0, clips, _CLIPS_PER_PRODUCT):
        part = stored[start : start + _CLIPS_PER_PRODUCT]
        block = buffer[: len(part)].copy_(part)
        torch.matmul(block, block.transpose(1, 2), out=gram[start : start + len(part)])
    cosine: NDArray[np.float32] = gram.numpy()
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        norm = np.sqrt(np.einsum("ntt->nt", cosine))
        inverse = 1 / norm
        cosine *= inverse[:, :, None]
        cosine *= inverse[:, None, :]
    np.clip(cosine, -1, 1, out=cosine)
    bad = ~directed(norm)
    if bad.any():
        cosine[bad[:, :, None] | bad[:, None, :]] = -np.inf
    return Similarity(cosine, norm)


def directed(norm: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Mask of the vectors that have a direction: their length is finite and not 0."""
    return (norm > 0) & np.isfinite(norm)


def join_strength(
    cosines: Mapping[str, NDArray[np.floating]],
    thresholds: Mapping[str, float],
    rule: str,
    isolated: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Margin by which every two snippets of a clip exceed their thresholds, `[N, T, T]`, symmetric.

    Two snippets are joined if it is 0 or more, that is if their cosine reaches the threshold (>=)
    in any stream (`rule="or"`, the paper) or in all streams (`"and"`, the authors' code). So the
    margin is the maximum or the minimum over the streams of cosine minus threshold.

    Args:
        cosines: cosine of every two snippets by stream, `[N, T, T]`.
        thresholds: minimum cosine by stream.
        isolated: snippets that are joined with no other, `[N, T]`.

    Raises:
        ConfigError: for a threshold without its stream.
    """
    for name in thresholds:
        if name not in cosines:
            raise ConfigError(
                f"there is a threshold for stream {name}, the shard set has {sorted(cosines)}",
                remedy="Run `avvp calibrate` on this shard set",
            )
    choose = np.maximum if rule == "or" else np.minimum
    strength: NDArray[np.float32] | None = None
    for name, limit in thresholds.items():
        over = cosines[name] - np.float32(min(limit, 1 - _FLOAT32_SLACK))
        strength = over if strength is None else choose(strength, over, out=strength)
    assert strength is not None
    # The two halves of a matrix product may differ in their last bit.
    strength = np.maximum(strength, strength.transpose(0, 2, 1))
    if isolated is not None and isolated.any():
        strength[isolated[:, :, None] | isolated[:, None, :]] = -np.inf
    return strength


def components(
    strength: NDArray[np.floating],
    lengths: NDArray[np.integer] | None = None,
    grouping: str = "components",
    neighbours: int = 3,
) -> NDArray[np.uint8]:
    """Group the snippets of each clip.

    Args:
        strength: `[N, T, T]`, see `join_strength`.
        lengths: number of real snippets of each clip, `[N]`; the others are padding and are joined
            with nothing.
        grouping: `components` are the connected components of the graph (Algorithm 1), which
            chain. `mutual-knn` keeps an edge only if each end is among the `neighbours` strongest
            of the other end (ties included). `average-link` merges the two groups with the highest
            mean strength until it is negative. `clip` and `snippet` are controls: one group per
            clip, one group per snippet.

    Returns:
        Component ids uint8 `[N, T]`: the lowest snippet index of the group, `PADDING` for padding.
    """
    clips, snippets, _ = strength.shape
    real = np.ones((clips, snippets), bool)
    if lengths is not None:
        real = np.arange(snippets) < lengths[:, None]
    if grouping == "snippet":
        ids = np.tile(np.arange(snippets, dtype=np.uint8), (clips, 1))
    elif grouping == "clip":
        ids = np.zeros((clips, snippets), np.uint8)
    else:
        if not real.all():
            strength = np.where(real[:, :, None] & real[:, None, :], strength, -np.inf)
        if grouping == "average-link":
            ids = _average_link(strength)
        else:
            edges = strength >= 0
            if grouping == "mutual-knn":
                edges &= _mutual(strength, neighbours)
            ids = _connected(edges)
    ids[~real] = PADDING
    return ids


def silent_snippets(
    audio: NDArray[np.floating], reference: NDArray[np.floating], limit: float
) -> NDArray[np.bool_]:
    """Mask of the snippets `[N, T]` whose cosine to a silent vector is greater than `limit`.

    The authors' code uses 0.99 and the output of VGGish for silence.

    Args:
        audio: `[N, T, D]`.
        reference: the silent vector, `[D]`.
    """
    x = audio.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # a vector that is not finite is not silent
        silent: NDArray[np.bool_] = x @ reference > limit * (
            np.linalg.norm(x, axis=-1) * np.linalg.norm(reference)
        )
    return silent


def _connected(edges: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Connected components of N graphs `[N, T, T]`, by Warshall's algorithm on rows of bits."""
    clips, snippets, _ = edges.shape
    words = -(-snippets // 64)
    bits = np.zeros((clips, snippets, 8 * words), np.uint8)
    packed = np.packbits(edges | np.eye(snippets, dtype=bool), axis=-1, bitorder="little")
    bits[:, :, : packed.shape[-1]] = packed
    reach = bits.view("<u8").transpose(1, 2, 0).copy()  # [T, words, N]: clips lie side by side
    for middle in range(snippets):
        word, bit = divmod(middle, 64)
        through = (reach[:, word] >> np.uint64(bit)) & np.uint64(1)
        reach |= (np.uint64(0) - through)[:, None] & reach[middle]
    ids = np.full((snippets, clips), PADDING, np.uint8)
    for word in reversed(range(words)):
        row = reach[:, word]
        # The exponent of the lowest bit that is set is the index of the lowest reachable snippet.
        lowest = np.frexp((row & (np.uint64(0) - row)).astype(np.float64))[1] - 1 + 64 * word
        np.copyto(ids, lowest.astype(np.uint8), where=row > 0)
    return np.ascontiguousarray(ids.T)


def _mutual(strength: NDArray[np.floating], neighbours: int) -> NDArray[np.bool_]:
    """Mask of pairs in which each is among the `neighbours` strongest of the other, `[N, T, T]`."""
    snippets = strength.shape[1]
    if neighbours >= snippets:
        return np.ones(strength.shape, bool)
    others = np.where(np.eye(snippets, dtype=bool), -np.inf, strength)
    rank = snippets - neighbours
    near = others >= np.partition(others, rank, axis=-1)[:, :, rank, None]
    mutual: NDArray[np.bool_] = near & near.transpose(0, 2, 1)
    return mutual


def _average_link(strength: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Agglomerative clustering; each pass merges two groups in every clip that is not finished."""
    clips, snippets, _ = strength.shape
    mean = strength.astype(np.float64)
    mean[:, np.arange(snippets), np.arange(snippets)] = -np.inf
    sizes = np.ones((clips, snippets))
    ids = np.tile(np.arange(snippets), (clips, 1))
    left = np.arange(clips)
    for _ in range(snippets - 1):
        flat = mean.reshape(len(left), -1)
        best = flat.argmax(1)
        going = flat[np.arange(len(left)), best] >= 0
        left, mean, sizes, best = left[going], mean[going], sizes[going], best[going]
        if not len(left):
            break
        rows = np.arange(len(left))
        first, second = np.sort(np.divmod(best, snippets), axis=0)  # the lower index is the id
        one, two = sizes[rows, first, None], sizes[rows, second, None]
        merged = (one * mean[rows, first] + two * mean[rows, second]) / (one + two)
        mean[rows, first], mean[rows, :, first] = merged, merged
        mean[rows, second], mean[rows, :, second] = -np.inf, -np.inf
        mean[rows, first, first] = -np.inf
        sizes[rows, first] += sizes[rows, second]
        ids[left] = np.where(ids[left] == second[:, None], first[:, None], ids[left])
    return ids.astype(np.uint8)
