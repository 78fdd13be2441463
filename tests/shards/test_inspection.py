"""The inspection of a shard set: its content is described, and every fault is listed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import ReadConfig
from avvp_dist.errors import DataError
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.inspection import inspect
from avvp_dist.shards.schema import Clip
from tests.shards.origins import Origin, reading

DIMS = {"audio": 4, "visual": 6}
WORDS = [("Dog",), ("Dog", "Cat"), None, (), ("Dog",), ("Frying_(food)",), None]


def write(out: Path, **more: Any) -> Path:
    """A shard set of 3, 3 and 1 clips, two of them short."""
    made = []
    for n, labels in enumerate(WORDS):
        rows = 9 if n in (1, 4) else 10
        streams = {name: np.full((rows, dim), n, np.float32) for name, dim in DIMS.items()}
        streams["visual"][0, 0] = -1.5 * n
        made.append(Clip(f"clip{n}", streams, labels))
    return write_shard_set(made, out, snippets=10, clips_per_shard=3, **more).folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    left_out = {"broken": 4, "short": 0}
    return write(tmp_path / "set", extractor="some net", source={"left_out": left_out})


def tar(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.tar"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def put(folder: Path, clip: int, value: float) -> None:
    """Write another number into a clip of the first shard."""
    start = int(np.load(folder / "index.npy")["offsets"][clip, 0])
    with tar(folder, 0).open("r+b") as file:
        file.seek(start)
        file.write(np.float16(value).tobytes())


@pytest.mark.parametrize("deep", [False, True])
def test_the_content_of_a_whole_set_is_described(
    folder: Path, deep: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(str(folder), deep=deep)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{folder}, digest [0-9a-f]{{12}}", lines[0])
    assert lines[1:] == [
        "7 clips in 3 shards, 0.00 GiB",
        "extractor: some net",
        "  audio: [10, 4] float16, 0 to 6",
        "  visual: [10, 6] float16, -9 to 6",
        "2 clips with fewer than 10 snippets, 0 not finite",
        "4 broken clips were left out when it was packed",
        "5 clips with labels of 3 classes: Dog 3, Cat 1, Frying_(food) 1",
        "no fault found" if deep else "sizes are right; --deep reads every byte",
    ]


@pytest.mark.parametrize("deep", [False, True])
def test_every_fault_is_listed(
    folder: Path, deep: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    tar(folder, 0).unlink()
    tar(folder, 1).write_bytes(tar(folder, 1).read_bytes()[:-1])
    flip(tar(folder, 2), 700)
    counts = "3 faults, 7 of 7" if deep else "2 faults, 6 of 7"
    with pytest.raises(DataError, match=f"{folder} has {counts} clips cannot be read"):
        inspect(str(folder), deep=deep)
    out = capsys.readouterr().out
    faults = [line for line in out.splitlines() if line.startswith("fault: ")]
    assert len(faults) == (3 if deep else 2)
    assert "shard-000000.tar is missing" in faults[0]
    assert "shard-000001.tar has 10239 bytes, its manifest says 10240" in faults[1]
    if deep:
        assert "shard-000002.tar has another SHA-256" in faults[2]
    assert "7 clips in 3 shards" in out
    assert "no fault" not in out and "sizes are right" not in out


def test_every_clip_that_is_not_finite_is_listed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(folder, 0, np.nan)
    put(folder, 2, np.inf)
    for indexed_again in (False, True):
        if indexed_again:  # then the index knows them
            (folder / "manifest.json").unlink()
        with pytest.raises(DataError, match="2 faults, 2 of 7 clips"):
            inspect(str(folder), deep=True, config=ReadConfig(verify="size"))
        out = capsys.readouterr().out
        for clip in ("clip0", "clip2"):
            assert re.search(rf"fault: {folder}.*{clip}.* is not finite", out)
    assert ", 2 not finite" in out


@pytest.mark.parametrize("deep", [False, True])
def test_a_set_without_one_finite_clip_can_be_looked_at(
    folder: Path, deep: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for clip in range(3):
        put(folder, clip, np.nan)
    for gone in (tar(folder, 1), tar(folder, 2), folder / "manifest.json"):
        gone.unlink()
    try:
        inspect(str(folder), deep=deep)
        assert not deep
    except DataError as error:
        assert deep and "3 faults, 3 of 3" in str(error)
    assert ", 3 not finite" in capsys.readouterr().out


def test_foreign_tars_get_a_manifest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for made in ("manifest.json", "index.npy"):
        (folder / made).unlink()
    inspect(str(folder), deep=True)
    out = capsys.readouterr().out
    assert "extractor: not known" in out
    assert "7 clips in 3 shards" in out
    assert (folder / "manifest.json").exists() and (folder / "index.npy").exists()


def test_a_set_of_no_labels_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streams = {name: np.ones((10, dim)) for name, dim in DIMS.items()}
    folder = write_shard_set([Clip("a", streams)], tmp_path / "set").folder
    inspect(str(folder))
    assert "0 clips with labels of 0 classes: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda f: (f / "index.npy").unlink(), r"index\.npy is missing or damaged"),
        (lambda f: flip(f / "index.npy", 300), r"index\.npy .*SHA-256"),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json is not JSON"),
    ],
    ids=["index missing", "index flipped", "manifest"],
)
def test_a_set_that_cannot_be_opened_is_named(
    folder: Path, damage: Callable[[Path], Any], match: str
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=match):
        inspect(str(folder))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda o: o.remove("set/shard-000001.tar"), "shard-000001.tar is missing.*3 of 7 clips"),
        (
            lambda o: o.put("set/shard-000002.tar", b"cut"),
            "shard-000002.tar has 3 bytes, not .*1 of",
        ),
        (
            lambda o: o.put("set/shard-000003.tar", b"x"),
            "shard-000003.tar is not in manifest.*0 of 7",
        ),
        (lambda o: o.put("set/later.tar", b"x"), "later.tar is not in manifest.json"),
        (lambda o: o.put("set/notes.txt", b"x"), ""),
        (lambda o: o.put("set/grounding/x/a.tar", b"x"), ""),
        (lambda o: None, ""),
    ],
)
def test_a_remote_set_is_compared_with_what_lies_there(
    s3_origin: Origin,
    folder: Path,
    change: Callable[[Origin], Any],
    found: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = s3_origin.upload(folder, "set")
    change(s3_origin)
    if not found:
        inspect(url, config=reading(tmp_path))
        assert "manifest, index and sizes are right" in capsys.readouterr().out
        return
    with pytest.raises(DataError, match="has 1 faults") as caught:
        inspect(url, config=reading(tmp_path))
    assert re.search(found, f"{capsys.readouterr().out} {caught.value}", re.DOTALL)


def test_a_server_without_listings_is_said(
    http_origin: Origin, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(http_origin.upload(folder, "set"), config=reading(tmp_path))
    assert "what else lies there is not known" in capsys.readouterr().out
