"""The parser's losses: weak, guided and adversarial, equation (3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.config import ParsingLossConfig
from avvp_dist.models.parser import Parsed, Parser


def parsing_loss(
    parser: Parser,
    parsed: Parsed,
    weak: Tensor,
    config: ParsingLossConfig,
    progress: float,
    kept: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = L_wsl + lambda_g L_g - lambda_ad L_ad, its minus sign made by gradient reversal.

    L_wsl is the binary cross-entropy of the video probability, L_g that of each modality's, after
    label smoothing (HAN), L_ad the modality discriminator's. The discriminator itself descends
    on lambda_ad L_ad, the parser receives that gradient times minus one, or minus the ramp of
    `reversal_ramp` when `config.ramp` is set. MA's `contrastive_loss` comes on top where it has
    a weight.

    Args:
        weak: video-level labels `[B, C]`, 0 or 1.
        progress: share of the training that is done, 0 to 1.
        kept: 1 where a modality keeps the label, 0 where refinement took it away, `[B, 2, C]`.

    Returns:
        The loss and its parts, detached.
    """
    # In this order, as MA does: a label that was taken away is 0, and not a smoothed 0.05.
    audio, visual = smooth(weak, config.smooth_audio), smooth(weak, config.smooth_visual)
    if kept is not None:
        audio, visual = audio * kept[:, 0], visual * kept[:, 1]
        weak = weak * kept[:, 0] if config.alias_audio_labels else weak
    losses = {
        "weak": bce(parsed.video_prob, weak),
        "audio": bce(parsed.modality_prob[:, 0], audio),
        "visual": bce(parsed.modality_prob[:, 1], visual),
    }
    total = losses["weak"] + config.lambda_guided * (losses["audio"] + losses["visual"])
    if parser.config.discriminator:
        scale = reversal_ramp(progress) if config.ramp else 1.0
        logits, truth = parser.discriminate(parsed, scale)
        losses["adversarial"] = F.binary_cross_entropy_with_logits(logits.float(), truth)
        total = total + config.lambda_adversarial * losses["adversarial"]
    if config.lambda_contrastive:
        losses["contrastive"] = contrastive_loss(parsed, config.temperature, config.smooth_time)
        total = total + config.lambda_contrastive * losses["contrastive"]
    return total, {name: loss.detach() for name, loss in losses.items()}


def contrastive_loss(parsed: Parsed, temperature: float, confidence: float) -> Tensor:
    """Which visual snippet of its clip belongs to the audio of t? (Wu & Yang, CVPR 2021.)

    Cross-entropy of cosine(audio after attention at t, vision before attention at t') over t', with
    weight `confidence` on t' = t and the rest spread evenly over the other snippets.
    """
    audio, visual = parsed.features[:, :, 0].float(), parsed.inputs[:, :, 1].float()
    similarity = F.normalize(audio, dim=-1) @ F.normalize(visual, dim=-1).transpose(1, 2)
    snippets = similarity.shape[1]
    truth = torch.full_like(similarity[0], (1 - confidence) / max(1, snippets - 1))
    truth.fill_diagonal_(confidence)
    return -(truth * (similarity / temperature).log_softmax(-1)).sum(-1).mean()


def bce(probability: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy, probabilities clamped to [1e-7, 1 - 1e-7] (HAN)."""
    return F.binary_cross_entropy(probability.float().clamp(1e-7, 1 - 1e-7), target)


def smooth(weak: Tensor, confidence: float) -> Tensor:
    """Labels drawn towards 1/2: 0.9 turns 0, 1 into 0.05, 0.95 (HAN's visual guidance)."""
    return confidence * weak + (1 - confidence) / 2


def reversal_ramp(progress: float) -> float:
    """2 / (1 + exp(-10 p)) - 1: from 0 to 1 over the training (Ganin et al., 2016)."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


def weak_labels(labels: list[tuple[str, ...] | None], classes: tuple[str, ...]) -> Tensor:
    """Class names of N clips as float `[N, C]`."""
    rows = torch.zeros(len(labels), len(classes))
    for row, names in zip(rows, labels, strict=True):
        row[[classes.index(name) for name in names or ()]] = 1.0
    return rows
