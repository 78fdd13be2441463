"""Jobs: chains of commands that resume where they were cut off.

A job's ledger has a record of each finished command, under the hash of everything it was made from.
Running the job again does what is missing, and a changed key makes anew what depends on it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from tqdm import tqdm

from avvp_dist.commit import digest
from avvp_dist.errors import AvvpError, ClusterError
from avvp_dist.ledger import Ledger
from avvp_dist.runtime.cluster.hosts import gpus_of_tasks
from avvp_dist.runtime.cluster.tasks import on_own_gpus, ray_cluster, result
from avvp_dist.stages import STAGES
from avvp_dist.tracking.mlflow_exporter import is_sent
from avvp_dist.tracking.run import Run, TrackedConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance", covariant=True)


@dataclass(frozen=True)
class Command(Generic[C]):
    """One command of a job: a stage of the table with its config."""

    name: str
    """Name within the job, and of its record in the ledger."""
    stage: str
    config: C
    out: Path
    """Folder or file that the command alone makes."""
    prefix: str = ""
    """Prefix of its scores in the job's run."""
    words: tuple[str, ...] = ()
    """The config as words of a command line, for stages that run as processes."""


@dataclass(frozen=True)
class Job:
    """Commands in one folder, tracked as one run with the commands' runs nested under it."""

    name: str
    folder: Path
    inputs: str
    """Hash of what its first command reads."""
    commands: tuple[Command[DataclassInstance], ...]
    needs: Job | None = None
    """The job that must be done first."""
    experiment: str = "tables"
    """Name of the MLflow experiment."""
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of its run besides the scores."""

    @property
    def keys(self) -> list[str]:
        """For each command, the hash of everything it is made from."""
        keys, key = [], digest([self.inputs, self.needs.keys if self.needs else []])
        for command in self.commands:
            config = {k: v for k, v in asdict(command.config).items() if k != "tracking"}
            key = digest([key, command.stage, config])
            keys.append(key)
        return keys

    @property
    def ledger(self) -> Ledger:
        """Records of the finished commands."""
        return Ledger(self.folder / "ledger")

    @property
    def finished(self) -> int:
        """Number of leading commands that are done and would be made from the same inputs now."""
        made = zip(self.commands, self.keys, strict=True)
        unfinished = (
            number
            for number, (command, key) in enumerate(made)
            if self.ledger.finished(command.name, key) is None
        )
        return next(unfinished, len(self.commands))

    @property
    def is_finished(self) -> bool:
        """Whether all commands are done."""
        return self.finished == len(self.commands)

    @property
    def is_recorded(self) -> bool:
        """Whether all commands are done, and MLflow has the whole run if it is to have it."""
        return self.is_finished and (not _tracked(self).tracking.enabled or is_sent(self.folder))


def run_missing(job: Job, execute: Callable[[Command[DataclassInstance]], None]) -> None:
    """Execute the commands of a job that are not finished, in order.

    A command that was cut off goes on with what it left. Outputs that were made from something
    else are removed first, with those of all commands after it.
    """
    keys, ledger = job.keys, job.ledger
    for number in range(job.finished, len(keys)):
        command, key = job.commands[number], keys[number]
        if not ledger.begun(command.name, key):
            for stale in job.commands[number:]:
                ledger.path(stale.name).unlink(missing_ok=True)
                _remove(stale.out)
        ledger.begin(command.name, key)
        execute(command)
        ledger.finish(command.name, key)


def run_jobs(
    jobs: Sequence[Job], cpus: int, gpus: float, *, fresh: bool = True
) -> dict[str, AvvpError]:
    """Run jobs on Ray, each after the one it needs.

    Args:
        jobs: a job that another one needs stands before it.
        cpus: CPU cores of the cluster for each job.
        gpus: GPUs for each job, if the cluster has any.
        fresh: each job gets a process of its own. Otherwise one process runs jobs in turn, which
            saves the seconds in which it starts; jobs with GPUs always start afresh, because a
            process keeps its memory on them.

    Returns:
        The errors of the jobs that failed, by name.

    Raises:
        ClusterError: if no host has that many cores or GPUs, and none will be added.
    """
    missing = [job for job in jobs if not job.is_recorded]
    if not missing:
        return {}
    failed: dict[str, AvvpError] = {}
    with ray_cluster():
        import ray

        gpus = gpus_of_tasks(cpus, gpus, "a job")
        calls = 1 if fresh or gpus else 0  # 0: as many as there are
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=calls, max_retries=2)(
            on_own_gpus(run_job)
        )
        references: dict[str, object] = {}
        for job in missing:
            needed = references.get(job.needs.name) if job.needs else None
            references[job.name] = task.remote(job, *([needed] if needed else []))
        names = {reference: name for name, reference in references.items()}
        with tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit=" jobs") as bar:
            while names:
                (done,), _ = ray.wait(list(names), num_returns=1)
                name = names.pop(done)
                try:
                    result(done, name)
                    bar.write(f"{name}: done")
                except AvvpError as error:
                    failed[name] = error
                    bar.write(f"{name}: {error}")
                bar.update()
    return failed


def run_here(jobs: Sequence[Job]) -> dict[str, AvvpError]:
    """Run jobs in turn in this process, for stages that use Ray themselves.

    Returns:
        The errors of the jobs that failed, by name. A job that needs one of them fails with it.
    """
    missing = [job for job in jobs if not job.is_recorded]
    failed: dict[str, AvvpError] = {}
    with tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit=" jobs") as bar:
        for job in missing:
            try:
                if job.needs and job.needs.name in failed:
                    raise failed[job.needs.name]
                run_job(job)
                bar.write(f"{job.name}: done")
            except Exception as error:  # as on Ray, whatever stops a job stops no other
                unknown = ClusterError(f"{job.name} failed: {error!r}")
                failed[job.name] = error if isinstance(error, AvvpError) else unknown
                bar.write(f"{job.name}: {failed[job.name]}")
            bar.update()
    return failed


def run_job(job: Job, *after: Path) -> Path:
    """Do what is missing of a job in this process, with its output in `log.txt`.

    Args:
        after: folders of jobs that Ray makes this one wait for.

    Returns:
        The job's folder.
    """
    if job.is_recorded:
        return job.folder
    job.folder.mkdir(parents=True, exist_ok=True)
    last = job.commands[-1]
    with (
        (job.folder / "log.txt").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        Run(job.experiment, job.folder, _tracked(job), dict(job.tags), resume=True) as run,
    ):

        def finish(command: Command[DataclassInstance]) -> None:
            try:
                _call(command)
            except BaseException:
                traceback.print_exc()
                raise
            if command is last:
                # The last command is finished once its scores are recorded.
                run.log(run.attempt, **job.metrics, **scores(job))
                if last.stage == "evaluate":
                    run.artifact(last.out / "scores.json")

        run_missing(job, finish)
    return job.folder


def scores(job: Job) -> dict[str, float]:
    """Scores of a finished job's evaluations, each with its command's prefix."""
    named = {}
    for command in job.commands:
        if command.stage == "evaluate":
            judged = json.loads((command.out / "scores.json").read_text())["scores"]
            named.update({f"{command.prefix}{key}": value for key, value in judged.items()})
    return named


def raise_if_failed(failed: Mapping[str, AvvpError], jobs: int, out: Path) -> None:
    """Raise `ClusterError` if any job failed; it names the first.

    Args:
        jobs: number of all jobs.
        out: folder of the jobs' folders.
    """
    if failed:
        name, error = next(iter(failed.items()))
        raise ClusterError(
            f"{len(failed)} of {jobs} jobs failed, first {name}: {error}",
            remedy=f"Their logs are {out}/*/*/log.txt; run the command again to resume them",
        )


def _tracked(job: Job) -> TrackedConfig:
    """The last command's config with the job's own name, nested under the run of all jobs."""
    config = cast(TrackedConfig, job.commands[-1].config)
    parent = str(job.folder.parents[1])
    return replace(config, tracking=replace(config.tracking, name=job.name, parent=parent))


def _call(command: Command[DataclassInstance]) -> None:
    STAGES[command.stage].run(command.config)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
