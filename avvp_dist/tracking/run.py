"""A tracked run: a stage writes local records, and a thread exports them to MLflow."""

from __future__ import annotations

import shlex
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, SupportsFloat

from avvp_dist.commit import folder_digest
from avvp_dist.config import TrackingConfig
from avvp_dist.errors import Preempted, StorageError
from avvp_dist.runtime.launched import launched_local_rank, launched_rank
from avvp_dist.tracking.mlflow_exporter import MlflowExporter
from avvp_dist.tracking.nodes import NodeMonitor
from avvp_dist.tracking.records import (
    FIGURES,
    ArtifactRecord,
    EndRecord,
    MetricsRecord,
    RecordWriter,
    RegisterRecord,
    RunRecord,
    finite,
    read_records,
)
from avvp_dist.tracking.server import fault, redacted, tracking_uri

_SECONDS_BETWEEN_FLUSHES = 5.0
_SECONDS_TO_CLOSE = 60.0
_SECONDS_OF_PATIENCE = 5.0


class TrackedConfig(Protocol):
    """The config of a stage: a dataclass with a `tracking` section."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def tracking(self) -> TrackingConfig: ...


class Run:
    """One run of a stage, which ends as failed if its `with` block raises.

    Nothing here raises because of MLflow, and nothing waits for it before `close`.

    Args:
        stage: stage that runs; its runs are the MLflow experiment `avvp-STAGE`.
        folder: output folder, where `records.jsonl` lies.
        config: resolved config.
        tags: hashes and versions of everything the run is made from.
        inputs: data that the run reads: path to hash.
        resume: continue the newest run of the folder instead of starting a new one.
        active: False on ranks other than 0. They write nothing, but the first rank of each node
            samples its system metrics.

    Attributes:
        key: name of the run among those of its folder; empty if not active.
        attempt: number of earlier attempts at this run: 0 for a new one.
        draws_figures: whether the figures of the run are wanted.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        config: TrackedConfig,
        tags: Mapping[str, str],
        *,
        inputs: Mapping[str, str] | None = None,
        resume: bool = False,
        active: bool = True,
    ) -> None:
        tracking = config.tracking
        self.folder, self.active, self.attempt, self.key = folder, active, 0, ""
        self.draws_figures = tracking.figures
        if active:
            self._start(stage, config, tags, inputs or {}, resume)
        self._exporter = ExportThread(folder) if active and tracking.enabled else None
        first_of_node = launched_local_rank() == 0
        self._node = NodeMonitor(folder) if first_of_node and tracking.enabled else None

    def _start(
        self,
        stage: str,
        config: TrackedConfig,
        tags: Mapping[str, str],
        inputs: Mapping[str, str],
        resume: bool,
    ) -> None:
        tracking, folder = config.tracking, self.folder
        keys = [one.key for one, _ in read_records(folder) if isinstance(one, RunRecord)]
        self.key = keys[-1] if resume and keys else uuid.uuid4().hex
        self.attempt = keys.count(self.key)
        self._writer = RecordWriter(folder)
        self._writer.write(
            RunRecord(
                key=self.key,
                experiment=f"avvp-{stage}",
                name=tracking.name or folder.name,
                config=asdict(config),
                tags=tags,
                inputs=inputs,
                parent=str(Path(tracking.parent).absolute()) if tracking.parent else "",
                command=stage_command(stage, sys.argv),
            )
        )

    def log(self, step: int, **metrics: SupportsFloat) -> None:
        """Record metrics of a step; values that are not finite are left out."""
        if self.active and (values := finite(metrics)):
            self._writer.write(MetricsRecord(step=step, values=values))

    def figure(self, path: Path) -> None:
        """Record a picture to show with the run."""
        self.artifact(path, under=FIGURES)

    def artifact(self, path: Path, under: str = "") -> None:
        """Record a file to keep with the run, in the folder `under` of its artifacts."""
        if self.active:
            self._writer.write(ArtifactRecord(path=str(path.absolute()), under=under))

    def register(
        self,
        model: str,
        export: Path,
        tags: Mapping[str, str],
        aliases: Sequence[str] = ("candidate",),
    ) -> None:
        """Record an exported model, to be a version of `model` with these tags and aliases.

        Files that are registered already stay the same version.
        """
        if self.active:
            self._writer.write(
                RegisterRecord(
                    model=model,
                    folder=str(export.absolute()),
                    tags={**tags, "digest": folder_digest(export)},
                    aliases=tuple(aliases),
                )
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
            print(error, file=sys.stderr)  # the process ends with the error that came first

    def close(self, status: str = "FINISHED") -> None:
        """End the run, and wait a bounded time until MLflow has the remaining records.

        Raises:
            StorageError: if the disk does not take the last records.
        """
        if self._node is not None:
            self._node.close()
        try:
            if self.active:
                self._writer.write(EndRecord(status=status))
                self._writer.close()
        finally:
            if self._exporter is not None:
                self._exporter.close()


class ExportThread:
    """Thread that exports a folder's records to MLflow, and warns once when it cannot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._behind = True
        """Whether records may not have been exported yet."""
        self._warned = False
        self._thread.start()

    def close(self) -> None:
        """Export the rest, for a bounded time; a line says how to export what is left."""
        self._stop.set()
        self._thread.join(_SECONDS_TO_CLOSE)
        if self._behind:
            print(
                f"MLflow: not every record was sent to {redacted(tracking_uri())}; they are safe "
                f"in {self.folder}, send them with: avvp sync {self.folder}",
                file=sys.stderr,
            )

    def _work(self) -> None:
        exporter = None
        pause, failing_since = _SECONDS_BETWEEN_FLUSHES, 0.0
        while True:
            last = self._stop.is_set()
            try:
                exporter = exporter or MlflowExporter(self.folder)
                exporter.flush()
                self._behind, pause, failing_since = False, _SECONDS_BETWEEN_FLUSHES, 0.0
            except Exception as error:  # MLflow raises many types, and the run goes on without it
                self._behind = True
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since < _SECONDS_OF_PATIENCE:
                    # Runs that start together collide in MLflow's tables, or wait for their parent.
                    time.sleep(0.5)
                    continue
                pause = min(2 * pause, 60.0)
                self._warn(error)
            if last:
                return
            if not self._stop.wait(pause):
                self._behind = True

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"MLflow: {fault(error)}; the run goes on and keeps its records in {self.folder}",
                file=sys.stderr,
            )


def stage_command(stage: str, words: Sequence[str]) -> str:
    """The command line of a stage, as `avvp STAGE KEY=VALUE ...`.

    Args:
        words: those that started the process. The keys are left out if something else than the
            stage was started, such as a job of several stages.
    """
    # Launchers add the number of the rank.
    program, keys = Path(words[0]), [w for w in words[1:] if not w.startswith("--local_rank")]
    if program.suffix == ".py" and program.stem == stage:  # the file of the stage in a checkout
        keys = [stage, *keys]
    if keys[:1] != [stage]:
        return f"avvp {stage}"
    return redacted(shlex.join(["avvp", *keys]))


def stage_run(
    stage: str,
    folder: Path,
    config: TrackedConfig,
    tags: Mapping[str, str],
    inputs: Mapping[str, str] | None = None,
) -> Run:
    """Start a new run of a stage that does not connect its ranks; rank 0 records for all."""
    return Run(stage, folder, config, tags, inputs=inputs, active=launched_rank() == 0)
