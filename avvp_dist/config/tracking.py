"""MLflow's keys, the same in every stage."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.option import option


@dataclass
class Tracking:
    """MLflow: SQLite in the working folder, or the server in MLFLOW_TRACKING_URI."""

    enabled: bool = option(True, "log this run to MLflow")
    name: str = option("", "name of the run; empty: named after the output folder")
    register: bool = option(True, "register the exported model, alias `candidate`")
    parent: str = option("", "output folder of the run that this one is a part of")
