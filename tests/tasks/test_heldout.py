"""Metrics of held-out clips: equal for every division over ranks, from few bytes."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from avvp_dist.runtime.ranks import Ranks
from avvp_dist.shards.schema import PADDING
from avvp_dist.tasks import heldout
from avvp_dist.tasks.heldout import HeldoutResults, heldout_metrics, vector_sample
from tests.forked_ranks import fork_server

CLIPS, SNIPPETS, WIDTH = 1500, 5, 64
CPU = torch.device("cpu")


def results_of(ranks: Ranks) -> tuple[HeldoutResults, Any]:
    """This rank's results for the same clips, and the components of all."""
    rng = np.random.default_rng(0)
    components = rng.integers(0, 3, (CLIPS, SNIPPETS)).astype(np.uint8)
    components[::5, -1] = PADDING
    same = components[:, None, :, None] == components[:, None, None, :]
    cosines = np.tanh(rng.normal(same, 1, (CLIPS, 3, SNIPPETS, SNIPPETS))).astype(np.float32)
    losses = rng.random(CLIPS, np.float32)
    vectors = rng.normal(size=(CLIPS, 2, WIDTH)).astype(np.float32)
    good = rng.random(CLIPS) > 0.1
    part = ranks.own_slice
    chosen = part(vector_sample(CLIPS) & good)
    own = HeldoutResults(part(cosines), part(losses), part(vectors)[chosen], part(good))
    return own, components


def run_rank(rank: int, size: int, folder: Path) -> None:
    """Leave the metrics of both ways and the bytes of the second in `folder`."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    ranks, sent = Ranks(rank, size, CPU), []
    own, components = results_of(ranks)
    gather = dist.gather_object

    def counting(value: object, *others: Any) -> None:
        sent.append(len(pickle.dumps(value)))
        gather(value, *others)

    exact = heldout_metrics(own, components, ranks)
    dist.gather_object = counting
    heldout.MAXIMUM_EXACT = CLIPS - 1
    binned = heldout_metrics(own, components, ranks)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps((exact, binned, sent)))
    dist.destroy_process_group()


@pytest.mark.launch
def test_two_ranks_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = [fork_server().Process(target=run_rank, args=(n, 2, tmp_path)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    first, second = (pickle.loads((tmp_path / f"{n}.pickle").read_bytes()) for n in range(2))
    assert first[:2] == second[:2]
    exact, binned, sent = first
    ranks = Ranks(0, 1, CPU)
    own, components = results_of(ranks)
    assert exact == pytest.approx(heldout_metrics(own, components, ranks), rel=1e-5)
    monkeypatch.setattr(heldout, "MAXIMUM_EXACT", CLIPS - 1)
    assert binned == pytest.approx(heldout_metrics(own, components, ranks), rel=1e-5)
    assert binned == pytest.approx(exact, abs=1e-5)
    assert 0.6 < exact["val/auc_cross"] < 0.9 and exact["val/loss"] == pytest.approx(0.5, abs=0.02)
    losses, good, vectors = (one + other for one, other in zip(sent, second[2], strict=True))
    assert losses + good < 5 * CLIPS + 1000
    assert vectors < heldout.MAXIMUM_RANKED * 2 * WIDTH * 4 + 1000


def test_the_sample_is_spread_over_all_clips() -> None:
    assert vector_sample(3).tolist() == [True] * 3
    many = np.flatnonzero(vector_sample(400_000))
    assert 900 < len(many) <= heldout.MAXIMUM_RANKED
    assert set(np.diff(many).tolist()) == {391}


@pytest.mark.parametrize("maximum", [0, CLIPS])
def test_a_cosine_that_is_nan_makes_no_auc(maximum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout, "MAXIMUM_EXACT", maximum)
    ranks = Ranks(0, 1, CPU)
    own, components = results_of(ranks)
    own.cosines[own.good] = np.nan
    assert math.isnan(heldout_metrics(own, components, ranks)["val/auc"])
