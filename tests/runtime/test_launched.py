"""Rank and number of ranks, by the variables of each launcher."""

from __future__ import annotations

import pytest

from avvp_dist.runtime.launched import launched_rank, launched_size
from avvp_dist.runtime.slurm import export_slurm_ranks

VARIABLES = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")


@pytest.mark.parametrize(
    ("variables", "rank", "size"),
    [
        ({}, 0, 1),
        ({"RANK": "3", "WORLD_SIZE": "4"}, 3, 4),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "7"}, 5, 7),
        # A launcher inside the only task of each node.
        (
            {"RANK": "9", "WORLD_SIZE": "16", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
            9,
            16,
        ),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, 0, 1),
        ({"SLURM_PROCID": "0"}, 0, 1),  # in the shell of salloc
    ],
)
def test_rank_and_size_are_the_launchers(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], rank: int, size: int
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (launched_rank(), launched_size()) == (rank, size)


def test_they_stay_when_slurms_variables_are_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # restored at the end, whatever is exported
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "7")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[007-009,12]")
    before = launched_rank(), launched_size()
    export_slurm_ranks()
    assert (launched_rank(), launched_size()) == before == (5, 7)
