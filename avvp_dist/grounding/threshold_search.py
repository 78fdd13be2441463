"""The search for thresholds: by false-link rate, by a profile of components, or by dense labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.alignment import align
from avvp_dist.annotations.llp import read_annotations
from avvp_dist.config import CalibrateConfig
from avvp_dist.errors import ConfigError
from avvp_dist.grounding.histogram import CosineHistogram
from avvp_dist.grounding.labels import ClipSimilarities, label
from avvp_dist.grounding.profile import ComponentProfile
from avvp_dist.grounding.thresholds import Thresholds
from avvp_dist.shards.shard_set import ShardSet

Histograms = Mapping[str, CosineHistogram]

_RATES = np.geomspace(0.5, 1e-5, 61)
"""False-link rates that the search tries first."""
_QUANTILES = np.linspace(0, 1, 41)
"""Quantiles of a stream's cosines within clips that are tried as thresholds."""
_ROUNDS = 3
"""Maximum number of passes over the streams in the search by dense labels."""


def thresholds_by_rate(across: Histograms, rate: float) -> Thresholds:
    """Lowest thresholds that at most the fraction `rate` of pairs across clips reaches."""
    return {name: histogram.threshold(rate) for name, histogram in across.items()}


def thresholds_by_profile(
    across: Histograms, similarities: ClipSimilarities, config: CalibrateConfig
) -> Thresholds:
    """Thresholds of the false-link rate whose components come nearest to the goal of `config`."""
    key, goal = {
        "components": ("components_per_clip", config.components_per_clip),
        "one-component": ("one_component_share", config.one_component_fraction),
    }[config.target]

    def distance(rate: float) -> float:
        ids, _ = label(similarities, thresholds_by_rate(across, rate), config)
        return abs(ComponentProfile.of(ids).figures[key] - goal)

    best = min(_RATES, key=distance)
    step = _RATES[0] / _RATES[1]
    finer = np.geomspace(min(best * step, 1), best / step, 41)
    return thresholds_by_rate(across, min(finer, key=distance))


def thresholds_by_labels(
    across: Histograms,
    within: Histograms,
    similarities: ClipSimilarities,
    events: NDArray[np.bool_],
    config: CalibrateConfig,
) -> tuple[Thresholds, float]:
    """Thresholds whose components agree best with dense labels, and their F1 over snippet pairs.

    Two snippets of a clip belong together if they share an event, heard or seen. Pairs with a
    snippet without events are not judged. The search improves the threshold of each stream in turn.

    Args:
        across: cosines of snippets of different clips.
        within: cosines of snippets of one clip.
        events: events of each clip, `[N, T, C]`.
    """
    score = _pair_f1(similarities, events, config)
    best = max((thresholds_by_rate(across, rate) for rate in _RATES), key=score)
    for _ in range(_ROUNDS):
        before = dict(best)
        for name in config.streams:
            tries = {within[name].quantile(q) for q in _QUANTILES} | {1.0, best[name]}
            best = max(({**best, name: limit} for limit in sorted(tries)), key=score)
        if best == before:
            break
    return best, score(best)


def _pair_f1(
    similarities: ClipSimilarities, events: NDArray[np.bool_], config: CalibrateConfig
) -> Callable[[Thresholds], float]:
    """F1 over judged pairs, as a function of the thresholds."""
    snippets = events.shape[1]
    upper = np.triu(np.ones((snippets, snippets), bool), 1)
    busy = events.any(2) & (np.arange(snippets) < similarities.lengths[:, None])
    judged = upper & busy[:, :, None] & busy[:, None, :]
    counts = events.astype(np.float32)
    together = np.asarray((counts @ counts.transpose(0, 2, 1) > 0) & judged)

    def score(thresholds: Thresholds) -> float:
        ids, _ = label(similarities, thresholds, config)
        same = (ids[:, :, None] == ids[:, None, :]) & judged
        return float(2 * (same & together).sum() / max(same.sum() + together.sum(), 1))

    return score


def dense_events(shards: ShardSet, config: CalibrateConfig) -> NDArray[np.bool_]:
    """Events of each snippet of the shard set's clips, heard or seen, `[N, T, C]`.

    Raises:
        ConfigError: without `config.annotations`.
        DataError: for a clip that has no dense labels.
    """
    if not config.annotations:
        raise ConfigError("annotations must be given: target=labels needs dense labels")
    annotated = read_annotations(config.annotations, config.split, snippets=shards.snippets)
    assert annotated.events is not None
    rows = align(
        shards.ids,
        annotated.ids,
        place=f"split={config.split} of {config.annotations}",
        what=f"clips of {shards.name}",
        remedy="Calibrate on the shard set of that split",
    )
    return np.asarray(annotated.events[rows].any(2))
