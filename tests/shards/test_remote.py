"""Shard sets at a URL: over real HTTP and S3 protocols, with the faults that networks have."""

from __future__ import annotations

import io
import json
import re
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from avvp_dist.config import LoaderConfig
from avvp_dist.errors import DataError
from avvp_dist.loading.mixture import Mixture
from avvp_dist.shards import remote
from avvp_dist.shards.cache import Cache
from avvp_dist.shards.remote import RemoteFile, find_url, is_url, open_url, read_url, stat_url
from avvp_dist.shards.shard_set import ShardSet
from tests.shards.origins import (
    ALWAYS,
    FILES,
    SHARD,
    Origin,
    assert_same,
    at_most,
    everything,
    flipped,
    kept,
    reading,
)

pytestmark = pytest.mark.usefixtures("quick")


# Reading


def test_a_remote_shard_set_is_the_local_one(
    origin: Origin, local: ShardSet, tmp_path: Path
) -> None:
    url = origin.upload(local.folder, "a/set")
    found = ShardSet(f"{url}/", reading(tmp_path))
    assert_same(found, local)
    assert (found.name, found.remote) == (url, True)
    assert kept(tmp_path / "cache") == sorted(["index.npy", *(s.name for s in local.shards)])
    with pytest.raises(DataError, match=re.escape(f"{url} is no local folder")):
        _ = found.folder


def test_what_was_fetched_is_not_fetched_again(
    http_origin: Origin, local: ShardSet, tmp_path: Path
) -> None:
    url = http_origin.upload(local.folder, "set")
    everything(ShardSet(url, reading(tmp_path)))
    http_origin.server.asked.clear()
    assert_same(ShardSet(url, reading(tmp_path)), local)
    assert {path.rpartition("/")[2] for path in http_origin.server.asked} == {"manifest.json"}


