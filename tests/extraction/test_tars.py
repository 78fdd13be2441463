"""Samples of tars: keys, ids, labels, and what is wrong with a tar before anything is decoded."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset

from avvp_dist.errors import DataError
from avvp_dist.extraction.tars import SampleJson, index_tar, samples_of
from avvp_dist.ledger import Ledger
from tests.extraction.made_tars import make_tar

FAULTS: dict[str, tuple[list[tuple[str, Any]], str, str]] = {
    "two videos": ([("a.mp4", b"1"), ("a.mkv", b"2")], "unsupported", "several videos"),
    "two sounds": ([("a.wav", b"1"), ("a.wav", b"2")], "unsupported", "several sounds"),
    "a list": ([("a.mp4", b"1"), ("a.json", b"[]")], "unreadable", "it is no JSON object"),
    "no JSON": ([("a.json", b"{"), ("a.mp4", b"1")], "unreadable", "a.json is of no use"),
    "deep": ([("a.json", b"[" * 100000), ("a.mp4", b"1")], "unreadable", "recursion"),
    "two JSON": ([("a.json", {}), ("a.mp4", b""), ("a.json", {})], "unreadable", "another one"),
    "labels": ([("a.mp4", b""), ("a.json", {"labels": 3})], "unreadable", "no list of names"),
    "id": ([("a.mp4", b""), ("a.json", {"id": ["x"]})], "unreadable", "id is no text"),
    "no UTF-8": ([("a.mp4", b""), ("a.json", {"id": "\ud800"})], "unsupported", "no UTF-8"),
}


def test_a_key_is_the_whole_name_without_its_ending(tmp_path: Path) -> None:
    members: list[tuple[str, Any]] = [
        ("./x_101.8_111.8.mp4", b"one"),
        ("set/b.WEBM", b"three"),
        ("x_101.8_111.8.json", {"tag": ["Dog", "Speech, male"]}),
        ("a=2Fb.flac", b"four"),  # as our own keys are written
        ("notes.txt", b""),
        ("alone.json", {}),
        ("__MACOSX/._x.mp4", b""),
    ]
    path = make_tar(tmp_path / "a.tar", members)
    first, second, third = index_tar(path)
    assert [one.id for one in (first, second, third)] == ["x_101.8_111.8", "set/b", "a/b"]
    assert first.path == f"{path}#x_101.8_111.8.mp4" and second.path == f"{path}#set/b.WEBM"
    assert first.labels == ("Dog", "Speech, male") and second.labels is None
    (place,) = first.places
    assert path.read_bytes()[place.start :][: place.size] == b"one"


def test_scattered_members_are_one_sample(tmp_path: Path) -> None:
    members: list[tuple[str, Any]] = [
        ("a.flac", b"sound"),
        ("b.mp4", b"other"),
        ("a.json", {"id": "A", "labels": [], "start": 1, "end": 2.5}),
        ("a.mp4", b"pictures"),
    ]
    path = make_tar(tmp_path / "a.tar", members)
    one, other = index_tar(path)
    assert (one.id, one.path, one.labels) == ("A", f"{path}#a.mp4+a.flac", ())
    assert one.span == (1, 2.5) and other.span is None
    read = [path.read_bytes()[place.start :][: place.size] for place in one.places]
    assert read == [b"pictures", b"sound"]


def test_a_tar_of_the_webdataset_library_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(3):
            writer.write({"__key__": f"k/{number}", "mp4": b"x" * number, "json": {"tag": "a, b"}})
    assert [(one.id, one.labels) for one in index_tar(path)] == [
        (f"k/{number}", ("a", "b")) for number in range(3)
    ]


@pytest.mark.parametrize("kind", FAULTS)
def test_a_sample_that_cannot_be_used_costs_no_other_one(kind: str, tmp_path: Path) -> None:
    members, reason, message = FAULTS[kind]
    one, other = index_tar(make_tar(tmp_path / "a.tar", [*members, ("b.mp4", b"")]))
    assert one.fault is not None and one.fault[0] == reason and message in one.fault[1]
    assert other.id == "b" and other.fault is None


def test_a_link_is_no_media(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a.mp4")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(link)
    (one,) = index_tar(tmp_path / "a.tar")
    assert one.fault == ("unsupported", "a.mp4 is no plain file but a link")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (2, "it has no end"),  # at a header: webdataset would end in silence
        (4, "it has no end"),
        (2.5, "unexpected end|truncated|cut off"),
        (3.5, "goes on after the end"),
        (0, "empty"),
    ],
)
def test_a_tar_that_is_cut_off_is_named(blocks: float, message: str, tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.mp4", b"x" * 512), ("b.mp4", b"y" * 512)])
    path.write_bytes(path.read_bytes()[: round(blocks * 512)])
    with pytest.raises(DataError, match=rf"a\.tar .*({message})"):
        index_tar(path)


def test_a_header_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.mp4", b"x" * 512), ("b.mp4", b"y" * 512)])
    data = bytearray(path.read_bytes())
    data[1024] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar is damaged: no header at byte 1024"):
        index_tar(path)


def test_all_tars_that_are_cut_off_are_named_and_others_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tars = [make_tar(tmp_path / f"{n}.tar", [(f"{n}.mp4", b"x" * 512)]) for n in range(4)]
    whole = {path: path.read_bytes() for path in tars}
    for path in tars[:2]:
        path.write_bytes(whole[path][:1024])
    ledger = Ledger(tmp_path / "kept")
    with pytest.raises(DataError, match=r"2 of 4 tars .*0\.tar is .*; .*1\.tar is"):
        samples_of(tars, ledger, 1)
    for path in tars[:2]:
        path.write_bytes(whole[path])
    tarfile_open, opened = tarfile.open, list[Any]()

    def counted(*arguments: Any, **keys: Any) -> tarfile.TarFile:
        opened.append(keys["fileobj"].name)
        return tarfile_open(*arguments, **keys)

    monkeypatch.setattr(tarfile, "open", counted)
    found = samples_of(tars, ledger, 1)
    assert [Path(name) for name in opened] == tars[:2]
    assert [one.id for path in tars for one in found[path]] == ["0", "1", "2", "3"]
    assert found == samples_of(tars, ledger, 1) and len(opened) == 2


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, SampleJson()),
        ({"id": 7, "tag": "a; b, c;"}, SampleJson("7", ("a", "b, c"))),
        ({"id": "", "tag": [], "labels": ["a"]}, SampleJson(None, ("a",))),
        ({"tag": ["Speech, male"], "text": ["x"]}, SampleJson(None, ("Speech, male",))),
        ({"start": 0, "end": 10.5}, SampleJson(span=(0, 10.5))),
        ({"start": 5, "end": 5}, SampleJson()),
        ({"start": -1, "end": 5}, SampleJson()),
        ({"start": "0", "end": 5}, SampleJson()),
        ({"start": 0, "end": float("inf")}, SampleJson()),
        ({"start": float("nan"), "end": 5}, SampleJson()),
        ({"start": True, "end": 5}, SampleJson()),
    ],
)
def test_entries_of_a_json_object(entries: dict[str, Any], expected: SampleJson) -> None:
    assert SampleJson.parse(json.dumps(entries).encode()) == expected


def test_a_header_of_another_format_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(io.BytesIO(b"no tar at all" * 1000).getvalue())
    with pytest.raises(DataError, match=r"a\.tar is damaged"):
        index_tar(tmp_path / "a.tar")
