"""Sources: array files and HAN's feature folders, packed with their labels."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.config import DecontaminateConfig, PackConfig, TrackingConfig
from avvp_dist.decontamination.job import decontaminate
from avvp_dist.errors import DataError
from avvp_dist.packing.job import pack
from avvp_dist.shards.shard_set import ShardSet

OFF = TrackingConfig(enabled=False)
CLIPS = {
    "AP0061o0Nvk_101.8_111.8": 80,  # decimals
    "-bcdefghij0_0_10": 80,  # led by a dash
    "_-c.efghij1_30_40": 75,  # the paper fills it up
    "short678901_0_10": 60,
    "missing8901_0_10": None,
}
"""Number of frames, of 80, by clip id."""

LABELS = ("Dog", "Speech,Clapping", "Cat", "Car", "Car")


def frames_of(folder: Path, clip_id: str) -> np.ndarray:
    return np.load(folder / "feats" / "res152" / f"{clip_id[:11]}.npy")


@pytest.fixture
def han(tmp_path: Path) -> Path:
    """A small release in HAN's layout."""
    folder, rng = tmp_path / "han", np.random.default_rng(0)
    for sub in ("vggish", "res152", "r2plus1d_18"):
        (folder / "feats" / sub).mkdir(parents=True)
    for clip_id, frames in CLIPS.items():
        if frames:
            shapes = {"vggish": (10, 128), "res152": (frames, 2048), "r2plus1d_18": (10, 512)}
            for sub, shape in shapes.items():
                array = rng.random(shape, np.float32)
                np.save(folder / "feats" / sub / f"{clip_id[:11]}.npy", array)
    rows = [f"{clip}\t{labels}" for clip, labels in zip(CLIPS, LABELS, strict=True)]
    (folder / "AVVP_train.csv").write_text("\n".join(["filename\tevent_labels", *rows, ""]))
    return folder


def pack_han(folder: Path, **changes: Any) -> ShardSet:
    keys = {"source": str(folder), "out": str(folder.parent / "out"), "format": "han", **changes}
    return pack(PackConfig(**{"tracking": OFF, "max_bad_fraction": 0.6, "short": "drop", **keys}))


def test_arrays_arrive_in_order_with_labels(features: Path, packed: dict[str, ShardSet]) -> None:
    for split, shard_set in packed.items():
        with np.load(features / f"features_{split}.npz") as file:
            gathered = shard_set.gather(np.arange(len(shard_set)))
            assert shard_set.ids == file["filenames"].tolist()
            for name in ("audio", "visual"):
                np.testing.assert_array_equal(gathered[name], file[name])
        read = read_annotations(features, split)
        assert shard_set.labels == [
            tuple(read.classes[c] for c in np.flatnonzero(row)) for row in read.weak
        ]
    assert packed["train"].extractor == "simulated"
    assert [shard.clips for shard in packed["train"].shards] == [40, 40, 16]


def test_without_annotations_labels_are_unknown(features: Path, tmp_path: Path) -> None:
    (tmp_path / "features_train.npz").symlink_to(features / "features_train.npz")
    config = PackConfig(tracking=OFF, source=str(tmp_path), out=str(tmp_path / "out"))
    assert pack(config).labels == [None] * 96


def test_annotations_may_lie_elsewhere(features: Path, tmp_path: Path) -> None:
    (tmp_path / "features_train.npz").symlink_to(features / "features_train.npz")
    config = PackConfig(
        tracking=OFF, source=str(tmp_path), out=str(tmp_path / "out"), annotations=str(features)
    )
    assert None not in pack(config).labels


