"""MLflow's keys, the same in every stage."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.option import option


@dataclass
class TrackingConfig:
    """MLflow: SQLite in the working folder, or the server in MLFLOW_TRACKING_URI."""

    enabled: bool = option(True, "log this run to MLflow")
    name: str = option("", "name of the run; empty: named after the output folder")
    register: bool = option(True, "register the exported model, alias `candidate`")
    parent: str = option("", "output folder of the run that this one is a part of")


@dataclass
class PromoteConfig:
    """tools/promote.py: the alias `champion`, moved to a version that validates better."""

    model: str = option("", "registered model: avvp-encoder or avvp-parser", required=True)
    version: str = option("", "number of the version to promote; empty: alias `candidate`")
    metric: str = option(
        "",
        "tag of the versions to go by; empty: val/segment_type_av of parsers, auc of encoders "
        "(losses, of which less is better, are comparable under one objective only)",
    )
    margin: float = option(0.0, "the metric must be better by this much, and better", minimum=0)
    force: bool = option(False, "compare although the versions were validated on other data")
