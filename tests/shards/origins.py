"""Servers on loopback that fail on demand: real HTTP, and a proxy before a real S3."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from avvp_dist.config import LoaderConfig, ReadConfig
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

DIMS = {"audio": 4, "visual": 6}
FILES = ("manifest.json", "index.npy", "shard-000001.tar")
SHARD = "shard-000001.tar"
PER_SHARD = 3
ALWAYS = 10**9


def clips(count: int, seed: int = 0) -> list[Clip]:
    """Clips of which some are without labels and some are padded."""
    rng = np.random.default_rng(seed)
    return [
        Clip(
            f"clip{n}_{n}.5_10",
            {name: rng.standard_normal((10, dim)).astype(np.float32) for name, dim in DIMS.items()},
            labels=None if n == 2 else ("Dog", "Frying_(food)")[: n % 3],
            length=10 - n % 2,
        )
        for n in range(count)
    ]


def write(out: Path, count: int = 7, seed: int = 0) -> ShardSet:
    """Shards of 3 clips each, and a last one of the rest."""
    return write_shard_set(clips(count, seed), out, clips_per_shard=PER_SHARD, extractor="test")


def assert_same(found: ShardSet, local: ShardSet) -> None:
    assert found.ids == local.ids
    assert found.labels == local.labels
    assert found.lengths.tolist() == local.lengths.tolist()
    assert found.hashes.tolist() == local.hashes.tolist()
    assert (found.digest, found.dims, found.extractor) == (local.digest, local.dims, "test")
    order = np.random.default_rng(1).permutation(len(local))
    expected = local.gather(order)
    for name, array in found.gather(order).items():
        np.testing.assert_array_equal(array, expected[name])


# Servers


@dataclass
class Fault:
    """A fault in `times` answers for files that end in `name`, after the `first` good ones."""

    kind: str
    name: str
    times: int
    first: int


class Server(ThreadingHTTPServer):
    """A server of files that can be told to fail; a proxy of another server if `upstream` is given.

    Kinds of faults: `500` (or another status); `stall`: no answer; `hang`: half of one; `slow`;
    `cut`: the connection is closed in the middle; `flip`: one byte is another; `whole`: Range is
    ignored; `meet`: the answer waits until a second one waits too.
    """

    daemon_threads = True

    def __init__(self, folder: Path, upstream: tuple[str, int] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.upstream = folder, upstream
        self.asked: list[str] = []
        self.failed, self.released = threading.Event(), threading.Event()
        self._meeting = threading.Barrier(2)
        self._faults: list[Fault] = []
        self._guard = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fail(self, kind: str, name: str, times: int = 1, first: int = 0) -> None:
        self._faults.append(Fault(kind, name, times, first))

    def mend(self) -> None:
        self._faults.clear()

    def times_asked(self, name: str) -> int:
        return Counter(path.rpartition("/")[2] for path in self.asked)[name]

    def close(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that closed its connection."""

    def fault(self, path: str) -> str:
        with self._guard:
            self.asked.append(path)
            for fault in self._faults:
                if path.endswith(fault.name) and fault.first:
                    fault.first -= 1
                elif path.endswith(fault.name) and fault.times:
                    fault.times -= 1
                    return fault.kind
        return ""

    def meet(self) -> None:
        with suppress(threading.BrokenBarrierError):
            self._meeting.wait(3)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        """Tests speak for themselves."""

    def do_HEAD(self) -> None:
        self._send(*self._answer(self.headers.get("Range")))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        kind = self.server.fault(path)
        if kind:
            self.server.failed.set()
        if kind == "stall":
            self.server.released.wait(30)
            return
        if kind.isdigit():
            self._send(int(kind), {}, b"<html>an injected fault</html>")
            return
        if kind == "slow":
            time.sleep(0.2)
        elif kind == "meet":
            self.server.meet()
        status, headers, body = self._answer(None if kind == "whole" else self.headers.get("Range"))
        if kind == "flip":
            body = flipped(body)
        self._send(status, headers, body, len(body) // 2 if kind in ("cut", "hang") else None)
        if kind == "hang":
            self.server.released.wait(30)

    def _answer(self, range_: str | None) -> tuple[int, dict[str, str], bytes]:
        if self.server.upstream is not None:
            connection = http.client.HTTPConnection(*self.server.upstream)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "range"}
            if range_:
                headers["Range"] = range_
            connection.request(self.command, self.path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            return answer.status, dict(answer.getheaders()), body
        file = self.server.folder / self.path.lstrip("/")
        if not file.is_file():
            return 404, {}, b"there is none"
        body, status = file.read_bytes(), 200
        if range_:
            start, end = map(int, re.findall(r"\d+", range_))
            body, status = body[start : end + 1], 206
        return status, {}, body

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, upto: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        size = {k.lower(): v for k, v in headers.items()}.get("content-length", len(body))
        self.send_header("Content-Length", str(size if self.command == "HEAD" else len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:upto])
            self.wfile.flush()


def flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


@dataclass
class Origin:
    """A place for shard sets, and the server in front of it."""

    root: str
    server: Server
    put: Callable[[str, bytes], None]
    remove: Callable[[str], None]

    def upload(self, folder: Path, name: str) -> str:
        """The URL of the copy of a shard set."""
        for file in folder.iterdir():
            self.put(f"{name}/{file.name}", file.read_bytes())
        return f"{self.root}/{name}"


def reading(tmp_path: Path) -> ReadConfig:
    return ReadConfig(cache=str(tmp_path / "cache"), cache_gib=1)


def kept(folder: Path) -> list[str]:
    """Files under their final names, each without the digest in front of it."""
    if not folder.exists():
        return []
    return sorted(
        path.name.partition("-")[2] for path in folder.iterdir() if not path.name.startswith(".")
    )


def held(folder: Path) -> int:
    """All bytes in a folder, of unfinished files too."""
    total = 0
    for path in folder.iterdir() if folder.exists() else ():
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def everything(shards: ShardSet) -> dict[str, np.ndarray]:
    return shards.gather(np.arange(len(shards)))


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"it took {took:.1f} s"


def loading(folder: Path, limit: int = 2**30, **options: Any) -> LoaderConfig:
    return LoaderConfig(cache=str(folder), cache_gib=limit / 2**30, last_batch="pad", **options)
