"""Damage to a shard set: found and named, or tolerated up to a fraction that the user allows."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import LoaderConfig, ReadConfig
from avvp_dist.errors import DataError
from avvp_dist.loading.damage import Damage
from avvp_dist.loading.loader import read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import raise_on_bad

DIMS = {"audio": 4, "visual": 6}
TAR = "shard-000001.tar"
BAD = [3, 4, 5]
"""Clips of `TAR`."""


def clips(prefix: str = "clip") -> list[Clip]:
    rng = np.random.default_rng(len(prefix))
    return [
        Clip(
            f"{prefix}{n}",
            {name: 1 + rng.random((10, dim), np.float32) for name, dim in DIMS.items()},
        )
        for n in range(7)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shard set of 3, 3 and 1 clips without a zero in it."""
    return write_shard_set(clips(), tmp_path / "set", clips_per_shard=3).folder


def offset(folder: Path, clip: int, column: int = 1) -> int:
    return int(np.load(folder / "index.npy")["offsets"][clip, column])


def write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def flip(path: Path, at: int) -> None:
    write(path, at, bytes([path.read_bytes()[at] ^ 1]))


def resize(path: Path, change: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "missing": (lambda f: (f / TAR).unlink(), ("sha256", "size")),
    "a folder": (lambda f: folder_instead(f / TAR), ("sha256", "size")),
    "empty": (lambda f: (f / TAR).write_bytes(b""), ("sha256", "size")),
    "truncated": (lambda f: resize(f / TAR, -512), ("sha256", "size")),
    "grown": (lambda f: resize(f / TAR, 512), ("sha256", "size")),
    "first header wrecked": (lambda f: write(f / TAR, 0, b"x" * 512), ("sha256", "size")),
    "first header zeroed": (lambda f: write(f / TAR, 0, bytes(512)), ("sha256", "size")),
    "flipped byte in the first header": (lambda f: flip(f / TAR, 2), ("sha256", "size")),
    "flipped byte in a header": (lambda f: flip(f / TAR, offset(f, 4) - 600), ("sha256",)),
    "flipped byte in a number": (lambda f: flip(f / TAR, offset(f, 4)), ("sha256",)),
    "flipped byte in the end": (lambda f: flip(f / TAR, (f / TAR).stat().st_size - 1), ("sha256",)),
    "another shard": (lambda f: shutil.copy(f / "shard-000000.tar", f / TAR), ("sha256",)),
}
CASES = [
    pytest.param(damage, verify, id=f"{name}, {verify}")
    for name, (damage, verifies) in DAMAGES.items()
    for verify in verifies
]


PLAIN = b"\x93NUMPY\1\0v\0" + (
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (7, 9), }".ljust(117) + b"\n"
)
"""Header of an npy file of plain numbers."""


def put_nan(folder: Path) -> None:
    write(folder / TAR, offset(folder, 4), np.float16(np.nan).tobytes())


@pytest.mark.parametrize("late", [False, True], ids=["before", "after opening"])
@pytest.mark.parametrize(("damage", "verify"), CASES)
def test_a_damaged_shard_is_named(
    folder: Path, damage: Callable[[Path], Any], verify: str, late: bool
) -> None:
    shards = ShardSet(folder, ReadConfig(verify=verify)) if late else None
    damage(folder)
    with pytest.raises(DataError, match=rf"{folder}/{TAR}"):
        (shards or ShardSet(folder, ReadConfig(verify=verify))).gather(np.arange(7))
    if shards is not None:  # the others are there still
        assert shards.gather(np.array([6, 0]))["audio"].all()


def test_a_number_that_is_not_finite_is_named_where_no_hash_vouches(folder: Path) -> None:
    put_nan(folder)
    shards = ShardSet(folder, ReadConfig(verify="size"))
    with pytest.raises(DataError, match=rf"{TAR}: clip clip4: visual is not finite"):
        shards.gather(np.arange(7))
    assert shards.gather(np.array([3, 5]))["visual"].all()


def check_left_out(mixture: Mixture, order: np.ndarray, bad: list[int]) -> None:
    batch, good = read_clips(mixture, order)
    np.testing.assert_array_equal(good, ~np.isin(order, bad))
    for stream in batch.streams.values():
        array = stream.numpy()
        assert np.isfinite(array).all()
        assert not array[~good].any()
        assert (array[good] >= 1).all()


