"""Algorithm 1, batched: which snippets of a clip belong together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avvp_dist.data.schema import PADDING
from avvp_dist.errors import ConfigError


def similarity(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Cosine similarity of every two snippets of each clip: `[N, T, D]` to `[N, T, T]`.

    A zero vector has similarity 0 to everything.
    """
    x = features.astype(np.float32)
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    cosine: NDArray[np.float32] = np.matmul(x, x.transpose(0, 2, 1))
    return np.clip(cosine, -1, 1)


def link(
    streams: dict[str, NDArray[np.floating]],
    thresholds: dict[str, float],
    rule: str,
    silent: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Edges between snippets, symmetric bool `[N, T, T]`.

    Two snippets are joined when their cosine reaches the threshold (>=) in any stream
    (`rule="or"`, the paper) or in all (`"and"`, the authors' code). Snippets in `silent [N, T]`
    are joined to nothing.

    Raises:
        ConfigError: for a threshold without its stream.
    """
    for name in thresholds:
        if name not in streams:
            raise ConfigError(
                f"there is a threshold for stream {name}, the shard set has {sorted(streams)}",
                remedy="Calibrate on this shard set",
            )
    # Identical snippets reach a threshold of 1, though float32 gives them 1 - 1e-7.
    limits = {name: min(limit, 1 - 1e-6) for name, limit in thresholds.items()}
    near = [similarity(streams[name]) >= limit for name, limit in limits.items()]
    edges: NDArray[np.bool_] = (np.any if rule == "or" else np.all)(near, axis=0)
    if silent is not None:
        edges &= ~(silent[:, :, None] | silent[:, None, :])
    return edges


def components(
    edges: NDArray[np.bool_], lengths: NDArray[np.integer] | None = None
) -> NDArray[np.uint8]:
    """Connected components of N graphs at once: edges `[N, T, T]` to ids uint8 `[N, T]`.

    The id is the lowest snippet index of the component; snippets from `lengths [N]` on are
    padding, have id `PADDING` and join nothing. Reachability is closed by repeated squaring:
    ceil(log2 T) small matrix products for all clips together.
    """
    snippets = edges.shape[1]
    real = np.ones(edges.shape[:2], bool)
    if lengths is not None:
        real = np.arange(snippets) < lengths[:, None]
    reach = ((edges & real[:, :, None] & real[:, None, :]) | np.eye(snippets, dtype=bool)).astype(
        np.float32
    )
    for _ in range(int(np.ceil(np.log2(max(snippets, 2))))):
        reach = np.minimum(reach @ reach, 1.0)
    ids = reach.argmax(-1).astype(np.uint8)
    ids[~real] = PADDING
    return ids


def silent_snippets(
    audio: NDArray[np.floating], reference: NDArray[np.floating], limit: float
) -> NDArray[np.bool_]:
    """Snippets `[N, T]` whose audio `[N, T, D]` has cosine > `limit` to a silent `reference [D]`.

    (The authors' code: 0.99 to VGGish's output on silence.)
    """
    x = audio.astype(np.float32)
    silent: NDArray[np.bool_] = x @ reference > limit * (
        np.linalg.norm(x, axis=-1) * np.linalg.norm(reference)
    )
    return silent
