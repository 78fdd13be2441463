"""Which variables reach launchers, ranks and other hosts."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from avvp_dist.runtime.environment import deepspeed_variables, sort, write_variables

GIVEN = {
    "PATH": "/bin",
    "NCCL_DEBUG": "INFO",
    "RAY_ADDRESS": "head:6379",
    "CUDA_VISIBLE_DEVICES": "0",
    "PET_NODE_RANK": "1",
    "MLFLOW_TRACKING_URI": "https://user:secret@host",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AZURE_CLIENT_ID": "secret",
    "RAY_AUTH_TOKEN": "secret",
    "SLURM_JWT": "secret",
    "https_proxy": "http://user:secret@proxy",
    "GITHUB_TOKEN": "secret",
    "MY_SETTING": "mine",
}


def test_secrets_go_to_ranks_alone_and_unlisted_names_nowhere() -> None:
    sorted_ = sort(GIVEN)
    names = ("PATH", "NCCL_DEBUG", "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "PET_NODE_RANK")
    assert set(sorted_.launchers) == set(names)
    assert set(GIVEN) - set(sorted_.launchers) - set(sorted_.ranks) == {
        "GITHUB_TOKEN",
        "MY_SETTING",
    }
    assert sort(GIVEN, ["MY_SETTING", "PATH"]).ranks.keys() >= {"MY_SETTING", "PATH"}


def test_files_are_private_and_other_hosts_get_no_secret(tmp_path: Path) -> None:
    environment = write_variables(sort(GIVEN, ["MY_SETTING"]), tmp_path)
    assert "secret" not in "".join(environment.values())
    ranks, exports = Path(environment["AVVP_ENV_FILE"]), Path(environment["DS_ENV_FILE"])
    assert {stat.S_IMODE(file.stat().st_mode) for file in (ranks, exports)} == {0o600}
    assert json.loads(ranks.read_text())["MLFLOW_TRACKING_URI"] == GIVEN["MLFLOW_TRACKING_URI"]
    names = {line.partition("=")[0] for line in exports.read_text().splitlines()}
    assert names == {
        *("NCCL_DEBUG", "RAY_ADDRESS"),
        *("AVVP_SUPERVISED", "AVVP_SUPERVISOR", "AVVP_ENV_FILE"),
    }


def test_without_secrets_no_file_has_to_be_shared(tmp_path: Path) -> None:
    assert "AVVP_ENV_FILE" not in write_variables(sort({"PATH": "/bin"}), tmp_path)


def test_deepspeeds_own_file_keeps_its_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine"
    file.write_text("NCCL_DEBUG=WARN\nMY_SETTING=a=b\n\nHF_TOKEN=secret\n")
    monkeypatch.chdir(tmp_path)
    added = deepspeed_variables({"DS_ENV_FILE": str(file)})
    sorted_ = sort({"NCCL_DEBUG": "INFO"}, deepspeed=added)
    assert sorted_.launchers == {"NCCL_DEBUG": "WARN"}
    assert sorted_.ranks == {"MY_SETTING": "a=b", "HF_TOKEN": "secret"}
