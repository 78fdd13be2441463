"""The cache of remote files: bounded, shared by processes, never holding half a file."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from avvp_dist.commit import sha256
from avvp_dist.config import LoaderConfig, ReadConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.loading.loader import Loader
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.stream import ClipStream
from avvp_dist.shards import cache as cache_module
from avvp_dist.shards.cache import Cache
from avvp_dist.shards.shard_set import ShardSet
from tests.shards.origins import (
    ALWAYS,
    FILES,
    PER_SHARD,
    SHARD,
    Origin,
    assert_same,
    at_most,
    everything,
    flipped,
    held,
    kept,
    loading,
    reading,
    write,
)

pytestmark = pytest.mark.usefixtures("quick")


# The cache


class Blobs:
    """Files of 1000 bytes each at a server, fetched into a cache of bounded size."""

    def __init__(self, origin: Origin, folder: Path, maximum: int) -> None:
        self.origin, self.cache = origin, Cache(folder, maximum)

    def fetch(self, name: str, size: int = 1000) -> Path:
        body = name.encode()[:1] * size
        self.origin.put(name, body)
        source = self.origin.server.folder / name
        path = self.cache.fetch(f"{self.origin.root}/{name}", size, sha256(source))
        time.sleep(0.02)  # file times are coarse
        return path


def test_the_least_recently_used_go_and_a_hit_is_a_use(http_origin: Origin, tmp_path: Path) -> None:
    blobs = Blobs(http_origin, tmp_path / "cache", 3500)
    for name in "abc":
        blobs.fetch(name)
    blobs.fetch("a")
    assert http_origin.server.times_asked("a") == 1
    blobs.fetch("d")
    assert kept(tmp_path / "cache") == ["a", "c", "d"]
    blobs.fetch("e", 2000)
    assert kept(tmp_path / "cache") == ["d", "e"]
    blobs.fetch("f", 3500)
    assert kept(tmp_path / "cache") == ["f"]


def test_a_file_larger_than_the_cache_is_refused_and_nothing_goes(
    http_origin: Origin, tmp_path: Path
) -> None:
    blobs = Blobs(http_origin, tmp_path / "cache", 3500)
    blobs.fetch("a")
    with pytest.raises(DataError, match=f"{tmp_path / 'cache'}.*cache_gib"):
        blobs.fetch("b", 3501)
    assert kept(tmp_path / "cache") == ["a"]


def test_fetches_at_the_same_time_keep_the_limit_together(
    http_origin: Origin, tmp_path: Path
) -> None:
    blobs = Blobs(http_origin, tmp_path / "cache", 2500)
    blobs.fetch("a")
    blobs.fetch("b")
    for name in "cd":
        http_origin.server.fail("meet", name)  # both are under way before one is finished
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(blobs.fetch, "cd"))
    assert held(tmp_path / "cache") <= 2500
    assert kept(tmp_path / "cache") == ["c", "d"]


def test_what_else_lies_in_the_folder_is_left_alone(http_origin: Origin, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    (folder / "results").mkdir(parents=True)
    (folder / "thesis.pdf").write_bytes(bytes(5000))
    blobs = Blobs(http_origin, folder, 2500)
    for name in "abc":
        blobs.fetch(name)
    assert (folder / "thesis.pdf").exists()
    assert (folder / "results").exists()


def test_equal_names_of_two_urls_do_not_mix(
    http_origin: Origin, local: ShardSet, tmp_path: Path
) -> None:
    other = write(tmp_path / "other", seed=1)
    sets = [http_origin.upload(part.folder, part.folder.name) for part in (local, other)]
    for url, part in zip(sets, (local, other), strict=True):
        assert_same(ShardSet(url, reading(tmp_path)), part)
    for url, part in zip(sets, (local, other), strict=True):
        assert_same(ShardSet(url, reading(tmp_path)), part)


def test_a_url_whose_content_changed_is_not_mistaken(
    http_origin: Origin, local: ShardSet, tmp_path: Path
) -> None:
    url = http_origin.upload(local.folder, "set")
    before = ShardSet(url, reading(tmp_path))
    expected = everything(before)
    after = write(tmp_path / "after", seed=1)
    assert [s.bytes for s in after.shards] == [s.bytes for s in local.shards]
    http_origin.upload(after.folder, "set")
    assert_same(ShardSet(url, reading(tmp_path)), after)
    for name, array in everything(before).items():  # it is open still
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("change", [flipped, lambda body: body[:-100]], ids=["flipped", "cut"])
def test_a_file_that_went_bad_in_the_cache_is_fetched_again(
    http_origin: Origin,
    local: ShardSet,
    tmp_path: Path,
    name: str,
    change: Callable[[bytes], bytes],
) -> None:
    url = http_origin.upload(local.folder, "set")
    everything(ShardSet(url, reading(tmp_path)))
    (file,) = (tmp_path / "cache").glob(f"[!.]*{name}")
    file.write_bytes(change(file.read_bytes()))
    assert_same(ShardSet(url, reading(tmp_path)), local)
    assert sha256(file) == sha256(local.folder / name)


def test_a_cache_of_one_shard_is_enough_to_read_all(
    http_origin: Origin, local: ShardSet, tmp_path: Path
) -> None:
    largest = max(shard.bytes for shard in local.shards)
    url = http_origin.upload(local.folder, "set")
    found = ShardSet(url, ReadConfig(cache=str(tmp_path / "cache"), cache_gib=largest / 2**30))
    for clip in range(len(local)):
        for name, array in found.gather(np.array([clip])).items():
            np.testing.assert_array_equal(array, local.gather(np.array([clip]))[name])
        assert held(tmp_path / "cache") <= largest
    assert_same(found, local)  # an open shard needs no file in the cache


def test_a_cache_that_cannot_be_made_is_named(
    http_origin: Origin, local: ShardSet, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    url = http_origin.upload(local.folder, "set")
    with pytest.raises((DataError, ConfigError), match=str(tmp_path / "file")):
        ShardSet(url, ReadConfig(cache=str(tmp_path / "file"), cache_gib=1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB: an index and one shard fill it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_named_and_no_half_file_stays(
    http_origin: Origin, local: ShardSet, small_disk: Path
) -> None:
    url = http_origin.upload(local.folder, "set")
    found = ShardSet(url, ReadConfig(cache=str(small_disk / "cache"), cache_gib=1))
    found.gather(np.array([0]))
    with pytest.raises(DataError, match=f"no space left for {small_disk}.*{SHARD}"):
        found.gather(np.array([PER_SHARD]))
    assert kept(small_disk / "cache") == ["index.npy", "shard-000000.tar"]
    assert not list((small_disk / "cache").glob(".*.tmp"))
    first = np.arange(PER_SHARD)  # what was open stays readable
    np.testing.assert_array_equal(found.gather(first)["audio"], local.gather(first)["audio"])


# Processes

CHILD = """
import sys, numpy as np
from avvp_dist.config import ReadConfig
from avvp_dist.shards import cache as cache_module
from avvp_dist.shards import remote
from avvp_dist.shards.shard_set import ShardSet
url, cache, cache_module._CHUNK, remote.STALLED_SECONDS, remote.ATTEMPTS = (
    sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), 1)
