"""A served parser: a real `mlflow models serve`, in processes that have no avvp_dist."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.models.export import load_parser
from avvp_dist.models.parser import probabilities
from avvp_dist.tracking.packaging import export_in
from tests.serving.test_media import sent, timelines
from tests.tracking.servers import free_port, wait_for

Records = list[dict[str, Any]]

WITHOUT_THE_PROJECT = """
import sys
from importlib.machinery import PathFinder

class NotInstalled:
    absent = {"avvp_dist", "deepspeed", "ray", "faiss", "google_crc32c", "webdataset"}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in cls.absent:
            spec = PathFinder.find_spec(name, path)
            if spec is None or not spec.origin.startswith("CODE"):
                raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, NotInstalled)
try:
    import avvp_dist
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("avvp_dist is importable")
"""
"""Start-up of a process as in an environment with few of our requirements and without us."""


@pytest.fixture(scope="module")
def address(
    parser_model: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of a server of the parser, whose processes can import no module of this project."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [Path(sys.executable).with_name("mlflow"), "models", "serve"]
    command += ["--model-uri", parser_model, "--env-manager", "local", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    startup = WITHOUT_THE_PROJECT.replace("CODE", str(parser_model / "code"))
    (folder / "sitecustomize.py").write_text(startup)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}
    variables |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "AVVP_MEDIA_ROOT": str(videos)}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=variables
        )
    try:
        ping = f"http://127.0.0.1:{port}/ping"
        wait_for(lambda: answers(ping) or server.poll() is not None, seconds=90)
        assert server.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def post(address: str, body: object) -> tuple[int, Any]:
    """Status and JSON of the answer to a request."""
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def features(count: int) -> dict[str, np.ndarray]:
    """Features `[count, 10, D]` per stream, of few digits."""
    random = np.random.default_rng(0)
    return {
        name: random.integers(-20, 20, (count, 10, dim)).astype(np.float32) / 8
        for name, dim in {"audio": 1024, "visual": 1280}.items()
    }


def records_of(streams: dict[str, np.ndarray]) -> Records:
    count = len(streams["audio"])
    return [
        {"id": f"clip {n}", **{name: rows[n].tolist() for name, rows in streams.items()}}
        for n in range(count)
    ]


def frame_prob(answer: dict[str, Any], classes: Sequence[str]) -> np.ndarray:
    """Probabilities of an answer, `[N, 2, C]`."""
    both = [
        [answer["probabilities"][name][label] for label in classes] for name in ("audio", "visual")
    ]
    return np.transpose(both, (2, 0, 1))


@pytest.mark.launch
def test_a_server_answers_what_evaluation_predicts(address: str, parser_model: Path) -> None:
    streams = features(5)
    records = records_of(streams)
    del records[3]["id"]
    status, body = post(address, {"dataframe_records": records})
    assert status == 200
    parser, spec = load_parser(export_in(parser_model))
    tensors = {name: torch.from_numpy(rows) for name, rows in streams.items()}
    expected = Predictions(("",) * 5, *probabilities(parser.eval(), tensors))
    decided = expected.decided("video", 0.5)
    heard_and_seen = 0
    for number, answer in enumerate(body["predictions"]):
        assert answer["id"] == (None if number == 3 else f"clip {number}")
        np.testing.assert_allclose(
            frame_prob(answer, spec.classes), expected.frame_prob[number], rtol=0, atol=1e-6
        )
        mask = np.zeros_like(decided[number])
        for event in answer["events"]:
            modality = ("audio", "visual").index(event["modality"])
            place = (
                slice(event["onset"], event["offset"]),
                modality,
                spec.classes.index(event["label"]),
            )
            assert event["confidence"] == pytest.approx(
                expected.frame_prob[number][place].mean(), 1e-5
            )
            mask[place] = True
        np.testing.assert_array_equal(mask, decided[number])
        heard_and_seen += mask.sum()
    assert heard_and_seen, "no event was compared"


@pytest.mark.launch
def test_a_server_parses_a_video_as_parse_video_does(
    address: str, parser_model: Path, videos: Path, tmp_path: Path
) -> None:
    """The server's processes decode and describe by what travels with the model."""
    some = tmp_path / "videos"
    some.mkdir()
    for name in ("long.mkv", "sound.wav"):
        (some / name).symlink_to(videos / name)
    timeline_of = timelines(parser_model, tmp_path / "out", some, [])
    asked = [
        {"id": "long", "video": sent(videos / "long.mkv")},
        {"id": "sound", "path": "sound.wav"},
    ]
    for record in asked:
        status, body = post(address, {"dataframe_records": [record]})
        assert status == 200, body
        (answer,) = body["predictions"]
        expected = timeline_of[answer["id"]]
        assert answer["missing"] == expected.missing
        spans = [(one["modality"], one["label"], one["onset"]) for one in answer["events"]]
        assert spans == [(one.modality, one.label, one.onset) for one in expected.events]
        np.testing.assert_allclose(
            frame_prob(answer, expected.classes), expected.frame_prob, rtol=0, atol=2e-6
        )


