r"""Train an audio-visual video parser on weak labels.

deepspeed launch/finetune.py --config configs/finetune/base_adv_skip_gcaa.yaml \
    data.train=DIR data.val=DIR data.annotations=DIR trainer.out=RUN
"""

from avvp_dist.command_line import parse_training
from avvp_dist.config import FinetuneConfig
from avvp_dist.errors import run
from avvp_dist.launching.slurm import adopt_step


def main() -> None:
    adopt_step()
    config, planned = parse_training(FinetuneConfig, __doc__)
    if planned:
        from avvp_dist.training.plan import plan_finetuning

        plan_finetuning(config, planned)
        return
    from avvp_dist.training.parsing import finetune

    finetune(config)


if __name__ == "__main__":
    run(main)
