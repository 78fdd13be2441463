"""A tracked run: what a stage logs goes to local records first, a thread feeds MLflow from them."""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avvp_dist.commit import folder_digest
from avvp_dist.config import TrackingConfig
from avvp_dist.errors import Preempted, StorageError, first_line
from avvp_dist.tracking.mlflow_exporter import MlflowExporter
from avvp_dist.tracking.nodes import NodeMonitor
from avvp_dist.tracking.records import Records, finite, read_records
from avvp_dist.tracking.server import shown, tracking_uri

_SECONDS_BETWEEN_FLUSHES = 5.0
_SECONDS_TO_CLOSE = 60.0
_SECONDS_OF_PATIENCE = 5.0


class Run:
    """One run of a stage, closed as failed when its `with` block raises. Nothing here raises
    because MLflow does, and nothing waits for it before `close`.

    Args:
        stage: names the MLflow experiment.
        folder: where `records.jsonl` lies.
        config: the resolved config, a dataclass.
        tags: lineage: hashes and versions of what the run was made from.
        inputs: data the run read: path to hash.
        resume: go on with the folder's newest run instead of a new one.
        active: False on ranks other than 0: nothing is done but to sample a node's system
            metrics, by its first rank.

    `attempt` counts how often it was resumed; `key` names the run among a folder's.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        config: Any,
        tags: dict[str, str],
        *,
        inputs: dict[str, str] | None = None,
        resume: bool = False,
        active: bool = True,
    ) -> None:
        tracking: TrackingConfig = config.tracking
        self.folder, self.active, self.attempt, self.key = folder, active, 0, ""
        if active:
            self._begin(stage, config, tags, inputs or {}, resume)
        self._feeder = ExportThread(folder) if active and tracking.enabled else None
        first_of_node = os.environ.get("LOCAL_RANK", "0") == "0"
        self._node = NodeMonitor(folder) if first_of_node and tracking.enabled else None

    def _begin(
        self, stage: str, config: Any, tags: dict[str, str], inputs: dict[str, str], resume: bool
    ) -> None:
        tracking, folder = config.tracking, self.folder
        keys = [r["key"] for r, _ in read_records(folder) if r["kind"] == "run"]
        key = keys[-1] if resume and keys else uuid.uuid4().hex
        self.attempt, self.key = keys.count(key), key
        self._records = Records(folder)
        self._records.write(
            "run",
            key=key,
            experiment=f"avvp-{stage}",
            name=tracking.name or folder.name,
            config=asdict(config),
            tags=tags,
            inputs=inputs,
            parent=str(Path(tracking.parent).absolute()) if tracking.parent else "",
        )

    def log(self, step: int, **metrics: Any) -> None:
        """Metrics of a step; values that are not finite are left out."""
        if self.active and (values := finite(metrics)):
            self._records.write("metrics", step=step, values=values)

    def figure(self, path: Path) -> None:
        """A picture file to show with the run."""
        self.artifact(path, under="figures")

    def artifact(self, path: Path, under: str = "") -> None:
        """A file to keep with the run."""
        if self.active:
            self._records.write("artifact", path=str(path.absolute()), under=under)

    def register(
        self,
        model: str,
        export: Path,
        tags: dict[str, str],
        aliases: tuple[str, ...] = ("candidate",),
    ) -> None:
        """An exported model as a version of `model`, a new one if its files are new."""
        if self.active:
            tags = {**tags, "digest": folder_digest(export)}
            self._records.write(
                "register",
                model=model,
                folder=str(export.absolute()),
                tags=tags,
                aliases=list(aliases),
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            preempted = kind is not None and issubclass(kind, Preempted)
            self.close("KILLED" if preempted else "FAILED" if kind else "FINISHED")
        except StorageError as error:
            if kind is None:
                raise
            print(error, file=sys.stderr)  # the error to end with is the one that came first

    def close(self, status: str = "FINISHED") -> None:
        """End the run; waits a bounded time for MLflow to take what is left.

        Raises:
            StorageError: if the disk does not take the last records.
        """
        if self._node is not None:
            self._node.close()
        try:
            if self.active:
                self._records.write("end", status=status)
                self._records.close()
        finally:
            if self._feeder is not None:
                self._feeder.close()


class ExportThread:
    """The thread that sends a folder's records to MLflow, and says once when it cannot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._left = True
        self._warned = False
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(_SECONDS_TO_CLOSE)
        if self._left:
            print(
                f"MLflow: not every record was sent to {shown(tracking_uri())}; they are safe in "
                f"{self.folder}, send them with: python tools/sync_mlflow.py {self.folder}",
                file=sys.stderr,
            )

    def _work(self) -> None:
        feed = None
        pause, failing = _SECONDS_BETWEEN_FLUSHES, 0.0
        while True:
            last = self._stop.is_set()
            try:
                feed = feed or MlflowExporter(self.folder)
                feed.flush()
                self._left, pause, failing = False, _SECONDS_BETWEEN_FLUSHES, 0.0
            except Exception as error:  # whatever MLflow raises, the run goes on without it
                self._left = True
                failing = failing or time.monotonic()
                if time.monotonic() - failing < _SECONDS_OF_PATIENCE:
                    # Runs that start together collide in MLflow's tables, or wait for their parent.
                    time.sleep(0.5)
                    continue
                pause = min(2 * pause, 60.0)
                self._warn(error)
            if last:
                return
            if not self._stop.wait(pause):
                self._left = True

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = shown(first_line(error))[:160]
            print(
                f"MLflow: {shown(tracking_uri())} does not answer, the run goes on and keeps its "
                f"records in {self.folder} ({type(error).__name__}: {reason})",
                file=sys.stderr,
            )


def stage_run(
    stage: str,
    folder: Path,
    config: Any,
    tags: dict[str, str],
    inputs: dict[str, str] | None = None,
) -> Run:
    """A new run of a stage of one process; with several, rank 0 speaks for all."""
    active = int(os.environ.get("RANK", "0")) == 0
    return Run(stage, folder, config, tags, inputs=inputs, active=active)
