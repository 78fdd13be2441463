r"""Train an audio-visual video parser on weak labels.

deepspeed launch/finetune.py --config configs/finetune/base_adv_skip_gcaa.yaml \
    data.train=DIR data.val=DIR data.annotations=DIR trainer.out=RUN
"""

from avvp_dist.config import FinetuneConfig
from avvp_dist.config.command_line import parse_training
from avvp_dist.entry import run
from avvp_dist.runtime.slurm import export_slurm_ranks


def main() -> None:
    export_slurm_ranks()
    config, planned = parse_training(FinetuneConfig, __doc__)
    if planned:
        from avvp_dist.training.dry_run import plan_finetuning

        plan_finetuning(config, planned)
        return
    from avvp_dist.tasks.finetuning import finetune

    finetune(config)


if __name__ == "__main__":
    run(main)
