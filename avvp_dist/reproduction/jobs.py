"""Jobs: chains of stages that run on Ray, and go on where they were.

A job keeps a ledger of the stages it has finished, by the hash of everything they were made from:
the same command again does what is missing, and a changed key makes anew what depends on it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from avvp_dist.commit import digest, write_json
from avvp_dist.errors import AvvpError, ClusterError, ConfigError
from avvp_dist.runtime.ray_tasks import result, start_ray
from avvp_dist.tracking.run import Run

LEDGER = "job.json"

_MODULES = {
    "calibrate": "grounding.calibrate",
    "ground": "grounding.job",
    "pretrain": "tasks.pretraining",
    "finetune": "tasks.finetuning",
    "refine": "tasks.refinement",
    "evaluate": "tasks.evaluation",
}
"""Where the function of each kind of stage is."""


@dataclass(frozen=True)
class Stage:
    """One stage of a job: its config, and the folder that is its own."""

    kind: str
    """The function that does it, see `_MODULES`."""
    config: Any
    out: Path
    prefix: str = ""
    """Before the names of its scores in the job's run."""


@dataclass(frozen=True)
class Job:
    """Stages in one folder, tracked as one run with the stages nested under it."""

    name: str
    folder: Path
    before: str
    """Hash of what its first stage reads."""
    stages: tuple[Stage, ...]
    needs: Job | None = None
    """The job that must be done first."""
    experiment: str = "tables"
    """Names the MLflow experiment."""
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What its run says beside its scores."""

    @property
    def keys(self) -> list[str]:
        """For each stage, the hash of everything it is made from."""
        keys, key = [], digest([self.before, self.needs.keys if self.needs else []])
        for stage in self.stages:
            config = {k: v for k, v in asdict(stage.config).items() if k != "tracking"}
            key = digest([key, stage.kind, config])
            keys.append(key)
        return keys

    @property
    def finished(self) -> int:
        """How many of its stages are done, and were made from what they would be made from now."""
        done = _ledger(self)["done"]
        wanted = enumerate(self.keys)
        return next((n for n, key in wanted if done[n : n + 1] != [key]), len(self.stages))


def run_jobs(jobs: Sequence[Job], cpus: int, gpus: float) -> dict[str, AvvpError]:
    """Run jobs on Ray, each after the one it needs; returns the errors of those that failed.

    Args:
        jobs: a job that another one needs stands before it.
        cpus, gpus: of the cluster, for each job; GPUs only where there are any.
    """
    missing = [job for job in jobs if job.finished < len(job.stages)]
    if not missing:
        return {}
    import ray  # takes a second, and finished jobs need none

    start_ray()
    failed: dict[str, AvvpError] = {}
    try:
        _check_room(cpus, gpus)
        # A process trains once: what it leaves behind in it must not reach the next job.
        task = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus if ray.cluster_resources().get("GPU") else 0,
            max_calls=1,
            max_retries=2,
        )(run_job)
        references: dict[str, Any] = {}
        for job in missing:
            before = references.get(job.needs.name) if job.needs else None
            references[job.name] = task.remote(job, *([before] if before else []))
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
    finally:
        ray.shutdown()
    return failed


def run_here(jobs: Sequence[Job]) -> dict[str, AvvpError]:
    """Run jobs in turn in this process, for stages that spread over Ray by themselves.

    Returns the errors of those that failed; a job that needs one of them fails with it.
    """
    missing = [job for job in jobs if job.finished < len(job.stages)]
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


def _check_room(cpus: int, gpus: float) -> None:
    """Raise `ConfigError` where no node could ever run a job: Ray would wait for one."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for key, asked, kind in (("cpus", cpus, "CPU"), ("gpus", gpus, "GPU")):
        maximum = max(node.get(kind, 0) for node in nodes)
        if asked > maximum and (kind == "CPU" or maximum):
            raise ConfigError(f"{key}={asked}: no node of the cluster has more than {maximum:g}")


def run_job(job: Job, *after: Path) -> Path:
    """Do what is missing of a job and return its folder; `after` is what Ray makes it wait for."""
    keys, first, state = job.keys, job.finished, _ledger(job)
    if first == len(keys):
        return job.folder
    if state["started"] != keys[first]:
        for stage in job.stages[first:]:
            shutil.rmtree(stage.out, ignore_errors=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    last = job.stages[-1]
    with (
        (job.folder / "log.txt").open("a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        Run(
            job.experiment, job.folder, _tracked(last.config, job), dict(job.tags), resume=True
        ) as run,
    ):
        for number in range(first, len(keys)):
            write_json(job.folder / LEDGER, {"done": keys[:number], "started": keys[number]})
            try:
                _call(job.stages[number])
            except BaseException:
                traceback.print_exc()
                raise
        run.log(run.attempt, **job.metrics, **scores(job))
        if last.kind == "evaluate":
            run.artifact(last.out / "scores.json")
        write_json(job.folder / LEDGER, {"done": keys, "started": ""})
    return job.folder


def scores(job: Job) -> dict[str, float]:
    """What the evaluations of a finished job found, each score behind its stage's prefix."""
    found = {}
    for stage in job.stages:
        if stage.kind == "evaluate":
            judged = json.loads((stage.out / "scores.json").read_text())["scores"]
            found.update({f"{stage.prefix}{key}": value for key, value in judged.items()})
    return found


def raise_if_failed(failed: Mapping[str, AvvpError], jobs: int, out: Path) -> None:
    """Raise `ClusterError` if any of so many `jobs` failed, naming the first."""
    if failed:
        name, error = next(iter(failed.items()))
        raise ClusterError(
            f"{len(failed)} of {jobs} jobs failed, first {name}: {error}",
            remedy=f"Their logs are {out}/*/*/log.txt; the same command goes on with them",
        )


def _ledger(job: Job) -> dict[str, Any]:
    path = job.folder / LEDGER
    found: dict[str, Any] = (
        json.loads(path.read_text()) if path.exists() else {"done": [], "started": ""}
    )
    return found


def _tracked(config: Any, job: Job) -> Any:
    """The config with the job's own name, nested under all jobs' run."""
    parent = str(job.folder.parents[1])
    return replace(config, tracking=replace(config.tracking, name=job.name, parent=parent))


def _call(stage: Stage) -> None:
    # Imported where they run: a driver without torch at work stays light.
    module = import_module(f"avvp_dist.{_MODULES[stage.kind]}")
    getattr(module, stage.kind)(stage.config)
