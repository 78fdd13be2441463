"""Interface of a backbone: its stream, its size, its input for a second, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import ConfigError, first_line
from avvp_dist.features.backbones.weights import Weights

if TYPE_CHECKING:
    from av import VideoFrame

    from avvp_dist.features.decoding import Picture


class PictureBackbone(Protocol):
    """A network that describes pictures; a second has the mean of what it says of them."""

    name: ClassVar[str]
    stream: ClassVar[str]
    dim: ClassVar[int]
    rate: ClassVar[int]
    """Pictures a second."""
    weights: ClassVar[Weights]

    def __init__(self, given: Mapping[str, str]) -> None:
        """Load the weights, which `given` may name by file."""

    def picture(self, frame: VideoFrame) -> Picture:
        """The network's input for a frame, uint8 `[H, W, 3]`."""

    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of whole seconds of pictures `[n * rate, H, W, 3]`.

        Returns:
            `[m, dim]`, in order: one for each picture, or one for those of a second together.
        """


class SoundBackbone(Protocol):
    """A network that describes seconds of sound."""

    name: ClassVar[str]
    stream: ClassVar[str]
    dim: ClassVar[int]
    rate: ClassVar[int]
    """Samples a second."""
    weights: ClassVar[Weights]

    def __init__(self, given: Mapping[str, str]) -> None:
        """Load the weights, which `given` may name by file."""

    def features(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features `[n, dim]` of seconds of sound `[n, rate]`."""


Backbone = PictureBackbone | SoundBackbone


def package_missing(name: str, packages: str, error: Exception) -> ConfigError:
    """The error for a backbone whose packages are not installed, or do not fit torch."""
    return ConfigError(
        f"the backbone {name} needs {packages}: {first_line(error)}",
        remedy=f"pip install {packages}",
    )
