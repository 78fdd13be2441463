"""Masked feature modelling, against its definition in numpy, and which snippets are masked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.config import ObjectiveConfig
from avvp_dist.objectives.masked import (
    feature_keys,
    mask_snippets,
    masked_loss,
    masked_places,
    maximum_masked,
)
from avvp_dist.objectives.negative_pool import StoredClips
from avvp_dist.shards.schema import PADDING

CONFIG = ObjectiveConfig(masked=1.0, mask_fraction=0.3, temperature=0.2)
CLIPS, SNIPPETS = np.arange(400) + 7, 10


def real_of(lengths: list[int], snippets: int = SNIPPETS) -> NDArray[np.bool_]:
    return np.arange(snippets) < np.array(lengths)[:, None]


def runs(row: list[bool]) -> list[int]:
    """Lengths of the runs of masked snippets."""
    return [len(run) for run in "".join("x" if one else " " for one in row).split()]


def test_masks_belong_to_seed_step_and_clip() -> None:
    real = real_of([SNIPPETS] * len(CLIPS))
    whole = mask_snippets(CLIPS, real, CONFIG, 0, 3)
    assert whole.shape == (len(CLIPS), 2, SNIPPETS)
    for rows in (slice(0, 2), slice(2, 400)):  # in ranks and micro-batches of any size
        part = mask_snippets(CLIPS[rows], real[rows], CONFIG, 0, 3)
        assert torch.equal(part, whole[rows])
    for key in ((0, 4), (1, 3)):
        assert not torch.equal(mask_snippets(CLIPS, real, CONFIG, *key), whole)


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 1), (0.15, 2), (0.3, 3), (1.0, 10)])
def test_a_fraction_of_one_modality_of_each_clip_is_masked(fraction: float, count: int) -> None:
    config = replace(CONFIG, mask_fraction=fraction)
    masked = mask_snippets(CLIPS, real_of([SNIPPETS] * len(CLIPS)), config, 0, 0)
    assert maximum_masked(SNIPPETS, config) == count
    assert (masked.sum((1, 2)) == count).all()
    seen = masked.any(2)
    assert (seen.sum(1) == 1).all()
    assert float(seen[:, 0].float().mean()) == pytest.approx(0.5, abs=0.1)
    everywhere = masked.any(1).float().mean(0).tolist()
    assert everywhere == pytest.approx([count / SNIPPETS] * SNIPPETS, abs=0.1)


def test_spans_are_masked_whole_and_never_padding() -> None:
    lengths = [1 + n % SNIPPETS for n in range(len(CLIPS))]
    real = real_of(lengths)
    config = replace(CONFIG, mask_span=3)
    assert maximum_masked(SNIPPETS, config) == 3
    found = mask_snippets(CLIPS, real, config, 0, 0)
    assert not found[~torch.from_numpy(real)[:, None].expand(-1, 2, -1)].any()
    rows = found.any(1).tolist()
    whole = [row for row, length in zip(rows, lengths, strict=True) if length == SNIPPETS]
    assert all(len(runs(row)) == 1 for row in rows)
    assert {one for row in whole for one in runs(row)} == {1, 2, 3}  # cut at either end
    starts = {row.index(True) for row in whole}
    assert len(starts) > 6, "spans begin anywhere"
    none = mask_snippets(CLIPS[:2], real_of([0, 0]), config, 0, 0)
    assert not none.any()


def batch() -> tuple[StoredClips, Tensor, StoredClips, Tensor]:
    """Four clips of up to five snippets, with a pool of one of them, a foreign one and no clip."""
    torch.manual_seed(0)
    dims = {"audio": 4, "visual": 6, "motion": 3}
    streams = {name: (3 + torch.randn(4, 5, dim)).half() for name, dim in dims.items()}
    components = torch.tensor(
        [[0, 0, 2, 2, 0], [0, 1, 2, 3, 4], [0, 1, 0, PADDING, PADDING], [PADDING] * 5],
        dtype=torch.uint8,
    )
    foreign = {name: 3 + torch.randn(1, 5, dim) for name, dim in dims.items()}
    clips = StoredClips(streams, components != PADDING, torch.tensor([10, 11, 12, 13]))
    pool = StoredClips(
        {
            name: torch.cat([x[1:2], foreign[name].half(), torch.zeros_like(x[:1])])
            for name, x in streams.items()
        },
        torch.tensor([[True] * 5, [True] * 4 + [False], [False] * 5]),
        torch.tensor([11, 20, 0]),
    )
    masked = torch.zeros(4, 2, 5, dtype=torch.bool)
    masked[0, 0, [1, 4]] = masked[1, 1, 2] = masked[2, 1, 0] = masked[2, 0, 1] = True
    return clips, components, pool, masked


def unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.linalg.norm(x)


def test_the_loss_is_the_cross_entropy_of_the_masked_feature_among_all() -> None:
    clips, components, pool, masked = batch()
    names = (["audio"], ["visual", "motion"])
    places, counted = masked_places(masked, 2)
    keys = [feature_keys(clips, pool, one) for one in names]
    full = [torch.randn(4, 5, 4), torch.randn(4, 5, 9)]
    predicted = [x.take_along_dim(places[:, m, :, None], 1) for m, x in enumerate(full)]
    loss, chance = masked_loss(predicted, places, counted, keys, components, clips, pool, 0.2)

    def key(of: StoredClips, clip: int, t: int, modality: int) -> NDArray[np.float32]:
        keys = []
        for name in names[modality]:
            mean = pool.streams[name][pool.real].float().numpy().mean(0)
            keys.append(unit(of.streams[name][clip, t].float().numpy() - mean))
        return unit(np.concatenate(keys))

    losses, chances = [], []
    for clip in range(4):
        terms, guesses = [], []
        for modality, t in masked[clip].nonzero().tolist():
            query = unit(full[modality][clip, t].numpy())
            ids = components[clip].tolist()
            negatives = [
                key(clips, clip, u, modality) for u in range(5) if ids[u] not in (ids[t], PADDING)
            ] + [
                key(pool, k, u, modality)
                for k, u in pool.real.nonzero().tolist()
                if pool.numbers[k] != clips.numbers[clip]
            ]
            logits = np.array([key(clips, clip, t, modality), *negatives]) @ query / 0.2
            terms.append(np.log(np.exp(logits).sum()) - logits[0])
            guesses.append(np.log(len(logits)))
        losses.append(np.mean(terms) if terms else 0)
        chances.append(np.mean(guesses) if terms else 0)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(chance) == pytest.approx(np.mean(chances), rel=1e-5)


def test_a_perfect_prediction_costs_less_than_any_other() -> None:
    clips, components, pool, masked = batch()
    places, counted = masked_places(masked, 5)
    keys = [feature_keys(clips, pool, names) for names in (["audio"], ["visual", "motion"])]
    perfect = [own.take_along_dim(places[:, m, :, None], 1) for m, (own, _) in enumerate(keys)]
    arguments = (places, counted, keys, components, clips, pool)
    good, chance = masked_loss(perfect, *arguments, 0.01)
    bad, _ = masked_loss([-x for x in perfect], *arguments, 0.01)
    assert float(good) < 1e-3 < float(chance) < float(bad)
