"""Weights of backbones: files that are known by their hash, wherever they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

from avvp_dist.commit import sha256, staged
from avvp_dist.errors import ConfigError, StorageError, first_line
from avvp_dist.runtime.environment import home

_STALLED_SECONDS = 60.0
"""Seconds without a byte after which a download fails."""


@dataclass(frozen=True)
class Weights:
    """A file of weights. It is given, part of an installed package, or in the cache."""

    sha256: str
    """Hex SHA-256 of the file. Its first eight digits, where only those are published, as in the
    names of the files of torchvision."""
    address: str
    """Where the file can be had."""
    package: str = ""
    """Package that holds the file, if it can be installed; then `address` is the package's page."""
    file: str = ""
    """Path of the file in the package."""
    licence: str = ""
    more: tuple[tuple[str, Weights], ...] = ()
    """Further files of the same backbone, by the name under which each may be given."""

    @property
    def digits(self) -> str:
        """The first eight digits of each file's hash, as they stand in the extractor's name."""
        return "+".join([self.sha256[:8], *(other.digits for _, other in self.more)])

    def find(self, name: str, given: Mapping[str, str], *, download: bool = False) -> Path:
        """The file, from `weights.NAME=FILE`, the installed package, or the cache.

        Args:
            name: of the backbone.
            given: files by name.
            download: whether a file that is not there may be fetched from its address.

        Raises:
            ConfigError: if it, or one of `more`, is missing or another file.
            StorageError: if it cannot be downloaded.
        """
        for key, other in self.more:
            other.find(key, given, download=download)
        path = Path(given[name]) if name in given else self._place()
        if not path.is_file():
            if name in given or self.package or not download:
                raise self._missing(name, path)
            self._download(name, path)
        else:
            self._check(name, path)
        return path

    @property
    def _shown(self) -> str:
        return self.sha256 if len(self.sha256) == 64 else f"{self.sha256}..."

    def _place(self) -> Path:
        """The path of the file in its package, which is not imported, or in the cache."""
        if self.package:
            spec = find_spec(self.package)
            places = spec.submodule_search_locations if spec else None
            return Path(next(iter(places))) / self.file if places else Path(self.package)
        return cache_folder() / self.sha256[:8] / self.address.rpartition("/")[2]

    def _missing(self, name: str, path: Path) -> ConfigError:
        what = f"{self.address} (SHA-256 {self._shown})"
        if self.package:
            remedy = f"Install {self.package}, or give weights.{name}=FILE, from {what}"
        else:
            remedy = f"Save {what} there, give it as weights.{name}=FILE, or set download=true"
        return ConfigError(f"the weights of {name} are missing: {path}", remedy=remedy)

    def _check(self, name: str, path: Path, source: str = "") -> None:
        found = sha256(path)
        if not found.startswith(self.sha256):
            raise ConfigError(
                f"weights.{name}: {source or path} has the SHA-256 {found}, not {self._shown}",
                remedy=f"Get it from {self.address}",
            )

    def _download(self, name: str, path: Path) -> None:
        print(f"weights of {name}: {self.address} to {path.parent}", flush=True)
        try:
            with staged(path) as temporary:
                with (
                    urlopen(self.address, timeout=_STALLED_SECONDS) as response,
                    temporary.open("wb") as file,
                ):
                    shutil.copyfileobj(response, file, 1 << 20)
                self._check(name, temporary, self.address)
        except (HTTPException, OSError) as error:
            raise StorageError(
                f"{self.address} cannot be saved as {path}: {first_line(error)}",
                remedy=f"Get it elsewhere and give weights.{name}=FILE",
            ) from None


def cache_folder() -> Path:
    """Folder of weights that no package holds; `XDG_CACHE_HOME` moves it.

    Raises:
        ConfigError: if nothing says where it is.
    """
    own = home()
    caches = os.environ.get("XDG_CACHE_HOME") or (own and own / ".cache")
    if not caches:
        raise ConfigError("weights: this user has no home folder", remedy="Give weights.NAME=FILE")
    return Path(caches) / "avvp_dist" / "weights"
