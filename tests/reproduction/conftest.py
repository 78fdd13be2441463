"""A Ray of two cores for the jobs that a module's tests run."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from avvp_dist.runtime.cluster.tasks import ray_cluster
from tests.warm_workers import WarmWorkers


@pytest.fixture(scope="module")
def one_ray(warm_workers: WarmWorkers) -> Iterator[None]:
    """Started once, and used by every job of the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(sys, "executable", warm_workers.variables["WARM_PYTHON"])
        with ray_cluster(2):
            yield
