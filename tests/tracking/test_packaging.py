"""Exports as MLflow models: what is in the folder, and what is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from avvp_dist.commit import folder_digest
from avvp_dist.errors import CheckpointError
from avvp_dist.features.backbones.registry import BACKBONES
from avvp_dist.models.export import build_parser, load_spec, save_model
from avvp_dist.models.specification import ParserSpec
from avvp_dist.tracking.packaging import REQUIREMENTS, export_in, package, signature, zeros
from tests.models.test_export import ENCODER, PARSER


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "any-name"
    save_model(folder, build_parser(PARSER).state_dict(), PARSER)
    return folder


@pytest.fixture(scope="module")
def model(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(export, tmp_path_factory.mktemp("mlflow") / "model", "m-1", "run-1")


def test_the_export_is_in_it_byte_by_byte(export: Path, model: Path) -> None:
    assert folder_digest(export_in(model)) == folder_digest(export)
    assert export_in(export) == export, "a bare export is one itself"
    assert load_spec(export_in(model), ParserSpec) == PARSER


def test_nothing_in_it_is_a_pickle(model: Path) -> None:
    files = [path for path in model.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {"", ".py", ".json", ".yaml", ".txt", ".safetensors"}
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80"]


def test_the_modules_in_it_are_few_and_enough(model: Path) -> None:
    names = {path.relative_to(model / "code").as_posix() for path in model.rglob("code/**/*.py")}
    rooms = {name.split("/")[1] for name in names if name.count("/") > 1}
    assert rooms >= {"config", "evaluation", "features", "models", "parsing", "serving"}
    assert rooms.isdisjoint({"training", "tasks", "packing", "extraction", "grounding"})
    backbones = {place.partition(":")[0].replace(".", "/") + ".py" for place in BACKBONES.values()}
    assert backbones <= names


def test_it_says_what_it_reads_and_answers(model: Path) -> None:
    from mlflow.models import Model

    loaded = Model.load(str(model))
    assert (loaded.model_id, loaded.run_id) == ("m-1", "run-1")
    assert loaded.signature == signature(PARSER)
    inputs = {
        column.name: (str(column.type), column.required) for column in loaded.signature.inputs
    }
    assert inputs == {
        "id": ("DataType.string", False),
        "video": ("DataType.string", False),
        "path": ("DataType.string", False),
        "audio": ("Array(Array(double))", False),
        "visual": ("Array(Array(double))", False),
    }
    assert signature(PARSER).outputs.input_names() == ["id", "events", "probabilities", "missing"]
    assert signature(ENCODER).outputs.input_names() == ["id", "representations", "missing"]
    example = loaded.load_input_example(str(model))
    assert example.to_dict("records") == [{"id": "clip", **zeros(PARSER)}]


def test_its_requirements_are_the_floors_of_ours(root: Path, model: Path) -> None:
    text = (root / "pyproject.toml").read_text().partition("\ndependencies = [")[2]
    declared = [Requirement(line) for line in re.findall(r'"([^"]*)",', text.partition("\n]")[0])]
    ours = {one.name: one for one in declared}
    for wanted in map(Requirement, REQUIREMENTS):
        assert wanted.specifier == ours[wanted.name].specifier
    assert (model / "requirements.txt").read_text().split() == list(REQUIREMENTS)


def test_what_is_no_export_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("kind: other")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "config.yaml"))):
        package(tmp_path, tmp_path / "model")