print("ready", flush=True)
sys.stdin.readline()
found = ShardSet(url, ReadConfig(cache=cache, cache_gib=1))
print(float(found.gather(np.arange(len(found)))["audio"].astype(float).sum()))
"""


@contextmanager
def child(
    url: str, cache: Path, chunk: int = 1 << 20, stalled: float = 30
) -> Iterator[subprocess.Popen[str]]:
    """A process that waits for a line on stdin, then reads all of a shard set."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, url, str(cache), str(chunk), str(stalled)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def test_two_processes_fill_one_cache_and_fetch_each_file_once(
    http_origin: Origin, local: ShardSet, tmp_path: Path
) -> None:
    url, cache = http_origin.upload(local.folder, "set"), tmp_path / "cache"
    names = ["index.npy", *(shard.name for shard in local.shards)]
    for name in names:
        http_origin.server.fail("slow", name, ALWAYS)
    with child(url, cache) as one, child(url, cache) as two:
        go(one, two)
        answers = [process.communicate(timeout=60) for process in (one, two)]
    expected = f"{float(everything(local)['audio'].astype(float).sum())}\n"
    assert [out for out, _ in answers] == [expected] * 2, answers
    assert [http_origin.server.times_asked(name) for name in names] == [1] * len(names)
    assert kept(cache) == sorted(names)
    for name in names:
        (file,) = cache.glob(f"[!.]*{name}")
        assert sha256(file) == sha256(local.folder / name)


