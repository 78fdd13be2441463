"""Media files in requests: parsed as `avvp parse-video` does, or refused in one short line."""

from __future__ import annotations

import sys
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest

from avvp_dist.config import ParseVideoConfig, TrackingConfig
from avvp_dist.features.backbones.weights import cache_folder
from avvp_dist.parsing.timeline import Timeline
from avvp_dist.parsing.video import parse_videos
from avvp_dist.serving import media
from avvp_dist.serving.media import MediaReader
from avvp_dist.serving.requests import MediaRequest, RequestError
from avvp_dist.tracking.packaging import export_in
from tests.extraction.small_backbones import Light
from tests.serving.conftest import SMALL

pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.fixture(scope="module")
def served(small_parser_model: Path) -> Any:
    return mlflow.pyfunc.load_model(str(small_parser_model))


@pytest.fixture(autouse=True)
def root(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVVP_MEDIA_ROOT", str(videos))


def sent(path: Path) -> str:
    return b64encode(path.read_bytes()).decode()


def ask(served: Any, *records: dict[str, object]) -> list[dict[str, Any]]:
    columns = dict.fromkeys(name for record in records for name in record)
    whole = [{**columns, **record} for record in records]  # MLflow takes None, and no lack
    answers: list[dict[str, Any]] = served.predict(pd.DataFrame(whole))
    return answers


def timelines(model: Path, out: Path, videos: Path, backbones: list[str]) -> dict[str, Timeline]:
    """The timelines that `avvp parse-video` makes of the files of a folder."""
    parse_videos(
        ParseVideoConfig(
            videos=[str(videos)],
            parser=str(export_in(model)),
            out=str(out),
            formats=["json"],
            backbones=backbones,
            rule="video",
            threshold="0.5",
            tracking=TrackingConfig(enabled=False),
        )
    )
    paths = [path for path in out.glob("*.json") if path.name != "manifest.json"]
    found = [Timeline.from_json(path.read_text(), path.name) for path in paths]
    return {one.id: one for one in found}


def test_a_video_is_answered_by_the_timeline_of_parse_video(
    served: Any, small_parser_model: Path, videos: Path, tmp_path: Path
) -> None:
    expected = timelines(small_parser_model, tmp_path, videos, SMALL)
    for path in videos.iterdir():
        own = expected[path.stem]
        (answer,) = ask(served, {"id": path.stem, "path": path.name})
        assert answer["id"] == path.stem and answer["missing"] == own.missing
        assert answer["events"] == [vars(event) for event in own.events]
        for number, modality in enumerate(("audio", "visual")):
            rows = [answer["probabilities"][modality][label] for label in own.classes]
            assert [*zip(*rows, strict=True)] == [second[number] for second in own.frame_prob]
    assert {len(one.frame_prob) for one in expected.values()} == {4, 10, 12}
    assert any(event.offset > 10 for event in expected["long"].events)


def test_records_of_all_kinds_come_in_one_request(served: Any, videos: Path) -> None:
    features = {"audio": [[0.5] * 3] * 10, "visual": [[0.5] * 4] * 10}
    path = videos / "mute.mp4"
    wrapped = "\n".join(sent(path)[at : at + 76] for at in range(0, len(sent(path)), 76))
    absolute = {"path": str(path)}
    answers = ask(
        served, {"video": sent(path)}, {"id": "b", **features}, absolute, {"video": wrapped}
    )
    assert [answer["id"] for answer in answers] == [None, "b", None, None]
    dogs = [answer["probabilities"]["visual"]["Dog"] for answer in answers]
    assert [len(dog) for dog in dogs] == [4, 10, 4, 4]
    assert dogs[2:] == [pytest.approx(dogs[0], abs=1e-6)] * 2
    assert [bool(answer["missing"]) for answer in answers] == [True, False, True, True]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"video": "sécret"}, "record 1: video is no base64"),
        ({"video": "data:video/mp4;base64,secret=="}, "record 1: video is no base64"),
        ({"video": "secret1"}, "record 1: video is no base64"),
        ({"video": ""}, r"record 1: video is no media file, or damaged: Invalid data found .*\)"),
        ({"video": b64encode(b"secret" * 99).decode()}, "record 1: video is no media file, or"),
        ({"video": "secret", "path": "secret"}, "record 1 has video, path: give audio, visual, or"),
        ({"path": "secret", "audio": [[0.5] * 3] * 10}, "record 1 has path, audio: give audio, "),
        ({"id": "secret"}, "record 1 has nothing: give audio, visual, or one of video, path"),
        ({"path": "secret.mp4"}, "record 1: path is no file inside AVVP_MEDIA_ROOT"),
        ({"path": "../secret/mute.mp4"}, "record 1: path is no file inside AVVP_MEDIA_ROOT"),
        ({"path": "/etc/passwd"}, "record 1: path is no file inside AVVP_MEDIA_ROOT"),
        ({"path": "link.mp4"}, "record 1: path is no file inside AVVP_MEDIA_ROOT"),
        ({"path": "circle.mp4"}, "record 1: path is no file inside AVVP_MEDIA_ROOT"),
        ({"path": "."}, "record 1: path is no file inside AVVP_MEDIA_ROOT"),
        ({"path": ""}, "record 1: path is no file inside AVVP_MEDIA_ROOT"),
        ({"path": "secret\0"}, "record 1: path is no file inside AVVP_MEDIA_ROOT"),
        ({"path": "secret" * 999}, "record 1: path is no file inside AVVP_MEDIA_ROOT"),
        ({"path": "list.txt"}, r"record 1: path is no media file, or damaged: Invalid argument"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    served: Any,
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: dict[str, object],
    said: str,
) -> None:
    folder, outside = tmp_path / "root", tmp_path / "secret"
    folder.mkdir()
    outside.mkdir()
    for place in (folder, outside):
        (place / "mute.mp4").write_bytes((videos / "mute.mp4").read_bytes())
    (folder / "link.mp4").symlink_to(outside / "mute.mp4")
    (folder / "circle.mp4").symlink_to("circle.mp4")
    (folder / "list.txt").write_text(f"ffconcat version 1.0\nfile '{outside}/mute.mp4'\n")
    (tmp_path / "named").symlink_to(folder)
    monkeypatch.setenv("AVVP_MEDIA_ROOT", str(tmp_path / "named"))
    with pytest.raises(RequestError, match=f"^{said}") as caught:
        ask(served, {"path": "mute.mp4"}, columns)
    text = caught.value.message
    assert "\n" not in text and len(text) < 150
    assert "secret" not in text and str(tmp_path) not in text


