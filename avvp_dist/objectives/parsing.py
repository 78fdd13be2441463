"""The parser's losses: weak, guided and adversarial, equation (3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.config import ParsingLossConfig


@dataclass(frozen=True)
class ParserOutput:
    """Probabilities and features of B clips; the axis of size 2 is audio, visual."""

    frame_prob: Tensor
    """Probability that an event is heard or seen in a snippet, `[B, T, 2, C]`."""
    modality_prob: Tensor
    """Probability of an event in a modality of the clip, pooled over time, `[B, 2, C]`."""
    video_prob: Tensor
    """Probability of an event in the clip, pooled over time and modality, `[B, C]`.

    The weights of the pooling sum to 2 at most, so it may exceed 1."""
    features: Tensor
    """Input of the heads, `[B, T, 2, width]`."""
    inputs: Tensor
    """Input of the attention layers, `[B, T, 2, width]`."""


def parsing_loss(
    output: ParserOutput,
    weak: Tensor,
    config: ParsingLossConfig,
    kept: Tensor | None = None,
    discrimination: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss of equation (3): L = L_wsl + lambda_g L_g - lambda_ad L_ad.

    L_wsl is the binary cross-entropy of the video probability, L_g that of each modality's after
    label smoothing (HAN), L_ad that of the modality discriminator. The minus sign is made by
    gradient reversal: the discriminator descends on lambda_ad L_ad, and the parser receives its
    gradient reversed (`Parser.discriminate`). MA's `contrastive_loss` is added if it has a weight.

    Args:
        weak: video-level labels `[B, C]`, 0 or 1.
        kept: 1 where a modality keeps the label, 0 where refinement removed it, `[B, 2, C]`.
        discrimination: the discriminator's logits and the true modalities, `[2BT]` each; None:
            no adversarial term.

    Returns:
        The loss, and its parts, detached.
    """
    # Smoothing comes first, as in MA: a label that was removed is 0, not a smoothed 0.05.
    audio, visual = smooth(weak, config.smooth_audio), smooth(weak, config.smooth_visual)
    if kept is not None:
        audio, visual = audio * kept[:, 0], visual * kept[:, 1]
        weak = weak * kept[:, 0] if config.alias_audio_labels else weak
    losses = {
        "weak": bce(output.video_prob, weak),
        "audio": bce(output.modality_prob[:, 0], audio),
        "visual": bce(output.modality_prob[:, 1], visual),
    }
    total = losses["weak"] + config.lambda_guided * (losses["audio"] + losses["visual"])
    if discrimination is not None:
        logits, truth = discrimination
        losses["adversarial"] = F.binary_cross_entropy_with_logits(logits.float(), truth)
        total = total + config.lambda_adversarial * losses["adversarial"]
    if config.lambda_contrastive:
        losses["contrastive"] = contrastive_loss(output, config.temperature, config.smooth_time)
        total = total + config.lambda_contrastive * losses["contrastive"]
    return total, {name: loss.detach() for name, loss in losses.items()}


def contrastive_loss(output: ParserOutput, temperature: float, confidence: float) -> Tensor:
    """MA's loss that finds the visual snippet for each audio snippet (Wu & Yang, CVPR 2021).

    Cross-entropy over t' of cosine(audio after attention at t, vision before attention at t')
    divided by `temperature`. The target is `confidence` at t' = t, and the rest spread evenly over
    the other snippets.
    """
    audio, visual = output.features[:, :, 0].float(), output.inputs[:, :, 1].float()
    similarity = F.normalize(audio, dim=-1) @ F.normalize(visual, dim=-1).transpose(1, 2)
    snippets = similarity.shape[1]
    truth = torch.full_like(similarity[0], (1 - confidence) / max(1, snippets - 1))
    truth.fill_diagonal_(confidence)
    return -(truth * (similarity / temperature).log_softmax(-1)).sum(-1).mean()


def bce(probability: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of probabilities clamped to [1e-7, 1 - 1e-7], as in HAN."""
    return F.binary_cross_entropy(probability.float().clamp(1e-7, 1 - 1e-7), target)


def smooth(weak: Tensor, confidence: float) -> Tensor:
    """Smooth labels towards 1/2: 0.9 turns 0 and 1 into 0.05 and 0.95 (HAN's visual guidance)."""
    return confidence * weak + (1 - confidence) / 2


def reversal_ramp(progress: float) -> float:
    """Scale of the reversed gradient, 2 / (1 + exp(-10 p)) - 1 (Ganin et al., JMLR 2016).

    It rises from 0 to 1 while `progress`, the completed fraction of the training, does.
    """
    return 2 / (1 + math.exp(-10 * progress)) - 1


def weak_labels(labels: Sequence[Sequence[str] | None], classes: Sequence[str]) -> Tensor:
    """Multi-hot labels, float32 `[N, C]`, from the class names of N clips; None: no name."""
    rows = torch.zeros(len(labels), len(classes))
    for row, names in zip(rows, labels, strict=True):
        row[[classes.index(name) for name in names or ()]] = 1.0
    return rows
