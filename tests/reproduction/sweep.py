"""A command of many jobs, run as its user runs it: the tables, and the study."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.forked_ranks import ROOT


class Sweep:
    """A script with a folder and an MLflow of its own."""

    def __init__(
        self, script: str, out: Path, shards: Path, annotations: Path, variables: dict[str, str]
    ):
        self.script, self.out, self.variables = script, out, variables
        self.database = out.parent / "mlflow.db"
        self.store = f"sqlite:///{self.database}"
        self.keys = [f"shards={shards}", f"annotations={annotations}", f"out={out}"]

    def start(
        self, *keys: str, python: str = sys.executable, **environment: str
    ) -> subprocess.Popen[str]:
        """Start it on a Ray of its own, in a process group of its own."""
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        own = {**self.variables, "MLFLOW_TRACKING_URI": self.store, **environment}
        return subprocess.Popen(
            [python, self.script, *self.keys, *keys],
            cwd=ROOT,
            env={**inherited, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *keys: str, code: int = 0, **environment: str) -> str:
        """Run to its end, in a warm process; returns what it said on stderr."""
        process = self.start(*keys, python=self.variables["WARM_PYTHON"], **environment)
        try:
            _, err = process.communicate(timeout=600)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == code, err
        return err

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a csv file in its folder."""
        with (self.out / name).open(newline="") as file:
            return list(csv.DictReader(file))

    def runs(self) -> dict[str, Any]:
        """The runs of its experiment by name; none is there twice."""
        from mlflow import MlflowClient

        client = MlflowClient(self.store, self.store)
        experiment = client.get_experiment_by_name(f"avvp-{self.out.name}")
        runs = client.search_runs([experiment.experiment_id])
        assert len({run.info.run_name for run in runs}) == len(runs)
        return {run.info.run_name: run for run in runs}
