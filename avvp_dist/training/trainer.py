"""The train loop of pretraining and fine-tuning, over a DeepSpeed engine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from avvp_dist.errors import Preempted
from avvp_dist.loading.loader import ClipBatch, Loader
from avvp_dist.loading.stream import ClipStream
from avvp_dist.loading.transfer import Sent, Transfer, to_device
from avvp_dist.runtime.preemption import Preemption
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.tracking.run import Run
from avvp_dist.training.checkpoint import (
    TrainerState,
    check_same,
    latest_checkpoint,
    load_checkpoint,
)
from avvp_dist.training.engine import (
    compile_encoder,
    frozen_weights,
    full_state,
    lr_factor,
    make_engine,
    parameter_names,
    planned_steps,
    release_engine,
    update,
)
from avvp_dist.training.nonfinite import NonfiniteSteps
from avvp_dist.training.outcome import StepLosses, StepOutcome
from avvp_dist.training.precision import product_dtype
from avvp_dist.training.reporting import announce_hashing, draw_curves, write_run_files
from avvp_dist.training.saving import CheckpointSaver, SaveTimes
from avvp_dist.training.task import StepInfo, Task, TaskBatch, TrainingConfig
from avvp_dist.training.throughput import Throughput, flops_per_clip, peak_flops


@dataclass
class LoopState:
    """State of one call of `Trainer.train`."""

    preemption: Preemption
    throughput: Throughput
    bar: tqdm[None]
    started: float = field(default_factory=time.monotonic)
    """Seconds on the monotonic clock."""
    last_save: float = field(default_factory=time.monotonic)
    outcome: StepOutcome | None = None
    """Outcome of the last step, which is read when the next one is queued."""
    stop: bool = False
    """Whether any rank was asked to save and end."""
    overdue: bool = False
    """Whether the time between two checkpoints is over on any rank."""
    writing: bool = False
    """Whether any rank was still writing the last checkpoint."""


class Trainer:
    """A task on its engine, its clip stream and its folder.

    Args:
        beat: called with the step and what this rank does next, for the watchdog.

    Raises:
        CheckpointError: if the run has checkpoints and none of them is whole.
        ConfigError: for a batch that the ranks do not divide, or keys that DeepSpeed refuses.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        run: Run,
        beat: Callable[[int, str], None] = lambda step, doing: None,
    ) -> None:
        self.task, self.run, self.beat, self.ranks = task, run, beat, task.ranks
        self.whole_config, self.config, self.optimizer = config, config.trainer, config.optimizer
        self.out = Path(self.config.out)
        self.stream = stream_of(task, config, self.ranks)
        self.loader = Loader(task.data, self.stream, config.data, self.ranks.device)
        self.transfer = Transfer(self.ranks.device)
        self.steps_per_epoch = self.stream.steps_per_epoch
        self.steps = self.end = planned_steps(self.config, self.steps_per_epoch)
        """Planned steps, which schedules count, and the step after which training ends."""
        groups = task.parameter_groups()
        self.parameters = parameter_names(task.module, groups)
        self.frozen = frozen_weights(task.module)
        self.engine = make_engine(task.module, groups, self.optimizer, self.config, self.ranks)
        self.peaks = [group["lr"] for group in self.engine.optimizer.param_groups]
        self.step, self.best, self.stale = 0, float("-inf"), 0
        self.scored: tuple[int, float | None] = (0, None)
        """Step that was validated last, and its score."""
        self.saver = CheckpointSaver(self.out, self.config, self.ranks, self._beat, self._saved)
        self.skips = NonfiniteSteps(self.config.max_skipped, task.data, self.ranks)
        self._resume()

    def train(self) -> None:
        """Train to the last step; checkpoints, exports and figures lie in `out`.

        Raises:
            Preempted: when a signal or `max_minutes` asks for it, with a checkpoint.
            NumericsError: when too many steps in a row had to be skipped.
        """
        if self.ranks.is_main:
            write_run_files(self.whole_config, self.run, self.ranks)
            announce_hashing(self.task.data, self.whole_config.data.verify)
        with (
            Preemption() as preemption,
            self._progress_bar() as bar,
            self.saver,
            closing(self.loader.prepared(self.step, self.end, self._prepare)) as batches,
        ):
            loop = LoopState(preemption, self._throughput(), bar)
            if self.config.compile:  # after the FLOP count: under its counter nothing is compiled
                compile_encoder(self.engine.module)
            for clips, sent in loop.throughput.waits(batches):
                self.beat(self.step, "updating")
                self._set_learning_rate()
                losses = self._accumulate(clips, sent)
                norm = update(self.engine, self.optimizer, self.config)
                loop.throughput.count(self.stream.planned(self.step))
                outcome = self._send_outcome(loop, clips, losses, norm)
                self.step += 1
                bar.update()
                self.beat(self.step, "reading")
                self._take_outcome(loop)
                loop.outcome = outcome
                if self._due(self.config.validate_every):
                    self._validate(loop)
                self._save_if_due(loop)
                if self.step == self.end:
                    break
        if self.ranks.is_main:
            print(self.out / "model")
            if self.run.draws_figures:
                print(draw_curves(self.out, self.run, self.task.panels))

    def close(self) -> None:
        """Give up the engine, so that its memory is free now and not at a later collection."""
        release_engine(self.engine)
        del self.engine, self.saver  # the saver refers to this trainer

    def _prepare(
        self, step: int, clips: list[ClipBatch]
    ) -> tuple[list[ClipBatch], list[Sent[TaskBatch]]]:
        """Begin to bring the micro-batches of a step to the device, while earlier ones train."""
        batches = (self._batch(step, one, number) for number, one in enumerate(clips))
        return clips, [self.transfer.send(batch) for batch in batches]

    def _accumulate(self, clips: list[ClipBatch], sent: list[Sent[TaskBatch]]) -> StepLosses:
        """Sum the gradients of a step's micro-batches."""
        self.engine.train()
        losses = StepLosses()
        for number, (one, batch) in enumerate(zip(clips, sent, strict=True)):
            # Dropout as a function of step and rank: nothing of it has to be saved to resume.
            torch.manual_seed(_seed(self.config.seed, self.step, number, self.ranks.rank))
            weight = self._weight(one, len(clips))
            loss, parts = self.engine(batch.receive())
            self.engine.backward(loss if weight == 1 else loss * weight)
            losses.add({"loss": loss.detach(), **parts}, weight / len(clips))
            if number + 1 < len(clips):
                self.engine.step()  # counts the micro-batch, updates nothing yet
        return losses

    def clips_seen(self, step: int) -> int:
        """Clips trained on before a step; a clip counts each time an epoch takes it."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        one = sum(map(self.stream.planned, range(self.steps_per_epoch))) if epochs else 0
        return epochs * one + sum(map(self.stream.planned, range(steps)))

    def _set_learning_rate(self) -> None:
        factor = lr_factor(self.optimizer, self.step, self.steps, self.steps_per_epoch)
        for group, peak in zip(self.engine.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    def _weight(self, clips: ClipBatch, micro_batches: int) -> float:
        """Factor on the mean loss of a micro-batch that makes each clip of the step count the same.

        The gradient is the sum over the clips that were read, divided by the planned ones, whatever
        number of them each rank and micro-batch has; DeepSpeed takes means over both.
        """
        return clips.count * self.ranks.size * micro_batches / self.stream.planned(self.step)

    def _batch(self, step: int, clips: ClipBatch, micro_batch: int = 0) -> TaskBatch:
        epoch, progress = step // self.steps_per_epoch, step / self.steps
        return self.task.make_batch(clips, StepInfo(step, epoch, progress, micro_batch))

    def _send_outcome(
        self, loop: LoopState, clips: list[ClipBatch], losses: StepLosses, norm: Tensor
    ) -> StepOutcome:
        """Send what this step leaves on its way to the host."""
        now, done = time.monotonic(), self.step + 1
        minutes, limit = self.config.checkpoint_minutes, self.config.max_minutes
        # Signals and clocks differ between ranks: one rank's word is enough for all.
        flags = {
            "stop": bool(loop.preemption.asked) or 0 < 60 * limit < now - loop.started,
            "overdue": 0 < 60 * minutes < now - loop.last_save,
            "writing": self.saver.writing,
        }
        known: dict[str, float] = {}
        if done % self.config.log_every == 0 or done == self.steps:
            lr = self.engine.optimizer.param_groups[0]["lr"]
            known = {"train/lr": lr, **loop.throughput.rates()}
        return StepOutcome.send(self.step, clips, losses, norm, flags, known, self.ranks)

    def _take_outcome(self, loop: LoopState) -> None:
        """Read the outcome that is waiting, if there is one: count, log, and note what is asked."""
        if (outcome := loop.outcome) is None:
            return
        loop.outcome = None
        numbers = outcome.read()
        norm, stop, overdue, writing = (
            numbers.pop(name) for name in ("norm", "stop", "overdue", "writing")
        )
        self.skips.note(outcome.step, math.isfinite(norm), outcome.losses, outcome.clips)
        loop.stop, loop.overdue = loop.stop or bool(stop), bool(overdue)
        loop.writing = bool(writing)
        if outcome.known:
            values = {f"train/{name}": value for name, value in numbers.items()}
            values |= {"train/grad_norm": norm, "train/skipped_steps": self.skips.total}
            self._log(outcome.step + 1, {**values, **outcome.known}, loop)

    def _log(self, step: int, values: dict[str, float], loop: LoopState) -> None:
        if self.whole_config.data.max_bad_fraction:
            # All ranks know all clips that cannot be read, and stop together at too many.
            damage = self.task.data.damage
            damage.merge(self.ranks.union(set(damage.numbers)))
            values["train/bad_clips"] = len(damage.numbers)
        self.run.log(step, **values)
        loop.bar.set_postfix(loss=f"{values['train/loss']:.4f}")

    def _validate(self, loop: LoopState) -> None:
        """Validate the weights, and export them if they are the best so far, or the last."""
        self._take_outcome(loop)
        self.beat(self.step, "validating")
        self.engine.eval()
        metrics = self.task.validate()
        self.run.log(self.step, **metrics)
        if self.ranks.is_main:
            drawn = {name for _, names, _ in self.task.panels for name in names}
            drawn -= {name for name in drawn if "probe" in name}  # they print lines of their own
            shown = ", ".join(f"{n} {value:.4g}" for n, value in metrics.items() if n in drawn)
            tqdm.write(f"epoch {self.step / self.steps_per_epoch:.3g}: {shown}")
        self.scored = self.step, self.task.score(metrics) if metrics else None
        score = float("-inf") if self.scored[1] is None else self.scored[1]
        self.stale = 0 if score > self.best or not metrics else self.stale + 1
        best = self.config.export == "best" and score >= self.best
        if best or (self.config.export == "last" and self.step == self.end):
            self.beat(self.step, "exporting")
            self._export(metrics)
        if best:
            self.best = score
        self._end_if_stale()
        loop.throughput.restart()

    def _end_if_stale(self) -> None:
        """Let training end at this step if `patience` validations brought no better score."""
        if self.step < self.steps and 0 < self.config.patience <= self.stale:
            self.end = self.step
            self.run.log(self.step, **{"train/early_stop_step": self.step})
            if self.ranks.is_main:
                tqdm.write(
                    f"{self.out}: stopped early at step {self.step} of {self.steps}, after "
                    f"{self.stale} validations without a better score"
                )

    def _export(self, metrics: Mapping[str, float]) -> None:
        state = full_state(self.engine, self.frozen)
        if self.ranks.is_main:
            validated = {name: float(value) for name, value in metrics.items()}
            self.saver.export(self.out / "model", *self.task.export(state, self.step, validated))

    def _save_if_due(self, loop: LoopState) -> None:
        if self.saver.pending and not loop.writing:
            self._commit(loop)
        stop = loop.stop and self.step < self.end
        if stop or loop.overdue or self._checkpoint_due():
            self._take_outcome(loop)
            self._save(loop)
        if stop or self.step == self.end:
            self._commit(loop)
        if stop:
            reason = loop.preemption.asked or "a signal to another rank or trainer.max_minutes"
            raise Preempted(
                f"{reason}, saved at step {self.step} of {self.steps}",
                remedy="The same command with trainer.resume=auto goes on",
                shared=True,
            )

    def _save(self, loop: LoopState) -> None:
        """Begin a checkpoint of this step; training goes on while it is written."""
        state = TrainerState(
            step=self.step,
            order={**self.stream.identity(), **self.task.lineage},
            best=self.best,
            stale=self.stale,
            skipped=self.skips.total,
            parameters=self.parameters,
            run=self.run.key,
        )
        step, score = self.scored
        self.saver.start(self.engine, state, score if step == self.step else None)
        loop.last_save, loop.overdue, loop.writing = time.monotonic(), False, True
        loop.throughput.restart()

    def _commit(self, loop: LoopState) -> None:
        self.saver.commit()
        loop.throughput.restart()

    def _beat(self, doing: str) -> None:
        self.beat(self.step, doing)

    def _saved(self, times: SaveTimes) -> None:
        # Logged when the checkpoint counts: by these records `latest_checkpoint` knows of it.
        seconds = {"checkpoint_seconds": times.blocked, "checkpoint_write_seconds": times.total}
        self.run.log(times.step, **{f"train/{name}": value for name, value in seconds.items()})

    def _resume(self) -> None:
        if self.config.resume == "never":
            return
        checkpoint = latest_checkpoint(self.out, self.ranks)
        if checkpoint is not None:
            check_same(checkpoint.state, self.stream, self.task, self.parameters)
            state = load_checkpoint(self.engine, checkpoint, self.config, self.ranks)
            self.step, self.skips.total = state.step, state.skipped
            self.best, self.stale = state.best, state.stale
        if self.ranks.is_main:
            start = f"resumed at step {self.step}" if checkpoint else "no checkpoint yet, starting"
            print(f"{self.out}: {start}")
        self._end_if_stale()

    def _throughput(self) -> Throughput:
        if self.step == self.end:
            return Throughput(0.0, self.task.tokens, 1.0, self.ranks.size)
        clips = self.loader.read(self.step)[0]
        few = clips.first(4)
        batch = to_device(self._batch(self.step, few), self.ranks.device)
        flops = flops_per_clip(self.engine.module, batch, len(few.clips))
        peak = peak_flops(self.ranks.device, product_dtype(self.config))
        return Throughput(flops, self.task.tokens, peak, self.ranks.size)

    def _progress_bar(self) -> tqdm[None]:
        return tqdm(
            initial=self.step,
            total=self.steps,
            desc=self.out.name,
            unit=" steps",
            disable=not self.ranks.is_main,
        )

    def _due(self, every: int) -> bool:
        """Whether this step ends a period of `every` steps (0: an epoch) or the training."""
        return self.step % (every or self.steps_per_epoch) == 0 or self.step == self.end

    def _checkpoint_due(self) -> bool:
        if self.config.checkpoint_minutes and not self.config.checkpoint_every:
            return self.step == self.end
        return self._due(self.config.checkpoint_every)


def stream_of(task: Task, config: TrainingConfig, ranks: Ranks) -> ClipStream:
    """The clips of each step for this rank.

    Raises:
        ConfigError: if the ranks do not divide the batch, or an epoch has no batch.
    """
    return ClipStream(
        task.pools,
        config.trainer.batch_size,
        seed=config.trainer.seed,
        block=config.data.block_shards if config.data.order == "block" else 0,
        pad=config.data.last_batch == "pad",
        rank=ranks.rank,
        world_size=ranks.size,
        gradient_accumulation=config.trainer.gradient_accumulation,
    )


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
