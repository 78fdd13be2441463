"""Operations that a device would run, and what the host would do between them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal")
_COPYING = ("_to_copy", "copy_")
_WITHOUT_KERNEL = ("detach", "empty", "empty_like", "set_")


class Operations(TorchDispatchMode):
    """Counts kernels, the times that the host waits for one, and copies from the host to `meta`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.waits = 0
        self.copied: list[int] = []
        """Bytes of each copy to the meta device."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        name = func._schema.name.removeprefix("aten::")
        self.waits += name in _WAITING
        made = func(*args, **(kwargs or {}))
        self.kernels += not (func.is_view or name in _WITHOUT_KERNEL)
        if (
            name in ("_to_copy", "copy_", "lift_fresh")
            and isinstance(made, Tensor)
            and made.is_meta
        ):
            sources = [x for x in tree_leaves(args) if isinstance(x, Tensor) and not x.is_meta]
            self.copied += [x.numel() * x.element_size() for x in sources]
        return made
