"""Profile of component ids: how large components are, and how many a clip has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.shards.schema import PADDING


@dataclass(frozen=True)
class ComponentProfile:
    """Sizes and numbers of components; the profiles of parts of a corpus add up."""

    sizes: NDArray[np.int64]
    """Number of components of 1..T snippets, `[T]`."""
    per_clip: NDArray[np.int64]
    """Number of clips with 1..T components, `[T]`."""
    positive: int
    """Number of pairs of snippets in one component."""
    pairs: int
    """Number of pairs of snippets of one clip."""

    @classmethod
    def of(cls, ids: NDArray[np.uint8]) -> ComponentProfile:
        """Profile of component ids `[N, T]`; clips without labels do not count."""
        snippets = ids.shape[1]
        members = (ids[:, :, None] == np.arange(snippets)).sum(1)
        components, real = (members > 0).sum(1), (ids != PADDING).sum(1)
        return cls(
            np.bincount(members[members > 0], minlength=snippets + 1)[1:],
            np.bincount(components, minlength=snippets + 1)[1:],
            int((members * (members - 1) // 2).sum()),
            int((real * (real - 1) // 2).sum()),
        )

    def __add__(self, other: ComponentProfile) -> ComponentProfile:
        return ComponentProfile(
            self.sizes + other.sizes,
            self.per_clip + other.per_clip,
            self.positive + other.positive,
            self.pairs + other.pairs,
        )

    def plain(self) -> dict[str, object]:
        """JSON form, which `parse` reads."""
        return {name: np.asarray(value).tolist() for name, value in asdict(self).items()}

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> ComponentProfile:
        """Profile from its JSON form.

        Raises:
            KeyError, TypeError, ValueError: if it is no such form.
        """
        return cls(
            np.array(plain["sizes"], np.int64),
            np.array(plain["per_clip"], np.int64),
            int(plain["positive"]),
            int(plain["pairs"]),
        )

    @property
    def figures(self) -> dict[str, float]:
        """Components per clip, fraction of clips that are one component, of positive pairs."""
        clips = max(int(self.per_clip.sum()), 1)
        return {
            "components_per_clip": float(self.sizes.sum() / clips),
            "one_component_share": float(self.per_clip[0] / clips),
            "positive_pair_share": self.positive / max(self.pairs, 1),
        }

    def described(self) -> str:
        """The figures as a line of text."""
        figures = self.figures
        return (
            f"{figures['components_per_clip']:.2f} components a clip, "
            f"{figures['one_component_share']:.1%} of clips are one component, "
            f"{figures['positive_pair_share']:.1%} of pairs are positive"
        )