def test_annotations_of_other_clips_are_refused(features: Path, tmp_path: Path) -> None:
    (tmp_path / "AVVP_train.csv").write_text("filename\tevent_labels\nsomebody_0_10\tDog\n")
    config = PackConfig(
        tracking=OFF, source=str(features), out=str(tmp_path / "out"), annotations=str(tmp_path)
    )
    with pytest.raises(DataError, match=r"none of its 96 clips, first SIMtr.*annotations="):
        pack(config)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filenames": None}, "`filenames`"),
        ({"audio": np.ones((3, 10, 4))}, r"audio is \[3, 10, 4\], expected \[2, T, D\]"),
        ({"audio": np.ones((2, 10))}, r"audio is \[2, 10\], expected \[2, T, D\]"),
        ({"audio": np.full((2, 10, 4), np.nan)}, "clip a: stream audio .* not finite"),
        ({"filenames": np.array(["a", "a"])}, "clip a occurs twice"),
    ],
)
def test_wrong_arrays_are_named(
    tmp_path: Path, changes: dict[str, np.ndarray | None], message: str
) -> None:
    whole = {"filenames": np.array(["a", "b"]), "audio": np.ones((2, 10, 4))}
    kept = {name: array for name, array in (whole | changes).items() if array is not None}
    np.savez(tmp_path / "features_train.npz", **kept)
    with pytest.raises(DataError, match=message):
        pack(PackConfig(tracking=OFF, source=str(tmp_path), out=str(tmp_path / "out")))
    with pytest.raises(DataError, match="is no shard set"):
        ShardSet(tmp_path / "out")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off", b"something else"])
def test_a_missing_or_broken_array_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "features_val.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"features_val\.npz"):
        pack(PackConfig(tracking=OFF, source=str(tmp_path), out=str(tmp_path / "out"), split="val"))


def test_han_frames_are_pooled_to_snippets(han: Path) -> None:
    shard_set = pack_han(han)
    assert shard_set.dims == {"audio": 128, "motion": 512, "visual": 2048}
    assert shard_set.ids == list(CLIPS)[:3]  # found by the first 11 characters of the id
    assert shard_set.labels == [("Dog",), ("Speech", "Clapping"), ("Cat",)]
    gathered = shard_set.gather(np.arange(3))
    for row, clip_id in enumerate(shard_set.ids):
        for name, sub in (("audio", "vggish"), ("motion", "r2plus1d_18")):
            stored = np.load(han / "feats" / sub / f"{clip_id[:11]}.npy")
            np.testing.assert_array_equal(gathered[name][row], stored.astype(np.float16))
    pooled = frames_of(han, shard_set.ids[1]).reshape(10, 8, 2048).mean(1)
    np.testing.assert_allclose(gathered["visual"][1], pooled, atol=1e-3)


def test_han_fills_up_a_clip_with_its_last_frame(han: Path) -> None:
    shard_set = pack_han(han)
    frames = frames_of(han, shard_set.ids[2])
    last = (frames[72:].sum(0) + 5 * frames[74]) / 8
    visual = shard_set.gather(np.array([2]))["visual"][0]
    np.testing.assert_allclose(visual[9], last, atol=1e-3)
    np.testing.assert_allclose(visual[8], frames[64:72].mean(0), atol=1e-3)


