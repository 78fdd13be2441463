"""Requests: arrays as well as lists, what is missing in one record alone, columns MLflow drops."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc.context import Context, set_prediction_context

from avvp_dist.serving.requests import ClipRequest, MediaRequest, RequestError, RequestReader

READER = RequestReader({"audio": 2, "visual": 3}, 1, 4)
CLIP = {"audio": [[0.5, 1]] * 4, "visual": [[1, 2, 3]] * 4}


def test_lists_and_arrays_of_any_numbers_become_float32() -> None:
    rows = np.array(CLIP["visual"], np.uint8)
    lists, arrays = READER.read(pd.DataFrame([{"id": "a", **CLIP}, {**CLIP, "visual": rows}]))
    assert isinstance(lists, ClipRequest) and isinstance(arrays, ClipRequest)
    assert (lists.id, arrays.id) == ("a", None)
    for stream in ("audio", "visual"):
        assert lists.streams[stream].dtype == np.float32
        np.testing.assert_array_equal(lists.streams[stream], arrays.streams[stream])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"audio": CLIP["audio"]}, "record 1: visual is missing"),
        ({**CLIP, "audio": [["1", "2"]] * 4}, "record 1: audio is no list of equally long lists"),
        ({**CLIP, "audio": [[True, False]] * 4}, "record 1: audio is no list of equally long"),
        ({**CLIP, "audio": [[None, 1]] * 4}, "record 1: audio is no list of equally long lists"),
        ({**CLIP, "audio": [1, 2]}, "record 1: audio is no list of equally long lists"),
        ({**CLIP, "audio": []}, "record 1: audio is no list of equally long lists"),
        ({**CLIP, "audio": 3}, "record 1: audio is no list of equally long lists"),
        ({**CLIP, "audio": [[0, 1]] * 3}, "record 1: streams have different lengths"),
        ({**CLIP, "audio": [[0, float("inf")]] * 4}, "record 1: audio is not finite in snippet 0"),
        ({**CLIP, "id": ["a"]}, "record 1: id is no string"),
        ({"video": b"a"}, "record 1: video is no string"),
        ({"video": "a", "path": "a"}, "record 1 has video, path: give audio, visual, or one of vi"),
        ({**CLIP, "path": "a"}, "record 1 has path, audio, visual: give audio, visual, or one of"),
        ({}, "record 1 has nothing: give audio, visual, or one of video, path"),
        (
            {**CLIP, "colour": 1},
            "a record has unknown columns; known are id, video, path, audio, visual",
        ),
    ],
)
def test_a_wrong_record_is_named(record: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=f"^{said}"):
        READER.read(pd.DataFrame([CLIP, record]))


def test_a_record_gives_a_media_file_or_features() -> None:
    video, path, clip = READER.read(
        pd.DataFrame([{"id": "a", "video": "c2VjcmV0"}, {"path": "b.mp4"}, CLIP])
    )
    assert video == MediaRequest("a", "record 0: video", "video", "c2VjcmV0")
    assert path == MediaRequest(None, "record 1: path", "path", "b.mp4")
    assert isinstance(clip, ClipRequest) and clip.seconds == 4


def test_a_stream_may_have_the_name_of_a_media_column() -> None:
    reader = RequestReader({"audio": 2, "video": 3}, 1, 4)
    (clip,) = reader.read(pd.DataFrame([{"audio": CLIP["audio"], "video": CLIP["visual"]}]))
    assert isinstance(clip, ClipRequest) and set(clip.streams) == {"audio", "video"}


def test_a_request_without_records_is_refused() -> None:
    with pytest.raises(RequestError, match="no records"):
        READER.read(pd.DataFrame([]))


def test_columns_that_mlflow_dropped_are_refused_in_that_call_alone() -> None:
    with set_prediction_context(Context()):
        logging.getLogger("mlflow.models.utils").warning("Found extra inputs in the model input")
        with pytest.raises(RequestError, match="unknown columns"):
            READER.read(pd.DataFrame([CLIP]))
    with set_prediction_context(Context()):
        assert len(READER.read(pd.DataFrame([CLIP]))) == 1


def test_mlflow_cannot_put_the_data_into_the_message() -> None:
    error = RequestError("record 0: audio is missing")
    error.message = f"Failed to predict data '{CLIP}'"
    assert json.loads(error.serialize_as_json())["message"] == "record 0: audio is missing"
    assert error.get_http_status_code() == 400
