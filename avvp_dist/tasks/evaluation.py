"""Evaluation of an exported parser: scores, predictions, figures."""

from __future__ import annotations

from pathlib import Path

from avvp_dist.annotations.llp import Annotations, read_annotations
from avvp_dist.commit import write_json
from avvp_dist.config import EvaluateConfig
from avvp_dist.errors import ConfigError
from avvp_dist.evaluation.parsing_figures import class_figure, timeline_figure
from avvp_dist.evaluation.predictions import Predictions, read_threshold, report
from avvp_dist.evaluation.scores import Mask, score_per_class
from avvp_dist.models.export import load_parser
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.prediction import check_fit, match_clips, predict
from avvp_dist.tracking.registry import resolve
from avvp_dist.tracking.run import stage_run


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Score a parser on a split; writes `scores.json`, `predictions.npz` and two figures.

    Raises:
        AvvpError: with what was wrong and what to do, for anything a user can put right.
    """
    shards = ShardSet(config.shards, config)
    annotations = read_annotations(
        config.annotations,
        config.split,
        audio_version=config.audio_annotations,
        snippets=shards.snippets,
    )
    threshold = read_threshold(config.threshold, len(annotations.classes))
    clips, _ = match_clips(shards, annotations)
    out = Path(config.out)
    folder, version, _ = resolve(config.parser, out / "parser")
    parser, spec = load_parser(folder)
    check_fit(folder, spec, shards, annotations.classes)
    device = single_rank().device
    parser.to(device)
    lineage = {"manifest": shards.digest, "parser": version or str(folder)}
    with stage_run("evaluate", out, config, lineage, {shards.name: shards.digest}) as run:
        predictions = predict(parser, shards, clips, device, batch_size=config.batch_size)
        predictions.save(out / "predictions.npz")
        scored = report([predictions], annotations, config.rule, threshold)
        write_json(out / "scores.json", scored.to_json())
        print(scored.table())
        run.artifact(out / "scores.json")
        run.log(0, **scored.scores)
        predicted = predictions.decided(config.rule, threshold)
        if run.draws_figures:
            for path in _figures(out, config, annotations, predictions, predicted):
                run.figure(path)
                print(path)
    return dict(scored.scores)


def _figures(
    out: Path,
    config: EvaluateConfig,
    annotations: Annotations,
    predictions: Predictions,
    predicted: Mask,
) -> list[Path]:
    truth = annotations.events
    assert truth is not None
    per_class = score_per_class(predicted, truth)
    lanes = {name: per_class[f"segment_{name}"] for name in ("audio", "visual", "av")}
    name = f"{out.name}, {config.split}"
    if config.clip and config.clip not in annotations.ids:
        raise ConfigError(f"clip={config.clip} is not in the {config.split} split")
    chosen = (
        annotations.ids.index(config.clip)
        if config.clip
        else int(truth.any(1).sum((1, 2)).argmax())
    )
    return [
        class_figure(
            out / "classes.png", annotations.classes, lanes, f"{name}: segment F by class"
        ),
        timeline_figure(
            out / "timeline.png",
            annotations.classes,
            truth[chosen],
            predictions.frame_prob[chosen],
            predicted[chosen],
            f"{name}: {annotations.ids[chosen]}",
        ),
    ]
