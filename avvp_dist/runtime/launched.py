"""Rank and number of ranks that the launcher gave this process, without torch."""

from __future__ import annotations

import os

from avvp_dist.runtime.slurm import is_step_task

LOCAL_RANK = "AVVP_LOCAL_RANK"
"""Variable that keeps the launcher's LOCAL_RANK, in which DeepSpeed needs the device's number."""


def launched_rank() -> int:
    """Rank of this process by RANK or, in a Slurm step, by its task; 0 without a launcher."""
    name = "SLURM_PROCID" if is_step_task(os.environ) else "RANK"
    return int(os.environ.get(name, "0"))


def launched_size() -> int:
    """Number of ranks by WORLD_SIZE or, in a Slurm step, by its tasks; 1 without a launcher."""
    name = "SLURM_STEP_NUM_TASKS" if is_step_task(os.environ) else "WORLD_SIZE"
    return int(os.environ.get(name, "1"))


def launched_local_rank() -> int:
    """Number of this process among those of its host by LOCAL_RANK; 0 without a launcher."""
    return int(os.environ.get(LOCAL_RANK) or os.environ.get("LOCAL_RANK", "0"))