def test_without_a_folder_the_users_cache_is_taken(
    http_origin: Origin, local: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert_same(ShardSet(http_origin.upload(local.folder, "set")), local)
    assert "index.npy" in kept(tmp_path / "home/avvp_dist")


def test_a_file_at_a_url_is_listed_and_read_in_parts(origin: Origin) -> None:
    body = bytes(range(256)) * 4096
    origin.put("a/b/c", body)
    url = f"{origin.root}/a/b/c"
    file = stat_url(url)
    assert (file.url, file.bytes) == (url, len(body))
    listed = find_url(f"{origin.root}/a")
    assert listed == (None if url.startswith("http") else [file])
    with open_url(file) as opened:
        origin.server.asked.clear()
        assert opened.seek(-3, io.SEEK_END) == len(body) - 3 and opened.read(9) == body[-3:]
        opened.seek(1000)
        assert opened.read(2000) == body[1000:3000]
        opened.seek(5000)
        assert opened.read(10) == body[5000:5010]
    assert origin.server.times_asked("c") == 2  # what lies within a block is asked for once
    origin.remove("a/b/c")
    with pytest.raises(FileNotFoundError):
        read_url(url)


def test_a_server_that_ignores_ranges_is_named(http_origin: Origin) -> None:
    http_origin.put("a", bytes(5000))
    http_origin.server.fail("whole", "a", ALWAYS)
    with (
        open_url(RemoteFile(f"{http_origin.root}/a", 5000)) as opened,
        pytest.raises(DataError, match="/a: its server does not send the part"),
    ):
        opened.seek(1000)
        opened.read(10)


# What cannot be had


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_named(
    origin: Origin, local: ShardSet, tmp_path: Path, missing: str
) -> None:
    url = origin.upload(local.folder, "set")
    origin.remove(f"set/{missing}")
    with pytest.raises(DataError) as caught:
        everything(ShardSet(url, reading(tmp_path)))
    assert url in str(caught.value)
    assert missing in str(caught.value)
    assert "missing" in str(caught.value)
    assert missing not in kept(tmp_path / "cache")


def test_a_missing_bucket_is_named(s3_origin: Origin, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="s3://no-such-bucket/set is no shard set"):
        ShardSet("s3://no-such-bucket/set", reading(tmp_path))


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_a_dead_server_is_named(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue("s3_origin").root if protocol == "s3" else ""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{dead}")
    url = f"{root or f'http://{dead}'}/set"
    with at_most(6), pytest.raises(DataError, match=re.escape(f"{url}/manifest.json could not")):
        ShardSet(url, reading(tmp_path))


def test_an_unknown_protocol_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_LONGEST_PAUSE", 20.0)
    monkeypatch.setattr(remote, "ATTEMPTS", 5)  # with pauses of 3.75 s or more
    with at_most(3), pytest.raises(DataError, match="nowhere://bucket/set"):
        ShardSet("nowhere://bucket/set", reading(tmp_path))


def test_a_library_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(DataError, match=r"gs://bucket/set.*\[gcs\]"):
        ShardSet("gs://bucket/set", reading(tmp_path))


@pytest.mark.parametrize("url", ["pipe:touch {}", "pipe://touch {}", "pipe:cat {} && touch {}"])
def test_a_pipe_is_refused(tmp_path: Path, url: str) -> None:
    url = url.format(tmp_path / "ran", tmp_path / "ran")
    with pytest.raises(DataError, match=re.escape(url)):
        ShardSet(url, reading(tmp_path))
    with pytest.raises(DataError, match=re.escape(url)):
        Mixture.open([url], [], LoaderConfig())
    assert not (tmp_path / "ran").exists()


def test_a_folder_is_no_url() -> None:
    assert not any(map(is_url, ["set", "/a/set", "s3:/a", "a:b", "piped"]))
    assert all(map(is_url, ["s3://a/b", "gs://a/b", "https://a/b"]))


@pytest.mark.parametrize("text", [b"<html>Log in first</html>", b"[]", b"{}", b""])
def test_a_manifest_that_is_none_is_named(
    http_origin: Origin, local: ShardSet, tmp_path: Path, text: bytes
) -> None:
    url = http_origin.upload(local.folder, "set")
    http_origin.put("set/manifest.json", text)
    with pytest.raises(DataError, match=re.escape(f"{url}/manifest.json is no")):
        ShardSet(url, reading(tmp_path))


def test_a_shard_cannot_point_out_of_its_folder(
    http_origin: Origin, local: ShardSet, tmp_path: Path
) -> None:
    manifest = json.loads((local.folder / "manifest.json").read_text())
    manifest["shards"][0]["name"] = "../../evil.tar"
    url = http_origin.upload(local.folder, "set")
    http_origin.put("set/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(DataError, match=r"'\.\./\.\./evil\.tar' is no name"):
        ShardSet(url, reading(tmp_path))


# Faults on the way


@pytest.mark.parametrize("kind", ["500", "503", "cut", "slow", "whole"])
def test_a_passing_fault_is_survived(
    origin: Origin, local: ShardSet, tmp_path: Path, kind: str
) -> None:
    url = origin.upload(local.folder, "set")
    for name in FILES:
        origin.server.fail(kind, name)
    assert_same(ShardSet(url, reading(tmp_path)), local)
    assert origin.server.failed.is_set()


@pytest.mark.parametrize("kind", ["stall", "hang"])
def test_a_passing_stall_is_survived(
    origin: Origin, local: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    url = origin.upload(local.folder, "set")
    read_url(f"{url}/{SHARD}")  # the client is made, which takes a while
    monkeypatch.setattr(remote, "STALLED_SECONDS", 0.5)
    origin.server.fail(kind, SHARD, first=1)
    with at_most(4):
        assert_same(ShardSet(url, reading(tmp_path)), local)
    assert origin.server.failed.is_set()


@pytest.mark.parametrize("name", FILES[1:])
def test_a_byte_that_flips_on_the_way_is_fetched_again(
    http_origin: Origin, local: ShardSet, tmp_path: Path, name: str
) -> None:
    url = http_origin.upload(local.folder, "set")
    http_origin.server.fail("flip", name)
    assert_same(ShardSet(url, reading(tmp_path)), local)
    assert http_origin.server.failed.is_set()


@pytest.mark.parametrize("name", ["manifest.json", SHARD])
@pytest.mark.parametrize("kind", ["500", "cut"])
def test_a_lasting_fault_names_the_url(
    origin: Origin, local: ShardSet, tmp_path: Path, kind: str, name: str
) -> None:
    url = origin.upload(local.folder, "set")
    origin.server.fail(kind, name, ALWAYS)
    with at_most(6), pytest.raises(DataError, match=re.escape(f"{url}/{name}")):
        everything(ShardSet(url, reading(tmp_path)))
    assert name not in kept(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(f".*{name}.*.tmp"))


@pytest.mark.parametrize("kind", ["500", "cut"])
def test_a_library_does_not_multiply_the_attempts(
    origin: Origin, local: ShardSet, kind: str
) -> None:
    url = origin.upload(local.folder, "set")
    origin.server.fail(kind, SHARD, ALWAYS)
    with pytest.raises(DataError, match="3 times"):
        read_url(f"{url}/{SHARD}", 0, 100)
    assert origin.server.times_asked(SHARD) == remote.ATTEMPTS


@pytest.mark.parametrize(("kind", "name"), [("stall", "manifest.json"), ("hang", SHARD)])
def test_a_lasting_stall_is_given_up_in_time(
    origin: Origin,
    local: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    name: str,
) -> None:
    url = origin.upload(local.folder, "set")
    read_url(f"{url}/{SHARD}")
    monkeypatch.setattr(remote, "STALLED_SECONDS", 0.4)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    origin.server.fail(kind, name, ALWAYS)
    with (
        at_most(4),
        pytest.raises(DataError, match=rf"{re.escape(f'{url}/{name}')}.*no answer in 0\.4 s"),
    ):
        everything(ShardSet(url, reading(tmp_path)))
    assert name not in kept(tmp_path / "cache")


def test_who_waits_for_a_stalled_fetch_gives_up_in_time_too(
    http_origin: Origin, local: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, shard = http_origin.upload(local.folder, "set"), local.shards[1]
    monkeypatch.setattr(remote, "STALLED_SECONDS", 0.4)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    http_origin.server.fail("stall", SHARD, ALWAYS)

    def fetch(_: int) -> None:
        with pytest.raises(DataError, match=SHARD):
            Cache(tmp_path / "cache", 10**9).fetch(f"{url}/{SHARD}", shard.bytes, shard.sha256)

    ranks = 6  # alone each gives up after 0.8 s; one after the other they need 4.8 s
    with at_most(3.5), ThreadPoolExecutor(ranks) as pool:
        list(pool.map(fetch, range(ranks)))


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize(
    ("change", "message"),
    [(flipped, "SHA-256"), (lambda body: body[:-100], "bytes, not")],
    ids=["flipped", "cut"],
)
def test_a_wrong_file_is_refused(
    http_origin: Origin,
    local: ShardSet,
    tmp_path: Path,
    name: str,
    change: Callable[[bytes], bytes],
    message: str,
) -> None:
    url = http_origin.upload(local.folder, "set")
    http_origin.put(f"set/{name}", change((local.folder / name).read_bytes()))
    with pytest.raises(DataError, match=f"{re.escape(f'{url}/{name}')}.*{message}"):
        everything(ShardSet(url, reading(tmp_path)))
    assert name not in kept(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(f".*{name}.*.tmp"))
