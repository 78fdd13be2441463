"""A process's side of a supervised job, before any supervisor looks at it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from avvp_dist.runtime import membership
from avvp_dist.runtime.membership import FOLDER, VARIABLES


@pytest.fixture(autouse=True)
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as one that has not joined, in an environment that is put back."""
    monkeypatch.setattr(membership, "_entry", None)
    monkeypatch.setattr(os, "environ", {"RANK": "3"})


def own_file(folder: Path, ending: str) -> Path:
    return folder / f"{socket.gethostname()}-{os.getpid()}{ending}"


def test_a_rank_registers_and_its_first_exit_code_counts(tmp_path: Path) -> None:
    os.environ[FOLDER] = str(tmp_path)
    membership.join()
    entry = json.loads(own_file(tmp_path, ".json").read_text())
    assert entry == {"rank": 3, "pid": os.getpid(), "host": socket.gethostname()}
    membership.leave(4)
    membership.leave(1)
    assert json.loads(own_file(tmp_path, ".end").read_text())["code"] == 4
    assert len(list(tmp_path.iterdir())) == 2
    assert FOLDER not in os.environ, "processes that a rank starts would register too"


def test_a_task_of_slurm_registers_by_its_number(tmp_path: Path) -> None:
    os.environ.clear()
    os.environ.update({FOLDER: str(tmp_path), "SLURM_PROCID": "5"})
    membership.join()
    assert json.loads(own_file(tmp_path, ".json").read_text())["rank"] == 5


def test_variables_come_from_the_file_and_its_name_goes_no_further(tmp_path: Path) -> None:
    file = tmp_path / "ranks.json"
    file.write_text(json.dumps({"MY_TOKEN": "secret"}))
    os.environ[VARIABLES] = str(file)
    membership.join()
    assert os.environ["MY_TOKEN"] == "secret" and VARIABLES not in os.environ


def test_variables_that_another_host_cannot_read_name_the_remedy(tmp_path: Path) -> None:
    os.environ[VARIABLES] = str(tmp_path / "ranks.json")
    with pytest.raises(OSError, match="--env-dir") as caught:
        membership.join()
    assert caught.value.filename == str(tmp_path / "ranks.json")


@pytest.mark.parametrize("folder", ["", "missing"])
def test_without_a_supervisor_nothing_is_written(folder: str, tmp_path: Path) -> None:
    os.environ[FOLDER] = str(tmp_path / folder) if folder else ""
    membership.join()
    membership.leave(1)
    assert list(tmp_path.iterdir()) == []
