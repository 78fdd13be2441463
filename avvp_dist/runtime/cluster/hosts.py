"""Hosts of the Ray cluster: the tasks that they can run, and whether an autoscaler adds some."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping

from avvp_dist.errors import ClusterError

_SECONDS_BETWEEN_LOOKS, _SECONDS_TO_REPORT = 0.5, 15.0
"""Ray's monitor reports every 5 s."""


def capacity(cpus: int, gpus: float) -> int:
    """Number of tasks of `cpus` cores and `gpus` GPUs that the cluster's hosts can run at once."""
    return sum(_fitting(host, cpus, gpus) for host in _hosts())


def gpus_of_tasks(cpus: int, gpus: float, what: str) -> float:
    """GPUs that each task gets: `gpus`, or 0 in a cluster that has no GPU and does not grow.

    Where no host can run a task, but an autoscaler may add one, a line on stderr says what is
    waited for. The wait itself is left to the submitted tasks: they are what an autoscaler sees.
    A head without cores and without an autoscaler is waited for here, until hosts join it.

    Args:
        cpus: cores of each task.
        gpus: GPUs of each task, if the cluster has any.
        what: name of such a task in messages.

    Raises:
        ClusterError: if no host can run a task, and none will be added.
    """
    waiting, began = False, time.monotonic()
    while not capacity(cpus, gpus):
        grows = may_grow()
        if grows is False and any(host.get("CPU") for host in _hosts()):
            return _without_gpus(cpus, gpus, what)
        known = grows is not None or time.monotonic() - began > _SECONDS_TO_REPORT
        if known and not waiting:
            _say_waiting(cpus, gpus, what)
            waiting = True
        if known and grows is not False:
            break
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return gpus


def may_grow() -> bool | None:
    """Whether an autoscaler adds hosts to the cluster; None as long as nothing tells.

    Ray has no call for this. Its monitor reports the type of each host, in one place for each of
    Ray's two autoscalers. Where no autoscaler has named the types, that of a host is `node_ID`.
    """
    if not os.environ.get("RAY_ADDRESS"):
        return False  # it was started here
    from ray._private.worker import global_worker
    from ray.autoscaler.v2.sdk import get_cluster_status

    head = global_worker.gcs_client
    first = json.loads(head.internal_kv_get(b"__autoscaling_status") or "{}")
    types = (first.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    if not types:
        second = get_cluster_status(head.address)
        if int(second.stats.autoscaler_version or 0):
            hosts = [*second.active_nodes, *second.idle_nodes]
            types = {host.node_id: host.ray_node_type_name for host in hosts}
    return any(kind != f"node_{host}" for host, kind in types.items()) if types else None


def _hosts() -> list[Mapping[str, float]]:
    """Resources of each host that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fitting(host: Mapping[str, float], cpus: int, gpus: float) -> int:
    by_cores = host.get("CPU", 0) / cpus
    return int(min(by_cores, host.get("GPU", 0) / gpus + 1e-6) if gpus else by_cores)


def _without_gpus(cpus: int, gpus: float, what: str) -> float:
    """Return 0 with a line if the cluster has no GPU at all, else raise `ClusterError`."""
    hosts = _hosts()
    if gpus and capacity(cpus, 0) and not any(host.get("GPU") for host in hosts):
        print(f"no host of the Ray cluster has a GPU: {what} runs on the CPU", file=sys.stderr)
        return 0.0
    most = max(hosts, key=lambda host: (host.get("GPU", 0), host.get("CPU", 0)))
    raise ClusterError(
        f"{what} needs {_described(cpus, gpus)} on one host; the largest host has "
        f"{most.get('CPU', 0):g} and {most.get('GPU', 0):g}",
        remedy="Ask for fewer, or add a larger host",
    )


def _say_waiting(cpus: int, gpus: float, what: str) -> None:
    end = ". With gpus=0 it needs no GPU" if gpus else ""
    print(
        f"waiting for a host with {_described(cpus, gpus)}, which {what} needs: the Ray cluster "
        f"has none yet{end}",
        file=sys.stderr,
        flush=True,
    )


def _described(cpus: int, gpus: float) -> str:
    cores, devices = ("core" if cpus == 1 else "cores"), ("GPU" if gpus == 1 else "GPUs")
    return f"{cpus} {cores} and {gpus:g} {devices}"
