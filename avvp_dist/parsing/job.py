"""The stage `avvp parse`: the clips of a shard set into event timelines."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import MANIFEST, folder_digest
from avvp_dist.config import ParseConfig
from avvp_dist.errors import CheckpointError, ConfigError
from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.evaluation.predictions import Predictions, read_threshold
from avvp_dist.models.export import load_parser
from avvp_dist.models.parser import Parser
from avvp_dist.models.specification import ParserSpec
from avvp_dist.parsing.folder import TimelineFolder
from avvp_dist.parsing.timeline import ParserModel
from avvp_dist.parsing.windows import Decision, make_timeline
from avvp_dist.runtime.progress import Progress
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.shards.schema import AUDIO
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.prediction import check_fit, predict
from avvp_dist.tracking.registry import resolve
from avvp_dist.tracking.run import stage_run


def parse(config: ParseConfig) -> None:
    """Parse clips of a shard set, and write their timelines into a `TimelineFolder`.

    Raises:
        AvvpError: with what was wrong and what to do, for anything a user can put right.
    """
    shards, out = ShardSet(config.shards, config), Path(config.out)
    clips = select_clips(shards, config)
    timelines = TimelineFolder(out, config.formats)
    parser, spec, model = _load(config, shards)
    decision = Decision(config.rule, read_threshold(config.threshold, len(spec.classes)))
    device = single_rank(config.device).device
    parser.to(device)
    lineage = {"manifest": shards.digest, "parser": model.version}
    batches = np.split(clips, range(config.batch_size, len(clips), config.batch_size))
    counts = dict.fromkeys(MODALITIES, 0)
    with (
        stage_run("parse", out, config, lineage, {shards.name: shards.digest}) as run,
        Progress("parsing", len(batches), len(clips), parts="batches") as progress,
    ):
        for batch in batches:
            # A batch of always the same size: the last bits of a clip do not depend on the others.
            full = np.resize(batch, config.batch_size)
            predictions = predict(parser, shards, full, device, batch_size=len(full))
            missing = missing_modalities(shards, batch)
            for clip, window, absent in zip(batch, _each(predictions), missing, strict=False):
                seconds = int(shards.lengths[clip])
                timeline = make_timeline(window, seconds, spec.classes, model, decision, absent)
                timelines.write(timeline)
                for event in timeline.events:
                    counts[event.modality] += 1
            progress.update(len(batch))
        page = timelines.close()
        run.log(0, clips=len(clips), **{f"{name}_events": n for name, n in counts.items()})
        run.artifact(out / MANIFEST)
    changed = f"{timelines.changed} files changed" if timelines.changed else "nothing has changed"
    events = f"{counts['audio']} audio and {counts['visual']} visual events"
    print(f"{len(clips)} clips, {events}; {changed}\n{page}")


def _load(config: ParseConfig, shards: ShardSet) -> tuple[Parser, ParserSpec, ParserModel]:
    """The parser, if it fits the shard set.

    Raises:
        CheckpointError: if it is missing or damaged, or reads other features or clips.
    """
    folder, version, _ = resolve(config.parser, Path(config.out) / "parser")
    parser, spec = load_parser(folder)
    check_fit(folder, spec, shards, spec.classes)
    if spec.snippets != shards.snippets:
        raise CheckpointError(
            f"parser: {folder} reads clips of {spec.snippets} snippets, the shard set holds "
            f"{shards.snippets}",
            remedy=f"Pack it with snippets={spec.snippets}",
        )
    digest, name = folder_digest(folder), version or str(folder)
    return parser, spec, ParserModel(name, digest, spec.extractor, spec.snippets)


def select_clips(shards: ShardSet, config: ParseConfig) -> NDArray[np.integer]:
    """Numbers of the clips to parse, in the set's order or in that of `ids`.

    Raises:
        ConfigError: naming an id that is not in the shard set, or if there is no clip.
    """
    numbers = {name: number for number, name in enumerate(shards.ids)}
    for name in config.ids:
        if name not in numbers:
            near = get_close_matches(name, numbers, 1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise ConfigError(f"ids: {name} is not in {shards.name}{hint}")
    clips = np.array(
        [numbers[name] for name in dict.fromkeys(config.ids)] or range(len(shards)), np.int64
    )
    if not len(clips):
        raise ConfigError(f"shards: {shards.name} holds no clips")
    return clips[: config.max_clips or None]


def missing_modalities(shards: ShardSet, clips: NDArray[np.integer]) -> list[dict[str, str]]:
    """Modalities that each of `clips [B]` lacks, and why: extraction fills them with zeros."""
    streams = shards.gather(clips)
    visual = [name for name in streams if name != AUDIO]
    present = {
        modality: np.any([streams[name].any((1, 2)) for name in names], axis=0)
        for modality, names in zip(MODALITIES, ([AUDIO], visual), strict=True)
    }
    return [
        {
            modality: f"all {modality} features are zero"
            for modality in MODALITIES
            if not present[modality][row]
        }
        for row in range(len(clips))
    ]


def _each(predictions: Predictions) -> Iterator[Predictions]:
    """The predictions of each clip, as those of its only window."""
    modality = predictions.modality_prob
    for row in range(len(predictions.ids)):
        one = slice(row, row + 1)
        yield Predictions(
            predictions.ids[one],
            predictions.frame_prob[one],
            predictions.video_prob[one],
            None if modality is None else modality[one],
        )
