"""A registered encoder, loaded by MLflow."""

from __future__ import annotations

from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch

from avvp_dist.features.backbones.registry import open_backbones
from avvp_dist.features.description import describe
from avvp_dist.features.media import Bounds
from avvp_dist.models.export import load_encoder
from avvp_dist.serving.requests import RequestError
from avvp_dist.tracking.packaging import export_in
from tests.serving.conftest import DIMS, SMALL


@torch.no_grad()
def test_it_answers_representations_per_snippet_and_token_group(encoder_model: Path) -> None:
    """A clip that is shorter than the others of its request is not changed by them."""
    served = mlflow.pyfunc.load_model(str(encoder_model))
    random, lengths = np.random.default_rng(0), [10, 4, 10]
    records = [
        {name: random.random((length, dim), np.float32) for name, dim in DIMS.items()}
        for length in lengths
    ]
    answers = served.predict(pd.DataFrame(records))
    encoder, _ = load_encoder(export_in(encoder_model))
    for record, answer in zip(records, answers, strict=True):
        alone = {name: torch.from_numpy(features)[None] for name, features in record.items()}
        expected = dict(zip(("audio", "visual"), encoder.eval()(alone), strict=True))
        assert answer["representations"].keys() == expected.keys()
        for group, vectors in answer["representations"].items():
            torch.testing.assert_close(
                torch.tensor(vectors), expected[group][0], rtol=1e-4, atol=1e-5
            )
    with pytest.raises(RequestError, match=r"^record 0: audio is 11 x 3, expected 1 to 10 snip"):
        served.predict(pd.DataFrame([{"audio": [[0.5] * 3] * 11, "visual": [[0.5] * 4] * 11}]))
    with pytest.raises(RequestError, match=r"streams have different lengths: .*'visual': 3"):
        served.predict(pd.DataFrame([{"audio": [[0.5] * 3] * 4, "visual": [[0.5] * 4] * 3}]))


@torch.no_grad()
@pytest.mark.usefixtures("small_backbones")
def test_a_video_of_any_length_has_a_representation_each_second(
    encoder_model: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVVP_MEDIA_ROOT", str(videos))
    served = mlflow.pyfunc.load_model(str(encoder_model))
    answers = served.predict(pd.DataFrame([{"path": "long.mkv"}, {"path": "mute.mp4"}]))
    assert [len(answer["representations"]["visual"]) for answer in answers] == [12, 4]
    assert [answer["missing"].keys() for answer in answers] == [set(), {"audio"}]
    encoder, _ = load_encoder(export_in(encoder_model))
    made = describe(videos / "long.mkv", "", open_backbones(SMALL, {}), Bounds())
    rows = {name: torch.from_numpy(x).half().float() for name, x in made.streams.items()}
    first, last = (
        encoder.eval()({name: x[None, start : start + 10] for name, x in rows.items()})[1][0]
        for start in (0, 2)
    )
    expected = torch.cat([first[:2], (first[2:] + last[:8]) / 2, last[8:]])
    found = torch.tensor(answers[0]["representations"]["visual"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
