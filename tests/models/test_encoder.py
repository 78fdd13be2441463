"""The encoder: what reaches what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avvp_dist.config import SIZES
from avvp_dist.config import Encoder as EncoderConfig
from avvp_dist.models.encoder import Encoder

DIMS = {"audio": 6, "visual": 10, "motion": 4}
SNIPPETS = 7


def encoder(dims: dict[str, int] = DIMS, joint: bool = True) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(size="tiny", joint=joint), dims, SNIPPETS).eval()


def clips(count: int, dims: dict[str, int] = DIMS, snippets: int = SNIPPETS) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(count, snippets, dim) for name, dim in dims.items()}


def close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("joint", [True, False])
@torch.no_grad()
def test_padding_changes_nothing_in_the_real_snippets(joint: bool) -> None:
    model, streams = encoder(joint=joint), clips(3)
    lengths = torch.tensor([4, SNIPPETS, 1])
    encoded = model(streams, lengths)
    for clip, length in enumerate(lengths.tolist()):
        alone = {name: x[clip : clip + 1, :length] for name, x in streams.items()}
        close(tuple(x[clip : clip + 1, :length] for x in encoded), model(alone))


@torch.no_grad()
def test_clips_of_full_length_need_no_lengths() -> None:
    model, streams = encoder(), clips(2)
    close(model(streams, torch.full((2,), SNIPPETS)), model(streams))


@pytest.mark.parametrize("joint", [True, False])
@torch.no_grad()
def test_modalities_meet_only_in_a_joint_encoder(joint: bool) -> None:
    model, streams = encoder(joint=joint), clips(2)
    audio, visual = model(streams)
    unseen = model({**streams, "visual": torch.randn(2, SNIPPETS, 10)})
    unheard = model({**streams, "audio": torch.randn(2, SNIPPETS, 6)})
    assert torch.equal(unseen[0], audio) == (not joint)
    assert torch.equal(unheard[1], visual) == (not joint)
    assert not torch.allclose(unseen[1], visual)
    assert not torch.allclose(unheard[0], audio)


@pytest.mark.parametrize(
    "dims",
    [{"audio": 5, "visual": 3}, {"clip": 9, "audio": 2, "flow": 3, "depth": 8}, DIMS],
    ids=lambda dims: "+".join(dims),
)
@torch.no_grad()
def test_any_streams_of_any_size_all_of_which_matter(dims: dict[str, int]) -> None:
    model, streams = encoder(dims), clips(2, dims)
    encoded = model(streams)
    assert [x.shape for x in encoded] == [(2, SNIPPETS, SIZES["tiny"][1])] * 2
    for name in dims:
        other = model({**streams, name: torch.randn_like(streams[name])})
        assert not torch.allclose(encoded[0], other[0]), name
        assert not torch.allclose(encoded[1], other[1]), name


@torch.no_grad()
def test_clips_of_a_batch_do_not_meet() -> None:
    model, streams = encoder(), clips(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    lengths = torch.tensor([7, 2, 5, 7, 3])
    shuffled = model({name: x[order] for name, x in streams.items()}, lengths[order])
    close(shuffled, tuple(x[order] for x in model(streams, lengths)))


@torch.no_grad()
def test_the_order_of_snippets_matters() -> None:
    model, streams = encoder(), clips(1)
    backwards = model({name: x.flip(1) for name, x in streams.items()})
    assert not torch.allclose(backwards[0].flip(1), model(streams)[0], atol=1e-4)
