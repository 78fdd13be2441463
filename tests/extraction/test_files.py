"""Media files of a folder or a list, and the clips that a file is cut into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from avvp_dist.errors import DataError
from avvp_dist.extraction.files import (
    MediaItem,
    item_of,
    media_files,
    media_id,
    media_items,
    windows,
)
from avvp_dist.features.media import Bounds, MediaError
from avvp_dist.packing.sources import SourceFile
from avvp_dist.shards.remote import RemoteFile


def test_a_folder_is_read_with_those_in_it(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/c.MKV", "a/d.wav", "e.txt", "._b.mp4", "a/f.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in media_files(tmp_path)]
    assert found == ["a/c.MKV", "a/d.wav", "b.mp4"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.txt", "a.mp4\n\nb/c.x.mp4\n"),
        ("l.csv", "a.mp4,Dog\nb/c.x.mp4,Cat\n"),
        ("l.tsv", "\ufeffa.mp4\tDog\r\nb/c.x.mp4\tCat\r\n"),
    ],
)
def test_a_list_names_paths_from_its_own_folder(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    assert media_files(tmp_path / name) == [tmp_path / "a.mp4", tmp_path / "b/c.x.mp4"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "names no files"),
        ("utf16.txt", "a.mp4".encode("utf-16"), "cannot be read"),
        ("gone.txt", None, "cannot be read"),
        ("a.json", b"[]", "is no folder, no tar and no list"),
    ],
)
def test_a_list_that_is_none_is_named(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} {message}"):
        media_files(tmp_path / name)


def test_a_folder_without_media_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no media files"):
        media_files(tmp_path)


def test_annotated_clips_are_taken_and_found_by_their_names_or_videos() -> None:
    names = ("abcdefghij-_0_10", "in/a/tar/01234567890", "other")
    items = [MediaItem(name, f"/{name}", ("Bird",)) for name in names]
    labels = {"01234567890_30_40": ["Dog"], "abcdefghij-_0_10": ["Cat"], "ABCDEFGHIJK_0_10": []}
    found = media_items(items, labels)
    assert [(one.id, one.path, one.labels) for one in found] == [
        ("01234567890_30_40", "/in/a/tar/01234567890", ("Dog",)),
        ("abcdefghij-_0_10", "/abcdefghij-_0_10", ("Cat",)),
        ("ABCDEFGHIJK_0_10", "ABCDEFGHIJK_0_10", ()),
    ]
    with pytest.raises(MediaError, match="no file has this name, or the name ABCDEFGHIJK"):
        found[-1].open(Bounds())


def test_the_later_item_of_an_id_names_the_first_one() -> None:
    items = [MediaItem("a", "/1"), MediaItem("b", "/2"), MediaItem("a", "/3"), MediaItem("a", "/3")]
    assert [one.other for one in media_items(items, None)] == ["", "", "/1", "/1"]


@pytest.mark.parametrize(
    ("file", "name", "path"),
    [
        (RemoteFile("https://a.invalid/b/x%20y.1.mp4?k=a/c.wav"), "x y.1", None),
        (RemoteFile("s3://bucket/a%20?#.mkv"), "a%20?#", None),
        (Path("/a/b.c.wav"), "b.c", "/a/b.c.wav"),
    ],
)
def test_an_id_is_the_name_without_its_ending(file: SourceFile, name: str, path: Any) -> None:
    assert (item_of(file).id, item_of(file).path) == (name, path or str(file))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.mp4", "a"),
        ("x_101.8_111.8.mp4", "x_101.8_111.8"),
        ("x_101.8_111.8", "x_101.8_111.8"),
        ("-a.b.WEBM", "-a.b"),
    ],
)
def test_only_the_ending_of_a_name_is_cut(name: str, expected: str) -> None:
    assert media_id(Path("some.folder") / name) == expected


@pytest.mark.parametrize(
    ("seconds", "long", "expected"),
    [
        (10, "windows", [(0, 10)]),
        (9, "windows", [(0, 9)]),
        (23, "windows", [(0, 10), (10, 20), (20, 23)]),
        (23, "first", [(0, 10)]),
    ],
)
def test_windows_cover_a_file(seconds: int, long: str, expected: list[tuple[int, int]]) -> None:
    assert windows(seconds, 10, long) == expected
