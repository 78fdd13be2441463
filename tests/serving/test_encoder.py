"""A registered encoder, loaded by MLflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from avvp_dist.models.export import load_encoder
from avvp_dist.serving.requests import RequestError
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.prediction import load_streams
from avvp_dist.tracking.packaging import export_in


@torch.no_grad()
def test_it_answers_representations_per_snippet_and_token_group(
    encoder_model: Path, packed: dict[str, ShardSet]
) -> None:
    """A clip that is shorter than the others of its request is not changed by them."""
    import mlflow.pyfunc

    served = mlflow.pyfunc.load_model(str(encoder_model))
    streams = load_streams(packed["val"], np.arange(3), torch.device("cpu"), torch.float32)
    lengths = [10, 4, 10]
    records = [
        {name: features[n, :length].numpy() for name, features in streams.items()}
        for n, length in enumerate(lengths)
    ]
    answers = served.predict(pd.DataFrame(records))
    encoder, _ = load_encoder(export_in(encoder_model))
    for number, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
        alone = {name: features[number, None, :length] for name, features in streams.items()}
        expected = dict(zip(("audio", "visual"), encoder.eval()(alone), strict=True))
        assert answer["representations"].keys() == expected.keys()
        for group, vectors in answer["representations"].items():
            torch.testing.assert_close(
                torch.tensor(vectors), expected[group][0], rtol=1e-4, atol=1e-5
            )
    with pytest.raises(RequestError, match=r"^record 0: audio is 11 x 12, expected 1 to 10 snip"):
        served.predict(pd.DataFrame([{"audio": [[0.5] * 12] * 11, "visual": [[0.5] * 16] * 11}]))
    with pytest.raises(RequestError, match=r"streams have different lengths: .*'visual': 3"):
        served.predict(pd.DataFrame([{"audio": [[0.5] * 12] * 4, "visual": [[0.5] * 16] * 3}]))