def test_files_are_read_only_if_the_server_says_where(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("", None):
        monkeypatch.delenv("AVVP_MEDIA_ROOT") if value is None else monkeypatch.setenv(
            "AVVP_MEDIA_ROOT", value
        )
        with pytest.raises(RequestError, match=r"^record 0: path: this server reads no files"):
            ask(served, {"path": "/etc/passwd"})


def test_a_file_beyond_the_bounds_is_refused(
    served: Any, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "BOUNDS", replace(media.BOUNDS, max_seconds=5))
    with pytest.raises(RequestError, match=r"^record 0: path lasts 12 s, over 5 \(too_long\)"):
        ask(served, {"path": "long.mkv"})
    monkeypatch.setattr(media, "SENT_BYTES", 1000)
    monkeypatch.setattr(media, "b64decode", None)  # it is not even decoded
    with pytest.raises(RequestError, match=r"^record 0: video has [\d,]+ bytes, over 1,000 \(too"):
        ask(served, {"video": sent(videos / "mute.mp4")})


def test_a_failure_while_decoding_is_one_line_too(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Light, "features", lambda self, pictures: 1 / 0)
    with pytest.raises(RequestError, match=r"^record 0: path cannot be decoded: ZeroDivision.*"):
        ask(served, {"path": "mute.mp4"})


def refused(dims: dict[str, int], extractor: str) -> str:
    """Message for a file that would fail if it were decoded."""
    reader = MediaReader(dims, extractor)
    with pytest.raises(RequestError, match=r"^record 0: video: ") as caught:
        reader.described([MediaRequest(None, "record 0: video", "video", "no base64")])
    assert "\n" not in caught.value.message
    return str(caught.value.message)


def test_what_the_server_lacks_is_said_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = "light 00000000, loudness 11111111; decoding 1"
    assert refused({"audio": 3}, small).endswith("cannot be extracted here. Give audio")
    assert "features of 'HAN' cannot be extracted" in refused({"audio": 3, "visual": 4}, "HAN")
    vggish = refused({"audio": 128}, "vggish 10086976; decoding 1")
    place = cache_folder() / "10086976" / "vggish-10086976.pth"
    assert f"the weights of vggish are missing: {place}" in vggish
    assert "https://github.com/" in vggish and "SHA-256 1008697624" in vggish
    monkeypatch.setitem(sys.modules, "onnx", None)
    yamnet = refused({"audio": 1024}, "yamnet cf149c90; decoding 1")
    assert yamnet.endswith("pip install onnx onnxruntime")
    monkeypatch.setitem(sys.modules, "av", None)
    av = refused({"audio": 3, "visual": 4}, small)
    assert "video: decoding needs av: " in av and av.endswith(". pip install av")
