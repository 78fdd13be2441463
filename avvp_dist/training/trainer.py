"""The train loop of pretraining and fine-tuning, over a DeepSpeed engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from avvp_dist.commit import write_json
from avvp_dist.config import LoaderConfig, OptimizerConfig, TrainerConfig
from avvp_dist.config.files import to_yaml
from avvp_dist.errors import CheckpointError, Preempted
from avvp_dist.evaluation.figures import curves_figure
from avvp_dist.loading.loader import ClipBatch, Loader
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.order import ClipPool
from avvp_dist.loading.stream import ClipStream
from avvp_dist.models.export import save_model
from avvp_dist.runtime.preemption import Preemption
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.tracking.records import read_series
from avvp_dist.tracking.run import Run
from avvp_dist.training.checkpoint import Checkpoint, load_checkpoint, newest, save_checkpoint
from avvp_dist.training.engine import (
    compile_layers,
    engine_config,
    full_state,
    lr_factor,
    make_engine,
    parameter_names,
    update,
)
from avvp_dist.training.nonfinite import NonfiniteSteps
from avvp_dist.training.throughput import Throughput, flops_per_clip, peak_flops

_GIB_WORTH_SAYING = 10.0

Batch = dict[str, Any]
Panels = Sequence[tuple[str, Sequence[str], str]]
"""Panels of the training curves: title, metrics, y label."""


class Task(Protocol):
    """What is trained, and how it is judged."""

    config: Any
    """The whole config, a dataclass."""
    module: nn.Module
    """`forward(batch)` gives the loss and its detached parts."""
    data: Mixture
    """What is read."""
    pools: list[ClipPool]
    """Its training clips."""
    lineage: dict[str, list[str]]
    """Digests and versions of what is read; a checkpoint belongs to them."""
    loading: LoaderConfig
    panels: Panels
    tokens: float
    """Tokens of a clip that are not padding, in the mean."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups with their learning rates."""

    def batch(self, read: ClipBatch, device: torch.device, dtype: torch.dtype) -> Batch:
        """What `forward` takes for the clips that were read."""

    def validate(self, ranks: Ranks, dtype: torch.dtype) -> dict[str, float]:
        """Metrics on held-out clips, the same on every rank; a collective."""

    def score(self, metrics: dict[str, float]) -> float:
        """How good these metrics are, for the choice of the best epoch: more is better."""

    def exported(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of the module's state dict: the model to export, and its meta data."""


class Trainer:
    """A task on its engine, its clip stream and its folder.

    Raises:
        CheckpointError: if there were checkpoints to be resumed from and none is whole.
    """

    def __init__(
        self,
        task: Task,
        config: TrainerConfig,
        optimizer: OptimizerConfig,
        run: Run,
        ranks: Ranks,
        beat: Callable[[int, str], None] = lambda step, doing: None,
    ) -> None:
        self.beat = beat
        self.task, self.config, self.optimizer = task, config, optimizer
        self.run, self.ranks, self.out = run, ranks, Path(config.out)
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.stream = stream_of(task, config, ranks)
        self.loader = Loader(task.data, self.stream, task.loading, ranks.device)
        self.steps_per_epoch = self.stream.steps_per_epoch
        self.steps = total_steps(self.stream, config)
        groups = task.groups()
        self._parameters = parameter_names(task.module, groups)
        self.engine = make_engine(task.module, groups, optimizer, config, ranks)
        self.peaks = [group["lr"] for group in self.engine.optimizer.param_groups]
        self.step, self.best = 0, float("-inf")
        self._score: float | None = None
        """Of this step's model, where it was validated."""
        self.skips = NonfiniteSteps(config.max_skipped, task.data, run, ranks)
        self._resume()

    def train(self) -> None:
        """Train to the last step; checkpoints, exports and figures lie in `out`.

        Raises:
            Preempted: when a signal or `max_minutes` asks for it, with a checkpoint.
            NumericsError: when too many steps in a row had to be skipped.
        """
        self._announce()
        self._started = self._last_save = time.monotonic()
        batches = self.loader.steps(self.step, self.steps)
        with Preemption() as self._preemption:
            self.meter = self._measure()
            if self.config.compile:  # now: what runs under a counter is never compiled
                compile_layers(self.engine.module)
            for step, reads in zip(self._progress(), self.meter.waits(batches), strict=True):
                self.beat(step, "updating")
                parts, share, norm = self._update(step, reads)
                self.step = step + 1
                self.beat(self.step, "reading")
                self.meter.count(self.stream.planned(step))
                if self.step % self.config.log_every == 0 or self.step == self.steps:
                    self._log(parts, share, norm)
                if self._epoch_ends():
                    self._validate()
                self._save_if_due()
        self._draw()

    def clips_seen(self, step: int) -> int:
        """Clips trained on before a step, each as often as an epoch saw it."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        one = sum(map(self.stream.planned, range(self.steps_per_epoch))) if epochs else 0
        return epochs * one + sum(map(self.stream.planned, range(steps)))

    def _update(self, step: int, reads: list[ClipBatch]) -> tuple[dict[str, Tensor], float, float]:
        """One optimiser step over this rank's part of the global batch.

        Returns:
            The loss and its parts, summed with their weights; the sum of the weights: 1 where
            no clip is missing; the gradients' norm.
        """
        factor = lr_factor(self.optimizer, step, self.steps, self.steps_per_epoch)
        for group, peak in zip(self.engine.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.engine.train()
        sums: dict[str, Tensor] = {}
        share = 0.0
        for number, read in enumerate(reads):
            # Dropout as a function of step and rank: nothing of it has to be saved to resume.
            torch.manual_seed(_seed(self.config.seed, step, number, self.ranks.rank))
            loss, parts = self.engine(self._batch(step, read))
            # The sum over the clips that were read, divided by the planned ones: however many a
            # rank and micro-batch has, each clip counts the same. (DeepSpeed takes means of both.)
            weight = read.count * self.ranks.size * len(reads) / self.stream.planned(step)
            self.engine.backward(loss if weight == 1 else loss * weight)
            if number == len(reads) - 1:
                norm, applied = update(self.engine, self.optimizer, self.config)
            else:
                self.engine.step()
            for name, part in {"loss": loss.detach(), **parts}.items():
                sums[name] = sums.get(name, 0) + part * (weight / len(reads))
            share += weight / len(reads)
        self.skips.note(step, applied, sums, reads)
        return sums, share, norm

    def _batch(self, step: int, read: ClipBatch) -> Batch:
        batch = self.task.batch(read, self.ranks.device, self.dtype)
        batch["step"], batch["epoch"] = step, step // self.steps_per_epoch
        batch["progress"] = step / self.steps
        return batch

    def _log(self, parts: dict[str, Tensor], share: float, norm: float) -> None:
        # What stands in for an empty micro-batch must not be seen in the means.
        stacked = torch.stack([*parts.values(), torch.tensor(share, device=self.ranks.device)])
        *values, read = self.ranks.all_reduce_mean(stacked).tolist()
        means = {
            name if name == "loss" else f"train/{name}": value / (read or 1)
            for name, value in zip(parts, values, strict=True)
        }
        self._share_damage()
        self.run.log(
            self.step,
            **means,
            lr=self.engine.optimizer.param_groups[0]["lr"],
            grad_norm=norm,
            skipped_steps=self.skips.total,
            **self.meter.rates(),
        )
        self._bar.set_postfix(loss=f"{means['loss']:.4f}")

    def _share_damage(self) -> None:
        """All ranks know of all clips that cannot be read, and stop alike when it is too many."""
        if damage := self.task.data.damage if self.task.loading.max_bad_fraction else None:
            damage.merge(self.ranks.union(set(damage.numbers)))
            self.run.log(self.step, bad_clips=len(damage.numbers))

    def _validate(self) -> None:
        self.beat(self.step, "validating")
        self.engine.eval()
        metrics = self.task.validate(self.ranks, self.dtype)
        self.run.log(self.step, **metrics)
        if self.ranks.is_main:
            drawn = {name for _, names, _ in self.task.panels for name in names}
            shown = ", ".join(f"{n} {value:.4g}" for n, value in metrics.items() if n in drawn)
            tqdm.write(f"epoch {self.step / self.steps_per_epoch:.3g}: {shown}")
        self._score = self.task.score(metrics) if metrics else None
        score = self.task.score(metrics) if self.config.export == "best" else self.best
        if score >= self.best:
            self.beat(self.step, "exporting")
            self.best = score
            state = full_state(self.engine)
            if self.ranks.is_main:
                weights, meta = self.task.exported(state)
                validated = {name: float(value) for name, value in metrics.items()}
                meta = {**meta, "step": self.step, "validated": validated}
                save_model(self.out / "model", weights, meta)
        self.meter.restart()

    def _save_if_due(self) -> None:
        now = time.monotonic()
        minutes, limit = self.config.checkpoint_minutes, self.config.max_minutes
        # Signals and clocks differ between ranks: one that says so is enough.
        asked, overdue = self.ranks.all_reduce_any(
            bool(self._preemption.asked) or 0 < 60 * limit < now - self._started,
            0 < 60 * minutes < now - self._last_save,
        )
        stop = asked and self.step < self.steps
        if stop or overdue or self._checkpoint_due():
            self._save()
        if stop:
            reason = self._preemption.asked or "a signal to another rank or trainer.max_minutes"
            raise Preempted(
                f"{reason}, saved at step {self.step} of {self.steps}",
                remedy="The same command with trainer.resume=auto goes on",
                shared=True,
            )

    def _save(self) -> None:
        self.beat(self.step, "saving")
        started = time.monotonic()
        state = {
            "step": self.step,
            "order": {**self.stream.identity(), **self.task.lineage},
            "best": self.best,
            "skipped": self.skips.total,
            "parameters": self._parameters,
            "run": self.run.key,
        }
        save_checkpoint(
            self.engine, self.out, self.step, state, self.config, self.ranks, self._score
        )
        self._last_save, self._score = time.monotonic(), None
        self.run.log(self.step, checkpoint_seconds=self._last_save - started)
        self.meter.restart()

    def _resume(self) -> None:
        if self.config.resume == "never":
            return
        found = latest_checkpoint(self.out, self.ranks)
        if found is not None:
            state = load_checkpoint(self.engine, found, self.config, self.ranks, self._check)
            self.step, self.best = state["step"], state["best"]
            self.skips.total = state["skipped"]
        if self.ranks.is_main:
            said = f"resumed at step {self.step}" if found else "no checkpoint yet, starting"
            print(f"{self.out}: {said}")

    def _check(self, state: dict[str, Any]) -> None:
        check_same(state, self.stream, self.task, self._parameters)

    def _measure(self) -> Throughput:
        if self.step == self.steps:
            return Throughput(0.0, self.task.tokens, 1.0, self.ranks.size)
        read = self.loader.read(self.step)[0]
        few = replace(read, clips=read.clips[:4], buffer=read.buffer[:4], count=min(4, read.count))
        flops = flops_per_clip(self.engine.module, self._batch(self.step, few), len(few.clips))
        peak = peak_flops(self.ranks.device, self.dtype)
        return Throughput(flops, self.task.tokens, peak, self.ranks.size)

    def _announce(self) -> None:
        """Store what is run, and say why the first steps of a large shard set take their time."""
        if self.ranks.is_main:
            (self.out / "config.yaml").write_text(to_yaml(self.task.config))
            deepspeed = self.out / "deepspeed.json"
            write_json(deepspeed, engine_config(self.optimizer, self.config, self.ranks.size))
            self.run.artifact(deepspeed)
        size = sum(shard.bytes for part in self.task.data.sets for shard in part.shards) / 2**30
        if self.ranks.is_main and size > _GIB_WORTH_SAYING and self.task.loading.verify == "sha256":
            print(f"{size:.0f} GiB of shards are hashed as they are met; not with data.verify=size")

    def _progress(self) -> Iterator[int]:
        self._bar = tqdm(
            range(self.step, self.steps),
            initial=self.step,
            total=self.steps,
            desc=self.out.name,
            unit=" steps",
            disable=not self.ranks.is_main,
        )
        yield from self._bar

    def _epoch_ends(self) -> bool:
        return self.step % self.steps_per_epoch == 0 or self.step == self.steps

    def _checkpoint_due(self) -> bool:
        if self.config.checkpoint_every and self.step < self.steps:
            return self.step % self.config.checkpoint_every == 0
        return self._epoch_ends()

    def _draw(self) -> None:
        if self.ranks.is_main:
            series = {
                name: (list(points), list(points.values()))
                for name, points in read_series(self.out).items()
            }
            drawn = [
                (title, [name for name in names if name in series], label)
                for title, names, label in self.task.panels
            ]
            panels = [panel for panel in drawn if panel[1]]
            figure = curves_figure(self.out / "curves.png", series, panels, "step", self.out.name)
            self.run.figure(figure)
            print(f"{self.out / 'model'}\n{figure}")


def stream_of(task: Task, config: TrainerConfig, ranks: Ranks) -> ClipStream:
    """The clips of each step for this rank.

    Raises:
        ConfigError: if the ranks do not divide the batch, or an epoch has no batch.
    """
    loading = task.loading
    return ClipStream(
        task.pools,
        config.batch_size,
        seed=config.seed,
        block=loading.block_shards if loading.order == "block" else 0,
        pad=loading.last_batch == "pad",
        rank=ranks.rank,
        world_size=ranks.size,
        gradient_accumulation=config.gradient_accumulation,
    )


def total_steps(stream: ClipStream, config: TrainerConfig) -> int:
    """Steps of the whole training."""
    steps = config.epochs * stream.steps_per_epoch
    return min(steps, config.max_steps) if config.max_steps else steps


def latest_checkpoint(out: Path, ranks: Ranks, *, set_aside: bool = True) -> Checkpoint | None:
    """The checkpoint that a run in `out` goes on from, by `newest`; None if it never saved one.

    Raises:
        CheckpointError: if it did, and none is whole.
    """
    found = newest(out, ranks, set_aside=set_aside)
    if found is None and ranks.broadcast_object("checkpoint_seconds" in read_series(out)):
        raise CheckpointError(
            f"{out} has records of checkpoints, but there is none any more",
            remedy="Bring them back, or train into another trainer.out",
            shared=True,
        )
    return found


def check_same(
    state: dict[str, Any], stream: ClipStream, task: Task, parameters: Sequence[str]
) -> None:
    """Raise `CheckpointError` where a checkpoint's state is of another order of clips or model."""
    stream.check_same(state["order"], task.lineage)
    if set(state["parameters"]) != set(parameters):
        changed = set(state["parameters"]) ^ set(parameters)
        raise CheckpointError(
            f"the checkpoint belongs to another model: {', '.join(sorted(changed)[:5])}",
            remedy="Put its config back, or train into another trainer.out",
            shared=True,
        )


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
