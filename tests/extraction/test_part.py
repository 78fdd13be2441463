"""Files of a shard as clips: windows, zeros for what is missing, and files that are left out."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.errors import DataError, StorageError
from avvp_dist.extraction.files import MediaItem
from avvp_dist.extraction.journal import read_journal
from avvp_dist.extraction.part import MediaPart
from avvp_dist.extraction.places import Place
from avvp_dist.features.media import Bounds
from avvp_dist.shards.schema import Clip
from tests.extraction.small_backbones import LIGHT, LOUDNESS, Light
from tests.features.made import make
from tests.shards.origins import ALWAYS, Origin

BRITTLE = f"{__name__}:Brittle"


class Brittle(Light):
    """It ends the process at a light picture."""

    def features(self, pictures: np.ndarray) -> np.ndarray:
        if pictures.max() > 100:
            os._exit(1)
        return super().features(pictures)


@pytest.fixture
def part(tmp_path: Path) -> MediaPart:
    """A video of 5 s and one without sound."""
    whole, mute = make(tmp_path / "whole.mp4", length=5), make(tmp_path / "mute.mp4", sound=False)
    items = (MediaItem("whole", str(whole), ("Dog",)), MediaItem("mute", str(mute)))
    journal = str(tmp_path / "media-0.jsonl")
    return MediaPart(items, (LIGHT, LOUDNESS), (), 2, "windows", "skip", Bounds(), 0, 16, journal)


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
        ("whole", "alone", 0),
        ("whole", "done", 3),
        ("mute", "alone", 0),
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
    begun = json.dumps({"id": "whole", "source": part.items[0].path, "state": "alone"})
    Path(part.journal).write_text(attempts * f"{begun}\n")
    failed = [item for item in part if isinstance(item, DataError) and "crashed" in str(item)]
    assert len(failed) == left_out


def test_an_id_that_is_too_long_for_a_tar_costs_no_other_one(part: MediaPart) -> None:
    long = replace(part.items[0], id="a b" * 20)
    first, *others = replace(part, items=(long, part.items[0]))
    assert "its id is too long for a tar (unsupported)" in str(first) and len(others) == 3


@pytest.mark.usefixtures("quick")
def test_a_server_that_fails_is_no_attempt_at_a_file(part: MediaPart, http_origin: Origin) -> None:
    http_origin.put("a.mp4", Path(part.items[0].path).read_bytes())
    url = f"{http_origin.root}/a.mp4"
    far = replace(part, items=(MediaItem("a", url, places=(Place(url),)),))
    http_origin.server.fail("500", "a.mp4", ALWAYS)
    for _ in range(3):
        with pytest.raises(StorageError, match="could not be read"):
            list(far)
    http_origin.server.mend()
    assert [clip.id for clip in far if isinstance(clip, Clip)] == ["a_0_2", "a_2_4", "a_4_5"]
    assert [one.state for one in read_journal(Path(part.journal))][-2:] == ["alone", "done"]


def test_of_files_under_way_together_the_one_that_ends_the_process_is_found(
    part: MediaPart, tmp_path: Path
) -> None:
    videos = [
        make(tmp_path / f"{n}.mp4", length=2, seconds=(0,) if n == 1 else ()) for n in range(4)
    ]
    items = tuple(MediaItem(path.stem, str(path)) for path in videos)
    part = replace(part, items=items, backbones=(BRITTLE, LOUDNESS), threads=2)
    exits = []
    while exits[-1:] != [0] and len(exits) < 9:
        process = get_context("fork").Process(target=list, args=(part,))
        process.start()
        process.join()
        exits.append(process.exitcode)
    assert exits == [1, 1, 1, 0]  # twice beside others, once alone
    last = {one.id: (one.state, one.reason) for one in read_journal(Path(part.journal))}
    done = dict.fromkeys("023", ("done", ""))
    assert last == {"1": ("failed", "crashed"), **done}
