"""The manifest as a value: a file comes back byte for byte, and every wrong entry is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avvp_dist.commit import sha256
from avvp_dist.errors import DataError
from avvp_dist.shards.manifest import (
    ComparedList,
    ExcludedEntry,
    FileEntry,
    Manifest,
    Shard,
    StreamEntry,
    parse_manifest,
)

MANIFEST = Manifest(
    clips=5,
    snippets=10,
    streams={
        "visual": StreamEntry(6, "float16", -1.5, 2.25),
        "audio": StreamEntry(4, "float16", None, None),
    },
    extractor="a net, version 1",
    classes=("Dog", "Frying_(food)"),
    source={"format": "han", "left_out": {"broken": 1}},
    index=FileEntry(640, "a" * 64),
    shards=(Shard("s-0.tar", 3, 10240, "b" * 64), Shard("s-1.tar", 2, 10240, "c" * 64)),
)
EXCLUDED = ExcludedEntry(
    name="excluded.csv",
    bytes=77,
    sha256="d" * 64,
    clips=2,
    reasons={"id": 1, "embedding": 0, "duplicate": 1},
    against=(ComparedList("llp", 1849, "e" * 64),),
    similarity=0.95,
)


def saved(manifest: Manifest, folder: Path) -> bytes:
    manifest.save(folder)
    return (folder / "manifest.json").read_bytes()


def test_the_file_is_plain_json_with_keys_in_this_order(tmp_path: Path) -> None:
    entries = json.loads(saved(MANIFEST, tmp_path))
    assert list(entries) == [
        "format",
        "clips",
        "snippets",
        "streams",
        "extractor",
        "classes",
        "source",
        "index",
        "shards",
    ]
    assert entries["format"] == "avvp-shards-2"
    assert list(entries["streams"]) == ["visual", "audio"]
    assert entries["shards"][1] == {
        "name": "s-1.tar",
        "clips": 2,
        "bytes": 10240,
        "sha256": "c" * 64,
    }


@pytest.mark.parametrize("excluded", [None, EXCLUDED])
def test_a_parsed_manifest_writes_the_same_bytes(
    tmp_path: Path, excluded: ExcludedEntry | None
) -> None:
    text = saved(replace(MANIFEST, excluded=excluded), tmp_path)
    manifest = parse_manifest(text, "manifest.json")
    assert manifest == replace(MANIFEST, excluded=excluded)
    assert saved(manifest, tmp_path / "again") == text


def test_the_content_digest_ignores_the_excluded_clips(tmp_path: Path) -> None:
    excluding = replace(MANIFEST, excluded=EXCLUDED)
    assert excluding.content_digest == MANIFEST.content_digest == sha256(saved(MANIFEST, tmp_path))
    assert sha256(saved(excluding, tmp_path)) != MANIFEST.content_digest


Change = Callable[[dict[str, Any]], object]

DAMAGES: dict[str, tuple[Change, str]] = {
    "missing": (lambda m: m.pop("snippets"), "snippets is missing"),
    "unknown": (lambda m: m.update(colour=1), "colour is unknown"),
    "text for a number": (lambda m: m.update(clips="5"), "clips is '5', expected int"),
    "true for a number": (lambda m: m.update(clips=True), "clips is True, expected int"),
    "negative": (lambda m: m["index"].update(bytes=-1), r"index\.bytes is -1, expected 0 or more"),
    "shard without a hash": (lambda m: m["shards"][1].pop("sha256"), r"shards\[1\]\.sha256 is mis"),
    "shard is a number": (lambda m: m["shards"].append(7), r"shards\[2\] is 7, expected dict"),
    "shards are a mapping": (lambda m: m.update(shards={}), r"shards is {}, expected list"),
    "class is a number": (lambda m: m["classes"].append(1), r"classes\[2\] is 1, expected str"),
    "stream without a width": (lambda m: m["streams"]["audio"].pop("dim"), r"streams\.audio\.dim"),
    "stream of another type": (
        lambda m: m["streams"]["audio"].update(dtype="int8"),
        r"streams are \['float16', 'int8'\], expected one of float16 and float32",
    ),
    "no stream": (lambda m: m.update(streams={}), r"streams are \[\]"),
    "shard elsewhere": (lambda m: m["shards"][0].update(name="../s.tar"), r"shards\[0\]: '\.\./s"),
    "hidden shard": (lambda m: m["shards"][0].update(name=".s.tar"), r"shards\[0\]: '\.s\.tar'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_entry_is_named(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    entries = json.loads(saved(MANIFEST, tmp_path))
    change(entries)
    with pytest.raises(DataError, match=f"^set/manifest.json is damaged: {message}"):
        parse_manifest(json.dumps(entries).encode(), "set/manifest.json")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_json_is_named(text: bytes) -> None:
    with pytest.raises(DataError, match=r"^set/manifest\.json is not JSON"):
        parse_manifest(text, "set/manifest.json")


@pytest.mark.parametrize("text", [b"[]", b"{}", b"7", b'{"format": "avvp-shards-1"}'])
def test_another_format_is_named(text: bytes) -> None:
    with pytest.raises(DataError, match=r"is no manifest of the format avvp-shards-2"):
        parse_manifest(text, "set/manifest.json")
