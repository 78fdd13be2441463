"""Videos that must not be trained on, recognised by every form of name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avvp_dist.annotations.video_ids import HeldOutVideos, videos


def names(*ids: str) -> np.ndarray:
    return np.array([one.encode() for one in ids], "S")


def same(one: str, other: str) -> bool:
    # Beside a long name: the width of the array must not matter.
    (a,), (b, _) = (videos(names(*ids)).fingerprints for ids in ([one], [other, "x" * 40]))
    return bool(a == b)


YTID = "AP_-61o0Nvk"
FORMS = [
    "{}",
    "{}_0_10",
    "{}_101.8_111.8",
    "{}_101800_111800.mp4",
    "{}_30",  # VGGSound: the start, with zeros before it
    "{}_000030.mp4",
    "{}_30000.wav",
    "{}-30-40",
    "{}-000030-000040.wav",
    "{}_30.000,40.000",
    "{} 30 40",
    "{}_00:00:30_00:00:40",
    "{}_30s_40s.webm",
    "{}_[30-40].mkv",
    "Y{}.wav",  # AudioSet's sound files
    "Y{}_30.000_40.000.wav",
    "Y{}_30.flac",
    "Y{}_[30-40].wav",
    "{}.MP4",
    "{}.3gp",
    "{}.f137.mp4",
    "{}.mp4.npy",
    "  {}_30_40\r\n",
    "\ufeff{}",
    "\xa0{}\t",
    "b'{}_30_40'",
    '"{}"',
    "audio/train/{}.npy",
    "C:\\clips\\{}_30_40.mp4",
    "/data/Y{}.wav",
    "https://www.youtube.com/watch?v={}",
    "https://www.youtube.com/watch?list=PL123456789ab&v={}&t=30s",
    "http://youtube.com/watch?v={}#t=30",
    "https://youtu.be/{}?t=30",
    "https://www.youtube.com/embed/{}?start=30&end=40",
    "https://www.youtube.com/shorts/{}/",
    "www.youtube.com/v/{}",
    "v={}",
    "watch%3Fv%3D{}",
    "youtube {}",  # the archive of a downloader
    "Dog barks at cat [{}].webm",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ytid", [YTID, "Y--_-_ab1_2", "00000000012", "-Yabc_12_34"])
def test_one_video_has_many_names(form: str, ytid: str) -> None:
    (read, control) = videos(names(form.format(ytid), "not an id")).read
    assert read and not control
    assert same(ytid, form.format(ytid))
    assert not same(ytid[:-1] + "x", form.format(ytid))


@given(
    ytid=st.from_regex(r"[A-Za-z0-9_-]{11}", fullmatch=True),
    form=st.sampled_from(FORMS),
)
def test_every_video_id_is_read_from_every_form(ytid: str, form: str) -> None:
    assert same(ytid, form.format(ytid))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("AP_-61o0Nvk_0_10", "AP_-61o0Nvj_0_10"),
        ("AP_-61o0Nvk_0_10", "ap_-61o0nvk_0_10"),
        ("sim-train-0_0_10", "sim-train-0_10_20x"),  # no time counts at the end: another id
        ("sim-000123_1", "sim-000123_2"),
        ("AP_-61o0Nvk_0_10_20", "AP_-61o0Nvk_0_10"),
        ("AP_-61o0Nvk/frame_0001", "AP_-61o0Nvk"),
        ("speaker_a/001", "speaker_b/001"),
        ("concert.live", "concert"),
        ("c7", "c8"),
        ("AP_-61o0N k_0_10", "AP_-61o0N k_10_20"),
    ],
)
def test_other_ids_stand_for_themselves_as_a_whole(one: str, other: str) -> None:
    assert same(one, one) and same(other, other)
    assert not same(one, other)


@pytest.mark.parametrize("other", ["sim-000123_1.wav", " sim-000123_1\r", "sim-000123_1.mp4"])
def test_other_ids_do_without_space_and_suffix(other: str) -> None:
    assert same("sim-000123_1", other)
    assert not videos(names(other)).read.any()


def test_blocks_of_names_do_not_run_into_each_other() -> None:
    ids = names(*(f"{n:011d}_{n}_{n + 10}" for n in range(70_000)))
    found, alone = videos(ids), videos(names(*(f"{n:011d}" for n in range(70_000))))
    np.testing.assert_array_equal(found.fingerprints, alone.fingerprints)
    assert found.read.all() and len(np.unique(found.fingerprints)) == 70_000


def test_videos_are_found_and_shown_by_their_first_clip() -> None:
    held = HeldOutVideos.of("list", names("AP_-61o0Nvk_0_10", "c7", "BjCEufrlXm4_20_30"), "")
    assert (held.ids, held.read) == (3, 2)
    found = held.find(videos(names("c8", "BjCEufrlXm4_0_10", "c7", "")).fingerprints)
    assert (found >= 0).tolist() == [False, True, True, False]
    assert held.shown[found[1:3]].tolist() == [b"BjCEufrlXm4_20_30", b"c7"]
    nothing = HeldOutVideos.of("none", names()[:0], "")
    assert nothing.find(videos(names("c7")).fingerprints).tolist() == [-1]
