"""Decoding: flashes and beeps are found in their seconds, in files of every usual kind."""

from __future__ import annotations

import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avvp_dist.features.decoding import Counts, Second, seconds_of
from avvp_dist.features.media import Bounds, FilePair, MediaError, MediaFile, Reason
from tests.features.made import SECONDS, beeps, flashes, make

RATE, SOUND = 8, 16000


def resize(frame: av.VideoFrame) -> np.ndarray:
    return frame.reformat(48, 32, "rgb24").to_ndarray()


def decoded(
    file: MediaFile, bounds: Bounds | None = None, span: tuple[float, float] | None = None
) -> list[Second]:
    how: dict[str, Any] = {"pictures": [(RATE, resize)], "sound": [SOUND], "span": span}
    return list(seconds_of(file, "clip", bounds or Bounds(), **how))


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "8 pictures a second": ("a.mp4", {"fps": 8}),
    "24 pictures a second": ("a.mp4", {"fps": 24}),
    "60 pictures a second": ("a.mp4", {"fps": 60}),
    "B-frames": ("a.mp4", {"b_frames": 3}),
    "B-frames in a transport stream": ("a.ts", {"b_frames": 3}),
    "pictures left out": ("a.mp4", {"every": 5}),
    "pictures left out, mkv": ("a.mkv", {"every": 5}),
    "a start at 5 s": ("a.mkv", {"start": 5.0}),
    "a start at 5 s in a transport stream": ("a.ts", {"start": 5.0}),
    "late pictures": ("a.mp4", {"picture_from": 1.2}),
    "late sound": ("a.mp4", {"sound_from": 1.2}),
    "two channels": ("a.mp4", {"channels": 2}),
    "six channels": ("a.mkv", {"channels": 6}),
    "webm": ("a.webm", {}),
    "avi": ("a.avi", {}),
    "mov": ("a.mov", {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_events_are_in_their_seconds(kind: str, as_bytes: bool, tmp_path: Path) -> None:
    name, how = KINDS[kind]
    path = make(tmp_path / name, **how)
    seconds = decoded(path.read_bytes() if as_bytes else path)
    assert (len(seconds), flashes(seconds), beeps(seconds)) == (10, [*SECONDS], [*SECONDS])
    for second in seconds[2:]:
        assert second.pictures is not None and len(second.pictures) == RATE
        assert second.sound is not None and second.sound.shape == (SOUND,)


@pytest.mark.parametrize(("name", "sound"), [("a.gif", False), ("a.mp4", False)])
def test_a_file_without_sound_has_pictures(name: str, sound: bool, tmp_path: Path) -> None:
    seconds = decoded(make(tmp_path / name, sound=sound, fps=10))
    assert (len(seconds), flashes(seconds)) == (10, [*SECONDS])
    assert all(second.sound is None for second in seconds)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.m4a"])
def test_a_file_without_pictures_has_sound(name: str, tmp_path: Path) -> None:
    seconds = decoded(make(tmp_path / name, pictures=False))
    assert (len(seconds), beeps(seconds)) == (10, [*SECONDS])
    assert all(second.pictures is None for second in seconds)


def test_each_picture_is_the_one_shown_in_the_middle_of_its_part(tmp_path: Path) -> None:
    """The flash from 0.4 to 0.6 s is shown at 7/16 and 9/16, and in no other part."""
    seconds = decoded(make(tmp_path / "a.mp4", fps=40))
    light = [[picture.mean() > 100 for picture in one.pictures or []] for one in seconds]
    assert light[4] == [False, False, False, True, True, False, False, False]
    assert not any(light[3])


def test_sound_is_placed_to_the_millisecond(tmp_path: Path) -> None:
    second = decoded(make(tmp_path / "a.wav", pictures=False))[4].sound
    assert second is not None
    heard = np.flatnonzero(np.abs(second) > 0.05) / SOUND
    assert heard[0] == pytest.approx(0.4, abs=1e-3)
    assert heard[-1] == pytest.approx(0.6, abs=1e-3)


def test_the_channels_are_averaged(tmp_path: Path) -> None:
    one = decoded(make(tmp_path / "a.wav", pictures=False))
    six = decoded(make(tmp_path / "b.wav", pictures=False, channels=6))
    loud = [max(np.abs(s.sound).max() for s in x if s.sound is not None) for x in (one, six)]
    assert loud[1] == pytest.approx(loud[0], rel=0.1)


@pytest.mark.parametrize(("length", "seconds"), [(9.4, 9), (9.6, 10), (0.6, 1), (1.4, 1), (12, 12)])
def test_the_length_is_rounded_to_seconds(length: float, seconds: int, tmp_path: Path) -> None:
    assert len(decoded(make(tmp_path / "a.mkv", length=length))) == seconds


def test_before_and_after_a_stream_there_is_nothing(tmp_path: Path) -> None:
    late = decoded(make(tmp_path / "a.mkv", picture_from=2.2))
    assert [second.pictures is None for second in late[:4]] == [True, True, False, False]
    late = decoded(make(tmp_path / "b.mkv", sound_from=2.2))
    assert [second.sound is None for second in late[:4]] == [True, True, False, False]


def test_a_picture_stays_until_the_next_one(tmp_path: Path) -> None:
    seconds = decoded(make(tmp_path / "a.mkv", every=1000))
    assert all(second.pictures for second in seconds)


def test_a_file_that_was_cut_off_is_damaged(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(MediaError, match="can be decoded") as caught:
        decoded(path)
    assert caught.value.reason is Reason.DAMAGED


def test_damaged_packets_are_counted_and_may_be_skipped(tmp_path: Path) -> None:
    path = make(tmp_path / "a.avi", sound=False)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(1)
    for at in rng.integers(len(data) // 3, len(data) * 9 // 10, 400):
        data[at] ^= 1 << int(rng.integers(8))
    counts = Counts()
    with pytest.raises(MediaError) as caught:
        list(seconds_of(bytes(data), "clip", Bounds(), pictures=[(RATE, resize)], counts=counts))
    assert (caught.value.reason, counts.packet_errors) == (Reason.DAMAGED, 1)


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        (Bounds(max_seconds=5), Reason.TOO_LONG),
        (Bounds(max_bytes=1000), Reason.TOO_LARGE),
        (Bounds(max_pixels=96 * 64 - 1), Reason.TOO_LARGE),
        (Bounds(timeout=1e-9), Reason.TIMEOUT),
    ],
)
def test_bounds_hold(bounds: Bounds, reason: Reason, tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        decoded(make(tmp_path / "a.mp4"), bounds)
    assert caught.value.reason is reason


def test_less_than_half_a_second_is_too_short(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"lasts 0\.4\d s") as caught:
        decoded(make(tmp_path / "a.mkv", length=0.4))
    assert caught.value.reason is Reason.TOO_SHORT


SPANS: list[tuple[tuple[float, float], int, list[int]]] = [
    ((3, 10), 7, [1, 5]),
    ((0.25, 8.25), 8, [1, 4]),  # the last flash is from 8.4 s on
    ((4.0, 4.6), 1, [0]),
    ((6, 99), 4, [2]),  # it ends with the file
]


@pytest.mark.parametrize(
    ("name", "how"), [("a.mp4", {"b_frames": 3}), ("a.ts", {"start": 5.0}), ("a.mkv", {"every": 5})]
)
def test_a_span_has_its_own_clock(name: str, how: dict[str, Any], tmp_path: Path) -> None:
    path = make(tmp_path / name, **how)
    for span, length, events in SPANS:
        seconds = decoded(path, span=span)
        assert (len(seconds), flashes(seconds), beeps(seconds)) == (length, events, events), span


def test_a_span_of_whole_seconds_equals_these_seconds(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", b_frames=3)
    for one, other in zip(decoded(path)[2:6], decoded(path, span=(2, 6)), strict=True):
        np.testing.assert_array_equal(one.pictures, other.pictures)
        np.testing.assert_array_equal(one.sound, other.sound)


def test_a_fractional_span_moves_pictures_and_sound_by_its_start(tmp_path: Path) -> None:
    """The flash from 4.4 to 4.6 s is from 0.65 to 0.85 s of a span from 3.75 s."""
    second = decoded(make(tmp_path / "a.mkv", fps=40), span=(3.75, 5.75))[0]
    light = [picture.mean() > 100 for picture in second.pictures or []]
    assert light == [False] * 5 + [True, True, False]
    wave = decoded(make(tmp_path / "a.wav", pictures=False), span=(3.75, 4.5))[0].sound
    assert wave is not None
    heard = np.flatnonzero(np.abs(wave) > 0.05) / SOUND
    assert heard[0] == pytest.approx(0.65, abs=1e-3)
    assert heard[-1] == pytest.approx(0.75, abs=1e-3)  # where the span ends


@pytest.mark.parametrize("name", ["a.mkv", "a.wav"])
def test_a_span_beyond_the_end_is_too_short(name: str, tmp_path: Path) -> None:
    path = make(tmp_path / name, pictures=name == "a.mkv", fps=10)
    for span in ((10, 20), (40, 50), (9.8, 12), (3.0, 3.4)):
        with pytest.raises(MediaError, match="clip lasts 0") as caught:
            decoded(path, span=span)
        assert caught.value.reason is Reason.TOO_SHORT


def test_a_span_beyond_a_cut_off_file_is_damaged(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    assert beeps(decoded(path, span=(1, 4))) == [0]
    with pytest.raises(MediaError, match="can be decoded") as caught:
        decoded(path, span=(5, 9))
    assert caught.value.reason is Reason.DAMAGED


def test_pictures_and_sound_may_be_of_two_files(tmp_path: Path) -> None:
    """Each on its own clock; the longer one is the length."""
    mute = make(tmp_path / "a.ts", length=6, start=5.0, sound=False)
    sound = make(tmp_path / "a.flac", pictures=False)
    other = make(tmp_path / "b.mp4", length=6, seconds=(2,))
    for pictures in (mute, other):
        seconds = decoded(FilePair(pictures, sound.read_bytes()))
        assert (len(seconds), beeps(seconds)) == (10, [*SECONDS])
        assert flashes(seconds) == ([1, 4] if pictures == mute else [2])
    assert beeps(decoded(FilePair(mute, sound), span=(4, 9))) == [0, 4]


ODD = {
    **dict.fromkeys(["bomb_size.mp4"], Reason.TOO_LARGE),
    **dict.fromkeys(["bomb_long.mkv"], Reason.TOO_LONG),
    **dict.fromkeys(["len0.4.mp4"], Reason.TOO_SHORT),
    **dict.fromkeys(["bitflips.mp4", "cut.mkv", "cut_tail.mp4"], Reason.DAMAGED),
    **dict.fromkeys(
        ["concat.mp4", "playlist.mp4", "cut_moov.mp4", "empty.mp4", "garbage.mp4", "text.mp4"],
        Reason.UNREADABLE,
    ),
}
"""Reasons of the odd files that fail."""
HEARD = {"len61.mp4": [1, 12, 33, 60], "editlist.mp4": [0, 3, 7], "shortaudio.mp4": [1, 4]}
MUTE = ("noaudio.mp4", "anim.gif", "oneframe.mp4", "inverted.mp4")
SEEN = {"len61.mp4": [1, 12, 33, 60], "editlist.mp4": [0, 3, 7], "shortvideo.mp4": [1, 4]}
DARK = ("cover.mp3", "novideo.m4a", "novideo.mp4", "sound.flac", "sound.mp3", "sound8k.wav")


@pytest.mark.shared
def test_each_odd_file_has_its_events_or_its_reason(shared: Path) -> None:
    found = 0
    for path in sorted((shared / "media/odd").iterdir()):
        if path.suffix in (".md", ".sh"):
            continue
        found += 1
        if path.name in ODD:
            with pytest.raises(MediaError) as caught:
                decoded(path)
            assert caught.value.reason is ODD[path.name], path.name
            continue
        seconds = decoded(path)
        dark = path.name in DARK or path.name == "oneframe.mp4"
        seen = [] if dark else SEEN.get(path.name, [*SECONDS])
        heard = [] if path.name in MUTE else HEARD.get(path.name, [*SECONDS])
        assert (path.name, flashes(seconds), beeps(seconds)) == (path.name, seen, heard)
    assert found == 58


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "bounds", "reason"),
    [
        ("bomb_size.mp4", Bounds(), Reason.TOO_LARGE),
        ("bomb_long.mkv", Bounds(), Reason.TOO_LONG),
        ("bomb_long.mkv", Bounds(max_seconds=1e6, timeout=1), Reason.TIMEOUT),
    ],
)
def test_bombs_stay_below_a_gibibyte(
    name: str, bounds: Bounds, reason: Reason, shared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = get_context("spawn").Process(
        target=_peak, args=(shared / "media/odd" / name, bounds, out)
    )
    started = time.monotonic()
    process.start()
    process.join()
    found, peak = out.read_text().split()
    assert found == reason.value and int(peak) < 1 << 20  # KiB
    assert time.monotonic() - started < 60


def _peak(file: Path, bounds: Bounds, out: Path) -> None:
    """Write the reason for which a file fails, and the peak of this process's memory in KiB."""
    with pytest.raises(MediaError) as caught:
        decoded(file, bounds)
    # Unlike the peak of getrusage, this one leaves out the process from which this one was forked.
    status = Path("/proc/self/status").read_text()
    peak = status.partition("VmHWM:")[2].split()[0]
    out.write_text(f"{caught.value.reason.value} {peak}")
