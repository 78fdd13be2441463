"""Calibration: thresholds for a shard set, with the evidence that they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from avvp_dist.config import CalibrateConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.grounding.histogram import CosineHistogram
from avvp_dist.grounding.labels import ClipSimilarities, label, measure, silent_reference
from avvp_dist.grounding.profile import ComponentProfile
from avvp_dist.grounding.sample import (
    CrossClipCosines,
    Sample,
    cross_clip_cosines,
    sample_clips,
    within_clip_histograms,
)
from avvp_dist.grounding.threshold_search import (
    dense_events,
    thresholds_by_labels,
    thresholds_by_profile,
    thresholds_by_rate,
)
from avvp_dist.grounding.thresholds import Thresholds
from avvp_dist.shards.schema import AUDIO
from avvp_dist.shards.shard_set import ShardSet

Rates = dict[str, dict[str, float]]
"""Fraction of pairs `within` clips and `across` clips that reach a threshold, by stream, and that
are joined, under the name of the rule."""

_UNINFORMATIVE = 0.99
"""If this fraction of the clips or components is of one kind, training learns nothing."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds and what they do to the sample."""

    thresholds: Thresholds
    within: dict[str, CosineHistogram]
    """Cosines of two snippets of one clip, by stream."""
    across: dict[str, CosineHistogram]
    """Cosines of two snippets of different clips, by stream."""
    profile: ComponentProfile
    """Components of the sampled clips under these thresholds."""
    rates: Rates
    sample: Sample
    f1: float | None = None
    """F1 over snippet pairs against dense labels; None unless these were the target."""


def calibration(shards: ShardSet, config: CalibrateConfig) -> Calibration:
    """Choose thresholds for the target of `config` on a sample of a shard set.

    Raises:
        ConfigError: for a stream that the shard set lacks.
        DataError: if fewer than two clips can be compared, or dense labels are missing.
    """
    for name in config.streams:
        if name not in shards.dims:
            raise ConfigError(
                f"streams: the shard set has no stream {name}, it has {sorted(shards.dims)}"
            )
    if len(shards) < 2:
        raise DataError(f"{shards.name} has {len(shards)} clip, calibration needs two")
    reference = silent_reference(config, shards.dims)
    events = dense_events(shards, config) if config.target == "labels" else None
    sample = sample_clips(shards, config)
    silence = (AUDIO,) if reference is not None or config.silent_energy else ()
    used = {name: sample.streams[name] for name in dict.fromkeys((*config.streams, *silence))}
    similarities = measure(used, sample.lengths, config, reference)
    cross = cross_clip_cosines(sample, config.streams)
    across = cross.histograms
    within = within_clip_histograms(
        {name: similarities.cosines[name] for name in config.streams}, sample.lengths
    )
    f1 = None
    if events is not None:
        thresholds, f1 = thresholds_by_labels(
            across, within, similarities, events[sample.clips], config
        )
    elif config.target == "false-links":
        thresholds = thresholds_by_rate(across, config.false_link_rate)
    else:
        thresholds = thresholds_by_profile(across, similarities, config)
    profile, rates = _outcome(thresholds, within, across, cross, similarities, config)
    return Calibration(thresholds, within, across, profile, rates, sample, f1)


def _outcome(
    thresholds: Thresholds,
    within: Mapping[str, CosineHistogram],
    across: Mapping[str, CosineHistogram],
    cross: CrossClipCosines,
    similarities: ClipSimilarities,
    config: CalibrateConfig,
) -> tuple[ComponentProfile, Rates]:
    """Components of the sample under the thresholds, and the fractions of pairs they join."""
    ids, counts = label(similarities, thresholds, config)
    profile = ComponentProfile.of(ids)
    rates = {
        name: {
            "within": within[name].fraction_reaching(limit),
            "across": across[name].fraction_reaching(limit),
        }
        for name, limit in thresholds.items()
    }
    rates[config.rule] = {
        "within": counts["joined"] / max(profile.pairs, 1),
        "across": cross.joined_fraction(thresholds, config.rule),
    }
    return profile, rates


def check_informative(profile: ComponentProfile, config: CalibrateConfig) -> None:
    """Raise `ConfigError` for components that pretraining could learn nothing from."""
    clips = max(int(profile.per_clip.sum()), 1)
    if profile.sizes[0] >= _UNINFORMATIVE * profile.sizes.sum() and profile.pairs:
        raise ConfigError(
            f"{profile.sizes[0] / profile.sizes.sum():.1%} of components are one snippet: nothing "
            "would be positive",
            remedy="Raise false_link_rate, or use rule=or",
        )
    alone = profile.per_clip[0] / clips
    if alone >= _UNINFORMATIVE and not config.other_clips:
        raise ConfigError(
            f"{alone:.1%} of clips are one component and no negatives come from elsewhere: nothing "
            "would be negative",
            remedy="Lower false_link_rate, use rule=and or grouping=average-link, or take "
            "negatives from other clips (other_clips=true, objective.other_clips=1)",
        )
    if alone >= _UNINFORMATIVE:
        print(f"note: {alone:.1%} of clips are one component: only other clips are negative")
