"""The parsing losses: each by hand, and the adversarial gradient through real modules."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.config import ParserConfig, ParsingLossConfig
from avvp_dist.models.parser import Parser
from avvp_dist.objectives.parsing import (
    ParserOutput,
    bce,
    contrastive_loss,
    parsing_loss,
    reversal_ramp,
    smooth,
    weak_labels,
)

FULL = ParsingLossConfig(ramp=False)
WEAK = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


def parser(discriminator: bool = True) -> Parser:
    torch.manual_seed(0)
    config = ParserConfig(width=16, discriminator=discriminator)
    return Parser(config, {"audio": 4, "visual": 6}, 3)


def parse(model: Parser) -> ParserOutput:
    torch.manual_seed(1)
    output: ParserOutput = model({"audio": torch.randn(2, 5, 4), "visual": torch.randn(2, 5, 6)})
    return output


def adversarial_loss_of(
    model: Parser, output: ParserOutput, config: ParsingLossConfig, scale: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss with the discriminator's term."""
    return parsing_loss(output, WEAK, config, discrimination=model.discriminate(output, scale))


def cross_entropy(probability: Tensor, target: Tensor) -> float:
    terms = [
        -(y * math.log(p) + (1 - y) * math.log(1 - p))
        for p, y in zip(probability.flatten().tolist(), target.flatten().tolist(), strict=True)
    ]
    return sum(terms) / len(terms)


def test_bce_is_the_mean_cross_entropy() -> None:
    probability = torch.tensor([[0.2, 0.9, 0.5], [0.01, 0.6, 0.99]])
    assert float(bce(probability, WEAK)) == pytest.approx(cross_entropy(probability, WEAK))


def test_bce_stays_finite_at_certain_mistakes() -> None:
    wrong = bce(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert float(wrong) == pytest.approx(-math.log(1e-7), rel=0.01)
    assert float(bce(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))) < 1e-6


@pytest.mark.parametrize(("confidence", "low"), [(1.0, 0.0), (0.9, 0.05), (0.0, 0.5)])
def test_smoothing_moves_labels_to_the_middle(confidence: float, low: float) -> None:
    expected = torch.tensor([low, 1 - low])
    torch.testing.assert_close(smooth(torch.tensor([0.0, 1.0]), confidence), expected)


def test_han_smooths_vision_only() -> None:
    output = parse(parser(discriminator=False))
    loss, parts = parsing_loss(output, WEAK, ParsingLossConfig(lambda_guided=0.5))
    expected = {
        "weak": cross_entropy(output.video_prob, WEAK),
        "audio": cross_entropy(output.modality_prob[:, 0], WEAK),
        "visual": cross_entropy(output.modality_prob[:, 1], 0.9 * WEAK + 0.05),
    }
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(expected, rel=1e-5)
    total = expected["weak"] + 0.5 * (expected["audio"] + expected["visual"])
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_the_discriminator_loss_is_over_all_snippets_of_both_modalities() -> None:
    model = parser()
    output = parse(model)
    loss, parts = adversarial_loss_of(model, output, FULL)
    rows = output.features.relu().flatten(0, 2)  # audio and visual rows in turn
    probability = torch.sigmoid(model.discriminator(rows))
    truth = torch.tensor([0.0, 1.0]).repeat(10)
    assert float(parts["adversarial"]) == pytest.approx(cross_entropy(probability, truth), rel=1e-5)
    guided = float(parts["audio"] + parts["visual"])
    total = parts["weak"].item() + 0.6 * guided + 0.4 * float(parts["adversarial"])
    assert loss.item() == pytest.approx(total, rel=1e-6)


def adversarial_gradients(
    model: Parser, output: ParserOutput, config: ParsingLossConfig
) -> tuple[Tensor, Tensor]:
    """Gradients that the adversarial term alone sends to the features and the discriminator."""
    features = output.features.detach().requires_grad_()
    alone = ParserOutput(
        output.frame_prob.detach(),
        output.modality_prob.detach(),
        output.video_prob.detach(),
        features,
        output.inputs.detach(),
    )
    loss, _ = adversarial_loss_of(model, alone, config)
    weight = model.discriminator.layers[0].weight
    to_features, to_discriminator = torch.autograd.grad(loss, [features, weight])
    return to_features, to_discriminator


def plain_gradients(model: Parser, output: ParserOutput) -> tuple[Tensor, Tensor]:
    """Gradient of L_ad itself, without any reversal."""
    features = output.features.detach().requires_grad_()
    logits = model.discriminator(features.relu().flatten(0, 2))
    loss = F.binary_cross_entropy_with_logits(logits, torch.tensor([0.0, 1.0]).repeat(10))
    weight = model.discriminator.layers[0].weight
    to_features, to_discriminator = torch.autograd.grad(loss, [features, weight])
    return to_features, to_discriminator


