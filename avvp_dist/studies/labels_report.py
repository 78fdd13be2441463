"""The label study's tables, figures and conclusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import staged
from avvp_dist.config import LabelsStudyConfig
from avvp_dist.evaluation.paired import Difference, paired_difference, power_law
from avvp_dist.evaluation.scores import LEVELS, SELECTION, STREAM_SCORES
from avvp_dist.reproduction.recipes import Splits, described_features
from avvp_dist.reproduction.table_format import (
    MISSING,
    decimals,
    markdown_table,
    mean_cell,
    write_csv,
)
from avvp_dist.studies.arms import PLAIN, RANDOM, Arm
from avvp_dist.studies.labels_figures import corpus_figure, labels_figure
from avvp_dist.tracking.run import Run

Floats = NDArray[np.float64]
PointScores = dict[int, dict[str, dict[str, Floats]]]
"""Score of each clip in percent, `[clips]`, by seed, split and key of `score`."""
Point = tuple[Arm, int]
"""An arm and its number of labelled clips."""

_COLUMNS = {
    "A": "segment_audio",
    "V": "segment_visual",
    "AV": "segment_av",
    "Type@AV": SELECTION,
    "Event@AV": "segment_event_av",
}
_KEYS = [f"{level}_{stream}" for level in LEVELS for stream in STREAM_SCORES]
_PROBES = {
    "mAP of clips": ("clip_map",),
    "mAP of seconds": ("snippet_map_audio", "snippet_map_visual"),
    "AUC across clips": ("across_auc_audio", "across_auc_visual"),
    "AUC within clips": ("within_auc_audio", "within_auc_visual"),
    "cosine of different classes": ("different_cosine_audio", "different_cosine_visual"),
}
"""Figures of the probe by title; those of two modalities are averaged."""
_TRUSTED = 4
"""Factor over the largest corpus up to which an extrapolation is more than a guess."""


@dataclass(frozen=True)
class Report:
    """Everything that a study has found."""

    config: LabelsStudyConfig
    shards: Splits
    arms: Sequence[Arm]
    counts: Sequence[int]
    """Numbers of labelled clips, ascending."""
    rates: Mapping[Point, float]
    """Learning rate that validation chose."""
    scores: Mapping[Point, PointScores]
    probes: Mapping[str, Mapping[str, Sequence[float]]]
    """Figures of the probe by encoder and name, one for each seed."""

    @cached_property
    def features(self) -> str:
        """Words that say which features the numbers belong to."""
        return described_features(self.shards["test"])

    def values(self, point: Point, split: str, key: str = SELECTION) -> list[float]:
        """One score of every finished seed, in percent."""
        seeds = self.scores.get(point, {})
        return [float(seeds[seed][split][key].mean()) for seed in sorted(seeds)]

    def baseline(self, labels: int) -> Arm | None:
        """The random encoder that validates better; None if none is finished."""
        found = [
            arm
            for arm in self.arms
            if arm.encoder and arm.encoder.is_random and self.scores.get((arm, labels))
        ]
        return max(found, key=lambda arm: self._validated(arm, labels), default=None)

    def chosen(self, labels: int) -> Arm | None:
        """The arm with pretraining that validates best; None if none is finished."""
        found = [a for a in self.arms if not a.is_control and self.scores.get((a, labels))]
        return max(found, key=lambda arm: self._validated(arm, labels), default=None)

    def difference(self, arm: Arm, other: Arm | None, labels: int, split: str) -> Difference | None:
        """Paired difference of two arms over the seeds that both have finished."""
        ours = self.scores.get((arm, labels), {})
        theirs = self.scores.get((other, labels), {}) if other else {}
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            return None
        return paired_difference(
            *(np.stack([one[seed][split][SELECTION] for seed in seeds]) for one in (ours, theirs))
        )

    def _validated(self, arm: Arm, labels: int) -> float:
        return float(np.mean(self.values((arm, labels), "val")))


def write_report(run: Run, out: Path, report: Report) -> None:
    """Write and print the tables, draw the figures, and log a run for each point."""
    text = "\n".join([*_tables(report), *_probe_table(report), *conclusion(report)]) + "\n"
    with staged(out / "study.md") as temporary:
        temporary.write_text(text, "utf-8")
    _write_csv(out / "study.csv", report)
    for name in ("study.md", "study.csv"):
        run.artifact(out / name)
    print(f"\n{text}\n{out / 'study.md'}\n{out / 'study.csv'}")
    for path in _figures(out, report):
        run.figure(path)
        print(path)
    _log_points(out, report)


def conclusion(report: Report) -> Iterator[str]:
    """Sentences that say what is shown, and what is not."""
    yield "**What is shown**"
    yield ""
    intervals = 0
    for labels in report.counts:
        arm, baseline = report.chosen(labels), report.baseline(labels)
        found = report.difference(arm, baseline, labels, "test") if arm else None
        if arm is None or baseline is None or found is None:
            yield f"- {labels:,} labels: nothing, as too few parsers are finished."
            continue
        intervals += 1
        if found.low > 0:
            verdict = "So pretraining helps here"
        elif found.high < 0:
            verdict = "So pretraining harms here"
        else:
            verdict = "So no gain is shown, and none is ruled out up to the interval's upper end"
        yield (
            f"- {labels:,} labels: of the pretrained encoders, `{arm.name}` validates best. On the "
            f"test clips it differs from the better random control, `{baseline.name}`, by "
            f"{_interval(found)} points. {verdict}."
        )
    if intervals > 1:
        yield (
            f"- Each interval is for one comparison. All {intervals} hold at once in "
            f"{max(0, 100 - 5 * intervals)} % of studies, or more."
        )
    yield (f"- Other rows are looked at, not tested: one of {len(report.arms)} may lead by chance.")
    yield from _extrapolations(report)
    yield f"- {report.features}."


def _extrapolations(report: Report) -> Iterator[str]:
    for name, clips, scores, labels in growing(report):
        law = power_law(clips, scores)
        far = _TRUSTED * clips[-1]
        score, low, high = law.score(far)
        grows = "grows" if law.low > 0 else "is not shown to grow"
        yield (
            f"- {name}, {labels:,} labels: with {clips[0]:,} to {clips[-1]:,} clips of pretraining "
            f"the error follows clips^{-law.exponent:+.3f}, the exponent being within "
            f"[{-law.high:+.3f}, {-law.low:+.3f}]. So the score {grows} with the corpus. At "
            f"{far:,} clips this would be {score:.1f} [{low:.1f}, {high:.1f}]; a fit of "
            f"{len(clips)} sizes is not to be trusted beyond."
        )


def growing(report: Report) -> Iterator[tuple[str, list[int], Floats, int]]:
    """Arms that differ by their corpus alone: name, clips of each corpus, test scores, labels.

    Scores are `[corpora, seeds]`, of the seeds that all of them have finished.
    """
    groups: dict[tuple[str, int], list[Arm]] = {}
    for arm in report.arms:
        if arm.encoder and not arm.is_control:
            name = f"{arm.encoder.objective}, {'tuned' if arm.tuned else 'frozen'}"
            for labels in report.counts:
                if report.scores.get((arm, labels)):
                    groups.setdefault((name, labels), []).append(arm)
    for (name, labels), arms in groups.items():
        sizes = {sum(arm.encoder.corpus.clips): arm for arm in arms if arm.encoder}
        seeds = set.intersection(*(set(report.scores[arm, labels]) for arm in sizes.values()))
        if len(sizes) > 1 and seeds:
            clips = sorted(sizes)
            scores = [
                [
                    report.scores[sizes[n], labels][s]["test"][SELECTION].mean()
                    for s in sorted(seeds)
                ]
                for n in clips
            ]
            yield name, clips, np.array(scores), labels


def _tables(report: Report) -> Iterator[str]:
    config, counts = report.config, ", ".join(f"{len(s):,} {n}" for n, s in report.shards.items())
    each = f" x {config.parsers} parsers" if config.parsers > 1 else ""
    yield (
        f"**Parsers with and without pretraining, by number of labelled clips. {report.features}. "
        f"{counts} clips, {config.seeds} seeds{each}, audio annotations "
        f"{config.audio_annotations}, rule {config.rule}, segment level, F in %. Mean ± standard "
        "deviation over seeds; differences of Type@AV are paired, with their 95 % interval over "
        "seeds and clips. Learning rates are chosen on validation, from "
        f"{', '.join(f'{rate:g}' for rate in config.learning_rates)} by "
        f"{config.tuning_seeds} seeds**"
    )
    for labels in report.counts:
        baseline = report.baseline(labels)
        against = f"over `{baseline.name}`" if baseline else "over a random encoder"
        head = [f"{labels:,} labels", "seeds", "lr", "val Type@AV"]
        head += [f"test {name}" if name == "A" else name for name in _COLUMNS]
        head += ["event-level Type@AV", f"Type@AV {against}", f"over `{PLAIN}`"]
        head += [f"seeds to show {config.effect:g}"]
        yield ""
        yield from markdown_table(
            head, (_row(report, arm, labels, baseline) for arm in report.arms)
        )
    yield ""


def _row(report: Report, arm: Arm, labels: int, baseline: Arm | None) -> list[str]:
    point, plain = (arm, labels), report.arms[0]
    differences = [
        None if arm == other else report.difference(arm, other, labels, "test")
        for other in (baseline, plain)
    ]
    needed = differences[0].seeds_for(report.config.effect) if differences[0] else None
    return [
        f"control: {arm.name}" if arm.is_control else arm.name,
        str(len(report.scores.get(point, {}))),
        f"{report.rates[point]:g}" if point in report.rates else MISSING,
        mean_cell(report.values(point, "val")),
        *(mean_cell(report.values(point, "test", key)) for key in _COLUMNS.values()),
        mean_cell(report.values(point, "test", "event_type_av")),
        *(_interval(found) if found else MISSING for found in differences),
        MISSING if needed is None else f"{needed:,}",
    ]


def _probe_table(report: Report) -> Iterator[str]:
    """Diagnostics of the encoders; nothing if no encoder is finished."""
    if not report.probes:
        return
    yield (
        f"**Encoders, judged by the labels of {len(report.shards['val']):,} validation clips. "
        "Mean ± standard deviation over seeds; figures of seconds are means of audio and vision**"
    )
    yield ""
    rows = []
    for name, figures in report.probes.items():
        cells = []
        for keys in _PROBES.values():
            each = [figures[key] for key in keys if key in figures]
            cells.append(mean_cell(np.mean(each, axis=0).tolist() if each else [], 3))
        rows.append([name, *cells])
    yield from markdown_table(["encoder", *_PROBES], rows)
    yield ""


def _interval(found: Difference) -> str:
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def _write_csv(path: Path, report: Report) -> None:
    """Write a row for each arm, number of labels and seed: every score of both splits."""
    keys = [(split, key) for split in ("val", "test") for key in _KEYS]
    lines = []
    for (arm, labels), seeds in report.scores.items():
        encoder = arm.encoder
        clips = sum(encoder.corpus.clips) if encoder and not encoder.is_random else 0
        for seed in sorted(seeds):
            numbers = [float(seeds[seed][split][key].mean()) for split, key in keys]
            lines.append(
                [
                    arm.name,
                    int(arm.is_control),
                    encoder.objective if encoder else "",
                    encoder.corpus.name if encoder and clips else "",
                    clips,
                    int(arm.tuned),
                    labels,
                    report.rates[arm, labels],
                    seed,
                    *map(decimals, numbers),
                    report.features,
                ]
            )
    columns = ["arm", "control", "objective", "corpus", "corpus_clips", "tuned", "labels", "lr"]
    write_csv(path, [*columns, "seed", *("/".join(key) for key in keys), "features"], lines)


def _figures(out: Path, report: Report) -> Iterator[Path]:
    panels: dict[str, dict[str, dict[int, list[float]]]] = {}
    one_corpus = len(set(report.config.corpora)) == 1  # which need not stand in every name
    for use in report.config.encoders:
        for arm in report.arms:
            scores = {n: v for n in report.counts if (v := report.values((arm, n), "test"))}
            if scores and (arm.encoder is None or arm.tuned == (use == "tuned")):
                encoder = arm.encoder
                name = (encoder.objective if one_corpus else encoder.name) if encoder else arm.name
                panels.setdefault(f"encoders {use}", {})[name] = scores
    if panels:
        yield labels_figure(out / "labels.png", panels, (PLAIN, RANDOM), report.features)
    corpora = {f"{name}, {labels:,} labels": (x, y) for name, x, y, labels in growing(report)}
    if corpora:
        yield corpus_figure(out / "corpora.png", corpora, report.features)


def _log_points(out: Path, report: Report) -> None:
    """Log each point as a run below the study's, with the mean of every score."""
    config = report.config
    for (arm, labels), seeds in report.scores.items():
        name = f"{arm.name}, {labels} labels"
        tracking = replace(config.tracking, name=name, parent=str(out))
        folder = out / "points" / name.replace(" ", "-").replace("/", "-")
        tags = {"arm": arm.name, "labels": str(labels), "seeds": str(len(seeds))}
        with Run("study", folder, replace(config, tracking=tracking), tags, resume=True) as run:
            means = {
                f"{split}/{key}": float(np.mean(report.values((arm, labels), split, key)))
                for split in ("val", "test")
                for key in _KEYS
            }
            run.log(run.attempt, lr=report.rates[arm, labels], **means)
