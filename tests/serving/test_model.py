"""The frame of served models: exports that were changed, outputs that cannot be answered."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest

from avvp_dist.errors import CheckpointError
from avvp_dist.serving.model import verified
from avvp_dist.serving.requests import RequestError
from avvp_dist.tracking.packaging import export_in


def test_a_changed_export_is_not_loaded(small_parser_model: Path, tmp_path: Path) -> None:
    export = Path(shutil.copytree(export_in(small_parser_model), tmp_path / "export"))
    assert verified(export) == export
    with (export / "config.yaml").open("a") as file:
        file.write("\n")
    with pytest.raises(CheckpointError, match=r"config\.yaml has \d+ bytes, not \d+.*again"):
        verified(export)


def test_features_of_which_no_probability_comes_are_refused(small_parser_model: Path) -> None:
    served = mlflow.pyfunc.load_model(str(small_parser_model))
    clip = {"audio": [[3e38] * 3] * 10, "visual": [[-3e38] * 4] * 10}
    with pytest.raises(RequestError, match=r"^record 0 has no answer: frame_prob is not finite$"):
        served.predict(pd.DataFrame([clip]))
