"""Operations, memory and messages of a training step, found without a device."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from avvp_dist.config import TrainerConfig
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.training.precision import autocasts, stores_bf16

T = TypeVar("T")

BUCKET = 6_000_000
"""Gradients in one of ZeRO's messages (`reduce_bucket_size`): 24 MB in float32, the size that
DistributedDataParallel uses, so that most are sent while the backward pass still runs."""
FLAT = 500_000_000
"""Gradients that DeepSpeed flattens together without ZeRO."""


class PlannedRanks(Ranks):
    """Ranks of a plan, which no launcher started: a peer's tensor has the shape of one's own."""

    @property
    def init_device(self) -> torch.device:
        return self.device

    def broadcast_object(self, value: T) -> T:
        return value

    def all_gather(self, x: Tensor) -> Tensor:
        return x.repeat(self.size, *[1] * (x.ndim - 1))

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        return self.size * value


@dataclass(frozen=True)
class Weights:
    """Numbers of elements in a module: trained parameters, frozen ones, and buffers."""

    trained: int
    frozen: int
    buffers: int

    @classmethod
    def of(cls, module: nn.Module) -> Weights:
        """Counted in a module on any device."""
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        total = sum(p.numel() for p in module.parameters())
        return cls(trained, total - trained, sum(b.numel() for b in module.buffers()))


@dataclass(frozen=True)
class StepCost:
    """Cost of one micro-batch on a rank."""

    flops: float
    """FLOP of forward and backward pass: three times the forward pass, as for MFU."""
    activations: int
    """Peak bytes of activations and temporary tensors."""


def memory(weights: Weights, trainer: TrainerConfig, ranks: int) -> dict[str, float]:
    """Bytes on one rank without activations, at the end of a backward pass and in the update.

    With P trained parameters, F others and buffers, N ranks and b = 4 bytes (bf16: 2):

    | ZeRO | weights | gradients | AdamW | buffers of messages |
    |---|---|---|---|---|
    | 0 | 4(P+F), bf16: 6(P+F) | 4P | 8P | 4P on several ranks (flattened) |
    | 1 | b(P+F) | bP + 4P/N | 12P/N | two buckets |
    | 2 | b(P+F) | bP/N + 4P/N | 12P/N | two buckets |
    | 3 | b(P+F)(1 + 1/N) | bP/N + 4P/N | 12P/N | one bucket |

    In bf16 without ZeRO, autocast copies the weights of a pass. ZeRO keeps a float32 copy of its
    part of the weights, in fp32 too. Stage 3 gathers parameters
    when it needs them and, below some 500 million, keeps them until the step ends.
    """
    b = 2 if stores_bf16(trainer) else 4
    trained, all_of_it = weights.trained, weights.trained + weights.frozen + weights.buffers
    bucket = b * BUCKET
    if trainer.zero_stage == 0:
        return {
            "weights": (6 if autocasts(trainer) else 4) * all_of_it,
            "gradients": 4 * trained,
            "optimiser": 8 * trained,
            "messages": 4 * min(trained, FLAT) if ranks > 1 else 0,
        }
    whole = trainer.zero_stage == 1
    return {
        "weights": b * all_of_it * (1 + (1 / ranks if trainer.zero_stage == 3 else 0)),
        "gradients": b * trained / (1 if whole else ranks) + 4 * trained / ranks,
        "optimiser": 12 * trained / ranks,
        "messages": bucket if trainer.zero_stage == 3 else 2 * bucket,
    }


def checkpoint_bytes(weights: Weights, trainer: TrainerConfig) -> int:
    """Bytes of one checkpoint of all ranks.

    It holds the module's weights and the two moments of each trained parameter; under ZeRO also its
    float32 value.
    """
    b = 2 if stores_bf16(trainer) else 4
    # Stage 3 has the module's weights only as parts, which are those of the optimiser.
    held = weights.frozen if trainer.zero_stage == 3 else weights.trained + weights.frozen
    return b * held + 2 * 4 * weights.buffers + (12 if trainer.zero_stage else 8) * weights.trained


def messages(weights: Weights, trainer: TrainerConfig, ranks: int) -> dict[str, float]:
    """Bytes that one rank sends for its weights in a step of one micro-batch, by ring collectives.

    An all-reduce of S bytes sends 2 S (N-1)/N, an all-gather or a reduce-scatter S (N-1)/N. ZeRO 1
    and 2 reduce by all-reduce, since the parts of a bucket belong to several ranks.
    """
    b = 2 if stores_bf16(trainer) else 4
    part = b * weights.trained * (ranks - 1) / ranks
    frozen = b * weights.frozen * (ranks - 1) / ranks
    return {
        0: {"gradients": 2 * part, "parameters": 0.0},
        1: {"gradients": 2 * part, "parameters": part},
        2: {"gradients": 2 * part, "parameters": part},
        3: {"gradients": part, "parameters": part + frozen},
    }[trainer.zero_stage]


def exchanged(pool: int, snippets: int, width: int, features: int, ranks: int) -> dict[str, float]:
    """Bytes that one rank sends for the negatives of the grounding loss, in a micro-batch.

    Three ring collectives: an all-gather of both `representations` in float32, one of the `traits`,
    and in the backward pass a reduce-scatter of the `gradients` of the representations. Traits are
    the features that groundings compare in float16, which snippets are real in 1 byte, the clips'
    numbers and those of their sets in 8. Each rank lends the same number of rows, rounded up.
    Masked feature modelling and matching gather the pool's features besides.

    Args:
        pool: clips that all are compared with.
        width: D of a representation.
        features: F, numbers of a snippet that are compared; 0 where nothing is left out.
    """
    sent = (ranks - 1) * math.ceil(pool / ranks)
    representations = float(sent * snippets * 2 * width * 4)
    traits = float(sent * (snippets * (2 * features + 1) + 8 + (8 if features else 0)))
    return {"representations": representations, "traits": traits, "gradients": representations}


def measure(module: nn.Module, batch: Callable[[], object]) -> StepCost:
    """Take one step of a module on torch's meta device, where tensors have shapes and no values.

    Activations come from no formula: the module's own forward and backward pass runs, with its
    activation checkpointing, its blocks of negatives and its temporary tensors, and the bytes that
    are alive are counted. Gradients of parameters are freed at once. Attention counts with its
    matrix of weights, which fused kernels do not keep.

    Args:
        batch: makes the argument of `forward`, with tensors on the meta device.
    """
    module.train()
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        for p in module.parameters()
        if p.requires_grad
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(batch())
    with _Alive() as alive:  # without the counter, which keeps checkpointed layers alive
        loss, _ = module(batch())
        loss.backward()
    for hook in hooks:
        hook.remove()
    return StepCost(3 * counter.get_total_flops(), alive.maximum)


def imitate_autocast(module: nn.Module) -> None:
    """Give a module on the meta device the data types that autocast to bfloat16 has elsewhere.

    Linear layers take and give bfloat16. What lies between them keeps float32, and so do the sums
    of the residual connections.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.to(torch.bfloat16)
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(torch.bfloat16),))


class _Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that operations made and that are still referenced."""

    def __init__(self) -> None:
        super().__init__()
        self.maximum = self._now = 0
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._hold(tensor.untyped_storage())
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return

        def let_go(_: object) -> None:
            del self._held[key]
            self._now -= size

        self._held[key] = weakref.ref(storage, let_go)
        self._now += size
        self.maximum = max(self.maximum, self._now)
