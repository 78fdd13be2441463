"""Descriptions that MLflow's pages show: what something is, from which data, how good, how to use.

They are Markdown. MLflow's pages leave out pictures inside of a text (`data:` addresses), but show
those that its server has, so figures are named by the address of the run's artifact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from avvp_dist.models.specification import ParserSpec, Spec

if TYPE_CHECKING:
    from mlflow.entities import Run

NOTE, SOURCE = "mlflow.note.content", "mlflow.source.name"
"""Tags that MLflow's pages show as the description and as the source of a run."""
COMMAND = "command"
"""Tag of a run with its whole command line."""

_MAXIMUM_ROWS, _MAXIMUM_FIGURES, _MAXIMUM_COMMAND, _DIGEST = 20, 4, 2000, 12
_LEVELS, _SCORES = ("segment", "event"), ("audio", "visual", "av", "type_av", "event_av")
_OPERATION = (
    "lr",
    "grad_norm",
    "skipped_steps",
    "bad_clips",
    "mfu",
    "data_wait",
    "tflops_per_rank",
)
_OPERATION_ENDS = ("_per_second", "_seconds")

_EXPERIMENTS = {
    "pack": "Features of clips become a shard set, which every later stage reads.",
    "extract": "Videos are decoded and described second by second, and become a shard set.",
    "calibrate": "The similarity from which on two snippets of a clip belong together, searched in "
    "a shard set.",
    "ground": "Snippets of each clip that belong together get one component id (Algorithm 1).",
    "decontaminate": "Clips of validation and test videos, and near-duplicates of them, are "
    "excluded from a shard set.",
    "pretrain": "An encoder learns from unlabelled clips which snippets belong together. Each run "
    "exports a version of **avvp-encoder**.",
    "finetune": "A parser learns from the labels of whole clips which events are heard and seen in "
    "which second. Each run exports a version of **avvp-parser**.",
    "refine": "The labels of a clip are divided between its sound and its picture.",
    "evaluate": "A parser is scored with the official metrics of audio-visual video parsing.",
    "parse": "A parser writes the event timelines of the clips of a shard set.",
    "parse-video": "A parser writes the event timelines of videos.",
}

_MODELS = {
    "avvp-encoder": (
        "Audio-visual encoder: features of a clip in, a contextual representation of every second "
        "and modality out. It was pretrained without labels. Fine-tuning builds a parser on it."
    ),
    "avvp-parser": (
        "Audio-visual video parser: features of a clip in, out which events are heard and which "
        "are seen, from which second to which. It was trained on labels of whole clips."
    ),
}


def describe_experiment(name: str) -> str:
    """Description of the experiment `avvp-STAGE`."""
    stage = name.removeprefix("avvp-")
    return f"{_EXPERIMENTS.get(stage, '')}\n\nRuns of `avvp {stage}`.".strip()


def describe_model(name: str) -> str:
    """Description of a registered model; empty for a name that no stage registers."""
    if name not in _MODELS:
        return ""
    return (
        f"{_MODELS[name]}\n\nThe alias `candidate` names the newest version, `champion` the one "
        f"that `avvp promote model={name}` chose by its validation.\n\n"
        + _usage(f"{name}@candidate", ("audio", "visual"))
    )


def describe_run(run: Run, figures: Sequence[str]) -> str:
    """Description of a run from what MLflow has of it.

    Args:
        figures: paths of the run's pictures among its artifacts.
    """
    made = ""
    if "registered" in run.data.tags:
        name, _, version = run.data.tags["registered"].partition("/")
        made = f"Made [{name}, version {version}](#/models/{name}/versions/{version})."
    command = run.data.tags.get(COMMAND, "")[:_MAXIMUM_COMMAND]
    results = {k: v for k, v in run.data.metrics.items() if not _is_operation(k)}
    return _joined(
        [
            f"{_data(run)} {made}".strip(),
            *_tables("last value", results),
            *_pictures(run, figures),
            f"```\n{command}\n```" if command else "",
        ]
    )


