"""Parts of an array over ranks, how they are joined, and how ranks meet."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from avvp_dist.errors import ClusterError
from avvp_dist.runtime import ranks as module
from avvp_dist.runtime.devices import Agreement, Place
from avvp_dist.runtime.launched import launched_local_rank
from avvp_dist.runtime.ranks import Ranks, connect, single_rank

CPU = torch.device("cpu")
HERE = Place("a", 0, (0, 1))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_joined_parts_are_the_items_in_order(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    items = np.arange(11)
    parts = [Ranks(rank, size, CPU).own_slice(items) for rank in range(size)]

    def gather(part: object, into: list[object] | None) -> None:
        if into:
            into[:] = parts

    monkeypatch.setattr(module.dist, "gather_object", gather)
    for rank in range(size):
        joined = Ranks(rank, size, CPU).interleave(parts[rank])
        assert joined.tolist() == ([] if rank else items.tolist())


def test_mlflow_is_hidden_from_one_thread_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with module._without_mlflow(), ThreadPoolExecutor() as others:
        with pytest.raises(ImportError, match="no MLflow"):
            find_spec("mlflow")
        assert others.submit(find_spec, "mlflow").result()
    assert find_spec("mlflow")


def test_one_rank_has_the_device_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "accelerator", lambda: torch.device("cuda"))
    assert (single_rank("cpu").device.type, single_rank().device.type) == ("cpu", "cuda")


def test_deepspeed_is_told_the_only_gpu_and_the_local_rank_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(module, "accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "set_device_index", taken.append)
    for name in ("LOCAL_RANK", module.LOCAL_RANK):
        monkeypatch.setenv(name, "3")
    place = Place("a", 3, (0,), device="NVIDIA H100", visible=1)
    assert module._take(place) == torch.device("cuda", 0)
    assert (os.environ["LOCAL_RANK"], launched_local_rank()) == ("0", 3)
    assert module._take(replace(place, visible=8)) == torch.device("cuda", 3)
    assert (os.environ["LOCAL_RANK"], taken) == ("3", [0, 3])


@pytest.mark.parametrize("items", [0, 1, 128, 129, 513])
def test_every_rank_takes_as_many_passes(items: int) -> None:
    for size in (1, 2, 3):
        own = [Ranks(n, size, torch.device("cpu")) for n in range(size)]
        (passes,) = {one.passes(items, 64) for one in own}
        assert passes >= 1
        parts = [len(one.own_slice(np.arange(items))) for one in own]
        assert all(-(-part // passes) <= 64 for part in parts)


def agreements(*places: Place) -> list[Agreement | ClusterError]:
    """Outcomes of ranks that meet at a store."""
    store = torch.distributed.HashStore()

    def one(rank: int) -> Agreement | ClusterError:
        try:
            return module._agree(store, rank, len(places), places[rank], "gloo")
        except ClusterError as error:
            return error

    with ThreadPoolExecutor(len(places)) as ranks:
        return list(ranks.map(one, range(len(places))))


def test_all_ranks_agree_and_one_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    other = replace(HERE, host="b", reason="torch is built for CPUs", remedy="Install another")
    first, second = agreements(HERE, other)
    assert isinstance(first, Agreement) and first == second
    said = capsys.readouterr()
    assert said.out == "2 ranks on 2 hosts: CPU, 2 threads each, gloo\n"
    assert said.err == "warning: rank 1 on b: torch is built for CPUs. Install another\n"


def test_a_fault_of_one_rank_ends_all_with_it() -> None:
    fault = replace(HERE, host="b", reason="no driver", remedy="Install it", expected=True)
    errors = agreements(HERE, fault)
    assert {str(error) for error in errors} == {
        "rank 1 on b: no driver. Install it, or set trainer.device=cpu"
    }
    assert all(isinstance(error, ClusterError) and error.shared for error in errors)


NCCL = """NCCL error in: ProcessGroupNCCL.cpp:94, invalid usage, NCCL version 2.27.5
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            torch.distributed.DistBackendError(NCCL),
            "rank 0 of 1: gloo does not work on CPU of a: Duplicate GPU detected : rank 1 and "
            "rank 0 both on CUDA device 1b000. NCCL_DEBUG=INFO says more",
        ),
        (RuntimeError("refused\nat ..."), "could not reach the others at 127.0.0.1:0: refused"),
    ],
)
def test_a_first_collective_that_fails_is_an_error_of_the_cluster(
    raised: Exception, said: str, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensor: torch.Tensor) -> None:
        raise raised

    monkeypatch.setattr(module.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(module.dist, "all_reduce", fail)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    with pytest.raises(ClusterError) as caught:
        module._meet(HERE, CPU, timedelta(seconds=5))
    assert said in str(caught.value)


class NotAlone(int):
    """A number of ranks for which no collective is left out, not even for one rank."""

    def __eq__(self, other: object) -> bool:
        return False

    def __gt__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@pytest.mark.gpu
def test_collectives_of_one_rank_run_on_the_device(one_rank: None) -> None:
    """Through NCCL on a GPU: its start, its data types, and gradients."""
    alone = connect()
    ranks = Ranks(0, NotAlone(1), alone.device)
    assert module.dist.get_backend() == ("nccl" if alone.device.type == "cuda" else "gloo")
    ranks.barrier()
    assert ranks.broadcast_object({"a": 1}) == {"a": 1}
    assert ranks.all_gather_object("b") == ["b"]
    assert ranks.maximum([1, 0.5]).tolist() == [1, 0.5]
    for dtype in (torch.float32, torch.float16, torch.int64, torch.uint8):
        x = torch.arange(6, device=alone.device).view(3, 2).to(dtype)
        assert torch.equal(ranks.all_gather(x), x)
    x = torch.ones(3, 2, device=alone.device, requires_grad=True)
    assert float(ranks.all_reduce_mean(x).sum()) == 6
    (2 * ranks.all_gather(x)).sum().backward()
    (3 * ranks.all_reduce_sum(x)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[5, 5]] * 3
