"""The parser under its losses: what a batch trains, and how strongly the gradient is reversed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from avvp_dist.config import ParserConfig, ParsingLossConfig
from avvp_dist.loading.transfer import to_device
from avvp_dist.models.parser import Parser
from avvp_dist.models.parsing_model import ParsingBatch, ParsingModel
from avvp_dist.objectives.parsing import parsing_loss, reversal_ramp
from tests.training.operations import Operations

SMALL = ParserConfig(width=16, attention="multihead")


def model_of(config: ParsingLossConfig, discriminator: bool = True) -> ParsingModel:
    torch.manual_seed(0)
    parser = Parser(
        dataclasses.replace(SMALL, discriminator=discriminator), {"audio": 4, "visual": 6}, 3
    )
    return ParsingModel(parser, config).eval()


def batch_of(progress: float = 0.3, kept: Tensor | None = None) -> ParsingBatch:
    torch.manual_seed(1)
    return ParsingBatch(
        streams={"audio": torch.randn(2, 5, 4), "visual": torch.randn(2, 5, 6)},
        weak=torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
        kept=kept,
        progress=progress,
    )


def gradients(model: ParsingModel, progress: float) -> tuple[Tensor, Tensor]:
    """Gradients of the loss for the layer before the heads, and for the discriminator."""
    loss, _ = model(batch_of(progress))
    parser = model.parser
    return torch.autograd.grad(loss, [parser.shared.weight, parser.discriminator.layers[0].weight])


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_ramp_scales_the_reversed_gradient_and_not_the_discriminators(progress: float) -> None:
    without, _ = gradients(model_of(ParsingLossConfig(lambda_adversarial=0.0)), progress)
    full, discriminator = gradients(model_of(ParsingLossConfig(ramp=False)), progress)
    ramped, same = gradients(model_of(ParsingLossConfig(ramp=True)), progress)
    assert (full - without).abs().max() > 1e-4
    expected = reversal_ramp(progress) * (full - without)
    torch.testing.assert_close(ramped - without, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(same, discriminator)


def test_without_ramp_progress_changes_nothing() -> None:
    model = model_of(ParsingLossConfig(ramp=False))
    for early, late in zip(gradients(model, 0.0), gradients(model, 1.0), strict=True):
        assert torch.equal(early, late)


def test_a_parser_without_discriminator_has_no_adversarial_term() -> None:
    config, kept = ParsingLossConfig(), torch.ones(2, 2, 3)
    kept[0, 0, 0] = 0
    model, batch = model_of(config, discriminator=False), batch_of(kept=kept)
    loss, parts = model(batch)
    assert parts.keys() == {"weak", "audio", "visual"}
    expected, _ = parsing_loss(model.parser(batch.streams), batch.weak, config, kept)
    assert torch.equal(loss, expected)
    assert not torch.equal(loss, model(batch_of())[0])


def test_a_step_takes_nothing_from_the_host_and_waits_for_nothing() -> None:
    model = model_of(ParsingLossConfig(lambda_contrastive=1.0)).to("meta")
    batch = to_device(batch_of(kept=torch.ones(2, 2, 3)), torch.device("meta"))
    with Operations() as operations:  # on the meta device, whatever needs a value is an error
        loss, _ = model(batch)
        loss.backward()
    assert (operations.copied, operations.waits) == ([], 0) and operations.kernels > 50


@torch.no_grad()
def test_autocast_leaves_losses_and_weights_in_float32() -> None:
    exact = model_of(ParsingLossConfig())
    cast = ParsingModel(exact.parser, ParsingLossConfig(), autocast=True).eval()
    loss, parts = cast(batch_of())
    assert {loss.dtype, *(part.dtype for part in parts.values())} == {torch.float32}
    assert 0 < abs(float(loss - exact(batch_of())[0])) < 0.01 * float(loss)