@pytest.mark.parametrize(
    ("damage", "verify", "bad", "name"),
    [
        *(pytest.param(*case.values, BAD, f"{TAR} ", id=case.id) for case in CASES),
        pytest.param(put_nan, "size", [4], "clip clip4", id="not finite"),
    ],
)
def test_tolerated_damage_is_left_out_named_and_counted(
    folder: Path,
    damage: Callable[[Path], Any],
    verify: str,
    bad: list[int],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(folder)
    config = LoaderConfig(verify=verify, max_bad_fraction=0.5)
    mixture = Mixture.open([str(folder)], [], config)
    order = np.arange(7)
    for _ in range(2):
        check_left_out(mixture, order, bad)
        assert mixture.damage.numbers == set(bad)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"left out ({len(bad)} of 7 clips): ")
    assert name in line
    again = Mixture.open([str(folder)], [], config)
    for clip in reversed(order):
        check_left_out(again, np.array([clip]), bad)
    assert again.damage.numbers == mixture.damage.numbers


def test_rows_of_bad_clips_in_a_given_buffer_are_zeros(folder: Path) -> None:
    flip(folder / TAR, 600)
    mixture = Mixture.open([str(folder)], [], LoaderConfig(max_bad_fraction=0.5))
    for order in (np.array([2, 5, 6]), np.array(BAD)):
        buffer = np.full((3, mixture.layout.width), 7, np.float16)
        good = mixture.read_into(buffer, order)
        assert good.tolist() == [clip not in BAD for clip in order]
        for array in mixture.layout.views(buffer).values():
            assert not array[~good].any()
            assert (array[good] >= 1).all() and (array != 7).all()


def test_damage_in_the_second_of_two_sets_has_its_numbers(folder: Path, tmp_path: Path) -> None:
    first = write_shard_set(clips("other"), tmp_path / "first", clips_per_shard=2).folder
    (folder / TAR).unlink()
    flip(folder / "shard-000002.tar", 600)
    mixture = Mixture.open([str(first), str(folder)], [], LoaderConfig(max_bad_fraction=0.5))
    assert mixture.damage.numbers == {10, 11, 12}
    check_left_out(mixture, np.arange(14)[::-1].copy(), [10, 11, 12, 13])
    assert mixture.damage.numbers == {10, 11, 12, 13}


@pytest.mark.parametrize(("damage", "verify"), CASES)
def test_more_damage_than_allowed_ends_with_the_counts(
    folder: Path, damage: Callable[[Path], Any], verify: str
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=rf"3 of 7 .*data\.max_bad_fraction=0\.4.*{TAR}"):
        config = LoaderConfig(verify=verify, max_bad_fraction=0.4)
        read_clips(Mixture.open([str(folder)], [], config), np.arange(7))


@pytest.mark.parametrize(("damage", "verify"), CASES)
def test_no_damage_is_tolerated_by_default(
    folder: Path, damage: Callable[[Path], Any], verify: str
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=rf"{folder}/{TAR}"):
        read_clips(Mixture.open([str(folder)], [], LoaderConfig(verify=verify)), np.array([5]))


@pytest.mark.parametrize("verify", ["sha256", "size"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.unlink(),
        lambda p: p.write_bytes(b""),
        lambda p: resize(p, -1),
        lambda p: resize(p, 1),
        lambda p: write(p, 0, b"x" * 10),
        lambda p: write(p, 10, b"{'descr': (" + b" " * 90),
        lambda p: p.write_bytes(PLAIN.ljust(p.stat().st_size, b"\0")),
        lambda p: p.write_bytes(p.stat().st_size * b"\0"),
    ],
    ids=["missing", "empty", "cut", "grown", "magic", "header", "other dtype", "zeros"],
)
def test_a_damaged_index_is_named(folder: Path, damage: Callable[[Path], Any], verify: str) -> None:
    damage(folder / "index.npy")
    config = LoaderConfig(verify=verify, max_bad_fraction=1.0)
    with pytest.raises(DataError, match=r"index\.npy is missing or damaged"):
        Mixture.open([str(folder)], [], config)


def test_a_flipped_byte_in_the_index_is_named(folder: Path) -> None:
    flip(folder / "index.npy", (folder / "index.npy").stat().st_size - 1)
    with pytest.raises(DataError, match=r"index\.npy .*SHA-256"):
        ShardSet(folder)


