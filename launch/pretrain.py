"""Pretrain the audio-visual encoder on grounding.

deepspeed launch/pretrain.py --config configs/pretrain/multi.yaml data.shards=DIR trainer.out=RUN
"""

from avvp_dist.command_line import parse_training
from avvp_dist.config import PretrainConfig
from avvp_dist.errors import run
from avvp_dist.launching.slurm import adopt_step


def main() -> None:
    adopt_step()
    config, planned = parse_training(PretrainConfig, __doc__)
    if planned:
        from avvp_dist.training.plan import plan_pretraining

        plan_pretraining(config, planned)
        return
    from avvp_dist.training.pretraining import pretrain

    pretrain(config)


if __name__ == "__main__":
    run(main)
