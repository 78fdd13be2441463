"""Equations (4) to (6) and the hinge over other clips, written as loops over one small batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from avvp_dist.config import ObjectiveConfig
from avvp_dist.objectives.negatives import LinkRule
from avvp_dist.shards.schema import PADDING

PLAIN = ObjectiveConfig(other_clips=0.0, positive_margin=0.6, negative_margin=0.1)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Five clips of up to six snippets, two of them padded."""
    torch.manual_seed(0)
    audio, visual = torch.randn(5, 6, 4), torch.randn(5, 6, 4)
    visual = visual + 0.5 * audio
    components = torch.tensor(
        [
            [0, 0, 2, 2, 0, 5],
            [0, 1, 2, 3, 4, 5],
            [0, 0, 0, 0, 0, 0],
            [0, 1, 0, 1, PADDING, PADDING],
            [0, PADDING, PADDING, PADDING, PADDING, PADDING],
        ],
        dtype=torch.uint8,
    )
    return audio, visual, components


def cosine(x: Tensor, y: Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))


def real_snippets(ids: Tensor) -> list[int]:
    return [t for t, component in enumerate(ids.tolist()) if component != PADDING]


def anchor_loss(x: Tensor, y: Tensor, ids: Tensor, i: int, config: ObjectiveConfig) -> float:
    """Mean or sum over j of equation (4) or (5) for anchor i of one clip, `x` and `y` `[T, D]`."""
    total = 0.0
    for j in real_snippets(ids):
        similarity = cosine(x[i], y[j])
        if ids[i] == ids[j]:
            total += max(config.positive_margin - similarity, 0.0)
        else:
            total += max(similarity - config.negative_margin, 0.0)
    return total / len(real_snippets(ids)) if config.reduction == "mean" else total


def pairs(audio: Any, visual: Any, name: str) -> list[tuple[Any, Any]]:
    uni, cross = [(audio, audio), (visual, visual)], [(audio, visual), (visual, audio)]
    return {"uni": uni, "cross": cross, "multi": uni + cross}[name]


def mean(values: Iterable[float]) -> float:
    terms = list(values)
    return sum(terms) / len(terms)


def by_loops(data: tuple[Tensor, Tensor, Tensor], config: ObjectiveConfig) -> float:
    """Loss with every snippet as anchor: the mean over clips of the mean over their anchors."""
    return mean(
        mean(
            sum(anchor_loss(x, y, ids, i, config) for x, y in pairs(a, v, config.name))
            for i in real_snippets(ids)
        )
        for a, v, ids in zip(*data, strict=True)
    )


Place = tuple[int, int]
"""Clip and snippet."""


def foreign_by_loops(
    data: tuple[Tensor, Tensor, Tensor],
    config: ObjectiveConfig,
    numbers: Sequence[int] = range(5),
    left_out: Callable[[Place, Place], bool] = lambda p, q: False,
) -> tuple[float, float]:
    """Mean over clips of the mean over anchors of the mean hinge over the snippets j of other
    clips, summed over pairs of modalities; and the mean over clips of the fraction left out."""
    audio, visual, components = data
    places = [(clip, t) for clip, ids in enumerate(components) for t in real_snippets(ids)]
    hinges, fractions = [], []
    for clip, ids in enumerate(components):
        anchors, out, all_j = [], 0, 0
        for p in ((clip, t) for t in real_snippets(ids)):
            foreign = [q for q in places if numbers[q[0]] != numbers[clip]]
            kept = [q for q in foreign if not left_out(p, q)]
            out, all_j = out + len(foreign) - len(kept), all_j + len(foreign)
            terms = [
                max(cosine(x[p], y[q]) - config.negative_margin, 0.0)
                for x, y in pairs(audio, visual, config.name)
                for q in kept
            ]
            anchors.append(sum(terms) / max(1, len(kept)))
        hinges.append(mean(anchors))
        fractions.append(out / max(1, all_j))
    return mean(hinges), mean(fractions)


def stored() -> dict[str, Tensor]:
    """Features of the clips of `batch`: noisy copies of four vectors, and one that is zero."""
    torch.manual_seed(1)
    kinds = {"audio": torch.randn(4, 3), "visual": torch.randn(4, 7)}
    features = {
        name: (kind[torch.randint(4, (5, 6))] + 0.2 * torch.randn(5, 6, kind.shape[1])).half()
        for name, kind in kinds.items()
    }
    features["audio"][2, 1] = 0
    return features


LOOSE = {"audio": 0.6, "visual": 0.7}


def linked(features: dict[str, Tensor], p: Place, q: Place, rule: LinkRule) -> bool:
    """Rule of Algorithm 1 for one pair of snippets."""
    reached = []
    for name, limit in rule.thresholds.items():
        x, y = (features[name][place].float() for place in (p, q))
        reached.append(bool(x.any() and y.any()) and cosine(x, y) >= limit)
    return bool(reached) and (any(reached) if rule.rule == "or" else all(reached))
