"""Ray: joining or starting a cluster, and its errors as ours."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from avvp_dist.errors import AvvpError, ClusterError, first_line

_SECONDS_BETWEEN_CHECKS, _CHECKS = 5.0, 4
_AGAIN = "Run the same command again: it goes on with what is missing"


class ClusterGoneError(ClusterError):
    """No task can run any more."""


def start_ray(cpus: int = 0) -> None:
    """Join the cluster of RAY_ADDRESS, or start one in this process, of `cpus` (0: all) cores.

    Raises:
        ClusterError: if neither works.
    """
    _prepare_environment()
    import ray  # takes a second

    _check_reachable(os.environ.get("RAY_ADDRESS", ""))
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(
                "local",
                num_cpus=cpus or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"Ray did not start: {first_line(error)}",
            remedy="Check RAY_ADDRESS, or unset it to start Ray here",
        ) from None


def _prepare_environment() -> None:
    """What Ray reads when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The default of a coming Ray; unset, it warns in every task without a GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # `ray start` asks for a token as soon as there is one, but nobody who joins offers it.
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_ADDRESS") and ("RAY_AUTH_TOKEN" in os.environ or Path(token).is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _check_reachable(address: str) -> None:
    """Raise `ClusterError` where nobody listens: Ray itself tries for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdigit():
        return  # nothing, `auto`, `local`, `ray://HOST:PORT`
    import ray

    hosts = [host.strip("[]")]
    if hosts[0] in ("localhost", "127.0.0.1", "::1"):
        hosts.append(ray.util.get_node_ip_address())  # what Ray takes it for
    if not any(_answers(host, port) for host in hosts):
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS={address}",
            remedy="Check RAY_ADDRESS, or unset it to start Ray here",
        )


def _answers(host: str, port: str) -> bool:
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=5):
        return True
    return False


def result(reference: Any, what: str) -> Any:
    """The value of a finished task.

    Raises:
        AvvpError: the one that the task raised.
        ClusterError: if it failed otherwise or was lost; `what` names it.
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


def map_tasks(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    workers: int,
    what: str,
    *,
    keep_going: bool = False,
    gpus: float = 0.0,
) -> Iterator[Any]:
    """The results of `function(*call)`, one Ray task each, as they come.

    At most two tasks a core wait at once; a lost worker's task is tried three times. One call, and
    one worker without RAY_ADDRESS, need no Ray. A Ray that this process has started already is used
    and left running.

    Args:
        workers: tasks at once; 0: one per core.
        what: names such a task in errors.
        keep_going: the error of a task that failed is yielded as its result.
        gpus: of the cluster, for each task; only where there are any.

    Raises:
        AvvpError: as `start_ray` and `result` do.
    """
    if len(calls) <= 1 or (workers == 1 and not os.environ.get("RAY_ADDRESS")):
        for call in calls:
            yield _outcome(keep_going, function, *call)
        return
    _prepare_environment()
    import ray  # takes a second

    mine = not ray.is_initialized()
    if mine:
        start_ray(workers)
    try:
        there = ray.cluster_resources()
        task = ray.remote(
            num_cpus=1,
            num_gpus=gpus if there.get("GPU") else 0,
            max_retries=3,
            retry_exceptions=[OSError],
        )(function)
        window = 2 * int(there.get("CPU", 1))
        if workers and os.environ.get("RAY_ADDRESS"):  # whose cores are not ours to choose
            window = workers
        running: list[Any] = []
        for call in calls:
            running.append(task.remote(*call))
            if len(running) >= window:
                done, running = _next_ended(running)
                yield _outcome(keep_going, result, done, what)
        while running:
            done, running = _next_ended(running)
            yield _outcome(keep_going, result, done, what)
    finally:
        if mine:
            ray.shutdown()


def _next_ended(running: list[Any]) -> tuple[Any, list[Any]]:
    """A task that ended, and the others.

    Raises:
        ClusterError: when the cluster's head is gone; Ray itself waits a minute for it, and then
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


def _outcome(keep_going: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except AvvpError as error:
        if not keep_going or isinstance(error, ClusterGoneError):
            raise
        return error
