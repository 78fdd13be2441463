"""Descriptions: what a page of MLflow says about a run and a version."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from avvp_dist.stages import STAGES
from avvp_dist.tracking.descriptions import (
    describe_experiment,
    describe_model,
    describe_run,
    describe_version,
)
from tests.models.test_export import ENCODER, OVER_ENCODER

SCORES = {
    f"val/{level}_{score}": 10.0 * number
    for level in ("segment", "event")
    for number, score in enumerate(("audio", "visual", "av", "type_av", "event_av"), 1)
}


def run(metrics: dict[str, float], **tags: str) -> Any:
    """A run with the fields that descriptions read."""
    dataset = SimpleNamespace(dataset=SimpleNamespace(name="train", digest="0123456789abcdef"))
    return SimpleNamespace(
        info=SimpleNamespace(run_id="7f"),
        data=SimpleNamespace(metrics=metrics, tags=tags),
        inputs=SimpleNamespace(dataset_inputs=[dataset]),
    )


def test_a_run_shows_its_data_its_model_its_scores_and_its_curves() -> None:
    metrics = {**SCORES, "train/loss": 0.51234, "train/mfu": 0.4, "train/clips_per_second": 9.0}
    metrics["system/node/cpu_utilization_percentage"] = 7.0
    text = describe_run(
        run(metrics, registered="avvp-parser/3", command="avvp x"), ["figures/small/curves.png"]
    )
    assert text.replace(" &nbsp;", "") == (
        "Data: `train` (0123456789ab). "
        "Made [avvp-parser, version 3](#/models/avvp-parser/versions/3).\n\n"
        "| val/F (%) | audio | visual | av | type@av | event@av |\n"
        "|:---|---:|---:|---:|---:|---:|\n"
        "| segment | 10.0 | 20.0 | 30.0 | 40.0 | 50.0 |\n"
        "| event | 10.0 | 20.0 | 30.0 | 40.0 | 50.0 |\n\n"
        "| metric | last value |\n|:---|---:|\n| train/loss | 0.5123 |\n\n"
        "![curves.png](get-artifact?path=figures%2Fsmall%2Fcurves.png&run_uuid=7f)\n\n"
        "```\navvp x\n```"
    )


def test_probes_leave_room_for_the_other_metrics() -> None:
    probes = {f"val/probe_raw_{n}": 0.5 for n in range(33)}
    text = describe_run(run({**probes, "val/rank_visual": 9.0}), [])
    assert "| val/rank_visual &nbsp; | 9 &nbsp; |" in text and "probe" not in text


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (ENCODER, "An encoder of size tiny, pretrained with the objective multi for 7 steps."),
        (
            replace(OVER_ENCODER, step=1200),
            "A parser of 3 classes over the pretrained encoder enc/1, after 1,200 steps.",
        ),
    ],
)
def test_a_version_says_what_it_is_and_how_to_use_it(spec: Any, said: str) -> None:
    text = describe_version("avvp-model/4", spec, run({}), [])
    assert text.startswith(said)
    assert "seconds of features: `audio` 4, `visual` 6 (simulated)." in text
    assert 'mlflow.pyfunc.load_model("models:/avvp-model/4")' in text
    assert '{"id": "clip", "audio": audio, "visual": visual}' in text
    assert "mlflow models serve --model-uri models:/avvp-model/4 --env-manager local" in text


def test_every_description_fits_into_mlflows_columns() -> None:
    many = {f"val/metric_number_{n}": float(n) for n in range(100)}
    figures = [f"figures/small/{'long' * 10}{n}.png" for n in range(50)]
    assert len(describe_version("avvp-encoder/1234", ENCODER, run(many), figures)) < 5000
    assert len(describe_run(run(many, command="avvp " + "x" * 9000), figures)) < 5000


def test_every_stage_that_is_tracked_and_every_model_has_one() -> None:
    tracked = {name for name, stage in STAGES.items() if "tracking" in fields_of(stage.config)}
    tracked -= {
        "tables",
        "study-grounding",
        "study-labels",
    }  # their runs are those of the stages they start
    assert [name for name in tracked if len(describe_experiment(f"avvp-{name}")) < 50] == []
    for model in ("avvp-encoder", "avvp-parser"):
        assert "candidate" in describe_model(model)
    assert describe_model("avvp-export") == ""


def fields_of(config: Any) -> list[str]:
    return list(getattr(config, "__dataclass_fields__", {}))
