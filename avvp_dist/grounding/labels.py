"""From features to component ids, with the counts of what was met on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from avvp_dist.config import LinkConfig
from avvp_dist.errors import ConfigError
from avvp_dist.grounding.components import (
    components,
    directed,
    join_strength,
    silent_snippets,
    similarity,
)
from avvp_dist.shards.schema import AUDIO, PADDING


@dataclass(frozen=True)
class ClipSimilarities:
    """Similarities within N clips: everything that labels depend on but thresholds and grouping."""

    cosines: dict[str, NDArray[np.float32]]
    """Cosine of every two snippets of a clip by stream, `[N, T, T]`."""
    isolated: NDArray[np.bool_]
    """Snippets that are joined with no other, `[N, T]`."""
    lengths: NDArray[np.integer]
    """Number of real snippets of each clip, `[N]`."""
    counts: dict[str, int]
    """Number of clips, snippets, short clips and silent snippets; by stream, of vectors that are
    zero and that are not finite."""


def link_config_of(config: LinkConfig) -> LinkConfig:
    """Part of a stage's config that says which snippets belong together."""
    return LinkConfig(**{field.name: getattr(config, field.name) for field in fields(LinkConfig)})


def silent_reference(link: LinkConfig, dims: Mapping[str, int]) -> NDArray[np.float32] | None:
    """Silent audio vector `[D]` of `link.silent_audio`, the first row if the file holds a matrix.

    Returns:
        None without a path.

    Raises:
        ConfigError: if it cannot be read, or its size is not that of the audio stream.
    """
    path = link.silent_audio
    if (path or link.silent_energy) and AUDIO not in dims:
        raise ConfigError(f"silent_audio, silent_energy: there is no stream {AUDIO}")
    if not path:
        return None
    try:
        vector = np.atleast_2d(np.load(path, allow_pickle=False))[0].astype(np.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(f"silent_audio: {path} cannot be read: {error}") from None
    if vector.shape != (dims[AUDIO],):
        raise ConfigError(
            f"silent_audio: {path} has {vector.size} values, stream {AUDIO} has {dims[AUDIO]}"
        )
    return vector


def measure(
    streams: Mapping[str, NDArray[np.floating]],
    lengths: NDArray[np.integer],
    link: LinkConfig,
    reference: NDArray[np.float32] | None,
) -> ClipSimilarities:
    """Measure cosines and silence of clips.

    Args:
        streams: `[N, T, D]` by name: the streams that have a threshold and, if `link` has a rule
            for silence, audio.
        lengths: number of real snippets of each clip, `[N]`.
        reference: silent audio vector `[D]`; None: no snippet is silent by its similarity.
    """
    snippets = next(iter(streams.values())).shape[1]
    real = np.arange(snippets) < lengths[:, None]
    silent = np.zeros(real.shape, bool)
    if reference is not None:
        silent |= silent_snippets(streams[AUDIO], reference, link.silent_similarity)
    counts = {"clips": len(lengths), "snippets": int(real.sum())}
    cosines, undirected = {}, np.zeros(real.shape, bool)
    for name, features in streams.items():
        cosines[name], norm = similarity(features)
        if name == AUDIO and link.silent_energy:
            silent |= norm < link.silent_energy
        counts[f"zero/{name}"] = int((real & (norm == 0)).sum())
        counts[f"not finite/{name}"] = int((real & ~np.isfinite(norm)).sum())
        undirected |= ~directed(norm)
    counts["short"] = int((lengths < snippets).sum())
    counts["silent"] = int((real & silent).sum())
    isolated = silent | undirected if link.undirected == "snippet" else silent
    return ClipSimilarities(cosines, isolated, lengths, counts)


def label(
    similarities: ClipSimilarities, thresholds: Mapping[str, float], link: LinkConfig
) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Group the snippets of each clip.

    Returns:
        Component ids `[N, T]`; the number of snippet pairs that each stream joins
        (`joined/STREAM`) and that the rule joins (`joined`).
    """
    cosines = similarities.cosines
    strength = join_strength(cosines, thresholds, link.rule, similarities.isolated)
    ids = components(strength, similarities.lengths, link.grouping, link.neighbours)
    pairs = _pairs(ids)
    joined = {
        f"joined/{name}": int((pairs & (cosines[name] >= np.float32(limit))).sum())
        for name, limit in thresholds.items()
    }
    return ids, {**joined, "joined": int((pairs & (strength >= 0)).sum())}


def _pairs(ids: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mask of pairs of different real snippets, each pair once, `[N, T, T]`."""
    real, snippets = ids != PADDING, ids.shape[1]
    upper = np.triu(np.ones((snippets, snippets), bool), 1)
    mask: NDArray[np.bool_] = upper & real[:, :, None] & real[:, None, :]
    return mask
