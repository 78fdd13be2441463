"""Keys of MLflow tracking, and of the stages that use its records and its registry."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.option import option


@dataclass
class TrackingConfig:
    """Keys of MLflow tracking: SQLite in the working folder, or the server MLFLOW_TRACKING_URI."""

    enabled: bool = option(True, "log this run to MLflow")
    name: str = option("", "name of the run; empty: the name of the output folder")
    register: bool = option(True, "register the exported model under the alias `candidate`")
    figures: bool = option(True, "draw the figures of this run, which takes a second or two")
    parent: str = option("", "output folder of the run that this one is nested under")


@dataclass
class PromoteConfig:
    """Keys of `avvp promote`: the alias `champion` for a version that validates better."""

    model: str = option("", "registered model: avvp-encoder or avvp-parser", required=True)
    version: str = option("", "number of the version to promote; empty: alias `candidate`")
    metric: str = option(
        "",
        "tag of the versions that is compared; empty: val/segment_type_av of parsers, val/auc of "
        "encoders (losses, where lower is better, are comparable under one objective only)",
    )
    margin: float = option(
        0.0, "amount by which the metric must be better; equal is never enough", minimum=0
    )
    force: bool = option(False, "compare although the versions were validated on other data")


@dataclass
class SyncConfig:
    """Keys of `avvp sync`: records that MLflow has not received yet."""

    runs: list[str] = option([], "output folders of runs", required=True, positional=True)
