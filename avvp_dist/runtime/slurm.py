"""Ranks of a Slurm step, as the variables that torch and DeepSpeed read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from avvp_dist.errors import ClusterError

_PORTS = range(20000, 30000)
"""Ports below Linux's ephemeral ones. Job 123456 gets 23456."""


def export_slurm_ranks() -> None:
    """Put the variables of `rank_variables` into this process's environment."""
    os.environ.update(rank_variables(os.environ))


def is_step_task(environment: Mapping[str, str]) -> bool:
    """Whether the process is one of several tasks of a Slurm step, and no launcher has set RANK."""
    several = int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    return several and "SLURM_PROCID" in environment and "RANK" not in environment


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Rank, number of ranks, both on this host, and the address of rank 0, for a task of `srun`.

    Empty if a launcher has set RANK, and outside of a step with several tasks. The shell of
    `salloc` or `sbatch` has Slurm's variables too, but no other tasks to wait for.

    Raises:
        ClusterError: Slurm's list of hosts is not understood.
    """
    if not is_step_task(environment):
        return {}
    get = environment.get
    hosts = get("SLURM_STEP_NODELIST") or get("SLURM_JOB_NODELIST") or get("SLURM_NODELIST", "")
    counts = get("SLURM_STEP_TASKS_PER_NODE") or get("SLURM_TASKS_PER_NODE", "1")
    local = _tasks_per_node(counts)
    node = int(get("SLURM_NODEID", "0"))
    port = _PORTS[int(get("SLURM_JOB_ID", "0")) % len(_PORTS)]
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": str(local[min(node, len(local) - 1)]),
        "MASTER_ADDR": get("MASTER_ADDR") or first_host(hosts),
        "MASTER_PORT": get("MASTER_PORT") or str(port),
    }


def first_host(hosts: str) -> str:
    """First host of a list as Slurm writes it: `a07-ib` of `a[07-09,12]-ib,b3`.

    Raises:
        ClusterError: it is not such a list.
    """
    # A comma ends the first entry unless it stands in brackets.
    entry = re.match(r"(?:[^,\[\]]|\[[^\[\]]*\])+", hosts)
    if entry is None:
        raise ClusterError(f"Slurm's list of hosts {hosts!r} is not understood", remedy=_BY_HAND)
    parts = re.split(r"\[([^\]]*)\]", entry[0])
    firsts = [
        re.split(r"[-,]", part)[0] if number % 2 else part for number, part in enumerate(parts)
    ]
    return "".join(firsts)


_BY_HAND = "Set MASTER_ADDR to the host of rank 0"


def _tasks_per_node(counts: str) -> list[int]:
    """Number of tasks of each node: [2, 2, 2, 1] for `2(x3),1`."""
    tasks: list[int] = []
    for count, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        tasks += [int(count)] * int(nodes or 1)
    return tasks or [1]
