"""Tars that somebody else wrote become a shard set: an index and a manifest beside them."""

from __future__ import annotations

import errno
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from avvp_dist.commit import MANIFEST
from avvp_dist.errors import DataError
from avvp_dist.shards.manifest import write_manifest
from avvp_dist.shards.tars import scan_tar

PLAN = ".pack"
"""A folder in a shard set that is not finished: it is being packed or written."""


def index_tars(folder: Path, workers: int = 1) -> None:
    """Make the manifest and the index of a folder of WebDataset tars, reading each once.

    Args:
        workers: processes that read; more than one needs a `__main__` that can be imported.

    Raises:
        DataError: if there are none, a `pack` is not finished there, a tar is damaged, or the
            folder cannot be written to.
    """
    tars = sorted(folder.glob("[!.]*.tar")) if folder.is_dir() else []
    if not tars or (folder / PLAN).exists():
        raise DataError(
            f"{folder} is no shard set: {MANIFEST} is missing",
            remedy="Make one with tools/pack.py, or let a cut-off run of it finish",
        )
    try:
        with FileLock(folder / ".adopt.lock"):
            if (folder / MANIFEST).exists():
                return  # another process was faster
            if workers == 1:
                scans = list(map(scan_tar, tqdm(tars, "indexing", unit=" tars")))
            else:
                with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
                    found = pool.map(scan_tar, tars)
                    scans = list(tqdm(found, "indexing", len(tars), unit=" tars"))
            write_manifest(folder, scans, extractor="")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise DataError(
            f"{folder}: {MANIFEST} cannot be written: {error.strerror}",
            remedy="Run tools/inspect_shards.py as someone who may write there",
        ) from None