def test_han_names_the_clips_that_are_left_out(han: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio = han / "feats" / "vggish" / "-bcdefghij0.npy"
    np.save(audio, np.load(audio)[:7])
    with caplog.at_level(logging.WARNING):
        shard_set = pack_han(han)
    assert shard_set.ids == ["AP0061o0Nvk_101.8_111.8", "_-c.efghij1_30_40"]
    filled, cut, broken, short = (record.getMessage() for record in caplog.records)
    assert filled == "clips of 9 to 10 seconds of frames, filled up with their last one: 1"
    assert cut.endswith("cut to the whole seconds of the shortest: 2")
    assert broken.startswith("1 of 5 clips left out: clip missing8901_0_10: ")
    assert short.startswith("2 of 5 clips left out: clip -bcdefghij0_0_10 has 7 of 10 snippets; ")
    assert short.endswith("clip short678901_0_10 has 7 of 10 snippets")
    assert shard_set.manifest.source["left_out"] == {"broken": 1, "short": 2}


def test_han_pads_short_clips_by_default(han: Path) -> None:
    shard_set = pack_han(han, short="pad")
    assert shard_set.ids == list(CLIPS)[:4]
    assert shard_set.lengths.tolist() == [10, 10, 10, 7]
    short = shard_set.gather(np.array([3]))
    assert all(array[0, :7].any() and not array[0, 7:].any() for array in short.values())
    pooled = frames_of(han, "short678901").reshape(-1, 2048)[:56].reshape(7, 8, -1).mean(1)
    np.testing.assert_allclose(short["visual"][0, :7], pooled, atol=1e-3)


def test_a_broken_clip_stops_unless_allowed(han: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 5 clips are broken: clip missing.*max_bad_fraction"):
        pack_han(han, max_bad_fraction=0.0)
    assert not (han.parent / "out" / "manifest.json").exists()
    assert len(pack_han(han, max_bad_fraction=0.2)) == 3  # goes on with what was done


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"something else"])
def test_han_leaves_out_a_broken_file(
    han: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (han / "feats" / "vggish" / "-bcdefghij0.npy").write_bytes(content)
    assert pack_han(han).ids == ["AP0061o0Nvk_101.8_111.8", "_-c.efghij1_30_40"]
    assert "-bcdefghij0_0_10: " in caplog.text


@pytest.mark.parametrize("rate", [1, 2, 16])
def test_hans_frames_may_have_another_rate(han: Path, rate: int) -> None:
    for clip in list(CLIPS)[:3]:
        frames = np.random.default_rng(rate).random((10 * rate, 2048), np.float32)
        np.save(han / "feats" / "res152" / f"{clip[:11]}.npy", frames)
    shard_set = pack_han(han, rates={"visual": rate})
    assert shard_set.lengths.tolist() == [10] * 3
    pooled = frames.reshape(10, rate, 2048).mean(1)
    np.testing.assert_allclose(shard_set.gather(np.array([2]))["visual"][0], pooled, atol=1e-3)


@pytest.mark.parametrize(("rate", "told"), [(1, "1"), (2, "2"), (4, "4"), (16, "16"), (25, "25")])
def test_frames_at_another_rate_are_not_cut_to_fit(han: Path, rate: int, told: str) -> None:
    for clip in CLIPS:
        frames = np.ones((10 * rate, 2048), np.float32)
        np.save(han / "feats" / "res152" / f"{clip[:11]}.npy", frames)
    with pytest.raises(
        DataError, match=rf"4 of 4 clips have {told} rows of visual .*rates.visual={told}"
    ):
        pack_han(han, short="pad")
    assert not (han.parent / "out" / "manifest.json").exists()


@pytest.mark.parametrize("shape", [(1, 80, 2048), (80,), (80, 2, 1024), (81, 2048)])
def test_a_file_of_another_shape_is_refused(han: Path, shape: tuple[int, ...]) -> None:
    np.save(han / "feats" / "res152" / "AP0061o0Nvk.npy", np.ones(shape, np.float32))
    with pytest.raises(DataError, match=r"clips are broken: clip AP0061.*(expected|more than)"):
        pack_han(han, max_bad_fraction=0.0)


def test_names_stored_as_bytes_are_text(tmp_path: Path) -> None:
    names = np.array([b"a_0_10", "Füße".encode()])
    np.savez(tmp_path / "features_train.npz", filenames=names, audio=np.ones((2, 10, 4)))
    config = PackConfig(tracking=OFF, source=str(tmp_path), out=str(tmp_path / "out"), workers=1)
    assert pack(config).ids == ["a_0_10", "Füße"]


@pytest.mark.parametrize(
    ("name", "good"),
    [("ViT-B/32", "ViT-B-32"), ("a.b", "a-b"), ("r(2+1)d", "r-2-1-d"), ("é", "visual")],
)
def test_a_stream_that_is_no_member_name_is_refused(tmp_path: Path, name: str, good: str) -> None:
    np.savez(tmp_path / "features_train.npz", filenames=["a"], **{name: np.ones((1, 10, 4))})
    config = PackConfig(tracking=OFF, source=str(tmp_path), out=str(tmp_path / "out"), workers=1)
    with pytest.raises(DataError, match=rf"stream '{re.escape(name)}': .* Name it {good}"):
        pack(config)


def touch(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda han: np.save(han / "feats/vggish/-bcdefghij0.npy", np.ones((10, 128))),
        lambda han: touch(han / "feats/res152/AP0061o0Nvk.npy"),
        lambda han: np.save(han / "feats/vggish/missing8901.npy", np.ones((10, 128))),
        lambda han: touch(han / "AVVP_train.csv"),
        lambda han: touch(han / "feats/vggish/AP0061o0Nvk.npy"),
        lambda han: shutil.copy(
            han / "feats/vggish/AP0061o0Nvk.npy", han / "feats/vggish/-bcdefghij0.npy"
        ),
        lambda han: (han / "feats/vggish/AP0061o0Nvk.npy").write_bytes(b"cut"),
        lambda han: (han / "AVVP_train.csv").write_text(
            (han / "AVVP_train.csv").read_text().replace("\tDog", "\tCat")
        ),
        lambda han: (han / "AVVP_train.csv").write_text(
            (han / "AVVP_train.csv").read_text() + "latecomer01_0_10\tDog\n"
        ),
        lambda han: np.save(han / "feats/vggish/short678901.npy", np.ones((9, 128))),
    ],
    ids=[
        *("other values", "a later time", "a file that came", "the csv's time"),
        *("an audio file's time", "another clip's file", "a file cut off", "another label"),
        *("a new clip", "a shorter file"),
    ],
)
def test_a_set_is_packed_again_when_its_files_have_changed(
    han: Path, capsys: pytest.CaptureFixture[str], change: Any
) -> None:
    pack_han(han)
    change(han)
    capsys.readouterr()
    pack_han(han, max_bad_fraction=0.9)
    assert "its files have changed since it was packed" in capsys.readouterr().out
    pack_han(han)
    assert "already packed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "gone", ["feats/*/*.npy", "feats/res152/*.npy", "feats/vggish/AP*.npy", "*.csv", "**/*.*"]
)
def test_a_set_whose_files_are_gone_is_kept(
    han: Path, gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pack_han(han)
    for file in list(han.glob(gone)):
        file.unlink()
    assert pack_han(han).digest == first.digest
    assert "some of its files are gone since" in capsys.readouterr().out
    first.gather(np.arange(len(first)))


def test_whether_files_have_changed_may_not_be_known(
    han: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pack_han(han)
    origin = first.folder / "origin.json"
    recorded = json.loads(origin.read_text())
    origin.write_text(json.dumps({**recorded, "files": "of an older version"}))
    assert pack_han(han).digest == first.digest
    assert "whether its files have changed since is not known" in capsys.readouterr().out


def test_a_list_of_excluded_clips_ends_with_the_clips_it_is_of(
    han: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pack_han(han).folder
    config = DecontaminateConfig(shards=str(folder), duplicates=False, tracking=OFF)
    decontaminate(config)
    touch(han / "feats/vggish/AP0061o0Nvk.npy")
    again = pack_han(han)
    assert "run avvp decontaminate again" in capsys.readouterr().out
    assert again.manifest.excluded is None and not (folder / "excluded.csv").exists()


def test_han_needs_annotations(han: Path) -> None:
    (han / "AVVP_train.csv").unlink()
    with pytest.raises(DataError, match=r"AVVP_\*\.csv.*annotations="):
        pack_han(han)


def test_a_packed_set_is_not_packed_again(han: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = pack_han(han)
    before = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    capsys.readouterr()
    again = pack_han(han)
    assert {path.name: path.stat().st_mtime_ns for path in again.folder.iterdir()} == before
    assert again.digest == first.digest
    assert "already packed, 3 clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [{"format": "arrays"}, {"split": "val"}, {"source": "other"}, {"annotations": "other"}],
)
def test_another_source_into_the_same_folder_is_refused(han: Path, changes: dict[str, str]) -> None:
    first = pack_han(han)
    with pytest.raises(DataError, match=r"already holds clips of .*han"):
        pack_han(han, **changes)
    assert ShardSet(first.folder).digest == first.digest


def test_a_pack_that_was_cut_off_is_done_again(han: Path) -> None:
    first = pack_han(han)
    (first.folder / "manifest.json").unlink()
    (first.folder / ".pack").mkdir()
    (first.folder / "shard-000000.tar").write_bytes(b"half")
    assert pack_han(han).digest == first.digest
