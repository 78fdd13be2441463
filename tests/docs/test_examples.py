"""Python examples in README and docs: each runs, on data of the shape that the text promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avvp_dist.commit import folder_digest
from avvp_dist.config import EncoderConfig, ObjectiveConfig, ParserConfig
from avvp_dist.models.export import build_encoder, build_parser, save_model
from avvp_dist.models.specification import EncoderSpec, ParserSpec
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.tracking.packaging import package
from tests.docs.test_commands import PAGES, ROOT, blocks

EXAMPLES = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, (language, text) in enumerate(blocks(page))
    if language == "python"
]


@pytest.fixture(scope="module")
def after_the_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A working folder as the demo leaves it, and the URI of a store with a registered parser."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("work")
    dims = {"audio": 8, "visual": 12}
    random = np.random.default_rng(0)
    clips = [
        Clip(
            f"video{n}_0_10",
            {name: random.normal(size=(10, dim)) for name, dim in dims.items()},
            labels=(("Speech", "Dog")[n % 2],),
        )
        for n in range(20)
    ]
    for split in ("train", "val", "test"):
        write_shard_set(clips, folder / "runs" / "demo" / "shards" / split)
    encoder = EncoderSpec(EncoderConfig("tiny"), ObjectiveConfig(), dims, 10, "", "", "")
    state = build_encoder(encoder).state_dict()
    save_model(folder / "runs" / "demo" / "pretrain" / "model", state, encoder)
    spec = ParserSpec(
        parser=ParserConfig(width=16),
        dims=dims,
        snippets=10,
        classes=["Speech", "Dog"],
        extractor="",
        manifest="",
    )
    save_model(folder / "model", build_parser(spec).state_dict(), spec)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    client.create_registered_model("avvp-parser")
    client.create_model_version(
        "avvp-parser",
        package(folder / "model", folder / "mlflow").as_uri(),
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
