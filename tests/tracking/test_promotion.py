"""Promotion: which version becomes the champion, and what leaves the old one in place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from avvp_dist.commit import commit_folder, folder_digest
from avvp_dist.config import PromoteConfig
from avvp_dist.errors import KEPT_CHAMPION, CheckpointError, ConfigError
from avvp_dist.tracking import promotion
from avvp_dist.tracking.promotion import promote

if TYPE_CHECKING:
    from mlflow import MlflowClient

F = "val/segment_type_av"
ON = {"validated_on.shards": "v1", "validated_on.annotations": "2024"}


@pytest.fixture
def register(client: MlflowClient, tmp_path: Path) -> Any:
    """A function that registers a version with tags, as its candidate; returns its folder."""
    client.create_experiment("made", (tmp_path / "made").as_uri())

    def make(tags: dict[str, Any], model: str = "avvp-parser", **objective: str) -> Path:
        experiment = client.get_experiment_by_name("made")
        assert experiment is not None
        run_id = client.create_run(experiment.experiment_id).info.run_id
        for name, value in objective.items():
            client.log_param(run_id, f"objective.{name}", value)
        number = len(list(tmp_path.glob("model*"))) + 1
        temporary, folder = tmp_path / "temporary", tmp_path / f"model{number}"
        temporary.mkdir()
        (temporary / "model.safetensors").write_bytes(b"weights %d" % number)
        commit_folder(temporary, folder, {"kind": "parser"})
        if number == 1:
            client.create_registered_model(model)
        tags = {"digest": folder_digest(folder), **{k: str(v) for k, v in tags.items()}}
        version = client.create_model_version(model, folder.as_uri(), run_id, tags=tags)
        client.set_registered_model_alias(model, "candidate", version.version)
        return folder

    return make


def champion(client: MlflowClient, model: str = "avvp-parser") -> int | None:
    number = client.get_registered_model(model).aliases.get("champion")
    return None if number is None else int(number)


def config(**keys: Any) -> PromoteConfig:
    return PromoteConfig(**{"model": "avvp-parser", **keys})


def test_the_champion_changes_only_for_a_better_one(
    client: MlflowClient, register: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for value, margin, promoted, holder in (
        (70.0, 0.0, True, 1),  # the first
        (70.0, 0.0, False, 1),  # no better
        (70.5, 1.0, False, 1),  # better by less than the margin
        (71.0, 1.0, True, 4),
        (65.0, 0.0, False, 4),
    ):
        register({F: value, **ON})
        assert promote(config(margin=margin)) is promoted
        assert champion(client) == holder
        printed.append(capsys.readouterr().out.splitlines())
    assert printed[0] == [
        f"avvp-parser/1: {F} 70; no current champion",
        "promoted: avvp-parser/1 is the champion",
    ]
    assert printed[2] == [
        f"avvp-parser/3: {F} 70.5, avvp-parser/1, the champion: 70, better by 0.5, margin 1",
        "kept: avvp-parser/1 stays the champion",
    ]
    assert promote(config(version="4")) and champion(client) == 4
    assert capsys.readouterr().out == "avvp-parser/4 is the champion already\n"


def test_a_lower_loss_is_better_and_comparable_under_one_objective_only(
    client: MlflowClient, register: Any
) -> None:
    keys = {"model": "avvp-encoder", "metric": "val/loss"}
    for loss, margin, holder in ((0.5, "0.3", 1), (0.6, "0.3", 1), (0.4, "0.3", 3)):
        register({"val/loss": loss, **ON}, "avvp-encoder", negative_margin=margin)
        promote(config(**keys))
        assert champion(client, "avvp-encoder") == holder
    register({"val/loss": 0.1, **ON}, "avvp-encoder", negative_margin="0.7")
    with pytest.raises(CheckpointError, match=r"objective\.negative_margin is 0\.7 here, 0\.3 "):
        promote(config(**keys))
    assert champion(client, "avvp-encoder") == 3


def test_encoders_are_compared_by_their_auc(client: MlflowClient, register: Any) -> None:
    for auc in (0.7, 0.8):
        register({"val/auc": auc, "val/loss": auc, **ON}, "avvp-encoder")
        assert promote(config(model="avvp-encoder"))
    assert champion(client, "avvp-encoder") == 2


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (ON, {**ON, "validated_on.shards": "v2"}, "validated_on.shards is v2 here, v1 there"),
        (ON, {}, "validated_on.annotations is unknown here, 2024 there"),
        ({}, {}, "neither says what it was validated on"),
    ],
)
def test_other_validation_data_are_refused_and_named(
    client: MlflowClient, register: Any, first: Any, second: Any, said: str
) -> None:
    register({F: 70, **first})
    promote(config())
    register({F: 80, **second})
    with pytest.raises(CheckpointError, match=f"avvp-parser/2 and avvp-parser/1 .*{said}"):
        promote(config())
    assert champion(client) == 1
    assert promote(config(force=True)) and champion(client) == 2


@pytest.mark.parametrize("value", ["nan", "inf", "good", None])
def test_without_a_finite_metric_no_version_is_promoted(
    client: MlflowClient, register: Any, value: str | None
) -> None:
    register({**ON, **({} if value is None else {F: value})})
    with pytest.raises(CheckpointError, match=f"avvp-parser/1 has no validated {F}"):
        promote(config(force=True))
    assert champion(client) is None


def test_changed_files_are_named_and_not_promoted(client: MlflowClient, register: Any) -> None:
    register({F: 70, **ON})
    promote(config())
    for file in ("model.safetensors", "manifest.json"):
        stored = register({F: 80, **ON}) / file
        stored.write_bytes(stored.read_bytes().replace(b"e", b"f", 1))
        with pytest.raises(CheckpointError, match=f"its files are not those .*{file}"):
            promote(config())
        assert champion(client) == 1
    register({F: 80, **ON, "digest": "0" * 64})
    client.delete_model_version_tag("avvp-parser", "4", "digest")
    with pytest.raises(CheckpointError, match="avvp-parser/4 has no tag `digest`"):
        promote(config())


def test_two_promotions_at_once_do_not_undo_each_other(
    client: MlflowClient, register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (70, 90, 80):
        register({F: value, **ON})
    promote(config(version="1"))
    whole = promotion._verify

    def meanwhile(version: Any) -> None:
        whole(version)
        client.set_registered_model_alias("avvp-parser", "champion", "2")

    monkeypatch.setattr(promotion, "_verify", meanwhile)
    with pytest.raises(CheckpointError, match="another champion by now"):
        promote(config(version="3"))
    assert champion(client) == 2


def test_the_tool_tells_by_its_exit_code(client: MlflowClient, register: Any, root: Path) -> None:
    register({F: 70, **ON})
    assert promote(config())
    register({F: 60, **ON})
    command = [sys.executable, str(root / "tools" / "promote.py"), "model=avvp-parser"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if not line.startswith("waiting for ")]
    assert (done.returncode, told) == (KEPT_CHAMPION, [])
    assert done.stdout.splitlines()[-1].startswith("kept: ")


def test_what_is_not_registered_is_one_line(client: MlflowClient, register: Any) -> None:
    with pytest.raises(CheckpointError, match=r"avvp-parser is not in the registry of .*db: "):
        promote(config())
    register({F: 70, **ON})
    with pytest.raises(CheckpointError, match=r"avvp-parser is not in the registry of .*db: "):
        promote(config(version="7"))


def test_a_renamed_metric_is_told_its_new_name() -> None:
    with pytest.raises(ConfigError, match="metric=auc is now val/auc"):
        promote(config(model="avvp-encoder", metric="auc"))


def test_an_unknown_model_needs_a_metric() -> None:
    with pytest.raises(ConfigError, match="model=avvp-parsr is none of avvp-encoder, avvp-parser"):
        promote(config(model="avvp-parsr"))
