"""Media files: which streams are read, and files that are refused before they are decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.features.media import Bounds, MediaError, Reason, opened
from tests.features.made import make


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("media") / "a.mp4", length=3, start=5.0)


def test_the_clock_begins_with_the_first_stream(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv", length=3, start=5.0, sound_from=0.5)
    with opened(path, "clip", Bounds()) as (_, streams):
        assert streams.video is not None and streams.audio is not None
        assert streams.start == pytest.approx(5.0, abs=0.01)


def test_tags_of_any_encoding_do_no_harm(tmp_path: Path) -> None:
    path = make(tmp_path / "a.wav", length=1, pictures=False)
    title = b"INFOINAM\x06\0\0\0caf\xe9s\0"
    content = path.read_bytes() + b"LIST" + len(title).to_bytes(4, "little") + title
    path.write_bytes(content[:4] + (len(content) - 8).to_bytes(4, "little") + content[8:])
    with opened(path, "clip", Bounds()) as (container, _):
        assert "caf" in container.metadata["title"]


BROKEN: dict[str, tuple[Any, Reason]] = {
    "nothing": (lambda data: b"", Reason.UNREADABLE),
    "text": (lambda data: b"this is no video\n", Reason.UNREADABLE),
    "noise": (lambda data: np.random.default_rng(0).bytes(20000), Reason.UNREADABLE),
    "without its index": (lambda data: data[: len(data) * 6 // 10], Reason.UNREADABLE),
    "a playlist": (
        lambda data: b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n",
        Reason.UNREADABLE,
    ),
    "a list of files": (
        lambda data: b"ffconcat version 1.0\nfile '/etc/hostname'\n",
        Reason.UNREADABLE,
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_file_that_is_no_media_has_a_reason(
    kind: str, as_bytes: bool, video: Path, tmp_path: Path
) -> None:
    change, reason = BROKEN[kind]
    path = tmp_path / "a.mp4"
    path.write_bytes(change(video.read_bytes()))
    file = path.read_bytes() if as_bytes else path
    with (
        pytest.raises(MediaError, match=r"^clip ") as caught,
        opened(file, "clip", Bounds()) as (container, _),
    ):
        list(container.demux())
    assert caught.value.reason is reason and "\n" not in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with (
        pytest.raises(MediaError, match="clip cannot be read: No such file") as caught,
        opened(tmp_path / "none.mp4", "clip", Bounds()),
    ):
        pass
    assert caught.value.reason is Reason.MISSING
