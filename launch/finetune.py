r"""Train an audio-visual video parser on weak labels.

deepspeed launch/finetune.py --config configs/finetune/base_adv_skip_gcaa.yaml \
    data.train=DIR data.val=DIR data.annotations=DIR trainer.out=RUN
"""

from avvp_dist.command_line import parse
from avvp_dist.config import FinetuneConfig
from avvp_dist.errors import run
from avvp_dist.launching.slurm import adopt_step


def main() -> None:
    adopt_step()
    config = parse(FinetuneConfig, __doc__)
    from avvp_dist.training.parsing import finetune

    finetune(config)


if __name__ == "__main__":
    run(main)
