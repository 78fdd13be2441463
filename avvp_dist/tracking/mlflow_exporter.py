"""Export of records to MLflow: runs, metrics, figures and the model registry."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

from avvp_dist import __version__
from avvp_dist.commit import write_json
from avvp_dist.errors import AvvpError, ConfigError, StorageError
from avvp_dist.runtime.launched import launched_size
from avvp_dist.tracking.descriptions import (
    COMMAND,
    NOTE,
    SOURCE,
    describe_experiment,
    describe_run,
)
from avvp_dist.tracking.nodes import NODES
from avvp_dist.tracking.records import (
    FIGURES,
    RECORDS,
    ArtifactRecord,
    EndRecord,
    MetricsRecord,
    NodeRecord,
    Record,
    RegisterRecord,
    RunRecord,
    read_lines,
    read_records,
)
from avvp_dist.tracking.registration import register
from avvp_dist.tracking.server import connect, database, fault, redacted, tracking_uri, waiting

STATE = "mlflow.json"
"""File of a folder's `ExportState`."""

_METRICS, _PARAMS, _PARAM_LENGTH = 1000, 100, 6000
"""Maximum metrics and params per call, and characters per param, that MLflow takes."""
_RECORDS_AT_ONCE = 200
_PIXELS = 860
"""Width of a description on MLflow's pages, which show every picture in its own size."""


def sync(folder: Path) -> str:
    """Export the records of a run that MLflow does not have yet, and return the MLflow run's id.

    Raises:
        ConfigError: if no run lies in the folder.
        StorageError: if MLflow does not take every record; what it took stays.
    """
    if not (folder / RECORDS).is_file():
        raise ConfigError(f"{folder} holds no {RECORDS}")
    try:
        with waiting():
            exporter = MlflowExporter(folder)
            exporter.flush()
    except AvvpError:
        raise
    except Exception as error:  # MLflow raises many types
        raise StorageError(
            f"{folder}: not every record was sent: {fault(error)}",
            remedy="The same command goes on from there",
        ) from None
    return exporter.state.run_id


def is_sent(folder: Path) -> bool:
    """Whether MLflow has every record of the runs in a folder, down to the end of the last one."""
    last, end = next(reversed(list(read_records(folder))), (None, 0))
    return isinstance(last, EndRecord) and ExportState.load(folder).offset >= end


@dataclass
class ExportState:
    """How much of a folder's records MLflow has, and in which MLflow run."""

    offset: int = 0
    """Bytes of the records file that were exported."""
    key: str = ""
    """Key of the newest exported run."""
    run_id: str = ""
    """Its id in MLflow."""
    started: int = 0
    """Milliseconds since 1970 when it started."""
    attempt: int = 0
    """Exported attempts at it."""
    steps: dict[str, int] = field(default_factory=dict)
    """Last exported step of each metric."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Exported bytes of each file of node samples."""
    figures: list[str] = field(default_factory=list)
    """Small copies of exported figures, as paths among the artifacts of the run."""

    @classmethod
    def load(cls, folder: Path) -> ExportState:
        """Read the state of a folder; that of a folder without one is empty."""
        path = folder / STATE
        values = json.loads(path.read_text()) if path.exists() else {}
        return cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values})

    def save(self, folder: Path) -> None:
        write_json(folder / STATE, asdict(self))


class Point(NamedTuple):
    """One value of a metric, in the order of MLflow's `Metric`."""

    name: str
    value: float
    time: int
    """Milliseconds since 1970."""
    step: int


