"""The decontamination job: excluded clips, their reasons, and refused inputs.

Its tasks run in this process; tests/runtime/cluster/test_tasks.py has them on Ray.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import DecontaminateConfig
from avvp_dist.decontamination.job import decontaminate
from avvp_dist.errors import DataError
from avvp_dist.grounding.version import Grounding
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad


def write(
    out: Path, ids: Sequence[str], seeds: Sequence[int], noise: float = 0.0, **keys: Any
) -> ShardSet:
    """A shard set whose clips have the content of their seed, plus noise."""
    rng, made = np.random.default_rng(99), []
    for name, seed in zip(ids, seeds, strict=True):
        own = np.random.default_rng(seed)
        streams = {n: own.standard_normal((10, dim)) for n, dim in (("audio", 24), ("visual", 32))}
        made.append(
            Clip(name, {n: x + noise * rng.standard_normal(x.shape) for n, x in streams.items()})
        )
    return write_shard_set(made, out, **{"clips_per_shard": 5, "extractor": "x", **keys})


def run(shards: ShardSet, *against: object, **keys: Any) -> dict[str, dict[str, str]]:
    """The rows of `excluded.csv` by id."""
    given = {"against": list(map(str, against)), "workers": 1, **keys}
    config = DecontaminateConfig(shards=str(shards.folder), **given)
    config.tracking.enabled = False
    with decontaminate(config).open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    after = ShardSet(shards.folder, on_bad=ignore_bad)
    excluded = [shards.id(clip) for clip in np.flatnonzero(after.excluded)]
    assert excluded == list(rows)
    assert not list(shards.folder.glob(".embeddings*"))
    return rows


@pytest.fixture
def corpus(tmp_path: Path) -> ShardSet:
    """Clips of the videos 0 to 11, and copies of 2 and 3 under the names again2 and again3."""
    ids = [f"video-{n:05d}_0_10" for n in range(12)]
    return write(tmp_path / "corpus", [*ids, "again2", "again3"], [*range(12), 2, 3])


def test_every_exclusion_has_its_reason_and_match(corpus: ShardSet, tmp_path: Path) -> None:
    held = write(
        tmp_path / "held", ["video-00000_50_60", "reupload"], [100, 7], noise=0.05, snippets=12
    )
    (tmp_path / "names.txt").write_text("video-00009_3000_13000.mp4\nother\n")
    rows = run(corpus, held.folder, tmp_path / "names.txt", "llp")
    twice = {rows.pop(f"again{n}", rows.pop(f"video-0000{n}_0_10", None))["id"] for n in (2, 3)}  # type: ignore[index]
    assert len(twice) == 2
    assert {name: (row["reason"], row["match"]) for name, row in rows.items()} == {
        "video-00000_0_10": ("id", "video-00000_50_60"),
        "video-00007_0_10": ("embedding", "reupload"),
        "video-00009_0_10": ("id", "video-00009_3000_13000.mp4"),
    }
    assert 0.98 < float(rows["video-00007_0_10"]["audio"]) < 1
    assert rows["video-00000_0_10"]["visual"] == ""
    entry = ShardSet(corpus.folder).manifest.excluded
    assert entry is not None
    assert entry.reasons == {"id": 2, "embedding": 1, "duplicate": 2}
    assert [(one.name, one.ids) for one in entry.against] == [
        (held.name, 2),
        (str(tmp_path / "names.txt"), 2),
        ("llp", 1849),
    ]


def test_each_comparison_can_be_switched_off(corpus: ShardSet, tmp_path: Path) -> None:
    held = write(tmp_path / "held", ["video-00000_50_60", "reupload"], [100, 7])
    none = {"ids": False, "embeddings": False, "duplicates": False}
    found = {key: list(run(corpus, held.folder, **{**none, key: True})) for key in none}
    assert found["ids"] == ["video-00000_0_10"]
    assert found["embeddings"] == ["video-00007_0_10"]
    assert len(found["duplicates"]) == 2
    assert run(corpus, **none) == {}
    entry = ShardSet(corpus.folder).manifest.excluded
    assert entry is not None and entry.clips == 0


def test_the_copy_of_a_held_out_clip_is_excluded(corpus: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("filename\tevent_labels\nvideo-00002_3_4\tDog\n")
    rows = run(corpus, tmp_path / "names.csv")
    assert rows["video-00002_0_10"]["reason"] == "id"
    assert (rows["again2"]["reason"], rows["again2"]["match"]) == ("duplicate", "video-00002_0_10")


def test_the_sharding_and_the_order_do_not_matter(tmp_path: Path) -> None:
    ids, seeds = [f"c{n}" for n in range(40)], [n % 30 for n in range(40)]
    order = np.random.default_rng(0).permutation(40)
    one = write(tmp_path / "one", ids, seeds, clips_per_shard=40)
    four = write(
        tmp_path / "four", [ids[n] for n in order], [seeds[n] for n in order], clips_per_shard=10
    )
    found = [run(shards) for shards in (one, four)]
    assert len(found[0]) == 10
    assert {n: row["match"] for n, row in found[0].items()} == {
        n: row["match"] for n, row in found[1].items()
    }


def test_a_second_run_gives_the_same_bytes(corpus: ShardSet) -> None:
    def files() -> list[bytes]:
        return [(corpus.folder / name).read_bytes() for name in ("excluded.csv", "manifest.json")]

    run(corpus, "llp")
    first = files()
    run(corpus)
    assert files() != first
    run(corpus, "llp")
    assert files() == first


def test_clips_that_cannot_be_read_are_no_duplicates(
    corpus: ShardSet, capfd: pytest.CaptureFixture[str]
) -> None:
    (corpus.folder / "shard-000002.tar").write_bytes(b"")
    rows = run(corpus, "llp")
    assert rows == {}  # both `again` lie there
    assert "4 clips cannot be read" in capfd.readouterr().out


def test_an_earlier_grounding_stays_valid(grounded: ShardSet, tmp_path: Path) -> None:
    shards = ShardSet(shutil.copytree(grounded.folder, tmp_path / "train"))
    components = Grounding(shards).components
    (tmp_path / "names.txt").write_text(shards.id(5))
    assert list(run(shards, tmp_path / "names.txt", duplicates=False)) == [shards.id(5)]
    after = ShardSet(shards.folder)
    assert after.digest != shards.digest
    np.testing.assert_array_equal(Grounding(after).components, components)


def test_a_similarity_that_does_not_fit_the_extractor_is_refused(corpus: ShardSet) -> None:
    same = write(corpus.folder.parent / "same", "abcdefgh", [1] * 8)
    with pytest.raises(DataError, match=r"7 of 8 clips .* similarity=0\.9 does not fit"):
        run(same, similarity=0.9)
    with pytest.raises(DataError, match=r"14 by their ids.* against= names the set's own clips"):
        run(corpus, corpus.folder)
    assert ShardSet(corpus.folder).manifest.excluded is None


def test_features_of_another_extractor_are_not_compared(corpus: ShardSet, tmp_path: Path) -> None:
    held = write(tmp_path / "held", ["video-00000_50_60"], [7], extractor="y")
    with pytest.raises(DataError, match=f"{held.name} .* not comparable.* embeddings=false"):
        run(corpus, held.folder)
    assert list(run(corpus, held.folder, embeddings=False, duplicates=False)) == [
        "video-00000_0_10"
    ]


def script(root: Path, *command: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.launch
def test_the_command_line(corpus: ShardSet, root: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "a.txt", tmp_path / "b.txt"
    one.write_text("video-00004_1_2\n")
    other.write_text("video-00005_1_2\n")
    command = ("--against", one, "--against", other, "--duplicates=false", "tracking.enabled=false")
    done = script(root, "tools/decontaminate.py", f"shards={corpus.folder}", *command)
    assert done.returncode == 0, done.stderr
    assert "2 of 14 clips are excluded (id 2, embedding 0, duplicate 0)" in done.stdout
    assert str(corpus.folder / "excluded.csv") in done.stdout


YTIDS = [f"Ab-_{n:07d}" for n in range(40)]
LISTS = {
    "plain.txt": "{0}\n",
    "clips.txt": "{0}_30_40\n",
    "wavs.txt": "Y{0}.wav\n",
    "crlf.txt": "{0}.mp4  \r\n",
    "folders.txt": "audio/{0}_000030.flac\n",
    "urls.txt": "https://www.youtube.com/watch?v={0}&t=30s\n",
    "short.txt": "https://youtu.be/{0}\n",
    "columns.tsv": "Dog\t{0}\t30\n",
    "vggsound.csv": '{0},30,"dog, barking",train\n',
    "semicolons.CSV": "Dog;{0};30\n",
    "ave.txt": "Church bell&{0}&good&0&10\n",
    "LIST.TXT": "{0}\n",
    "no_suffix": "{0}\n",
}


@pytest.mark.parametrize("file", LISTS)
@pytest.mark.parametrize("form", ["{0}_0_10", "Y{0}", "{0}_000030"])
def test_every_list_finds_the_videos_of_every_form_of_id(
    file: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write(tmp_path / "set", [form.format(one) for one in YTIDS], range(40))
    text = "".join(LISTS[file].format(one) for one in [*YTIDS[:8], "zzzzzzzzzzz"])
    (tmp_path / file).write_text(text, newline="")
    rows = run(shards, tmp_path / file, duplicates=False, embeddings=False)
    assert list(rows) == [form.format(one) for one in YTIDS[:8]]
    told = capsys.readouterr().out
    assert "8 of 40 clips are excluded" in told
    assert f"set: 40 of 40 names hold a video id\n{tmp_path / file}: 9 of 9 names" in told


@pytest.mark.parametrize("text", ["Dog\nCat\n", "label,start\nDog,3\n", "c100\nc101.wav\n"])
def test_a_list_in_which_nothing_is_recognised_is_refused(
    text: str, corpus: ShardSet, tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=r"list\.csv: none of its . names, such as .*, holds"):
        run(corpus, tmp_path / "list.csv", duplicates=False, embeddings=False)
    assert ShardSet(corpus.folder).manifest.excluded is None


def test_a_remote_set_is_refused(corpus: ShardSet, tmp_path: Path) -> None:
    config = DecontaminateConfig(shards=f"file://{corpus.folder}", cache=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"is remote.* Decontaminate it where it lies on a disk"):
        decontaminate(config)
