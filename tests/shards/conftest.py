"""Fixtures of remote shard sets: an origin over HTTP, one over S3, and a local set to put there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from avvp_dist.shards import cache, remote
from avvp_dist.shards.shard_set import ShardSet
from tests.shards.origins import Origin, Server, write


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, few attempts, and chunks smaller than a shard."""
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    monkeypatch.setattr(remote, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "STALLED_SECONDS", 8.0)
    monkeypatch.setattr(cache, "_CHUNK", 4096)


@pytest.fixture
def http_origin(tmp_path: Path) -> Iterator[Origin]:
    folder = tmp_path / "served"
    server = Server(folder)

    def put(name: str, body: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)

    yield Origin(server.address, server, put, lambda name: (folder / name).unlink())
    server.close()


@pytest.fixture(scope="module")
def moto_server() -> Iterator[tuple[str, int]]:
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def s3_origin(
    moto_server: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Origin]:
    import boto3
    import s3fs

    server = Server(tmp_path, moto_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url="http://{}:{}".format(*moto_server))
    bucket = f"bucket-{server.server_address[1]}"
    client.create_bucket(Bucket=bucket)
    yield Origin(
        f"s3://{bucket}",
        server,
        lambda name, body: client.put_object(Bucket=bucket, Key=name, Body=body),
        lambda name: client.delete_object(Bucket=bucket, Key=name),
    )
    s3fs.S3FileSystem.clear_instance_cache()
    server.close()


@pytest.fixture(params=["http", "s3"])
def origin(request: pytest.FixtureRequest) -> Origin:
    return request.getfixturevalue(f"{request.param}_origin")


@pytest.fixture
def local(tmp_path: Path) -> ShardSet:
    """Shards of 3, 3 and 1 clips."""
    return write(tmp_path / "local")
