"""Promotion: the alias `champion` moves only to a version that validates better."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from avvp_dist.config import PromoteConfig
from avvp_dist.config.removed import RENAMED_METRICS
from avvp_dist.errors import CheckpointError, ConfigError
from avvp_dist.evaluation.scores import SELECTION
from avvp_dist.tracking.registry import ModelVersion, Registry, fetch, registry_errors

CHAMPION = "champion"
VALIDATED_ON = "validated_on."
"""Prefix of the tags that name the data a version's metrics were measured on."""

_METRICS = {"avvp-encoder": "val/auc", "avvp-parser": f"val/{SELECTION}"}


def promote(config: PromoteConfig) -> bool:
    """Make a version the champion if it is better than the current one, and print the comparison.

    Moving the alias is the last call, so the old champion stays after any error.

    Returns:
        Whether the version is the champion now.

    Raises:
        ConfigError: if no metric is known for the model, or its name is an old one.
        CheckpointError: if there is no such version, its metric is missing or not finite, its
            files are not those that were registered, or the two cannot be compared.
    """
    model = config.model
    metric = config.metric or _METRICS.get(model, "")
    if not metric:
        raise ConfigError(f"model={model} is none of {', '.join(_METRICS)}: give its metric")
    if metric in RENAMED_METRICS:
        raise ConfigError(f"metric={metric} is now {RENAMED_METRICS[metric]}")
    with registry_errors(model):
        registry = Registry()
        asked = f"{model}/{config.version}" if config.version else f"{model}@candidate"
        candidate = registry.find(asked)
        champion = registry.find_alias(model, CHAMPION)
        if champion is not None and str(champion) == str(candidate):
            print(f"{candidate} is the champion already")
            return True
        value = _validated(candidate, metric)
        if champion is None:
            print(f"{candidate}: {metric} {value:.6g}; no current champion")
        elif not _is_better(registry, config, metric, candidate, champion):
            print(f"kept: {champion} stays the champion")
            return False
        _verify(candidate)
        now = registry.find_alias(model, CHAMPION)  # the download may have taken minutes
        if str(now) != str(champion):
            raise CheckpointError(f"{model} has another champion by now", remedy="Try again")
        registry.set_alias(candidate, CHAMPION)
    print(f"promoted: {candidate} is the champion")
    return True


def _is_better(
    registry: Registry,
    config: PromoteConfig,
    metric: str,
    candidate: ModelVersion,
    champion: ModelVersion,
) -> bool:
    differences = _differences(registry, metric, candidate, champion)
    if differences and not config.force:
        raise CheckpointError(
            f"{candidate} and {champion} cannot be compared by {metric}: {'; '.join(differences)}",
            remedy="Validate both on the same data, or set force=true",
        )
    new, old = _validated(candidate, metric), _validated(champion, metric)
    gain = old - new if "loss" in metric else new - old
    print(
        f"{candidate}: {metric} {new:.6g}, {champion}, the champion: {old:.6g}"
        + (f", better by {gain:.6g}" if gain > 0 else "")
        + (f", margin {config.margin:g}" if config.margin else "")
        + (f", although {'; '.join(differences)}" if differences else "")
    )
    return gain > 0 and gain >= config.margin


def _differences(
    registry: Registry, metric: str, candidate: ModelVersion, champion: ModelVersion
) -> list[str]:
    """Reasons why the metric of two versions does not measure the same, one phrase each."""
    conditions = [
        {tag: value for tag, value in version.tags.items() if tag.startswith(VALIDATED_ON)}
        for version in (candidate, champion)
    ]
    if not any(conditions):
        return ["neither says what it was validated on"]
    if "loss" in metric:  # margins and terms are part of what a loss measures
        for known, version in zip(conditions, (candidate, champion), strict=True):
            params = registry.run_params(version)
            known.update({k: v for k, v in params.items() if k.startswith("objective.")})
    here, there = conditions
    return [
        f"{name} is {here.get(name, 'unknown')} here, {there.get(name, 'unknown')} there"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]


def _validated(version: ModelVersion, metric: str) -> float:
    """Metric of the exported epoch; the last value of the run may belong to another epoch."""
    try:
        value = float(version.tags[metric])
    except (KeyError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise CheckpointError(
            f"{version} has no validated {metric}",
            remedy=f"Its tags are {', '.join(sorted(version.tags)) or 'none'}",
        )
    return value


def _verify(version: ModelVersion) -> None:
    """Download the files of a version and compare them with its digest."""
    if "digest" not in version.tags:
        raise CheckpointError(f"{version} has no tag `digest` to verify its files with")
    with tempfile.TemporaryDirectory() as into:
        fetch(version.source, version.tags["digest"], Path(into), str(version))
