"""Files that source= names: folders, lists, tars in braces, and URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.errors import DataError
from avvp_dist.extraction.listing import expand, source_files
from avvp_dist.shards.remote import RemoteFile
from tests.shards.origins import Origin


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("a-{,2}.tar", ["a-.tar", "a-2.tar"]),
        ("{x}/{0..1}", ["{x}/0", "{x}/1"]),
        ("a{b.tar", ["a{b.tar"]),
    ],
)
def test_braces_are_expanded(text: str, expected: list[str]) -> None:
    assert expand(text) == expected


def test_an_empty_range_is_named() -> None:
    with pytest.raises(DataError, match=r"\{9\.\.0\} is empty"):
        expand("a-{9..0}.tar")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tars/b.tar", "tars/a.tar", "tars/x.txt", "both/c.tar", "both/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("tars", ["tars/a.tar", "tars/b.tar"]),
        ("both", ["both/d.mp4"]),
        ("both/c.tar", ["both/c.tar"]),
        ("tars/*.tar", ["tars/a.tar", "tars/b.tar"]),
        ("*/[bcd].*", ["both/c.tar", "both/d.mp4", "tars/b.tar"]),
        ("tars/{b,a}.tar", ["tars/b.tar", "tars/a.tar"]),
    ],
)
def test_tars_and_media_are_found(source: str, expected: list[str], folder: Path) -> None:
    assert source_files(str(folder / source)) == [folder / name for name in expected]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none", "is no folder, no tar and no list"),
        ("tars/{a,c}.tar", "c.tar is missing"),
        ("*/*.wav", "matches no file"),
        ("https://example.invalid/a", "servers of HTTP do not list folders"),
        ("pipe:cat a.tar", "start a shell"),
        ("s3://me:secret@host/a", "password"),
    ],
)
def test_a_source_that_names_nothing_is_named(source: str, message: str, folder: Path) -> None:
    place = source if ":" in source else str(folder / source)
    with pytest.raises(DataError, match=message):
        source_files(place)


def test_a_list_names_files_and_urls(folder: Path) -> None:
    lines = ["https://example.invalid/a%20b.mp4?key=1.x", "tars/a.tar", "s3://bucket/c.wav"]
    (folder / "list.txt").write_text("\n".join([*lines, *lines]))
    assert source_files(str(folder / "list.txt")) == [
        RemoteFile(lines[0]),
        folder / "tars/a.tar",
        RemoteFile(lines[2]),
    ]


@pytest.mark.usefixtures("quick")
def test_a_prefix_is_listed_with_sizes_and_versions(s3_origin: Origin) -> None:
    for name in ("m/b/x.mp4", "m/a.wav", "m/t.tar", "m/notes.txt", "t/0.tar", "l/list.txt"):
        s3_origin.put(name, b"x.mp4" if name.endswith("txt") else b"12345")
    root = s3_origin.root
    media = source_files(f"{root}/m")
    assert [str(one) for one in media] == [f"{root}/m/a.wav", f"{root}/m/b/x.mp4"]
    assert all(isinstance(one, RemoteFile) and one.bytes == 5 and one.version for one in media)
    assert [str(one) for one in source_files(f"{root}/t/")] == [f"{root}/t/0.tar"]
    assert source_files(f"{root}/l/list.txt") == [RemoteFile(f"{root}/l/x.mp4")]
    (tar,) = source_files(f"{root}/t/{{0..0}}.tar")
    assert isinstance(tar, RemoteFile) and tar.bytes == 5 and tar.version
    with pytest.raises(DataError, match=r"t/1\.tar is missing"):
        source_files(f"{root}/t/{{0..1}}.tar")
    with pytest.raises(DataError, match="holds no media files and no tars"):
        source_files(f"{root}/l")
