"""The plan of a grounding: everything that its labels depend on beside the shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from avvp_dist import __version__
from avvp_dist.commit import digest
from avvp_dist.config import GroundConfig, LinkConfig
from avvp_dist.errors import ConfigError
from avvp_dist.grounding.labels import link_config_of, silent_reference
from avvp_dist.grounding.thresholds import THRESHOLDS, Thresholds, ThresholdsFile
from avvp_dist.shards.shard_set import ShardSet


@dataclass(frozen=True)
class Plan:
    """Code version, thresholds and rules of a grounding, and the name of the version they give."""

    code: str
    """Version of this package."""
    thresholds: Thresholds
    link: LinkConfig
    """Rules, without the path of the silent vector: `silent` holds the vector itself."""
    silent: list[float]
    """Silent audio vector `[D]`; empty without one."""
    version: str
    """Name of the grounding, which is its folder's."""

    @classmethod
    def of(cls, config: GroundConfig, shards: ShardSet) -> Plan:
        """Plan for a shard set.

        Raises:
            ConfigError: for thresholds or a silent vector that are missing or do not fit.
        """
        thresholds = _thresholds(config, shards)
        reference = silent_reference(config, shards.dims)
        plan = cls(
            code=__version__,
            thresholds=thresholds,
            link=replace(link_config_of(config), silent_audio=""),
            silent=[] if reference is None else reference.tolist(),
            version=config.version,
        )
        return plan if plan.version else replace(plan, version=plan._name())

    def _name(self) -> str:
        """Version name that tells the rules and thresholds and ends with a digest of the plan."""
        content = self.plain()
        del content["version"]
        key = digest(content)[:6]
        rule, grouping = self.link.rule, self.link.grouping
        if grouping in ("clip", "snippet"):
            return f"{grouping}-{key}"
        limits = "-".join(f"{name}{limit:.3f}" for name, limit in sorted(self.thresholds.items()))
        kind = rule if grouping == "components" else f"{rule}-{grouping}"
        return f"{kind}-{limits}-{key}"

    def made_from(self, shard_sha256: str) -> str:
        """Digest that the labels of a shard are made from."""
        return digest([shard_sha256, self.plain()])

    def plain(self) -> dict[str, object]:
        """JSON form, which `parse` reads."""
        return {
            "code": self.code,
            "thresholds": self.thresholds,
            "joining": asdict(self.link),
            "silent": self.silent,
            "version": self.version,
        }

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> Plan:
        """Plan from its JSON form.

        Raises:
            KeyError, TypeError: if it is no such form.
        """
        return cls(
            code=plain["code"],
            thresholds=plain["thresholds"],
            link=LinkConfig(**plain["joining"]),
            silent=plain["silent"],
            version=plain["version"],
        )


def _thresholds(config: GroundConfig, shards: ShardSet) -> Thresholds:
    path = Path(config.thresholds or shards.folder / THRESHOLDS)
    calibrated = ThresholdsFile.read(path)
    if calibrated.extractor != shards.extractor:
        raise ConfigError(
            f"thresholds: {path} belongs to the extractor {calibrated.extractor!r}, the shard "
            f"set to {shards.extractor!r}",
            remedy="Calibrate on this shard set",
        )
    for name in calibrated.thresholds:
        if name not in shards.dims:
            raise ConfigError(f"thresholds: {path}: the shard set has no stream {name}")
    link = asdict(link_config_of(config))
    for key, value in calibrated.joining.items():
        if link.get(key, value) != value:
            print(f"note: {path} was calibrated for {key}={value}, this is {key}={link[key]}")
    return calibrated.thresholds
