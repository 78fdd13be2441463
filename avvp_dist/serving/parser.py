"""The parser as an MLflow model: features or videos in, events and probabilities out.

MLflow runs this file to load a registered parser (models from code).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from mlflow.models import set_model
from torch import Tensor

from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.evaluation.scores import THRESHOLD
from avvp_dist.models.export import load_parser
from avvp_dist.models.parser import probabilities
from avvp_dist.models.specification import Spec
from avvp_dist.parsing.timeline import ParserModel
from avvp_dist.parsing.windows import Decision, make_timeline
from avvp_dist.serving.batches import Outputs
from avvp_dist.serving.model import ServedModel
from avvp_dist.serving.requests import ClipRequest

DECISION = Decision("video", THRESHOLD)


class ServedParser(ServedModel):
    """A registered parser behind MLflow's interface."""

    reads_shorter_clips = False

    def load(self, export: Path) -> Spec:
        self.parser, self.spec = load_parser(export)
        self.parser.eval()
        return self.spec

    def run(self, streams: dict[str, Tensor], lengths: Tensor) -> Outputs:
        return probabilities(self.parser, streams)

    def answer(self, clip: ClipRequest, outputs: Outputs) -> dict[str, object]:
        """Events and probabilities of a clip, those of the timeline that its windows make."""
        timeline = make_timeline(
            Predictions((clip.id or "",) * len(outputs[0]), *outputs),
            clip.seconds,
            self.spec.classes,
            ParserModel("", "", self.spec.extractor, self.spec.snippets),
            DECISION,
            clip.missing,
        )
        return {
            "events": [asdict(event) for event in timeline.events],
            "probabilities": {
                modality: {
                    label: [second[number][column] for second in timeline.frame_prob]
                    for column, label in enumerate(timeline.classes)
                }
                for number, modality in enumerate(MODALITIES)
            },
        }


set_model(ServedParser())
