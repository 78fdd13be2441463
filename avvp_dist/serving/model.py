"""The frame of every served model: an export is loaded, a request read, and each clip answered."""

from __future__ import annotations

import sys
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import pandas as pd
import torch
from mlflow.pyfunc import PythonModel
from mlflow.pyfunc.model import PythonModelContext
from torch import Tensor

import avvp_dist
from avvp_dist.commit import verify_folder
from avvp_dist.errors import CheckpointError
from avvp_dist.models.specification import Spec
from avvp_dist.serving.batches import Outputs, run_clips
from avvp_dist.serving.media import MediaReader
from avvp_dist.serving.requests import ClipRequest, RequestError, RequestReader
from avvp_dist.tracking.packaging import EXPORT


class ServedModel(PythonModel):  # type: ignore[misc]  # MLflow has no types
    """A registered model behind MLflow's interface."""

    reads_shorter_clips: ClassVar[bool]
    """Whether the features of a clip may have fewer than T snippets."""

    @abstractmethod
    def load(self, export: Path) -> Spec:
        """Load the model."""

    @abstractmethod
    def run(self, streams: dict[str, Tensor], lengths: Tensor) -> Outputs:
        """Make the model's outputs of W windows.

        Args:
            streams: features `[W, T, D]` by stream.
            lengths: seconds in each window, `[W]`; zeros follow them.
        """

    @abstractmethod
    def answer(self, clip: ClipRequest, outputs: Outputs) -> dict[str, object]:
        """Answer for a clip from the outputs of its windows, as plain data for JSON.

        Raises:
            ValueError: if the outputs are none that can be answered, without data of the request.
        """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the export inside the model.

        Raises:
            CheckpointError: if its files are not those that were exported.
        """
        prefer_installed_package()
        spec = self.load(verified(Path(context.artifacts[EXPORT])))
        self.snippets = spec.snippets
        minimum = 1 if self.reads_shorter_clips else spec.snippets
        self.reader = RequestReader(spec.dims, minimum, spec.snippets)
        self.media = MediaReader(spec.dims, spec.extractor)

    @torch.no_grad()
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame
    ) -> list[dict[str, object]]:
        """Answers to all records, in order.

        Raises:
            RequestError: if a record cannot be read.
        """
        clips = self.media.described(self.reader.read(model_input))
        answers = []
        for number, outputs in enumerate(run_clips(self.run, clips, self.snippets)):
            clip = clips[number]
            try:
                answer = self.answer(clip, outputs)
            except ValueError as error:
                raise RequestError(f"record {number} has no answer: {error}") from None
            answers.append({"id": clip.id, **answer, "missing": dict(clip.missing)})
        return answers


def prefer_installed_package() -> None:
    """Take the model's copy of this package from `sys.path` if another one is in use.

    MLflow puts the copy first. Processes that are spawned would import it, and it lacks whatever
    serving does not need.
    """
    used = Path(avvp_dist.__file__).parent
    copies = {place for place in sys.path if Path(place).name == "code"}
    unused = {one for one in copies if (Path(one) / used.name).is_dir()} - {str(used.parent)}
    sys.path[:] = [place for place in sys.path if place not in unused]


def verified(export: Path) -> Path:
    """Compare the files of an export with its manifest.

    Raises:
        CheckpointError: naming one that was changed.
    """
    faults = verify_folder(export)
    if faults:
        raise CheckpointError(faults[0], remedy="Download or register the model again")
    return export