def describe_version(name: str, spec: Spec, run: Run, figures: Sequence[str]) -> str:
    """Description of a version of a registered model.

    Args:
        name: `NAME/VERSION`.
        run: the run that made it.
        figures: paths of the run's pictures among its artifacts.
    """
    streams = ", ".join(f"`{stream}` {dim}" for stream, dim in spec.dims.items())
    if isinstance(spec, ParserSpec):
        encoder = spec.pretrained.version if spec.pretrained else ""
        over = f" over the pretrained encoder {encoder}" if encoder else ""
        what = f"A parser of {len(spec.classes)} classes{over}, after {spec.step:,} steps."
        seconds = f"{spec.snippets} seconds"
    else:
        what = (
            f"An encoder of size {spec.encoder.size}, pretrained with the objective "
            f"{spec.objective.label} for {spec.step:,} steps."
        )
        seconds = f"up to {spec.snippets} seconds"
    return _joined(
        [
            f"{what} It reads {seconds} of features: {streams} ({spec.extractor}).",
            _data(run),
            *_tables("validated", spec.validated),
            *_pictures(run, figures),
            _usage(name, spec.dims),
        ]
    )


def _usage(model: str, streams: Iterable[str]) -> str:
    columns = ", ".join(f'"{stream}": {stream}' for stream in streams)
    return (
        "In Python, with an array `[seconds, size]` for each stream:\n\n"
        "```\n"
        "import mlflow, pandas\n"
        f'model = mlflow.pyfunc.load_model("models:/{model}")\n'
        f'answers = model.predict(pandas.DataFrame([{{"id": "clip", {columns}}}]))\n'
        "```\n\n"
        'As a server, which takes `{"dataframe_records": [{...}]}` at `/invocations`:\n\n'
        "```\n"
        f"mlflow models serve --model-uri models:/{model} --env-manager local --port 5001\n"
        "```"
    )


def _data(run: Run) -> str:
    names = [
        f"`{one.dataset.name}` ({one.dataset.digest[:_DIGEST]})"
        for one in run.inputs.dataset_inputs
    ]
    return f"Data: {', '.join(names)}." if names else ""


def _is_operation(metric: str) -> bool:
    """Whether a metric tells how a run went on its machines, and not what came of it."""
    name = metric.partition("/")[2]
    return metric.startswith("system/") or name in _OPERATION or name.endswith(_OPERATION_ENDS)


def _tables(title: str, values: Mapping[str, float]) -> Iterator[str]:
    """Tables of metrics: the official scores as in the papers, then the others by name."""
    for prefix in ("val/", ""):
        names = [[f"{prefix}{level}_{score}" for score in _SCORES] for level in _LEVELS]
        if all(name in values for row in names for name in row):
            yield _table(
                [f"{prefix}F (%)", *(score.replace("_av", "@av") for score in _SCORES)],
                [
                    [level, *(f"{values[name]:.1f}" for name in row)]
                    for level, row in zip(_LEVELS, names, strict=True)
                ],
            )
            values = {k: v for k, v in values.items() if all(k not in row for row in names)}
    # Probes have many metrics, which would leave no room for the others.
    rows = [[k, f"{v:.4g}"] for k, v in sorted(values.items()) if not k.startswith("val/probe_")]
    if rows:
        yield _table(["metric", title], rows[:_MAXIMUM_ROWS])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = f"|:---{'|---:' * (len(head) - 1)}|"
    # MLflow's pages put no space between columns.
    first, *others = (
        f"| {' | '.join(f'{cell} &nbsp;' for cell in row)} |" for row in (head, *rows)
    )
    return "\n".join([first, rule, *others])


def _pictures(run: Run, figures: Sequence[str]) -> Iterator[str]:
    for path in figures[:_MAXIMUM_FIGURES]:
        if path.endswith(".png"):
            query = urlencode({"path": path, "run_uuid": run.info.run_id})
            yield f"![{path.rpartition('/')[2]}](get-artifact?{query})"


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part)
