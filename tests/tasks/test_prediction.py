"""A parser applied to annotated clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.config import ParserConfig
from avvp_dist.models.parser import Parser
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.prediction import match_clips, predict


def test_predictions_follow_the_csv_order_for_every_batch_size(
    packed: dict[str, ShardSet], features: Path
) -> None:
    val = packed["val"]
    parser = Parser(ParserConfig(width=16), val.dims, 25)
    annotations = read_annotations(features, "val")
    clips, events = match_clips(val, annotations)
    assert [val.ids[n] for n in clips] == list(annotations.ids)
    assert events.shape == (len(clips), 10, 2, 25)
    cpu = torch.device("cpu")
    found = predict(parser, val, clips, cpu)
    assert found.ids == annotations.ids
    assert found.frame_prob.shape == events.shape and found.video_prob.shape == (len(clips), 25)
    again = predict(parser, val, clips, cpu, batch_size=5)
    np.testing.assert_allclose(found.frame_prob, again.frame_prob, atol=1e-6)
    backwards = predict(parser, val, clips[::-1], cpu)
    np.testing.assert_allclose(backwards.frame_prob[::-1], found.frame_prob, atol=1e-6)
