"""Heads: each modality is predicted by its own layers, at the places that are asked for."""

from __future__ import annotations

import torch

from avvp_dist.models.heads import MaskedHead, MatchingHead


@torch.no_grad()
def test_masked_features_are_predicted_at_their_places() -> None:
    torch.manual_seed(0)
    head = MaskedHead(8, 3, (4, 9))
    assert head.tokens.shape == (3, 8) and 0.01 < float(head.tokens.std()) < 0.03
    audio, visual = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    places = torch.tensor([[[4, 0], [1, 2]], [[3, 3], [0, 4]]])
    for predicted, x, layers, row in zip(
        head((audio, visual), places), (audio, visual), head.layers, (0, 1), strict=True
    ):
        for clip in range(2):
            torch.testing.assert_close(predicted[clip], layers(x[clip, places[clip, row]]))


@torch.no_grad()
def test_a_match_is_told_from_the_means_over_real_snippets() -> None:
    torch.manual_seed(0)
    head, audio, visual = MatchingHead(8), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    real = torch.arange(5) < torch.tensor([[5], [2], [0]])
    logits = head(audio, visual, real)
    for clip, length in enumerate((5, 2)):
        means = torch.cat([audio[clip, :length].mean(0), visual[clip, :length].mean(0)])
        torch.testing.assert_close(logits[clip], head.layer(means)[0])
    assert torch.equal(logits[2], head.layer.bias[0])
