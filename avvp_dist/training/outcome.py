"""Outcome of a step: numbers that the host reads one step later, when the device has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from avvp_dist.loading.loader import ClipBatch
from avvp_dist.runtime.ranks import Ranks


@dataclass
class StepLosses:
    """The loss of one step and its parts on this rank, summed over weighted micro-batches."""

    names: list[str] = field(default_factory=list)
    sums: Tensor | None = None
    """In the order of `names`, and last the sum of the weights, float32 `[names + 1]`."""

    def add(self, parts: Mapping[str, Tensor], weight: float) -> None:
        """Add the detached loss and parts of a micro-batch.

        Args:
            weight: 1 on the mean over micro-batches and ranks, where no clip is missing.
        """
        self.names = list(parts)
        values = [part.float() for part in parts.values()]
        weighted = torch.stack([*values, torch.ones_like(values[0])]) * weight
        self.sums = weighted if self.sums is None else self.sums + weighted

    def means(self, ranks: Ranks) -> Tensor:
        """Means of the loss and its parts over the clips of all ranks, `[names]`; a collective.

        The stand-in for an empty micro-batch has weight 0 and does not count.
        """
        assert self.sums is not None, "a step has at least one micro-batch"
        *values, total = ranks.all_reduce_mean(self.sums)
        return torch.stack(values) / torch.where(total == 0, 1, total)

    def nonfinite(self) -> list[str]:
        """Names of the parts that are not finite on this rank; waits for the device."""
        finite = [] if self.sums is None else torch.isfinite(self.sums).tolist()
        return [name for name, good in zip(self.names, finite, strict=False) if not good]


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of one step, on its way to the host.

    The device is one step behind the host. So the host asks for a step's outcome only when the next
    step is queued, and the device never waits for the host.
    """

    step: int
    clips: Sequence[ClipBatch]
    """Micro-batches of the step."""
    losses: StepLosses
    known: dict[str, float]
    """Numbers about a step that is logged which the host had already; empty: it is not logged."""
    _names: list[str]
    _numbers: Tensor
    _arrived: torch.Event | None

    @classmethod
    def send(
        cls,
        step: int,
        clips: Sequence[ClipBatch],
        losses: StepLosses,
        norm: Tensor,
        flags: Mapping[str, bool],
        known: dict[str, float],
        ranks: Ranks,
    ) -> StepOutcome:
        """Begin to bring a step's numbers to the host; a collective.

        Args:
            norm: norm of the gradients; not finite if the step was left out.
            flags: asked of all ranks: set in the outcome if it is set on any of them.
            known: numbers about a step that is logged; empty: its losses are not averaged.
        """
        raised = ranks.maximum([float(flag) for flag in flags.values()])
        parts = [norm.to(raised.device, non_blocking=True).view(1), raised]
        names = ["norm", *flags]
        if known:
            parts.append(losses.means(ranks))
            names += losses.names
        numbers = torch.cat(parts)
        arrived = None
        if numbers.device.type != "cpu":
            host = torch.empty_like(numbers, device="cpu", pin_memory=True)
            numbers = host.copy_(numbers, non_blocking=True)
            arrived = torch.accelerator.current_stream().record_event()
        return cls(step, clips, losses, known, names, numbers, arrived)

    def read(self) -> dict[str, float]:
        """The norm, the flags, and the mean losses of a step that is logged, by name."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return dict(zip(self._names, self._numbers.tolist(), strict=True))
