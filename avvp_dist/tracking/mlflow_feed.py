"""Records into MLflow: runs, metrics, figures and the model registry."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from avvp_dist import __version__
from avvp_dist.commit import write_json
from avvp_dist.errors import ConfigError
from avvp_dist.tracking.records import read_records

STATE = "mlflow.json"
"""How far a folder's records were sent, and to which MLflow run."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or an SQLite file in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


class Feed:
    """Sends the records of a folder, from where the last one stopped.

    Making one imports MLflow, and `flush` talks to the server: both take seconds and may raise
    whatever MLflow raises. What was sent is remembered after each step, so a feed may be cut
    off anywhere and started again.
    """

    def __init__(self, folder: Path) -> None:
        # A dead server must cost seconds, not the minutes of MLflow's own defaults.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.folder = folder
        self._client = MlflowClient(tracking_uri(), tracking_uri())
        self._monitor: Any = None
        path = folder / STATE
        self.state: dict[str, Any] = (
            json.loads(path.read_text()) if path.exists() else {"offset": 0, "key": ""}
        )

    def flush(self) -> None:
        """Send everything new."""
        metrics: list[tuple[dict[str, Any], int]] = []
        for record, offset in read_records(self.folder, self.state["offset"]):
            if record["kind"] == "metrics":
                metrics.append((record, offset))
                if len(metrics) < 200:
                    continue
            self._send_metrics(metrics)
            metrics = []
            if record["kind"] != "metrics":
                getattr(self, f"_send_{record['kind']}")(record)
                self._remember(offset)
        self._send_metrics(metrics)

    def _remember(self, offset: int) -> None:
        self.state["offset"] = offset
        write_json(self.folder / STATE, self.state)

    def _send_metrics(self, records: list[tuple[dict[str, Any], int]]) -> None:
        from mlflow.entities import Metric

        steps = dict(self.state.get("steps", {}))
        batch = []
        for record, _ in records:
            for name, value in record["values"].items():
                # A resumed run computes some steps again; MLflow would keep both points.
                if record["step"] > steps.get(name, -1):
                    batch.append(Metric(name, value, record["time"], record["step"]))
                    steps[name] = record["step"]
        for start in range(0, len(batch), 1000):
            self._client.log_batch(self.state["run_id"], metrics=batch[start : start + 1000])
        if records:
            self.state["steps"] = steps
            self._remember(records[-1][1])

    def _send_run(self, record: dict[str, Any]) -> None:
        if record["key"] != self.state["key"]:
            self._create(record)
        if self.state["attempt"] == 0:
            self._describe(record)
        else:
            self._reopen(record)
        self.state["attempt"] += 1
        self._watch()

    def _create(self, record: dict[str, Any]) -> None:
        tags = {**record["tags"], **_environment(), "folder": str(self.folder.absolute())}
        if record.get("parent"):
            tags["mlflow.parentRunId"] = _run_id(Path(record["parent"]))
        run = self._client.create_run(
            self._experiment(record["experiment"]),
            start_time=record["time"],
            run_name=record["name"],
            tags=tags,
        )
        self.state.update(key=record["key"], run_id=run.info.run_id, steps={}, attempt=0)
        self._remember(self.state["offset"])

    def _describe(self, record: dict[str, Any]) -> None:
        """What a new run was started with; may be sent twice."""
        from mlflow.entities import Param

        run_id = self.state["run_id"]
        params = [Param(k, str(v)[:6000]) for k, v in _flat(record["config"])]
        self._client.log_batch(run_id, params=params[:100])
        self._client.log_dict(run_id, record["config"], "config.yaml")
        self._log_inputs(record["inputs"])

    def _reopen(self, record: dict[str, Any]) -> None:
        run_id = self.state["run_id"]
        self._client.update_run(run_id, "RUNNING")
        known = self._client.get_run(run_id).data.params
        for name, value in _flat(record["config"]):
            # MLflow refuses to change a param, and the first value stays true of the first try.
            if known.get(name, str(value)) != str(value):
                tag = f"resume.{self.state['attempt'] + 1}.{name}"
                self._client.set_tag(run_id, tag, str(value)[:5000])

    def _send_artifact(self, record: dict[str, Any]) -> None:
        self._client.log_artifact(self.state["run_id"], record["path"], record["under"] or None)

    def _send_register(self, record: dict[str, Any]) -> None:
        from mlflow.exceptions import MlflowException

        run_id, name = self.state["run_id"], record["model"]
        # By its content: a run that is resumed may register again, the same ones or others.
        path = f"model-{record['tags']['digest'][:12]}"
        self._client.log_artifacts(run_id, record["folder"], path)
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{path}"
        known = self._client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
        # It is there already if the same was registered before, or a feed was cut off here.
        version = next((v for v in known if v.source == source), None)
        if version is None:
            version = self._client.create_model_version(name, source, run_id, tags=record["tags"])
        for alias in record.get("aliases", ("candidate",)):
            self._client.set_registered_model_alias(name, alias, version.version)
        self._client.set_tag(run_id, "registered", f"{name}/{version.version}")

    def _send_end(self, record: dict[str, Any]) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self._client.set_terminated(self.state["run_id"], record["status"], record["time"])

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if tracking_uri().startswith("sqlite:///"):
            database = Path(tracking_uri().removeprefix("sqlite:///"))
            location = (database.absolute().parent / "mlartifacts" / name).as_uri()
        return str(self._client.create_experiment(name, location))

    def _log_inputs(self, inputs: dict[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        sets = [
            DatasetInput(Dataset(Path(path).name, digest[:36], "local", json.dumps({"uri": path})))
            for path, digest in inputs.items()
        ]
        if sets:
            self._client.log_inputs(self.state["run_id"], sets)

    def _watch(self) -> None:
        """System metrics of this node, sampled by MLflow every ten seconds."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(self.state["run_id"], tracking_uri=tracking_uri())
        self._monitor.start()


def _run_id(folder: Path) -> str:
    """The MLflow run of a folder's records.

    Raises:
        ConfigError: until they have been sent.
    """
    try:
        run_id: str = json.loads((folder / STATE).read_text())["run_id"]
    except FileNotFoundError:
        raise ConfigError(
            f"tracking.parent: no records of {folder} were sent yet",
            remedy=f"python tools/sync_mlflow.py {folder}, then this run",
        ) from None
    return run_id


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return rows


def _environment() -> dict[str, str]:
    """What the run runs on and from."""
    tags = {
        "version": __version__,
        "host": platform.node(),
        "python": platform.python_version(),
        "cpus": str(os.cpu_count()),
        "world_size": os.environ.get("WORLD_SIZE", "1"),
    }
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        tags["git"] = found.stdout.strip()
    return tags
