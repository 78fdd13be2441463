"""Ranks from Slurm's variables."""

from __future__ import annotations

import pytest

from avvp_dist.errors import ClusterError
from avvp_dist.runtime.slurm import first_host, rank_variables

STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "gpu[007-009,12]",
}
"""Of rank 5 on the third of four hosts."""


def test_a_task_of_a_step_is_a_rank() -> None:
    assert rank_variables(STEP) == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": "23456",
    }
    last = {**STEP, "SLURM_NODEID": "3", "MASTER_PORT": "29500"}
    assert rank_variables(last)["LOCAL_WORLD_SIZE"] == "1"
    assert rank_variables(last)["MASTER_PORT"] == "29500"


@pytest.mark.parametrize(
    "changed",
    [
        {"RANK": "0"},  # deepspeed or torchrun within the step
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": None},  # a shell of salloc or sbatch
        {"SLURM_PROCID": None},
    ],
)
def test_what_is_no_task_of_several_stays_alone(changed: dict[str, str | None]) -> None:
    given = {name: value for name, value in {**STEP, **changed}.items() if value is not None}
    assert rank_variables(given) == {}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("a[07-09,12],b3", "a07"),
        ("rack[2,4]n[01-16]-ib.cluster,x", "rack2n01-ib.cluster"),
        ("[10-12]gpu", "10gpu"),
    ],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize("hosts", ["", "[1-", ","])
def test_what_is_no_list_is_refused(hosts: str) -> None:
    with pytest.raises(ClusterError, match="not understood"):
        first_host(hosts)
