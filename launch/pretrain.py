"""Pretrain the audio-visual encoder on grounding.

deepspeed launch/pretrain.py --config configs/pretrain/multi.yaml data.shards=DIR trainer.out=RUN
"""

from avvp_dist.command_line import parse
from avvp_dist.config import PretrainConfig
from avvp_dist.errors import run
from avvp_dist.launching.slurm import adopt_step


def main() -> None:
    adopt_step()
    config = parse(PretrainConfig, __doc__)
    from avvp_dist.training.pretraining import pretrain

    pretrain(config)


if __name__ == "__main__":
    run(main)
