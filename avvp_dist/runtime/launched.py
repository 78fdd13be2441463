"""Rank and number of ranks that the launcher gave this process, read without torch."""

from __future__ import annotations

import os

from avvp_dist.runtime.slurm import export_slurm_ranks


def launched_rank() -> int:
    """Number of this rank; 0 without a launcher."""
    export_slurm_ranks()
    return int(os.environ.get("RANK", "0"))


def launched_size() -> int:
    """Number of ranks; 1 without a launcher."""
    export_slurm_ranks()
    return int(os.environ.get("WORLD_SIZE", "1"))
