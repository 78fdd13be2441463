"""Who may compute on a GPU: a task that asked for one and got one, and a process of its own."""

from __future__ import annotations

import pytest

from avvp_dist.errors import ClusterError
from avvp_dist.runtime.cluster.tasks import map_tasks
from avvp_dist.task_gpu import GpuClaim, gpu_claim, use_gpu


def found() -> bool:
    return True


def not_found() -> bool:
    return False


def never_asked() -> bool:
    raise AssertionError("a task without a GPU looks for one")


def test_a_process_of_its_own_takes_a_gpu_where_there_is_one() -> None:
    assert use_gpu("torch", found)
    assert not use_gpu("torch", not_found)


def test_a_task_without_a_gpu_does_not_even_look_for_one() -> None:
    with gpu_claim(GpuClaim.NONE):
        assert not use_gpu("torch", never_asked)
    assert use_gpu("torch", found)


def test_a_gpu_that_ray_gave_and_the_library_does_not_find_is_an_error() -> None:
    with (
        gpu_claim(GpuClaim.HELD),
        pytest.raises(ClusterError, match=r"faiss finds no GPU on .*GPU build of faiss .*gpus=0"),
    ):
        use_gpu("faiss", not_found)


def test_the_cpu_in_place_of_a_gpu_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    with gpu_claim(GpuClaim.ASKED):
        assert use_gpu("one", found)
        assert not any(use_gpu("one", not_found) for _ in range(3))
    assert capfd.readouterr().err == "one finds no GPU on this host: it computes on the CPU\n"


@pytest.mark.parametrize("gpus", [0, 1])
def test_calls_without_ray_use_a_gpu_if_they_asked_for_it(gpus: int) -> None:
    calls = [("torch", found), ("faiss", found)]
    assert list(map_tasks(use_gpu, calls, 1, "a call", gpus=gpus)) == [bool(gpus)] * 2
