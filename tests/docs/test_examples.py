"""Python examples in README and docs: each runs, on data of the shape that the text promises."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from avvp_dist.commit import folder_digest
from avvp_dist.config import ParserConfig
from avvp_dist.models.export import build_parser, save_model
from avvp_dist.shards.shard_set import ShardSet
from tests.docs.test_commands import PAGES, ROOT, blocks

EXAMPLES = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, (language, text) in enumerate(blocks(page))
    if language == "python"
]


@pytest.fixture(scope="module")
def after_the_demo(
    packed: dict[str, ShardSet], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A working folder as the demo leaves it, and the URI of a store with a registered parser."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("work")
    shards = folder / "runs" / "demo" / "shards"
    shards.mkdir(parents=True)
    for split, opened in packed.items():
        (shards / split).symlink_to(opened.folder)
    meta = {
        "kind": "parser",
        "parser": asdict(ParserConfig(width=16)),
        "dims": packed["test"].dims,
        "classes": ["Speech", "Dog"],
        "pretrained": None,
    }
    save_model(folder / "model", build_parser(meta).state_dict(), meta)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    client.create_registered_model("avvp-parser")
    client.create_model_version(
        "avvp-parser",
        (folder / "model").as_uri(),
        tags={"digest": folder_digest(folder / "model")},
    )
    client.set_registered_model_alias("avvp-parser", "candidate", "1")
    return folder, uri


def test_there_are_examples() -> None:
    assert any("README.md" in str(example.id) for example in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(
    example: str,
    after_the_demo: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, uri = after_the_demo
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    exec(compile(example, "example", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out
