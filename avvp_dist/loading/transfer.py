"""Transfer of batches from the host to a device, while the device computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Batch = TypeVar("Batch", bound="DataclassInstance")

_ALONE = 2**20
"""Bytes from which pinned memory travels by itself; what is smaller is packed."""
_ALIGNMENT = 16


@dataclass(frozen=True)
class Sent(Generic[Batch]):
    """A batch whose tensors are on their way to a device."""

    batch: Batch
    arrived: torch.Event | None
    """Reached by the stream of the copies; None where nothing is copied."""

    def receive(self) -> Batch:
        """The batch, for what is queued on this thread's stream from now on; the host goes on."""
        if self.arrived is not None:
            stream = torch.accelerator.current_stream()
            stream.wait_event(self.arrived)
            for tensor in _tensors(self.batch):
                tensor.record_stream(stream)
        return self.batch


class Transfer:
    """Copies of batches to a device, on a stream of their own.

    A batch is a dataclass. Its tensors, or those in its dictionaries, move.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = None if device.type == "cpu" else torch.Stream(device)

    def send(self, batch: Batch) -> Sent[Batch]:
        """Begin to copy a batch; nothing waits for the copies."""
        if self._stream is None:
            return Sent(batch, None)
        with self._stream:
            moved = to_device(batch, self.device)
        return Sent(moved, self._stream.record_event())


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device, in their dtypes.

    Tensors that share memory travel as this memory, once. All small ones travel together, with
    those in memory that is not pinned: every copy starts from pinned memory, so none waits.
    """
    if device.type == "cpu":
        return batch
    return _moved(batch, lambda memory: memory.to(device, non_blocking=True))


def _moved(batch: Batch, copy: Callable[[Tensor], Tensor]) -> Batch:
    """A batch whose memory is what `copy` makes of it; `copy` takes and gives uint8 `[n]`."""
    memory = {_key(tensor): _bytes(tensor) for tensor in _tensors(batch)}
    together = {
        key: piece for key, piece in memory.items() if len(piece) < _ALONE or not piece.is_pinned()
    }
    moved = {key: copy(piece) for key, piece in memory.items() if key not in together}
    sizes = [-(-len(piece) // _ALIGNMENT) * _ALIGNMENT for piece in together.values()]
    packed = _pinned(sum(sizes))
    for part, piece in zip(packed.split(sizes), together.values(), strict=True):
        part[: len(piece)].copy_(piece)
    moved |= dict(zip(together, copy(packed).split(sizes), strict=True))

    def placed(value: object) -> object:
        if isinstance(value, Tensor):
            whole = moved[_key(value)].view(value.dtype)
            offset = whole.storage_offset() + value.storage_offset()
            return whole.as_strided(value.shape, value.stride(), offset)
        if isinstance(value, dict):
            return {name: placed(one) for name, one in value.items()}
        return value

    return replace(batch, **{one.name: placed(getattr(batch, one.name)) for one in fields(batch)})


def _pinned(size: int) -> Tensor:
    """Fresh memory, uint8 `[size]`: pinned where there is a device that could read it."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=torch.accelerator.is_available())


def _tensors(batch: DataclassInstance) -> Iterator[Tensor]:
    for one in fields(batch):
        value = getattr(batch, one.name)
        for tensor in value.values() if isinstance(value, dict) else (value,):
            if isinstance(tensor, Tensor):
                yield tensor


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> Tensor:
    """All the memory behind a tensor, uint8 `[n]`."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