def changed(records: Records, **columns: Any) -> dict[str, Any]:
    return {"dataframe_records": [{**records[0], **columns}, *records[1:]]}


NOTHING = {"audio": None, "visual": None}


@pytest.mark.launch
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"video": "c2VjcmV0"}, "record 0 has video, audio, visual: give audio, visual, or one of"),
        ({**NOTHING, "video": "c2VjcmV0"}, "record 0: video is no media file, or damaged: Invalid"),
        ({**NOTHING, "video": 7}, "record 0: video is no string"),
        ({**NOTHING, "video": ["c2VjcmV0"]}, "record 0: video is no string"),
        ({**NOTHING, "path": "/c2VjcmV0"}, "record 0: path is no file inside AVVP_MEDIA_ROOT"),
        ({"visual": None}, "visual is missing"),
        ({"colour": 3}, "unknown columns; known are id, video, path, audio, visual"),
        ({"audio": [[0.5] * 1024] * 9}, "record 0: audio is 9 x 1024, expected 10 snippets x 1024"),
        (
            {"audio": [[0.5] * 1024] * 11},
            "record 0: audio is 11 x 1024, expected 10 snippets x 1024",
        ),
        ({"audio": [[0.5] * 13] * 10}, "record 0: audio is 10 x 13, expected 10 snippets x 1024"),
        (
            {"audio": [[0.5] * 1024] * 9 + [[0.5]]},
            "record 0: audio is no list of equally long lists",
        ),
        (
            {"audio": [[0.5] * 1024] * 9 + [[float("nan")] * 1024]},
            "audio is not finite in snippet 9",
        ),
        ({"audio": [[1e39] * 1024] * 10}, "record 0: audio is not finite in snippet 0"),
        ({"audio": "c2VjcmV0" * 400}, "audio"),
        ({"audio": {"secret": 1}}, "audio"),
        ({"id": 7}, "record 0: id is no string"),
    ],
)
def test_a_wrong_record_is_refused_in_one_short_line(
    address: str, columns: dict[str, Any], said: str
) -> None:
    status, body = post(address, changed(records_of(features(2)), **columns))
    assert (status, "\n" in body["message"], len(body["message"]) < 250) == (400, False, True)
    assert said in body["message"]
    assert "0.5" not in body["message"] and "c2VjcmV0" not in body["message"]


@pytest.mark.launch
@pytest.mark.parametrize(
    "body",
    [{"dataframe_records": []}, {"dataframe_records": [3]}, {"records": [{}]}, {}, [1], "all"],
)
def test_a_body_of_another_form_is_refused(address: str, body: object) -> None:
    status, answer = post(address, body)
    assert (status, "\n" in answer["message"]) == (400, False)


@pytest.mark.launch
def test_the_example_beside_the_model_is_answered(address: str, parser_model: Path) -> None:
    status, body = post(
        address, json.loads((parser_model / "serving_input_example.json").read_text())
    )
    assert (status, [answer["id"] for answer in body["predictions"]]) == (200, ["clip"])
