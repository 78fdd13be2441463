"""The encoder as an MLflow model: features or videos in, contextual representations out.

MLflow runs this file to load a registered encoder (models from code).
"""

from __future__ import annotations

from pathlib import Path

from mlflow.models import set_model
from torch import Tensor

from avvp_dist.models.export import load_encoder
from avvp_dist.models.specification import Spec
from avvp_dist.parsing.windows import average_windows
from avvp_dist.serving.batches import Outputs
from avvp_dist.serving.model import ServedModel
from avvp_dist.serving.requests import ClipRequest


class ServedEncoder(ServedModel):
    """A registered encoder behind MLflow's interface."""

    reads_shorter_clips = True

    def load(self, export: Path) -> Spec:
        self.encoder, spec = load_encoder(export)
        self.encoder.eval()
        return spec

    def run(self, streams: dict[str, Tensor], lengths: Tensor) -> Outputs:
        return [group.numpy() for group in self.encoder(streams, lengths)]

    def answer(self, clip: ClipRequest, outputs: Outputs) -> dict[str, object]:
        """Representations `[N, width]` of each token group, means over the windows of a second."""
        seconds = {
            name: average_windows(windows, clip.seconds).tolist()
            for name, windows in zip(self.encoder.groups, outputs, strict=True)
        }
        return {"representations": seconds}


set_model(ServedEncoder())
