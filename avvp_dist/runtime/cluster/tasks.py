"""Tasks on a Ray cluster that is joined or started, with Ray's errors as ours."""

from __future__ import annotations

import errno
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

from avvp_dist.errors import AvvpError, ClusterError, first_line
from avvp_dist.runtime.cluster.hosts import capacity, gpus_of_tasks, may_grow
from avvp_dist.runtime.environment import home
from avvp_dist.task_gpu import GpuClaim, gpu_claim

_SECONDS_BETWEEN_CHECKS, _CHECKS = 5.0, 4
_SECONDS_BETWEEN_LOOKS = 1.0
_WAITING_TO_GROW = 256
"""Tasks that wait for hosts which an autoscaler adds: its hosts are as many as these need."""
_LONGEST_TEMPORARY = 38
"""Bytes of a temporary folder below which the path of each of Ray's sockets has at most 107."""
T = TypeVar("T")
_AGAIN = "Run the same command again: it goes on with what is missing"


class ClusterGoneError(ClusterError):
    """Loss of the cluster, after which no task can run."""


def start_ray(cpus: int = 0) -> None:
    """Join the cluster of RAY_ADDRESS, or start one on this host.

    Args:
        cpus: cores of a cluster that is started; 0: all.

    Raises:
        ClusterError: no cluster could be joined or started.
    """
    _prepare_environment()
    import ray  # takes a second

    _check_reachable(os.environ.get("RAY_ADDRESS", ""))
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="ERROR")
        else:
            _keep_token()
            ray.init(
                "local",
                _temp_dir=_short_folder(),
                num_cpus=cpus or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"Ray did not start: {first_line(error)}",
            remedy="Check RAY_ADDRESS, or unset it to start Ray here",
        ) from None


@contextmanager
def ray_cluster(cpus: int = 0) -> Iterator[None]:
    """Ray for as long as the context lasts, as `start_ray` joins or starts it.

    A Ray that this process has already is used and left running.

    Raises:
        ClusterError: no cluster could be joined or started.
    """
    _prepare_environment()
    import ray  # takes a second

    if ray.is_initialized():
        yield
        return
    start_ray(cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _prepare_environment() -> None:
    """Set the variables that Ray reads when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Later versions of Ray have this default. Without it this one warns in each task without a GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # `ray start` asks for a token as soon as there is one, but a driver that joins offers none.
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or (home() or Path("/")) / ".ray" / "auth_token"
    if os.environ.get("RAY_ADDRESS") and ("RAY_AUTH_TOKEN" in os.environ or Path(token).is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _keep_token() -> None:
    """Keep the token of a cluster that starts here in a variable if no home can hold its file."""
    folder = (home() or Path(os.devnull)) / ".ray"
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK) or (folder / "auth_token").is_file():
            return
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _short_folder() -> str | None:
    """A folder for Ray's sockets where that of TMPDIR is too long for them; None: Ray's own.

    Raises:
        ClusterError: if no short one can be written.
    """
    own = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(own)) <= _LONGEST_TEMPORARY:
        return None
    short = Path(f"/tmp/ray-{os.getuid()}")  # beside Ray's own default, /tmp/ray
    try:
        short.mkdir(mode=0o700, exist_ok=True)
        if not os.access(short, os.W_OK):
            raise PermissionError(errno.EACCES, "not writable")
    except OSError as error:
        raise ClusterError(
            f"TMPDIR={own} is too long for Ray's sockets, and {short}: {error.strerror}",
            remedy=f"Set RAY_TMPDIR to a folder of at most {_LONGEST_TEMPORARY} bytes",
        ) from None
    return str(short)


def _check_reachable(address: str) -> None:
    """Raise `ClusterError` if no cluster listens, because Ray itself retries for 15 minutes."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdigit():
        return  # empty, `auto`, `local`, `ray://HOST:PORT`
    import ray

    hosts = [host.strip("[]")]
    if hosts[0] in ("localhost", "127.0.0.1", "::1"):
        hosts.append(ray.util.get_node_ip_address())  # what Ray replaces it by
    if not any(_answers(host, port) for host in hosts):
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS={address}",
            remedy="Check RAY_ADDRESS, or unset it to start Ray here",
        )


def _answers(host: str, port: str) -> bool:
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=5):
        return True
    return False


def result(reference: object, what: str) -> Any:
    """Value of a finished task.

    Args:
        reference: Ray's reference of the task.
        what: name of the task in errors.

    Raises:
        AvvpError: the one that the task raised.
        ClusterError: the task raised another error or was lost.
    """
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AvvpError):
            raise error.cause from None
        raise ClusterError(f"{what} failed: {error.cause!r}") from error
    except ray.exceptions.LocalRayletDiedError:
        raise ClusterGoneError("the Ray node of this process is gone", remedy=_AGAIN) from None
    except ray.exceptions.RayError as error:
        raise ClusterError(f"{what} was lost: {first_line(error)}", remedy=_AGAIN) from None


@overload
def map_tasks(
    function: Callable[..., T],
    calls: Sequence[tuple[object, ...]],
    workers: int,
    what: str,
    *,
    cpus: int = ...,
    gpus: float = ...,
    calls_per_gpu_task: int = ...,
) -> Iterator[T]: ...
@overload
def map_tasks(
    function: Callable[..., T],
    calls: Sequence[tuple[object, ...]],
    workers: int,
    what: str,
    *,
    keep_going: bool,
    cpus: int = ...,
    gpus: float = ...,
    calls_per_gpu_task: int = ...,
) -> Iterator[T | AvvpError]: ...


