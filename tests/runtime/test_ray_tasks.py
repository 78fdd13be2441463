"""Ray's errors as ours: a cluster that is not there, a task that raises, a task that dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from avvp_dist.errors import ClusterError, DataError
from avvp_dist.runtime.ray_tasks import result, start_ray

pytestmark = pytest.mark.launch

JOIN = """
from avvp_dist.runtime.ray_tasks import start_ray
from avvp_dist.entry import run
run(start_ray)
"""


def join(address: str) -> subprocess.CompletedProcess[str]:
    """A process that joins the cluster of an address."""
    environment = {**os.environ, "RAY_ADDRESS": address}
    command = [sys.executable, "-c", JOIN]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = time.monotonic()
    ended = join(address)
    assert time.monotonic() - started < 20
    assert ended.returncode == ClusterError.exit_code
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error")]
    assert "RAY_ADDRESS" in line


def test_an_address_that_is_none_is_said() -> None:
    ended = join("nonsense")
    assert ended.returncode == ClusterError.exit_code, ended.stderr
    assert "Traceback" not in ended.stderr and "RAY_ADDRESS" in ended.stderr


@pytest.fixture(scope="module")
def remote() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Starts a function as a Ray task and returns its reference."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        start_ray(1)
        # A function of this module is unknown to a worker; those within a test travel whole.
        yield lambda function: ray.remote(max_retries=0)(function).remote()
        ray.shutdown()


def test_the_cores_are_as_many_as_asked_for(remote: Any) -> None:
    import ray

    assert ray.cluster_resources()["CPU"] == 1


def test_a_finished_task_gives_its_value(remote: Any) -> None:
    assert result(remote(lambda: 7), "seven") == 7


def test_our_error_comes_back_as_itself(remote: Any) -> None:
    def fail() -> None:
        raise DataError("clip 3 is damaged", remedy="Pack it again")

    with pytest.raises(DataError) as error:
        result(remote(fail), "packing")
    assert str(error.value) == "clip 3 is damaged. Pack it again"
    assert error.value.exit_code == DataError.exit_code


def test_any_other_error_names_its_task(remote: Any) -> None:
    with pytest.raises(ClusterError, match=r"the quotient failed: ZeroDivisionError"):
        result(remote(lambda: 1 / 0), "the quotient")


def test_a_worker_that_dies_is_lost(remote: Any) -> None:
    with pytest.raises(ClusterError, match=r"the dead one was lost: .*same command again") as error:
        result(remote(lambda: os._exit(9)), "the dead one")
    assert "\n" not in str(error.value)
