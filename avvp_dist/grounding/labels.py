"""From features to component ids, and what to count on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

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

Counts = dict[str, int]


class Evidence(NamedTuple):
    """What labels are made from, before a threshold is."""

    cosines: dict[str, NDArray[np.float32]]
    """`[N, T, T]` of each stream."""
    apart: NDArray[np.bool_]
    """Snippets that join nothing, `[N, T]`."""
    lengths: NDArray[np.integer]
    """Real snippets of each clip, `[N]`."""
    counts: Counts
    """Clips, snippets, short clips, silent snippets; zero and not finite vectors by stream."""


def silent_reference(joining: LinkConfig, dims: Mapping[str, int]) -> NDArray[np.float32] | None:
    """The silent audio vector `[D]`, the first row of a matrix; None without a path.

    Raises:
        ConfigError: if it cannot be read, or has another size than the audio stream.
    """
    path = joining.silent_audio
    if (path or joining.silent_energy) and AUDIO not in dims:
        raise ConfigError(f"silent_audio, silent_energy: there is no stream {AUDIO}")
    if not path:
        return None
    try:
        first = np.atleast_2d(np.load(path, allow_pickle=False))[0].astype(np.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(f"silent_audio: {path} cannot be read: {error}") from None
    if first.shape != (dims[AUDIO],):
        raise ConfigError(
            f"silent_audio: {path} has {first.size} values, stream {AUDIO} has {dims[AUDIO]}"
        )
    return first


def measure(
    streams: Mapping[str, NDArray[np.floating]],
    lengths: NDArray[np.integer],
    joining: LinkConfig,
    reference: NDArray[np.float32] | None,
) -> Evidence:
    """Cosines and silence of clips: `streams[name]` is `[N, T, D]`, of those that join snippets
    and, where there is a rule for silence, audio."""
    snippets = next(iter(streams.values())).shape[1]
    real = np.arange(snippets) < lengths[:, None]
    silent = np.zeros(real.shape, bool)
    if reference is not None:
        silent |= silent_snippets(streams[AUDIO], reference, joining.silent_similarity)
    counts = {"clips": len(lengths), "snippets": int(real.sum())}
    cosines, undirected = {}, np.zeros(real.shape, bool)
    for name, features in streams.items():
        cosines[name], norm = similarity(features)
        if name == AUDIO and joining.silent_energy:
            silent |= norm < joining.silent_energy
        counts[f"zero/{name}"] = int((real & (norm == 0)).sum())
        counts[f"not finite/{name}"] = int((real & ~np.isfinite(norm)).sum())
        undirected |= ~directed(norm)
    counts["short"] = int((lengths < snippets).sum())
    counts["silent"] = int((real & silent).sum())
    apart = silent | undirected if joining.undirected == "snippet" else silent
    return Evidence(cosines, apart, lengths, counts)


def label(
    evidence: Evidence, thresholds: Mapping[str, float], joining: LinkConfig
) -> tuple[NDArray[np.uint8], Counts]:
    """Component ids `[N, T]`, and how many pairs of snippets each stream and the rule join."""
    strength = join_strength(evidence.cosines, thresholds, joining.rule, evidence.apart)
    ids = components(strength, evidence.lengths, joining.grouping, joining.neighbours)
    pairs = _pairs(ids)
    joined = {
        f"joined/{name}": int((pairs & (evidence.cosines[name] >= np.float32(limit))).sum())
        for name, limit in thresholds.items()
    }
    return ids, {**joined, "joined": int((pairs & (strength >= 0)).sum())}


def _pairs(ids: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Two different real snippets of a clip, each pair once, `[N, T, T]`."""
    real, snippets = ids != PADDING, ids.shape[1]
    upper = np.triu(np.ones((snippets, snippets), bool), 1)
    mask: NDArray[np.bool_] = upper & real[:, :, None] & real[:, None, :]
    return mask


@dataclass
class Profile:
    """How large components are and how many a clip has; profiles of parts add up."""

    sizes: NDArray[np.int64]
    """Components of 1..T snippets, `[T]`."""
    per_clip: NDArray[np.int64]
    """Clips of 1..T components, `[T]`."""
    positive: int
    """Pairs of different snippets in one component."""
    pairs: int
    """Pairs of different snippets of a clip."""

    @classmethod
    def of(cls, ids: NDArray[np.uint8]) -> Profile:
        """Of component ids `[N, T]`; clips without a label do not count."""
        snippets = ids.shape[1]
        members = (ids[:, :, None] == np.arange(snippets)).sum(1)
        counted, real = (members > 0).sum(1), (ids != PADDING).sum(1)
        return cls(
            np.bincount(members[members > 0], minlength=snippets + 1)[1:],
            np.bincount(counted, minlength=snippets + 1)[1:],
            int((members * (members - 1) // 2).sum()),
            int((real * (real - 1) // 2).sum()),
        )

    def __add__(self, other: Profile) -> Profile:
        return Profile(
            self.sizes + other.sizes,
            self.per_clip + other.per_clip,
            self.positive + other.positive,
            self.pairs + other.pairs,
        )

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it: `Profile(**plain)` up to the lists."""
        return {k: np.asarray(v).tolist() for k, v in asdict(self).items()}

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> Profile:
        """What `plain` gave."""
        return cls(
            np.array(plain["sizes"], np.int64),
            np.array(plain["per_clip"], np.int64),
            int(plain["positive"]),
            int(plain["pairs"]),
        )

    @property
    def figures(self) -> dict[str, float]:
        """Components a clip, share of clips that are one, share of pairs that are positive."""
        clips = max(int(self.per_clip.sum()), 1)
        return {
            "components_per_clip": float(self.sizes.sum() / clips),
            "one_component_share": float(self.per_clip[0] / clips),
            "positive_pair_share": self.positive / max(self.pairs, 1),
        }
