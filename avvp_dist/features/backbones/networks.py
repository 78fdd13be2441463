"""Networks of torch: their weights, their device, and batches of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avvp_dist.errors import ConfigError
from avvp_dist.runtime.devices import warn_of_cpu
from avvp_dist.task_gpu import use_gpu

State = Mapping[str, Tensor]
_Network = TypeVar("_Network", bound=nn.Module)

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of red, green and blue in [0, 1] that networks were trained with."""


_ON_CPU = 4
"""Rows at once on a CPU, which is slower with more: their activations leave its caches, and memory
is given back to the system and asked for again."""


def device() -> torch.device:
    """The GPU, if there is one and the work that runs now may use it; see `use_gpu`."""
    return torch.device("cuda" if use_gpu("torch", _finds_gpu) else "cpu")


def _finds_gpu() -> bool:
    warn_of_cpu()
    return torch.cuda.is_available()


def read_weights(file: Path) -> Any:
    """Tensors and NumPy arrays of a file; no code in it is ever run."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    with torch.serialization.safe_globals(_numpy_globals()):
        return torch.load(file, map_location="cpu", weights_only=True)


def network_with(
    build: Callable[[], _Network], state: State, name: str, prefix: str = ""
) -> _Network:
    """A network with weights, ready for inference.

    It is built without memory of its own, so that it is never filled with random numbers first.

    Args:
        build: makes the network. All its buffers are in `state`.
        state: weights by name; those of other networks are ignored.
        name: of the backbone, for the error.
        prefix: of the network's names in `state`.

    Raises:
        ConfigError: if weights are missing.
    """
    with torch.device("meta"):
        network = build()
    network.load_state_dict(_chosen(network, state, name, prefix), assign=True)
    return network.eval().requires_grad_(False).to(device())


def without_classifier(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A maker of a network of torchvision whose last layer passes features on."""

    def headless() -> nn.Module:
        network = build()
        network.fc = nn.Identity()
        return network

    return headless


def transformer_with(kind: Any, config: Any, state: State, name: str) -> nn.Module:
    """A network of `transformers` with weights, ready for inference.

    Raises:
        ConfigError: if weights are missing.
    """
    from transformers.utils import logging

    with torch.device("meta"):
        chosen = _chosen(kind(config), state, name, "")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        network: nn.Module = kind.from_pretrained(None, config=config, state_dict=chosen)
    finally:
        if bars:
            logging.enable_progress_bar()
    return network.eval().requires_grad_(False).to(device())


@torch.inference_mode()
def in_batches(run: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> NDArray[np.float32]:
    """Results of `run` for all rows, at most `size` at a time, fewer on a CPU."""
    size = size if device().type == "cuda" else min(size, _ON_CPU)
    results = [run(part.to(device())).float().cpu() for part in rows.split(size)]
    return torch.cat(results).numpy()


def normalised(pictures: Tensor, statistics: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """Pictures uint8 `[n, H, W, 3]` as float32 `[n, 3, H, W]`, by a training set's statistics."""
    mean, std = (torch.tensor(x, device=pictures.device)[:, None, None] for x in statistics)
    return (pictures.permute(0, 3, 1, 2) / 255 - mean) / std


def _chosen(network: nn.Module, state: State, name: str, prefix: str) -> dict[str, Tensor]:
    wanted = network.state_dict().keys()
    missing = [key for key in wanted if prefix + key not in state]
    if missing:
        raise ConfigError(
            f"weights.{name} lack {prefix}{missing[0]} and {len(missing) - 1} more",
            remedy="They are those of another network",
        )
    return {key: state[prefix + key] for key in wanted}


def _numpy_globals() -> list[Any]:
    """Names in files that hold NumPy arrays, as NumPy 1 and 2 write them."""
    from numpy._core import multiarray

    makers = [getattr(multiarray, name) for name in ("_reconstruct", "scalar")]
    old = [(maker, f"numpy.core.multiarray.{maker.__name__}") for maker in makers]
    new = [(maker, f"numpy._core.multiarray.{maker.__name__}") for maker in makers]
    types = [type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8")]
    return [np.ndarray, np.dtype, *types, *old, *new]
