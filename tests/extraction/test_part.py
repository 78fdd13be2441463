"""Files of a shard as clips: windows, zeros for what is missing, and files that are left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.errors import DataError
from avvp_dist.extraction.files import MediaItem
from avvp_dist.extraction.journal import read_journal
from avvp_dist.extraction.part import MediaPart
from avvp_dist.features.media import Bounds
from avvp_dist.shards.schema import Clip
from tests.extraction.small_backbones import LIGHT, LOUDNESS
from tests.features.made import make


@pytest.fixture
def part(tmp_path: Path) -> MediaPart:
    """A video of 5 s and one without sound."""
    whole, mute = make(tmp_path / "whole.mp4", length=5), make(tmp_path / "mute.mp4", sound=False)
    items = (MediaItem("whole", str(whole), ("Dog",)), MediaItem("mute", str(mute)))
    journal = str(tmp_path / "media-0.jsonl")
    return MediaPart(items, (LIGHT, LOUDNESS), (), 2, "windows", "skip", Bounds(), journal)


def test_a_file_becomes_its_windows(part: MediaPart) -> None:
    *clips, error = part
    assert [(clip.id, clip.length) for clip in clips if isinstance(clip, Clip)] == [
        ("whole_0_2", 2),
        ("whole_2_4", 2),
        ("whole_4_5", 1),
    ]
    assert isinstance(error, DataError) and "clip mute: " in str(error)
    assert "nothing for the stream audio (no_sound)" in str(error)
    states = [(one.id, one.state, one.clips) for one in read_journal(Path(part.journal))]
    assert states == [
        ("whole", "begun", 0),
        ("whole", "done", 3),
        ("mute", "begun", 0),
        ("mute", "failed", 0),
    ]


def test_a_missing_stream_may_be_zeros(part: MediaPart) -> None:
    *_, clip = replace(part, missing="zeros", window=10)
    assert isinstance(clip, Clip) and clip.id == "mute"
    assert not clip.streams["audio"].any() and np.all(clip.streams["visual"] > 0)


@pytest.mark.parametrize(("attempts", "left_out"), [(1, 0), (2, 1)])
def test_a_file_that_ended_the_process_twice_is_not_tried_again(
    attempts: int, left_out: int, part: MediaPart
) -> None:
    begun = json.dumps({"id": "whole", "source": part.items[0].path, "state": "begun"})
    Path(part.journal).write_text(attempts * f"{begun}\n")
    failed = [item for item in part if isinstance(item, DataError) and "crashed" in str(item)]
    assert len(failed) == left_out
