"""Weights: found by name, package or cache, known by their hash, downloaded only if asked for."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from avvp_dist.commit import sha256
from avvp_dist.errors import ConfigError, StorageError
from avvp_dist.features.backbones.weights import Weights, cache_folder

CONTENT = b"weights"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "served" / "net.pth"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def server(file: Path) -> Iterator[str]:
    """Address of a server of the file's folder; it keeps the paths that were asked for."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(file.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("digits", [8, 64])
def test_a_given_file_is_known_by_its_hash(digits: int, file: Path) -> None:
    weights = Weights(sha256(CONTENT)[:digits], "https://x/net.pth")
    assert weights.find("net", {"net": str(file), "other": "gone"}) == file
    file.write_bytes(CONTENT + b"!")
    dots = "" if digits == 64 else "..."
    other = f"weights.net: {file} has the SHA-256 {sha256(file)}, not {weights.sha256}{dots}. Get"
    with pytest.raises(ConfigError, match=re.escape(other)):
        weights.find("net", {"net": str(file)}, download=True)


def test_a_missing_file_is_one_line_of_address_hash_and_folder(tmp_path: Path) -> None:
    weights = Weights("ab" * 32, "https://x/y/net.pth")
    with pytest.raises(ConfigError) as caught:
        weights.find("net", {})
    text, place = str(caught.value), cache_folder() / "abababab" / "net.pth"
    assert caught.value.exit_code == 2 and "\n" not in text
    assert text == (
        f"the weights of net are missing: {place}. Save https://x/y/net.pth "
        f"(SHA-256 {weights.sha256}) there, give it as weights.net=FILE, or set download=true"
    )
    assert cache_folder().is_relative_to(tmp_path) and not cache_folder().exists()


@pytest.mark.parametrize("download", [False, True])
def test_a_given_file_that_is_missing_is_never_downloaded(download: bool, server: str) -> None:
    weights = Weights(sha256(CONTENT), f"{server}/net.pth")
    with pytest.raises(ConfigError, match=r"weights of net are missing: gone\.pth"):
        weights.find("net", {"net": "gone.pth"}, download=download)


def test_a_package_is_found_without_its_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "some_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit")
    weights = Weights(sha256(CONTENT), "https://x/", "some_weights", "net.pth")
    with pytest.raises(ConfigError, match=r"missing: some_weights\. Install some_weights, or give"):
        weights.find("net", {}, download=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"missing: .*some_weights/net\.pth"):
        weights.find("net", {})
    (folder / "net.pth").write_bytes(CONTENT)
    assert weights.find("net", {}) == folder / "net.pth"


def test_a_download_is_asked_for_once_and_kept(
    server: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Weights(sha256(CONTENT), f"{server}/net.pth")
    path = weights.find("net", {}, download=True)
    assert path.read_bytes() == CONTENT and path.is_relative_to(cache_folder())
    assert capsys.readouterr().out == f"weights of net: {server}/net.pth to {path.parent}\n"
    file.unlink()
    assert weights.find("net", {}) == weights.find("net", {}, download=True) == path


def test_a_download_that_is_another_file_leaves_nothing(server: str, file: Path) -> None:
    weights = Weights("ab" * 32, f"{server}/net.pth")
    with pytest.raises(ConfigError, match=rf"{server}/net.pth has the SHA-256 {sha256(file)}, not"):
        weights.find("net", {}, download=True)
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("address", ["/gone.pth", None])
def test_a_download_that_fails_is_one_line(address: str | None, server: str) -> None:
    weights = Weights("ab" * 32, server + address if address else "http://127.0.0.1:9/net.pth")
    with pytest.raises(StorageError, match=r"cannot be saved as .*: .*(404|refused)") as caught:
        weights.find("net", {}, download=True)
    assert "\n" not in str(caught.value)


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/dev/null")
    with pytest.raises(ConfigError, match=r"no home folder\. Give weights\.NAME=FILE"):
        Weights("ab" * 32, "https://x/net.pth").find("net", {})


def test_further_files_are_found_too(file: Path) -> None:
    more = Weights("cd" * 32, "https://x/more.pth")
    weights = Weights(sha256(CONTENT), "https://x/net.pth", more=(("more", more),))
    assert weights.digits == f"{sha256(CONTENT)[:8]}+cdcdcdcd"
    with pytest.raises(ConfigError, match="the weights of more are missing"):
        weights.find("net", {"net": str(file)})