END_OF_PROCESS = {
    "an index that points outside": """
index = np.load(folder / "index.npy", mmap_mode="r+")
index["offsets"][4, 1] = 1 << 14  # in the next shard, which is not opened
index.flush()
ShardSet(folder, ReadConfig(verify="size")).gather(np.array([4]))
""",
    "a shard cut between two openings": """
shards = ShardSet(folder)
shards.gather(np.arange(7))
shards.release([1])
(folder / "shard-000001.tar").write_bytes(b"")
shards.gather(np.arange(7))
""",
}


@pytest.mark.parametrize("code", END_OF_PROCESS.values(), ids=END_OF_PROCESS)
def test_no_damage_ends_the_process(folder: Path, root: Path, code: str) -> None:
    imports = """
import pathlib, sys
import numpy as np
from avvp_dist.config import ReadConfig
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import raise_on_bad
folder = pathlib.Path(sys.argv[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", imports + code, str(folder)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, f"{done.returncode} {done.stderr}"
    assert "DataError" in done.stderr


def manifest(**changes: Any) -> Callable[[bytes], bytes]:
    """Change entries of a manifest; with `None` they go."""

    def change(text: bytes) -> bytes:
        entries = json.loads(text) | changes
        return json.dumps({k: v for k, v in entries.items() if v is not None}).encode()

    return change


def shard(**changes: Any) -> Callable[[bytes], bytes]:
    def change(text: bytes) -> bytes:
        entries = json.loads(text)
        entries["shards"][1] |= changes
        return json.dumps(entries).encode()

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda text: b"", "is not JSON"),
        (lambda text: text[:-20], "is not JSON"),
        (lambda text: b"\xff" + text, "is not JSON"),
        (lambda text: b"[" * 100_000, ""),
        (lambda text: b"[]", "no manifest of the format avvp-shards-2"),
        (manifest(format="avvp-shards-1"), "no manifest of the format avvp-shards-2"),
        (manifest(format=None), "no manifest of the format avvp-shards-2"),
        *((manifest(**{key: None}), "") for key in ("shards", "snippets", "streams", "index")),
        (manifest(shards=5), ""),
        (manifest(shards=[{"name": "shard-000000.tar"}]), ""),
        (manifest(streams={"audio": {}}), ""),
        (shard(name="../set/shard-000001.tar"), "'../set/shard-000001.tar' is no name"),
        (shard(name="/etc/passwd"), "'/etc/passwd' is no name"),
        (shard(name=".."), "'..' is no name"),
        (shard(name=5), ""),
        (shard(bytes="10240"), ""),
        (shard(clips=2), ""),
    ],
)
def test_a_damaged_manifest_is_named(
    folder: Path, change: Callable[[bytes], bytes], match: str
) -> None:
    path = folder / "manifest.json"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=rf"(manifest\.json|index\.npy).*{match}"):
        Mixture.open([str(folder)], [], LoaderConfig(max_bad_fraction=1.0))


def test_a_clip_is_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    damage = Damage(10, 0.5)
    damage([1, 2], DataError("one"))
    damage(iter([2]), DataError("two"))
    damage([2, 3], DataError("three"))
    assert damage.numbers == {1, 2, 3}
    assert [record.getMessage() for record in caplog.records] == [
        "left out (2 of 10 clips): one",
        "left out (3 of 10 clips): three",
    ]


def test_the_allowed_fraction_itself_may_be_reached() -> None:
    damage = Damage(10, 0.3)
    damage([1, 2, 3], DataError("one"))
    damage.check()
    with pytest.raises(DataError, match=r"4 of 10 .*data\.max_bad_fraction=0\.3.*: two"):
        damage([4], DataError("two"))


def test_bad_clips_of_other_ranks_count() -> None:
    damage = Damage(10, 0.3)
    damage([1, 2], DataError("one"))
    damage.merge({2, 3})
    assert damage.numbers == {1, 2, 3}
    with pytest.raises(DataError, match="4 of 10"):
        damage.merge({4})
    with pytest.raises(DataError, match="1 of 10"):
        Damage(10, 0).merge({4})
    Damage(10, 0).merge(set())


def test_a_fraction_of_0_raises_the_error_itself() -> None:
    error = DataError("one")
    for on_bad in (Damage(10, 0.0), raise_on_bad):
        with pytest.raises(DataError) as caught:
            on_bad([1], error)
        assert caught.value is error


def test_many_faults_from_many_threads_are_counted_and_few_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage = Damage(1000, 1.0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: damage([n, n + 1], DataError(str(n))), range(0, 1000, 2)))
    assert damage.numbers == set(range(1000))
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 20
