"""The interface between the trainer and the task that it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from torch import Tensor, nn

from avvp_dist.config import FinetuneConfig, PretrainConfig
from avvp_dist.loading.loader import ClipBatch
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.order import ClipPool
from avvp_dist.models.grounding_model import GroundingBatch
from avvp_dist.models.parsing_model import ParsingBatch
from avvp_dist.models.specification import Spec
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.training.engine import ParameterGroup

Panels = Sequence[tuple[str, Sequence[str], str]]
"""Panels of the training curves: title, metrics, y label."""

TrainingConfig = PretrainConfig | FinetuneConfig

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)
TaskBatch: TypeAlias = GroundingBatch | ParsingBatch
"""A micro-batch as a task's module takes it."""

_ConfigT = TypeVar("_ConfigT", bound=TrainingConfig, contravariant=True)


@dataclass(frozen=True)
class StepInfo:
    """Where in the training a micro-batch belongs."""

    step: int
    epoch: int
    progress: float
    """Fraction of all steps that are done, in [0, 1)."""
    micro_batch: int = 0
    """Number of the micro-batch in its step."""


class Task(Protocol):
    """A model with its data: how it is trained, validated and exported."""

    ranks: Ranks
    data: Mixture
    """The shard sets that are read."""
    pools: list[ClipPool]
    """The clips of each shard set that are trained on."""
    lineage: dict[str, list[str]]
    """Digests and versions of the data; a checkpoint is resumed only under the same."""
    tags: dict[str, str]
    """Lineage of the run, for MLflow and the registry."""
    inputs: dict[str, str]
    """Path and digest of everything the run reads."""
    validated_on: dict[str, str]
    """Tags of the data behind the validation metrics; metrics under equal tags are comparable."""
    registered_name: str
    """Name of the registered model."""
    aliases: tuple[str, ...]
    """Aliases of a new version of it."""
    panels: Panels
    tokens: float
    """Mean number of tokens in a clip that are not padding."""

    @property
    def module(self) -> nn.Module:
        """Module whose `forward(batch)` gives the loss and its detached parts."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """The trainable parameters."""

    def make_batch(self, clips: ClipBatch, info: StepInfo) -> TaskBatch:
        """The argument of `module.forward`, in host memory; called in the loader's thread."""

    def validate(self) -> dict[str, float]:
        """Metrics on held-out clips, equal on every rank; a collective."""

    def score(self, metrics: Mapping[str, float]) -> float:
        """The number by which the best epoch is chosen; more is better."""

    def export(
        self, state: Mapping[str, Tensor], step: int, metrics: Mapping[str, float]
    ) -> tuple[dict[str, Tensor], Spec]:
        """The model inside the module's state dict, and its specification.

        Args:
            step: optimiser steps before the export.
            metrics: the validation of this step.
        """

    def plan(self) -> Iterable[tuple[str, str]]:
        """Rows of the dry run's table that only this task has: name and value."""


class OpenTask(Protocol[_ConfigT]):
    """Opens the data of a stage and builds its task.

    Everything that can be refused without a device is refused before `connect` is called.
    """

    def __call__(
        self, config: _ConfigT, connect: Callable[[], Ranks], *, scratch: Path | None = None
    ) -> Task:
        """Open the data and build the task.

        Args:
            config: the whole config.
            connect: joins the ranks and seeds the random numbers of the weights; called once.
            scratch: folder for downloads that are not to be kept; None: the run's own folder.

        Raises:
            AvvpError: naming what is wrong, and what to do.
        """