@pytest.mark.parametrize("weight", [0.25, 2.0])  # exact in floats
def test_the_parser_ascends_on_the_discriminators_loss(weight: float) -> None:
    model = parser()
    output = parse(model)
    config = replace(FULL, lambda_adversarial=weight)
    features, discriminator = adversarial_gradients(model, output, config)
    plain_features, plain_discriminator = plain_gradients(model, output)
    assert plain_features.abs().max() > 0
    torch.testing.assert_close(features, -weight * plain_features, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(discriminator, weight * plain_discriminator, rtol=1e-6, atol=1e-9)


def test_the_ramp_goes_from_nothing_to_full() -> None:
    assert reversal_ramp(0.0) == 0
    assert reversal_ramp(1.0) == pytest.approx(1, abs=1e-4)
    ramp = [reversal_ramp(step / 20) for step in range(21)]
    assert ramp == sorted(ramp)


# MA: labels that refinement removed, and the contrastive loss.

KEPT = torch.tensor(
    [
        [[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]],  # the first label is only seen, the last only heard
        [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]],
    ]
)
"""Labels of WEAK that each modality keeps; 1 also where a clip has no label."""


@pytest.mark.parametrize("alias", [False, True])
def test_a_removed_label_is_0_for_its_modality(alias: bool) -> None:
    output = parse(parser(discriminator=False))
    config = ParsingLossConfig(alias_audio_labels=alias, smooth_audio=0.8, smooth_visual=0.9)
    _, parts = parsing_loss(output, WEAK, config, KEPT)
    audio = torch.tensor([[0.0, 0.1, 0.9], [0.1, 0.1, 0.9]])
    visual = torch.tensor([[0.95, 0.05, 0.0], [0.05, 0.05, 0.0]])
    # MA's loader loses a label of the video too, but only if it was removed from the audio.
    video = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]) if alias else WEAK
    expected = {
        "weak": cross_entropy(output.video_prob, video),
        "audio": cross_entropy(output.modality_prob[:, 0], audio),
        "visual": cross_entropy(output.modality_prob[:, 1], visual),
    }
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("alias", [False, True])
def test_labels_that_all_stay_change_nothing(alias: bool) -> None:
    output = parse(parser())
    config = ParsingLossConfig(alias_audio_labels=alias)
    loss, parts = parsing_loss(output, WEAK, config, torch.ones(2, 2, 3))
    expected, expected_parts = parsing_loss(output, WEAK, config)
    assert torch.equal(loss, expected)
    assert parts == expected_parts


def contrast_by_loops(audio: Tensor, visual: Tensor, temperature: float) -> float:
    """MA's `LabelSmoothingLoss(T, smoothing=0.1)` over cosines: `audio`, `visual` `[B, T, D]`."""
    terms = []
    for heard, seen in zip(audio.double().numpy(), visual.double().numpy(), strict=True):
        for t, x in enumerate(heard):
            cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in seen]
            logits = np.array(cosines) / temperature
            log_softmax = logits - np.log(np.exp(logits).sum())
            truth = np.full(len(seen), 0.1 / (len(seen) - 1))
            truth[t] = 0.9
            terms.append(-(truth * log_softmax).sum())
    return float(np.mean(terms))


def output_of(features: Tensor, inputs: Tensor) -> ParserOutput:
    nothing = torch.zeros(())
    return ParserOutput(nothing, nothing, nothing, features, inputs)


@pytest.mark.parametrize("snippets", [10, 4])
def test_the_contrastive_loss_is_mas(snippets: int) -> None:
    torch.manual_seed(0)
    features, inputs = torch.randn(2, 3, snippets, 2, 6)
    inputs[:, :, 1] += features[:, :, 0]
    loss = contrastive_loss(output_of(features, inputs), 0.2, 0.9)
    expected = contrast_by_loops(features[:, :, 0], inputs[:, :, 1], 0.2)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    colder = contrastive_loss(output_of(features, inputs), 0.1, 0.9)
    assert float(colder) == pytest.approx(
        contrast_by_loops(features[:, :, 0], inputs[:, :, 1], 0.1), rel=1e-5
    )


def test_the_contrastive_loss_is_added_with_its_weight_and_only_then() -> None:
    output = parse(parser(discriminator=False))
    without, parts = parsing_loss(output, WEAK, ParsingLossConfig())
    assert "contrastive" not in parts
    loss, parts = parsing_loss(output, WEAK, ParsingLossConfig(lambda_contrastive=2.0))
    expected = contrast_by_loops(
        output.features[:, :, 0].detach(), output.inputs[:, :, 1].detach(), 0.2
    )
    assert float(parts["contrastive"]) == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(without.item() + 2 * expected, rel=1e-5)


def test_weak_labels_are_one_row_per_clip() -> None:
    rows = weak_labels([("Dog", "Car"), None, (), ("Cat",)], ("Cat", "Dog", "Car"))
    assert rows.dtype == torch.float32
    assert rows.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("confidence", [0.0, 0.05, 1.0])
def test_the_contrastive_loss_is_finite_for_any_confidence(confidence: float) -> None:
    torch.manual_seed(0)
    features, inputs = torch.randn(2, 3, 10, 2, 6)
    assert torch.isfinite(contrastive_loss(output_of(features, inputs), 0.2, confidence))