class MlflowExporter:
    """Exports the records of a folder, from where the last exporter stopped.

    Making one imports MLflow, and `flush` talks to the server: both take seconds and may raise
    whatever MLflow raises. The state is saved after each part, so that an exporter may be cut off
    anywhere, and another one goes on without loss and without doubled points.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._client = folder, connect()
        self.state = ExportState.load(folder)

    def flush(self) -> None:
        """Export every new record."""
        metrics: list[tuple[MetricsRecord, int]] = []
        for record, offset in read_records(self.folder, self.state.offset):
            if isinstance(record, MetricsRecord):
                metrics.append((record, offset))
                if len(metrics) < _RECORDS_AT_ONCE:
                    continue
            self._send_metrics(metrics)
            metrics = []
            if not isinstance(record, MetricsRecord):
                self._send(record)
                self._save_offset(offset)
        self._send_metrics(metrics)
        self._send_nodes()

    def _send(self, record: Record) -> None:
        if isinstance(record, RunRecord):
            self._send_nodes(before=record.time)
            self._send_run(record)
        elif isinstance(record, ArtifactRecord):
            self._send_artifact(record)
        elif isinstance(record, RegisterRecord):
            register(self._client, self.state.run_id, record, self.state.figures)
        elif isinstance(record, EndRecord):
            note = describe_run(self._client.get_run(self.state.run_id), self.state.figures)
            self._client.set_tag(self.state.run_id, NOTE, note)
            self._client.set_terminated(self.state.run_id, record.status, record.time)

    def _save_offset(self, offset: int) -> None:
        self.state.offset = offset
        self.state.save(self.folder)

    def _send_metrics(self, records: Sequence[tuple[MetricsRecord, int]]) -> None:
        steps = dict(self.state.steps)
        points = []
        for record, _ in records:
            for name, value in record.values.items():
                # A resumed run computes some steps again, and MLflow would keep both points.
                if record.step > steps.get(name, -1):
                    points.append(Point(name, value, record.time, record.step))
                    steps[name] = record.step
        self._log(points)
        if records:
            self.state.steps = steps
            self._save_offset(records[-1][1])

    def _log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(*point) for point in points]
        for start in range(0, len(metrics), _METRICS):
            self._client.log_batch(self.state.run_id, metrics=metrics[start : start + _METRICS])

    def _send_nodes(self, before: float = math.inf) -> None:
        """Export the samples that all nodes took `before` the next run of the folder began.

        Their step is the second since the run's first start.
        """
        if not self.state.run_id:
            return
        for path in sorted((self.folder / NODES).glob("*.jsonl")):
            points: list[Point] = []
            offset = start = self.state.nodes.get(path.name, 0)
            for record, end in read_lines(path, start):
                if record.time >= before:
                    break
                if isinstance(record, NodeRecord):
                    step = max(0, record.time - self.state.started) // 1000
                    points += (
                        Point(f"system/{path.stem}/{name}", value, record.time, step)
                        for name, value in record.values.items()
                    )
                offset = end
            self._log(points)
            if offset > start:
                self.state.nodes[path.name] = offset
                self.state.save(self.folder)

    def _send_run(self, record: RunRecord) -> None:
        if record.key != self.state.key:
            self._create(record)
        if self.state.attempt == 0:
            self._describe(record)
        else:
            self._reopen(record)
        self.state.attempt += 1

    def _create(self, record: RunRecord) -> None:
        experiment = self._experiment(record.experiment)
        tags = {**record.tags, **_environment(), "folder": str(self.folder.absolute())}
        if record.command:
            # MLflow's pages show what follows the last slash of a source.
            stage = record.experiment.removeprefix("avvp-")
            tags[SOURCE], tags[COMMAND] = f"avvp {stage}", record.command
        if record.parent:
            tags["mlflow.parentRunId"] = _run_id(Path(record.parent))
        # It is there already if an exporter was cut off before it could save its state.
        known = self._client.search_runs([experiment], f"tags.key = '{record.key}'", max_results=1)
        run = next(iter(known), None) or self._client.create_run(
            experiment,
            start_time=record.time,
            run_name=record.name,
            tags={**tags, "key": record.key},
        )
        self.state.key, self.state.run_id = record.key, run.info.run_id
        self.state.started, self.state.attempt, self.state.steps = record.time, 0, {}
        self.state.figures = []
        self.state.save(self.folder)

    def _describe(self, record: RunRecord) -> None:
        """Send the config and the inputs of a new run; sending them twice does no harm."""
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in _params(record.config)]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(self.state.run_id, params=params[start : start + _PARAMS])
        self._client.log_dict(self.state.run_id, dict(record.config), "config.yaml")
        self._log_inputs(record.inputs)

    def _reopen(self, record: RunRecord) -> None:
        run_id = self.state.run_id
        self._client.update_run(run_id, "RUNNING")
        known = self._client.get_run(run_id).data.params
        for name, value in _params(record.config):
            # MLflow refuses to change a param, and its value stays that of the first attempt.
            if known.get(name, value) != value:
                tag = f"resume.{self.state.attempt + 1}.{name}"
                self._client.set_tag(run_id, tag, value[:5000])

    def _send_artifact(self, record: ArtifactRecord) -> None:
        path = Path(record.path)
        if path.is_file():
            self._client.log_artifact(self.state.run_id, str(path), record.under or None)
            if record.under == FIGURES:
                self._send_small(path)
        else:  # it was removed before it could be sent; the later records must still be sent
            self._client.set_tag(self.state.run_id, f"missing.{path.name}", str(path))

    def _send_small(self, figure: Path) -> None:
        """Send a copy of a figure that is as wide as a description on MLflow's pages."""
        from PIL import Image, UnidentifiedImageError

        with tempfile.TemporaryDirectory() as scratch, suppress(UnidentifiedImageError):
            small = Path(scratch) / figure.name
            with Image.open(figure) as image:
                image.thumbnail((_PIXELS, 4 * _PIXELS))
                image.save(small)
            self._client.log_artifact(self.state.run_id, str(small), f"{FIGURES}/small")
            path = f"{FIGURES}/small/{figure.name}"
            # A resumed run draws its figures again.
            self.state.figures = [*(one for one in self.state.figures if one != path), path]

    def _experiment(self, name: str) -> str:
        """Id of an experiment, which is made if there is none of this name."""
        text = describe_experiment(name)
        known = self._client.get_experiment_by_name(name)
        if known is not None and known.lifecycle_stage == "deleted":
            raise StorageError(
                f"the experiment {name} of {redacted(tracking_uri())} was deleted",
                remedy=f"Restore it: mlflow experiments restore -x {known.experiment_id}",
            )
        if known is not None:
            if NOTE not in known.tags:  # of an older release; what a user wrote stays
                self._client.set_experiment_tag(known.experiment_id, NOTE, text)
            return str(known.experiment_id)
        file = database(tracking_uri())
        location = None if file is None else (file.parent / "mlartifacts" / name).as_uri()
        return str(self._client.create_experiment(name, location, {NOTE: text}))

    def _log_inputs(self, inputs: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        datasets = [
            DatasetInput(Dataset(Path(path).name, digest[:36], "local", json.dumps({"uri": path})))
            for path, digest in inputs.items()
        ]
        if datasets:
            self._client.log_inputs(self.state.run_id, datasets)


def _run_id(folder: Path) -> str:
    """Id of the MLflow run that a folder's records were sent to.

    Raises:
        ConfigError: if none was sent yet.
    """
    run_id = ExportState.load(folder).run_id
    if not run_id:
        raise ConfigError(
            f"tracking.parent: no records of {folder} were sent yet",
            remedy=f"avvp sync {folder}, then this run",
        )
    return run_id


def _params(config: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(name, str(value)[:_PARAM_LENGTH]) for name, value in _flat(config)]


def _flat(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Leaves of a nested mapping with the names of their sections, `section.key`."""
    rows: list[tuple[str, object]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return rows


def _environment() -> dict[str, str]:
    """Tags that say on which machine and from which code a run was made."""
    tags = {
        "version": __version__,
        "host": platform.node(),
        "python": platform.python_version(),
        "cpus": str(os.cpu_count()),
        "world_size": str(launched_size()),
    }
    if commit := _commit():
        tags["git"] = tags["mlflow.source.git.commit"] = commit
    return tags


@cache
def _commit() -> str:
    """Git commit of the code when this process first asks for it; empty outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    git = subprocess.run(command, capture_output=True, text=True, check=False)
    return git.stdout.strip() if git.returncode == 0 else ""
