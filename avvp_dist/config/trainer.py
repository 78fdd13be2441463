"""Keys of the train loop of pretraining and fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from avvp_dist.config.option import option


@dataclass
class OptimizerConfig:
    """Keys of AdamW and its schedule."""

    lr: float = option(5e-4, "peak learning rate", minimum=0)
    weight_decay: float = option(
        0.01, "weight decay of weight matrices; biases and norms have none", minimum=0
    )
    warmup: float = option(0.05, "fraction of the steps with linear warm-up", minimum=0, maximum=1)
    schedule: str = option(
        "cosine",
        "learning rate after warm-up: cosine to 0, constant, or a step down every `decay_every`",
        choices=("cosine", "constant", "step"),
    )
    decay: float = option(0.5, "factor of each step of schedule=step", minimum=0, maximum=1)
    decay_every: int = option(
        5, "epochs or optimiser steps between the steps of schedule=step", minimum=1
    )
    decay_unit: str = option("epochs", "unit of decay_every", choices=("epochs", "steps"))
    max_grad_norm: float = option(
        1.0, "norm to which larger gradients are clipped; 0: no clipping", minimum=0
    )


@dataclass
class TrainerConfig:
    """Keys of the train loop, its engine and its checkpoints."""

    out: str = option("", "folder of checkpoints, exports, records and figures", required=True)
    epochs: int = option(
        30, "passes over the clips; 0: as many as max_steps takes, the last one in part", minimum=0
    )
    max_steps: int = option(
        0, "steps after which training ends at the latest; 0: after the epochs", minimum=0
    )
    batch_size: int = option(64, "clips per step, over all ranks", minimum=1)
    gradient_accumulation: int = option(1, "micro-batches per step on each rank", minimum=1)
    precision: str = option(
        "fp32",
        "precision of the layers: fp32; tf32: float32 with products in TF32; bf16: products in "
        "bfloat16 over float32 weights, from ZeRO stage 1 on bfloat16 weights too",
        choices=("fp32", "tf32", "bf16"),
    )
    zero_stage: int = option(0, "DeepSpeed ZeRO stage", minimum=0, maximum=3)
    deepspeed: str = option(
        "",
        "JSON file of further DeepSpeed keys, or a name such as deepspeed/large_buckets",
    )
    activation_checkpointing: bool = option(
        False, "recompute the activations of a layer for its gradient, which saves memory"
    )
    device: str = option(
        "auto",
        "auto: the accelerator, or the CPU of a host that has none; cpu: the CPU",
        choices=("auto", "cpu"),
    )
    deterministic: bool = option(
        False, "use only algorithms that give the same bits each time; slower on a GPU"
    )
    compile: bool = option(False, "apply torch.compile to the encoder")
    seed: int = option(1, "seed of weights, clip order and dropout", minimum=0)
    log_every: int = option(10, "steps between two records", minimum=1)
    validate_every: int = option(
        0,
        "steps between two validations; 0: one at the end of each epoch. The last step is "
        "validated in any case",
        minimum=0,
    )
    patience: int = option(
        0,
        "validations in a row without a better score after which training ends; 0: it never ends "
        "early",
        minimum=0,
    )
    checkpoint_every: int = option(
        0,
        "steps between two checkpoints; 0: one at the end of each epoch, unless "
        "checkpoint_minutes is set. The last step is saved in any case",
        minimum=0,
    )
    checkpoint_minutes: float = option(
        0.0,
        "minutes after the last checkpoint until one is saved, in the middle of an epoch too; "
        "0: never",
        minimum=0,
    )
    max_minutes: float = option(
        0.0, "minutes after which to save and end as if preempted; 0: no limit", minimum=0
    )
    keep: int = option(
        2, "number of newest checkpoints kept, besides the best validated one", minimum=1
    )
    max_skipped: int = option(
        10, "number of consecutive steps that may be skipped for non-finite values", minimum=0
    )
    export: str = option(
        "best",
        "validated step whose model is exported: the best on held-out clips (of equal ones the "
        "later), or the last of the run",
        choices=("best", "last"),
    )
    hang_seconds: float = option(
        600.0,
        "seconds without progress on any rank after which the job ends and names the ranks that "
        "are behind; longer than any step, validation or save; 0: never",
        minimum=0,
    )
    resume: str = option(
        "never",
        "auto: resume from the newest complete checkpoint in `out`, on any number of ranks, and "
        "start from scratch if there is none",
        choices=("auto", "never"),
    )

    def conflicts(self) -> list[str]:
        """Faults of keys that do not go together."""
        faults = []
        if not (self.epochs or self.max_steps):
            faults.append(
                "trainer.epochs=0, trainer.max_steps=0: nothing ends the training; set one"
            )
        if self.patience and self.export == "last":
            faults.append(
                f"trainer.patience={self.patience}, trainer.export=last: the last models are those "
                "that did not improve; take trainer.export=best"
            )
        if self.compile and self.zero_stage == 3:
            faults.append(
                "trainer.compile=true, trainer.zero_stage=3: stage 3 gathers the weights of each "
                "layer between its operations, which cannot be compiled; take stage 0, 1 or 2"
            )
        if self.precision == "bf16" and self.zero_stage == 1 and self.gradient_accumulation > 1:
            faults.append(
                f"trainer.gradient_accumulation={self.gradient_accumulation}, "
                "trainer.precision=bf16, trainer.zero_stage=1: gradients would be summed in "
                "bfloat16; take stage 0, 2 or 3"
            )
        return faults


def schedule_conflicts(optimizer: OptimizerConfig, trainer: TrainerConfig) -> list[str]:
    """Faults of a learning rate that falls by epochs in a training that counts steps.

    Few clips make short epochs, so the learning rate would vanish long before the last step.
    """
    by_epochs = (optimizer.schedule, optimizer.decay_unit) == ("step", "epochs")
    if trainer.epochs or not by_epochs:
        return []
    return [
        "trainer.epochs=0, optimizer.schedule=step, optimizer.decay_unit=epochs: the training "
        "counts steps; take optimizer.decay_unit=steps with a decay_every in steps, or another "
        "schedule"
    ]
