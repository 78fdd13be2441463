"""An export as an MLflow model: loaded and served by MLflow, without this project installed.

The model is a folder: the export in `artifacts/export`, the script that loads it, the modules that
the script imports in `code/`, and MLflow's own files around them. Nothing is pickled.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Container
from modulefinder import ModuleFinder
from pathlib import Path
from typing import TYPE_CHECKING

import avvp_dist
from avvp_dist.errors import CheckpointError
from avvp_dist.models.specification import CONFIG, ParserSpec, Spec, read_spec

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

ID = "id"
"""Column of a request that names the clip. A stream is a column of its own name."""
VIDEO, PATH = "video", "path"
"""Columns of a request that hold a media file as base64, or name one on the server."""
EXPORT = "export"
"""Name of the export among the artifacts of the model."""
MLMODEL = "MLmodel"

REQUIREMENTS = (
    "mlflow>=3.11",
    "torch>=2.9",
    "numpy>=1.26",
    "pandas>=2.0",
    "safetensors>=0.5",
    "omegaconf>=2.3",
    "pyyaml>=6.0",
)
"""Requirements of loading and serving, far fewer than those of training. Decoding of media and the
backbones need more, only where a request holds a media file."""

_PACKAGE = Path(avvp_dist.__file__).parent
_SCRIPTS = {"parser": _PACKAGE / "serving/parser.py", "encoder": _PACKAGE / "serving/encoder.py"}


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export that this release can load."""
    try:
        read_spec(folder / CONFIG)
    except CheckpointError:
        return False
    return True


def export_in(folder: Path) -> Path:
    """The export in a folder of the registry: versions of older releases are bare exports."""
    return folder / "artifacts" / EXPORT if (folder / MLMODEL).is_file() else folder


def package(export: Path, into: Path, model_id: str = "", run_id: str = "") -> Path:
    """Write an export as an MLflow model into a new folder; asks no server and no network.

    Args:
        export: folder of an exported parser or encoder.
        model_id: id of the logged model that the folder will be.
        run_id: id of the MLflow run that made it.

    Raises:
        CheckpointError: if the folder is no export.
    """
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model

    spec = read_spec(export / CONFIG)
    script = _SCRIPTS[spec.kind]
    with tempfile.TemporaryDirectory() as staged:
        named = Path(staged) / EXPORT  # MLflow keeps the name of the folder
        shutil.copytree(export, named)
        pyfunc.save_model(
            into,
            python_model=script,
            code_paths=[str(_copy_imports(script, Path(staged)))],
            artifacts={EXPORT: str(named)},
            signature=signature(spec),
            input_example=pd.DataFrame([{ID: "clip", **zeros(spec)}]),
            pip_requirements=list(REQUIREMENTS),
            mlflow_model=Model(model_id=model_id or None, run_id=run_id or None),
        )
    return into


def signature(spec: Spec) -> ModelSignature:
    """Columns of a request and of its answer. All columns of a request may be missing."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Map, Object, Property, Schema

    table = Array(Array(DataType.double))
    name = ColSpec(DataType.string, ID, required=False)
    media = [ColSpec(DataType.string, one, required=False) for one in media_columns(spec.dims)]
    streams = [ColSpec(table, stream, required=False) for stream in spec.dims]
    if not isinstance(spec, ParserSpec):
        answer = [ColSpec(Map(table), "representations")]
    else:
        event = Object(
            [
                Property("modality", DataType.string),
                Property("label", DataType.string),
                Property("onset", DataType.long),
                Property("offset", DataType.long),
                Property("confidence", DataType.double),
            ]
        )
        probabilities = Map(Map(Array(DataType.double)))
        answer = [ColSpec(Array(event), "events"), ColSpec(probabilities, "probabilities")]
    answer.append(ColSpec(Map(DataType.string), "missing"))
    return ModelSignature(Schema([name, *media, *streams]), Schema([name, *answer]))


def media_columns(streams: Container[str]) -> list[str]:
    """Columns of a request that give a media file. A stream of such a name hides the column."""
    return [column for column in (VIDEO, PATH) if column not in streams]


def zeros(spec: Spec) -> dict[str, list[list[float]]]:
    """Features of a clip that is silent and black, `[T, D]` per stream: an example of a request."""
    return {name: [[0.0] * dim for _ in range(spec.snippets)] for name, dim in spec.dims.items()}


def _copy_imports(script: Path, into: Path) -> Path:
    """Copy the modules of this package that a script needs, and return the copied package."""
    from avvp_dist.features.backbones.registry import BACKBONES

    root = _PACKAGE.parent
    finder = ModuleFinder([str(root)])
    finder.run_script(str(script))
    for place in BACKBONES.values():  # they are imported by name
        finder.import_hook(place.partition(":")[0])
    for module in finder.modules.values():
        file = Path(getattr(module, "__file__", None) or "")
        if file.is_relative_to(_PACKAGE):
            copied = into / file.relative_to(root)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)
    return into / _PACKAGE.name