def map_tasks(
    function: Callable[..., T],
    calls: Sequence[tuple[object, ...]],
    workers: int,
    what: str,
    *,
    keep_going: bool = False,
    cpus: int = 1,
    gpus: float = 0.0,
    calls_per_gpu_task: int = 1,
) -> Iterator[T | AvvpError]:
    """Run `function(*call)` as a Ray task for each call, and yield the results as they come.

    Twice as many tasks are in flight as the cluster's hosts can run, which is looked up again while
    tasks run. Where there is an autoscaler, more of them wait, because it adds hosts for these. A
    lost worker's task is tried three times. One call, and one worker without RAY_ADDRESS, run in
    this process without Ray. A Ray that this process has started already is used and left running.

    A task sees the GPUs that Ray gave it, and no others. Whether it may compute on one, in this
    process too, is told by `use_gpu`.

    Args:
        workers: tasks that run at once; 0: as many as the hosts can run.
        what: name of such a task in errors.
        keep_going: whether the error of a failed task is yielded in place of its result.
        cpus: cores of each task.
        gpus: GPUs of each task, if the cluster has any.
        calls_per_gpu_task: maximum number of calls of a task with GPUs, whose process Ray ends
            after it, so that the GPU is free. A lost task's calls are all made again.

    Raises:
        AvvpError: as `start_ray`, `gpus_of_tasks` and `result` do.
    """
    if len(calls) <= 1 or (workers == 1 and not os.environ.get("RAY_ADDRESS")):
        for call in calls:
            with gpu_claim(GpuClaim.ASKED if gpus else GpuClaim.NONE):
                outcome = _outcome(keep_going, function, *call)
            yield outcome
        return
    with ray_cluster(workers * cpus):
        import ray

        gpus = gpus_of_tasks(cpus, gpus, what)
        options = {"max_retries": 3, "retry_exceptions": [OSError]}
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, **options)(
            on_own_gpus(_calls_of(function, keep_going))
        )
        # The cores of a cluster that was joined were not chosen here.
        window = _Window(cpus, gpus, workers if os.environ.get("RAY_ADDRESS") else 0)
        each = math.ceil(len(calls) / max(1, capacity(cpus, gpus)))  # no GPU stays without a task
        parts = _parts(calls, min(calls_per_gpu_task, each) if gpus else 1)
        running: list[object] = []
        while True:
            running += [task.remote(part) for part in islice(parts, window.free(len(running)))]
            if not running:
                return
            ended, running = _ended(running)
            for one in ended:
                outcomes = _outcome(keep_going, result, one, what)
                yield from [outcomes] if isinstance(outcomes, AvvpError) else outcomes


def on_own_gpus(function: Callable[..., T]) -> Callable[..., T]:
    """A function as a Ray task that sees the GPUs that Ray gave it, and no others.

    Ray itself lets a task that asked for none see all GPUs of its host.
    """

    @wraps(function)
    def task(*arguments: object) -> T:
        import ray

        own = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        if not own:
            os.environ["DS_ACCELERATOR"] = "cpu"  # trainings take the CPU on purpose
        with gpu_claim(GpuClaim.HELD if own else GpuClaim.NONE):
            return function(*arguments)

    return task


def _calls_of(function: Callable[..., T], keep_going: bool) -> Callable[..., list[T | AvvpError]]:
    """A function of some calls, which returns their outcomes; its name is that of `function`."""

    def outcomes(part: Sequence[tuple[object, ...]]) -> list[T | AvvpError]:
        return [_outcome(keep_going, function, *call) for call in part]

    outcomes.__name__ = outcomes.__qualname__ = function.__name__
    return outcomes


def _parts(calls: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    left = iter(calls)
    while part := tuple(islice(left, size)):
        yield part


class _Window:
    """Number of tasks in flight, which grows with the cluster.

    Args:
        most: number of tasks that may be in flight; 0: as many as the hosts can run, and as many
            again to wait, or more if an autoscaler adds hosts for them.
    """

    def __init__(self, cpus: int, gpus: float, most: int) -> None:
        self._cpus, self._gpus, self._most = cpus, gpus, most
        self._waiting = 0 if may_grow() is False else _WAITING_TO_GROW
        self._look()

    def _look(self) -> None:
        self._size = self._most or 2 * capacity(self._cpus, self._gpus) + self._waiting
        self._looked = time.monotonic()

    def free(self, running: int) -> int:
        """Number of tasks to submit, given the number of those in flight."""
        due = time.monotonic() - self._looked > _SECONDS_BETWEEN_LOOKS
        if due and _answers(*_head()):  # Ray would wait for a head that is gone, and end us
            self._look()
        return max(0, self._size - running)


def _ended(running: list[object]) -> tuple[list[object], list[object]]:
    """Wait for a task to end, but not longer than a check; those that ended, and the others.

    Raises:
        ClusterGoneError: the cluster's head is gone. Ray itself waits a minute for it, and then
            ends the process.
    """
    import ray

    host, port = _head()
    for _ in range(_CHECKS):
        done, others = ray.wait(running, num_returns=1, timeout=_SECONDS_BETWEEN_CHECKS)
        if done or _answers(host, port):
            return done, others
    raise ClusterGoneError(f"the head of the Ray cluster, {host}:{port}, is gone", remedy=_AGAIN)


def _head() -> tuple[str, str]:
    """Host and port of the cluster's head."""
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host, port


def _outcome(keep_going: bool, function: Callable[..., T], *arguments: object) -> T | AvvpError:
    """Value of a call, or its error if `keep_going` and the cluster still runs."""
    try:
        return function(*arguments)
    except AvvpError as error:
        if not keep_going or isinstance(error, ClusterGoneError):
            raise
        return error
