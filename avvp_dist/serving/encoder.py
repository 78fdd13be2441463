"""The encoder as an MLflow model: features of clips in, contextual representations out.

MLflow runs this file to load a registered encoder (models from code).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from mlflow.pyfunc.model import PythonModelContext

from avvp_dist.models.export import load_encoder
from avvp_dist.serving.batches import batches, prefer_installed_package, verified
from avvp_dist.serving.requests import RequestReader
from avvp_dist.tracking.packaging import EXPORT


class ServedEncoder(PythonModel):  # type: ignore[misc]  # MLflow has no types
    """A registered encoder behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the export inside the model.

        Raises:
            CheckpointError: if its files are not those that were exported.
        """
        prefer_installed_package()
        self.encoder, self.spec = load_encoder(verified(Path(context.artifacts[EXPORT])))
        self.encoder.eval()
        self.reader = RequestReader(self.spec.dims, 1, self.spec.snippets)

    @torch.no_grad()
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame
    ) -> list[dict[str, object]]:
        """Representations `[T, width]` of each record and token group, as plain data for JSON.

        Raises:
            RequestError: if a record cannot be read.
        """
        clips = self.reader.read(model_input)
        answers: list[dict[str, object]] = []
        for streams, lengths in batches(clips):
            encoded = self.encoder(streams, lengths)
            for number, length in enumerate(lengths.tolist()):
                groups = zip(self.encoder.groups, encoded, strict=True)
                representations = {name: group[number, :length].tolist() for name, group in groups}
                clip = clips[len(answers)]
                answers.append({"id": clip.id, "representations": representations})
        return answers


set_model(ServedEncoder())
