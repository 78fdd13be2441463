"""`launch/pretrain.py` as `srun` starts it: Slurm's variables in the place of a launcher's."""

import os

from avvp_dist.cli import run_stage

if __name__ == "__main__":
    for launchers, slurms in (
        ("RANK", "SLURM_PROCID"),
        ("LOCAL_RANK", "SLURM_LOCALID"),
        ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"),
        ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"),
    ):
        os.environ[slurms] = os.environ.pop(launchers)
    run_stage("pretrain")
