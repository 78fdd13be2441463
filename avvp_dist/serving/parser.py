"""The parser as an MLflow model: features of clips in, events and probabilities out.

MLflow runs this file to load a registered parser (models from code).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from mlflow.pyfunc.model import PythonModelContext
from numpy.typing import NDArray

from avvp_dist.evaluation.events import MODALITIES, events_in
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.evaluation.scores import Mask
from avvp_dist.models.export import load_parser
from avvp_dist.serving.batches import batches, prefer_installed_package, verified
from avvp_dist.serving.requests import ClipRequest, RequestReader
from avvp_dist.tracking.packaging import EXPORT

RULE, THRESHOLD = "video", 0.5


class ServedParser(PythonModel):  # type: ignore[misc]  # MLflow has no types
    """A registered parser behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the export inside the model.

        Raises:
            CheckpointError: if its files are not those that were exported.
        """
        prefer_installed_package()
        self.parser, self.spec = load_parser(verified(Path(context.artifacts[EXPORT])))
        self.parser.eval()
        self.reader = RequestReader(self.spec.dims, self.spec.snippets, self.spec.snippets)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame
    ) -> list[dict[str, object]]:
        """Events and probabilities of each record, as plain data for JSON.

        Raises:
            RequestError: if a record cannot be read.
        """
        clips = self.reader.read(model_input)
        predictions = self._predictions(clips)
        decided = predictions.decided(RULE, THRESHOLD)
        return [
            self._answer(clip, decided[number], predictions.frame_prob[number])
            for number, clip in enumerate(clips)
        ]

    @torch.no_grad()
    def _predictions(self, clips: list[ClipRequest]) -> Predictions:
        parsed = [self.parser(streams) for streams, _ in batches(clips)]
        return Predictions(
            ids=tuple(clip.id or "" for clip in clips),
            frame_prob=torch.cat([one.frame_prob for one in parsed]).numpy(),
            video_prob=torch.cat([one.video_prob for one in parsed]).numpy(),
            modality_prob=torch.cat([one.modality_prob for one in parsed]).numpy(),
        )

    def _answer(
        self, clip: ClipRequest, decided: Mask, frame_prob: NDArray[np.float32]
    ) -> dict[str, object]:
        classes = self.spec.classes
        return {
            "id": clip.id,
            "events": [asdict(event) for event in events_in(decided, frame_prob, classes)],
            "probabilities": {
                modality: dict(zip(classes, frame_prob[:, number].T.tolist(), strict=True))
                for number, modality in enumerate(MODALITIES)
            },
        }


set_model(ServedParser())
