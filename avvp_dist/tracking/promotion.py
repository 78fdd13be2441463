"""Promotion: the alias `champion` moves only to a version that validates better."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avvp_dist.config import PromoteConfig
from avvp_dist.errors import CheckpointError, ConfigError
from avvp_dist.tracking.registry import asking, fetch, find_version
from avvp_dist.tracking.server import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
VALIDATED_ON = "validated_on."
"""Prefix of the tags that say what a version's metrics were measured on."""

_METRICS = {"avvp-encoder": "auc", "avvp-parser": "val/segment_type_av"}


def promote(config: PromoteConfig) -> bool:
    """Make a version the champion if it is better than the present one; says what it compared.

    The last call moves the alias, so whatever happens before leaves the old champion.

    Returns:
        Whether the version is the champion now.

    Raises:
        ConfigError: if no metric is known for the model.
        CheckpointError: if there is no such version, its metric is missing or not finite, its
            files are not those that were registered, or the two cannot be compared.
    """
    model = config.model
    metric = config.metric or _METRICS.get(model, "")
    if not metric:
        raise ConfigError(f"model={model} is none of {', '.join(_METRICS)}: give its metric")
    client = connect()
    with asking(model):
        asked = f"{model}/{config.version}" if config.version else f"{model}@candidate"
        candidate = find_version(client, asked)
        champion = _champion(client, model)
        if champion is not None and _name(champion) == _name(candidate):
            print(f"{_name(candidate)} is the champion already")
            return True
        new = _validated(candidate, metric)
        if champion is None:
            print(f"{_name(candidate)}: {metric} {new:.6g}; there is no champion yet")
        elif not _better(client, config, metric, candidate, champion):
            print(f"kept: {_name(champion)} stays the champion")
            return False
        _verify(candidate)
        now = _champion(client, model)  # the files may have taken minutes to come
        if (now and _name(now)) != (champion and _name(champion)):
            raise CheckpointError(f"{model} has another champion meanwhile", remedy="Try again")
        client.set_registered_model_alias(model, CHAMPION, candidate.version)
    print(f"promoted: {_name(candidate)} is the champion")
    return True


def _better(
    client: MlflowClient, config: PromoteConfig, metric: str, candidate: Any, champion: Any
) -> bool:
    differing = _differences(client, metric, candidate, champion)
    if differing and not config.force:
        raise CheckpointError(
            f"{_name(candidate)} and {_name(champion)} cannot be compared by {metric}: "
            + "; ".join(differing),
            remedy="Validate both on the same data, or say force=true",
        )
    new, old = _validated(candidate, metric), _validated(champion, metric)
    gain = old - new if "loss" in metric else new - old
    print(
        f"{_name(candidate)}: {metric} {new:.6g}, {_name(champion)}, the champion: {old:.6g}"
        + (f", better by {gain:.6g}" if gain > 0 else "")
        + (f", asked for {config.margin:g}" if config.margin else "")
        + (f", although {'; '.join(differing)}" if differing else "")
    )
    return gain > 0 and gain >= config.margin


def _differences(client: MlflowClient, metric: str, candidate: Any, champion: Any) -> list[str]:
    """Why two versions' metrics do not measure the same, one phrase each."""
    ours, theirs = (
        {tag: value for tag, value in version.tags.items() if tag.startswith(VALIDATED_ON)}
        for version in (candidate, champion)
    )
    if not ours and not theirs:
        return ["neither says what it was validated on"]
    if "loss" in metric:  # margins and terms are part of what it measures
        for tags, version in ((ours, candidate), (theirs, champion)):
            params = client.get_run(version.run_id).data.params
            tags.update({k: v for k, v in params.items() if k.startswith("objective.")})
    return [
        f"{name} is {ours.get(name, 'unknown')} here, {theirs.get(name, 'unknown')} there"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def _validated(version: Any, metric: str) -> float:
    """The metric of the exported epoch; the run's own last value may belong to another one."""
    try:
        value = float(version.tags[metric])
    except (KeyError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise CheckpointError(
            f"{_name(version)} has no validated {metric}",
            remedy=f"Its tags are {', '.join(sorted(version.tags)) or 'none'}",
        )
    return value


def _verify(version: Any) -> None:
    if "digest" not in version.tags:
        raise CheckpointError(f"{_name(version)} has no tag `digest` to check its files by")
    with tempfile.TemporaryDirectory() as into:
        fetch(version.source, version.tags["digest"], Path(into), _name(version))


def _champion(client: MlflowClient, model: str) -> Any:
    """The version that has the alias now, or None."""
    number = client.get_registered_model(model).aliases.get(CHAMPION)
    return client.get_model_version(model, number) if number else None


def _name(version: Any) -> str:
    return f"{version.name}/{version.version}"
