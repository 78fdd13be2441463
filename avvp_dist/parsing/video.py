"""The stage `avvp parse-video`: media files into event timelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from avvp_dist.commit import MANIFEST, folder_digest
from avvp_dist.config import ParseVideoConfig
from avvp_dist.errors import CheckpointError, ConfigError, DataError
from avvp_dist.evaluation.predictions import Predictions, read_threshold
from avvp_dist.extraction.files import LISTS, media_files, media_id
from avvp_dist.features.backbones.backbone import Backbone
from avvp_dist.features.backbones.registry import (
    backbone_class,
    backbones_of,
    dims_of,
    extractor_of,
    open_backbones,
)
from avvp_dist.features.description import describe
from avvp_dist.features.media import Bounds, MediaError
from avvp_dist.models.export import load_parser
from avvp_dist.models.parser import Parser, probabilities
from avvp_dist.models.specification import ParserSpec
from avvp_dist.parsing.folder import TimelineFolder
from avvp_dist.parsing.preview import preview
from avvp_dist.parsing.timeline import ParserModel, Timeline
from avvp_dist.parsing.windows import (
    Decision,
    cut_windows,
    make_timeline,
    missing_modalities,
    rounded,
)
from avvp_dist.tracking.registry import resolve
from avvp_dist.tracking.run import stage_run

_WITH_MEDIA = {"html", "png"}
"""Formats that show picture and sound."""


def parse_videos(config: ParseVideoConfig) -> None:
    """Parse media files, and write their timelines into a `TimelineFolder`.

    A file that cannot be parsed costs no other one; it is named at the end.

    Raises:
        AvvpError: with what was wrong and what to do, for anything a user can put right.
    """
    paths, out = find_videos(config.videos), Path(config.out)
    timelines = TimelineFolder(out, config.formats)
    folder, version, _ = resolve(config.parser, out / "parser")
    parser, spec = load_parser(folder)
    backbones = _open(config, folder, spec)
    model = ParserModel(
        version or str(folder), folder_digest(folder), spec.extractor, spec.snippets
    )
    decision = Decision(config.rule, read_threshold(config.threshold, len(spec.classes)))
    applied = _Applied(parser.eval(), spec, model, decision, backbones, Bounds.of(config))
    failed: list[MediaError] = []
    with stage_run("parse-video", out, config, {"parser": model.version}) as run:
        for name, path in tqdm(paths.items(), "parsing", unit=" videos"):
            try:
                timeline = applied.timeline(name, path)
                media = None
                if _WITH_MEDIA & {*config.formats}:
                    limits = (timeline.seconds, applied.bounds, config.page_max_mib)
                    media = preview(path, str(path), *limits)
            except MediaError as error:
                failed.append(error)
                continue
            timelines.write(timeline, media)
            tqdm.write(f"{name}: {timeline.seconds} s, {len(timeline.events)} events")
        page = timelines.close()
        run.log(0, videos=len(paths) - len(failed), failed=len(failed))
        run.artifact(out / MANIFEST)
    print(page)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(paths)} videos cannot be parsed: "
            + "; ".join(map(str, failed[:5]))
        )


def find_videos(given: Sequence[str]) -> dict[str, Path]:
    """Media files by their ids, in order.

    Args:
        given: files, folders of them, or lists of their paths.

    Raises:
        ConfigError: for two files of one id.
        DataError: for a folder or a list without any.
    """
    found: dict[str, Path] = {}
    for one in map(Path, given):
        several = one.is_dir() or one.suffix.lower() in LISTS
        for path in media_files(one) if several else [one]:
            name = media_id(path)
            if name in found:
                raise ConfigError(
                    f"videos: {found[name]} and {path} have the same id", remedy="Rename one"
                )
            found[name] = path
    return found


def _open(config: ParseVideoConfig, folder: Path, spec: ParserSpec) -> list[Backbone]:
    """The backbones that make the features of a parser.

    Raises:
        CheckpointError: if they make other features.
        ConfigError: if they are not known, or their weights are missing.
    """
    names = config.backbones or backbones_of(spec.extractor)
    dims = dims_of(names)
    if extractor_of(names) != spec.extractor or dims != spec.dims:
        raise CheckpointError(
            f"parser: {folder} reads {spec.dims} of {spec.extractor!r}, the backbones make "
            f"{dims} of {extractor_of(names)!r}"
        )
    for name in names:
        backbone_class(name).weights.find(name, config.weights, download=config.download)
    return open_backbones(names, config.weights)


class _Applied:
    """A parser with all that turns a media file into its timeline."""

    def __init__(
        self,
        parser: Parser,
        spec: ParserSpec,
        model: ParserModel,
        decision: Decision,
        backbones: Sequence[Backbone],
        bounds: Bounds,
    ) -> None:
        self.parser, self.spec, self.model, self.decision = parser, spec, model, decision
        self.backbones, self.bounds = backbones, bounds

    def timeline(self, name: str, path: Path) -> Timeline:
        """Decode, describe and parse a file.

        Raises:
            MediaError: if it cannot be read.
        """
        made = describe(path, str(path), self.backbones, self.bounds)
        windows = cut_windows(rounded(made.streams), self.spec.snippets)
        parsed = probabilities(self.parser, windows)
        ids = (name,) * len(parsed[0])
        return make_timeline(
            Predictions(ids, *parsed),
            made.seconds,
            self.spec.classes,
            self.model,
            self.decision,
            missing_modalities(made),
        )
