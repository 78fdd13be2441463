"""Tasks on a Ray cluster that is joined or started, with Ray's errors as ours."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, overload

from avvp_dist.errors import AvvpError, ClusterError, first_line
from avvp_dist.runtime.environment import home

_SECONDS_BETWEEN_CHECKS, _CHECKS = 5.0, 4
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
) -> Iterator[T | AvvpError]:
    """Run `function(*call)` as a Ray task for each call, and yield the results as they come.

    At most two tasks per core are submitted at once. A lost worker's task is tried three times. One
    call, and one worker without RAY_ADDRESS, run in this process without Ray. A Ray that this
    process has started already is used and left running.

    Args:
        workers: tasks that run at once; 0: one per core.
        what: name of such a task in errors.
        keep_going: whether the error of a failed task is yielded in place of its result.
        cpus: cores of each task.
        gpus: GPUs of each task, if the cluster has any.

    Raises:
        AvvpError: as `start_ray` and `result` do.
    """
    if len(calls) <= 1 or (workers == 1 and not os.environ.get("RAY_ADDRESS")):
        for call in calls:
            yield _outcome(keep_going, function, *call)
        return
    with ray_cluster(workers * cpus):
        import ray

        resources = ray.cluster_resources()
        gpus = gpus if resources.get("GPU") else 0
        _check_fits(cpus, gpus, what)
        task = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=3,
            retry_exceptions=[OSError],
        )(function)
        window = max(1, 2 * int(resources.get("CPU", 1)) // cpus)
        if workers and os.environ.get("RAY_ADDRESS"):  # its cores were not chosen here
            window = workers
        running: list[object] = []
        for call in calls:
            running.append(task.remote(*call))
            if len(running) >= window:
                done, running = _next_ended(running)
                yield _outcome(keep_going, result, done, what)
        while running:
            done, running = _next_ended(running)
            yield _outcome(keep_going, result, done, what)


def _check_fits(cpus: int, gpus: float, what: str) -> None:
    """Raise `ClusterError` if no host can run a task, because Ray itself would wait for one."""
    import ray

    hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(host.get("CPU", 0) >= cpus and host.get("GPU", 0) >= gpus for host in hosts):
        most = max(hosts, key=lambda host: (host.get("GPU", 0), host.get("CPU", 0)))
        raise ClusterError(
            f"{what} needs {cpus} cores and {gpus:g} GPUs on one host; the largest host has "
            f"{most.get('CPU', 0):g} and {most.get('GPU', 0):g}",
            remedy="Ask for fewer, or add a larger host",
        )


def _next_ended(running: list[object]) -> tuple[object, list[object]]:
    """Wait for a task to end; that task, and the others.

    Raises:
        ClusterGoneError: the cluster's head is gone. Ray itself waits a minute for it, and then
            ends the process.
    """
    import ray

    head, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    for _ in range(_CHECKS):
        done, others = ray.wait(running, num_returns=1, timeout=_SECONDS_BETWEEN_CHECKS)
        while not done and _answers(head, port):
            done, others = ray.wait(running, num_returns=1, timeout=_SECONDS_BETWEEN_CHECKS)
        if done:
            return done[0], others
    raise ClusterGoneError(f"the head of the Ray cluster, {head}:{port}, is gone", remedy=_AGAIN)


def _outcome(keep_going: bool, function: Callable[..., T], *arguments: object) -> T | AvvpError:
    """Value of a call, or its error if `keep_going` and the cluster still runs."""
    try:
        return function(*arguments)
    except AvvpError as error:
        if not keep_going or isinstance(error, ClusterGoneError):
            raise
        return error
