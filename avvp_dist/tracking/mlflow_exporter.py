"""Records into MLflow: runs, metrics, figures and the model registry."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from avvp_dist import __version__
from avvp_dist.commit import folder_digest, write_json
from avvp_dist.errors import AvvpError, ConfigError, StorageError, first_line
from avvp_dist.tracking.nodes import NODES
from avvp_dist.tracking.records import RECORDS, read_lines, read_records
from avvp_dist.tracking.registry import fetch
from avvp_dist.tracking.server import connect, shown, tracking_uri

STATE = "mlflow.json"
"""How far a folder's records were sent, and to which MLflow run."""

_METRICS, _PARAMS, _PARAM_LENGTH = 1000, 100, 6000
"""The most that MLflow takes at once."""


def sync(folder: Path) -> str:
    """Send what a run's folder holds and MLflow has not yet; returns the MLflow run's id.

    Raises:
        ConfigError: if no run lies in the folder.
        StorageError: if MLflow does not take it all; what it took stays.
    """
    if not (folder / RECORDS).is_file():
        raise ConfigError(f"{folder} holds no {RECORDS}")
    feed = MlflowExporter(folder)
    try:
        feed.flush()
    except AvvpError:
        raise
    except Exception as error:  # whatever MLflow raises
        raise StorageError(
            f"{folder}: not every record was sent to {shown(tracking_uri())}: "
            f"{shown(first_line(error))}",
            remedy="The same command goes on from there",
        ) from None
    run_id: str = feed.state["run_id"]
    return run_id


class MlflowExporter:
    """Sends the records of a folder, from where the last one stopped.

    Making one imports MLflow, and `flush` talks to the server: both take seconds and may raise
    whatever MLflow raises. What was sent is remembered after each step, so a feed may be cut
    off anywhere and started again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._client = folder, connect()
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
                if record["kind"] == "run":
                    self._send_nodes(record["time"])
                getattr(self, f"_send_{record['kind']}")(record)
                self._remember(offset)
        self._send_metrics(metrics)
        self._send_nodes()

    def _remember(self, offset: int) -> None:
        self.state["offset"] = offset
        write_json(self.folder / STATE, self.state)

    def _send_metrics(self, records: list[tuple[dict[str, Any], int]]) -> None:
        steps = dict(self.state.get("steps", {}))
        batch = []
        for record, _ in records:
            for name, value in record["values"].items():
                # A resumed run computes some steps again; MLflow would keep both points.
                if record["step"] > steps.get(name, -1):
                    batch.append((name, value, record["time"], record["step"]))
                    steps[name] = record["step"]
        self._log(batch)
        if records:
            self.state["steps"] = steps
            self._remember(records[-1][1])

    def _log(self, points: list[tuple[str, float, int, int]]) -> None:
        """Points: name, value, milliseconds since 1970, step."""
        from mlflow.entities import Metric

        metrics = [Metric(*point) for point in points]
        for start in range(0, len(metrics), _METRICS):
            self._client.log_batch(self.state["run_id"], metrics=metrics[start : start + _METRICS])

    def _send_nodes(self, before: float = math.inf) -> None:
        """Samples of all nodes that were taken `before` the next run of the folder began.

        Their step is the second of the run, whichever attempt it is.
        """
        if "run_id" not in self.state:
            return
        sent, started = self.state.setdefault("nodes", {}), self.state.get("started", 0)
        for path in sorted((self.folder / NODES).glob("*.jsonl")):
            batch: list[tuple[str, float, int, int]] = []
            offset = start = sent.get(path.name, 0)
            for record, end in read_lines(path, start):
                time = record["time"]
                if time >= before:
                    break
                step = max(0, time - started) // 1000
                for name, value in record["values"].items():
                    batch.append((f"system/{path.stem}/{name}", value, time, step))
                offset = end
            self._log(batch)
            if offset > start:
                sent[path.name] = offset
                self._remember(self.state["offset"])

    def _send_run(self, record: dict[str, Any]) -> None:
        if record["key"] != self.state["key"]:
            self._create(record)
        if self.state["attempt"] == 0:
            self._describe(record)
        else:
            self._reopen(record)
        self.state["attempt"] += 1

    def _create(self, record: dict[str, Any]) -> None:
        key, experiment = record["key"], self._experiment(record["experiment"])
        tags = {**record["tags"], **_environment(), "folder": str(self.folder.absolute())}
        if record.get("parent"):
            tags["mlflow.parentRunId"] = _run_id(Path(record["parent"]))
        # It is there already if a feed was cut off before it could remember.
        found = self._client.search_runs([experiment], f"tags.key = '{key}'", max_results=1)
        run = next(iter(found), None) or self._client.create_run(
            experiment,
            start_time=record["time"],
            run_name=record["name"],
            tags={**tags, "key": key},
        )
        self.state.update(key=key, run_id=run.info.run_id, steps={}, attempt=0)
        self.state["started"] = record["time"]
        self._remember(self.state["offset"])

    def _describe(self, record: dict[str, Any]) -> None:
        """What a new run was started with; may be sent twice."""
        from mlflow.entities import Param

        run_id = self.state["run_id"]
        params = [Param(name, value) for name, value in _params(record["config"])]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS])
        self._client.log_dict(run_id, record["config"], "config.yaml")
        self._log_inputs(record["inputs"])

    def _reopen(self, record: dict[str, Any]) -> None:
        run_id = self.state["run_id"]
        self._client.update_run(run_id, "RUNNING")
        known = self._client.get_run(run_id).data.params
        for name, value in _params(record["config"]):
            # MLflow refuses to change a param, and the first value stays true of the first try.
            if known.get(name, value) != value:
                tag = f"resume.{self.state['attempt'] + 1}.{name}"
                self._client.set_tag(run_id, tag, value[:5000])

    def _send_artifact(self, record: dict[str, Any]) -> None:
        path = Path(record["path"])
        if path.is_file():
            self._client.log_artifact(self.state["run_id"], str(path), record["under"] or None)
        else:  # removed before it could be sent, which must not keep back what follows
            self._client.set_tag(self.state["run_id"], f"missing.{path.name}", str(path))

    def _send_register(self, record: dict[str, Any]) -> None:
        """Files, version, aliases, in this order: an alias never names a version without files."""
        run_id, name, tags = self.state["run_id"], record["model"], record["tags"]
        # By its content: a run that is resumed may register again, the same ones or others.
        path = f"model-{tags['digest'][:12]}"
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{path}"
        self._ensure_model(name)
        known = self._client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
        # It is there already if the same was registered before, or a feed was cut off here.
        version = next((v for v in known if v.source == source), None)
        if version is None:
            folder = Path(record["folder"])
            if not folder.is_dir() or folder_digest(folder) != tags["digest"]:
                # A run that went on has replaced them, and registers its own.
                self._client.set_tag(run_id, f"not_registered.{path}", "its files were replaced")
                return
            self._client.log_artifacts(run_id, record["folder"], path)
            with tempfile.TemporaryDirectory() as into:
                fetch(source, tags["digest"], Path(into), f"{name}, just sent")
            tags = {**tags, "parent_run": run_id}
            version = self._client.create_model_version(name, source, run_id, tags=tags)
        for alias in record.get("aliases", ("candidate",)):
            self._client.set_registered_model_alias(name, alias, version.version)
        self._client.set_tag(run_id, "registered", f"{name}/{version.version}")

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _send_end(self, record: dict[str, Any]) -> None:
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


def _params(config: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(value)[:_PARAM_LENGTH]) for name, value in _flat(config)]


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
