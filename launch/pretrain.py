"""Pretrain the audio-visual encoder on grounding.

deepspeed launch/pretrain.py --config configs/pretrain/multi.yaml data.shards=DIR trainer.out=RUN
"""

from avvp_dist.config import PretrainConfig
from avvp_dist.config.command_line import parse_training
from avvp_dist.entry import run
from avvp_dist.runtime.slurm import export_slurm_ranks


def main() -> None:
    export_slurm_ranks()
    config, planned = parse_training(PretrainConfig, __doc__)
    if planned:
        from avvp_dist.training.dry_run import plan_pretraining

        plan_pretraining(config, planned)
        return
    from avvp_dist.tasks.pretraining import pretrain

    pretrain(config)


if __name__ == "__main__":
    run(main)