def test_a_process_killed_in_a_fetch_leaves_no_file_and_the_next_one_succeeds(
    http_origin: Origin, local: ShardSet, tmp_path: Path
) -> None:
    url, cache = http_origin.upload(local.folder, "set"), tmp_path / "cache"
    http_origin.server.fail("hang", SHARD, ALWAYS, first=1)
    with child(url, cache, chunk=4096) as process:
        go(process)
        assert http_origin.server.failed.wait(20)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert SHARD not in kept(cache)
    (torn,) = cache.glob(f".*{SHARD}.*.tmp")
    http_origin.server.mend()
    with at_most(5):
        assert_same(ShardSet(url, reading(tmp_path)), local)
    old = time.time() - 2 * cache_module._STALE_SECONDS
    os.utime(torn, (old, old))
    Blobs(http_origin, cache, 10**9).fetch("a")
    assert not torn.exists()


def test_a_process_that_met_a_stall_ends(
    http_origin: Origin, local: ShardSet, tmp_path: Path
) -> None:
    url = http_origin.upload(local.folder, "set")
    http_origin.server.fail("hang", SHARD, ALWAYS)
    with child(url, tmp_path / "cache", stalled=2) as process:
        go(process)
        _, told = process.communicate(timeout=50)
    assert process.returncode == 1
    assert f"{url}/{SHARD} could not be read" in told


# Training


def batches(mixture: Mixture, config: LoaderConfig, epochs: int = 1) -> list[list[int]]:
    """Clips of each step of some epochs; only their number is checked here."""
    block = config.block_shards if config.order == "block" else 0
    stream = ClipStream(mixture.pools(), 4, seed=3, block=block, pad=True)
    loader = Loader(mixture, stream, config, torch.device("cpu"))
    steps = loader.steps(0, epochs * stream.steps_per_epoch)
    return [
        [int(clip) for read in reads if read.count for clip in read.clips] for reads in list(steps)
    ]


@contextmanager
def most_held(folder: Path) -> Iterator[list[int]]:
    """Maximum number of bytes that were seen in a folder."""
    maximum, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.001):
            maximum[0] = max(maximum[0], held(folder))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield maximum
    finally:
        stop.set()
        thread.join()


def test_block_order_reads_all_clips_through_a_small_cache(
    http_origin: Origin, tmp_path: Path
) -> None:
    local, cache = write(tmp_path / "local", 36), tmp_path / "cache"
    url = http_origin.upload(local.folder, "set")
    limit = 5 * max(shard.bytes for shard in local.shards)
    config = loading(cache, limit, order="block", block_shards=1)
    mixture = Mixture.open([url], [], config)
    with most_held(cache) as maximum:
        steps = batches(mixture, config, epochs=2)
    seen = [clip for step in steps for clip in step]
    assert sorted(seen[:36]) == sorted(seen[36:]) == list(range(36))
    assert 0 < maximum[0] <= limit
    assert http_origin.server.times_asked("shard-000000.tar") > 1  # the cache held a part only


@pytest.mark.parametrize("order", ["global", "block"])
def test_a_cache_that_is_too_small_is_named(
    http_origin: Origin, tmp_path: Path, order: str
) -> None:
    local = write(tmp_path / "local", 36)
    url = http_origin.upload(local.folder, "set")
    limit = 5 * max(shard.bytes for shard in local.shards) - 1
    config = loading(tmp_path / "cache", limit, order=order, block_shards=1)
    mixture = Mixture.open([url], [], config)
    with pytest.raises(ConfigError, match=rf"data\.cache_gib=.*{order}"):
        batches(mixture, config)


def test_a_missing_shard_is_left_out_counted_and_named(
    origin: Origin, local: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = origin.upload(local.folder, "set")
    origin.remove(f"set/{SHARD}")
    config = loading(tmp_path / "cache", max_bad_fraction=0.5)
    mixture = Mixture.open([url], [], config)
    steps = batches(mixture, config)
    lost = set(local.clips_of(1))
    assert sorted(clip for step in steps for clip in step) == sorted(set(range(7)) - lost)
    assert mixture.damage.numbers == lost
    (record,) = caplog.records
    assert f"left out (3 of 7 clips): {url}/{SHARD} is missing" in record.getMessage()


@pytest.mark.parametrize(("maximum", "message"), [(0.0, ""), (0.4, "3 of 7 clips.*")])
def test_more_missing_clips_than_may_be_are_an_error(
    http_origin: Origin, local: ShardSet, tmp_path: Path, maximum: float, message: str
) -> None:
    url = http_origin.upload(local.folder, "set")
    http_origin.remove(f"set/{SHARD}")
    config = loading(tmp_path / "cache", max_bad_fraction=maximum)
    mixture = Mixture.open([url], [], config)
    with pytest.raises(DataError, match=f"{message}{re.escape(url)}/{SHARD} is missing"):
        batches(mixture, config)
