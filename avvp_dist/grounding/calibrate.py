"""Similarity thresholds from the corpus itself, and why they are right.

The paper names the thresholds a_t and v_t but not their values, and a value belongs to one
extractor. Here thresholds are chosen for what they do: for a share of false links across clips, for
a profile of components, or for dense labels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from avvp_dist.annotations.alignment import align
from avvp_dist.annotations.llp import read_annotations
from avvp_dist.commit import staged
from avvp_dist.config import CalibrateConfig, LinkConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.evaluation.grounding_figures import component_figure, similarity_figure
from avvp_dist.grounding.labels import Evidence, Profile, label, measure, silent_reference
from avvp_dist.grounding.sample import Across, Sample, across, draw, within
from avvp_dist.grounding.sketch import EDGES, Sketch
from avvp_dist.shards.schema import AUDIO
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.run import Run, stage_run

Thresholds = dict[str, float]

_RATES = np.geomspace(0.5, 1e-5, 61)
"""False-link rates that a profile of components is looked for at."""
_UNINFORMATIVE = 0.99
"""From this share of clips on, all are alike."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds and what they were read from."""

    thresholds: Thresholds
    within: dict[str, Sketch]
    """Cosines of two snippets of one clip, by stream."""
    across: dict[str, Sketch]
    """Cosines of two snippets of different clips, by stream."""
    profile: Profile
    """Components of the sampled clips under these thresholds."""
    rates: dict[str, dict[str, float]]
    """Share of pairs that reach a threshold, within clips and across, by stream and under the
    rule."""
    sample: Sample
    f1: float | None = None
    """Of pairs against dense labels, where they were the target."""


def calibrate(config: CalibrateConfig) -> Path:
    """Sample the shard set, choose a threshold per stream, write `thresholds.yaml` and figures.

    Raises:
        ConfigError: for a stream the shard set lacks, or thresholds that would tell nothing.
        DataError: for a shard set of fewer than two clips.
    """
    shards = ShardSet(config.shards, config)
    out = Path(config.out or shards.folder / "thresholds.yaml")
    records = out.with_name(f"{out.stem}.run")
    inputs = {shards.name: shards.digest}
    with stage_run("calibrate", records, config, {"manifest": shards.digest}, inputs) as run:
        found = calibration(shards, config)
        _report(run, out, found, shards, config)
        _check_informative(found.profile, config)
        described = OmegaConf.create(_described(found, shards, config))
        with staged(out) as temporary:
            temporary.write_text(OmegaConf.to_yaml(described))
        run.artifact(out)
        print(out)
    return out


def calibration(shards: ShardSet, config: CalibrateConfig) -> Calibration:
    """The thresholds that `config` asks for, and everything they rest on."""
    for name in config.streams:
        if name not in shards.dims:
            raise ConfigError(
                f"streams: the shard set has no stream {name}, it has {sorted(shards.dims)}"
            )
    if len(shards) < 2:
        raise DataError(f"{shards.name} has {len(shards)} clip, calibration needs two")
    reference = silent_reference(config, shards.dims)
    truth = _dense(shards, config) if config.target == "labels" else None
    sample = draw(shards, config)
    silence = (AUDIO,) if reference is not None or config.silent_energy else ()
    used = {name: sample.streams[name] for name in dict.fromkeys((*config.streams, *silence))}
    evidence = measure(used, sample.lengths, config, reference)
    found = across(sample, config.streams)
    inside = within({name: evidence.cosines[name] for name in config.streams}, sample.lengths)
    f1 = None
    if truth is None:
        thresholds = _chosen(found, evidence, config)
    else:
        thresholds, f1 = _best_f1(found, inside, evidence, truth[sample.clips], config)
    profile = Profile.of(label(evidence, thresholds, config)[0])
    return Calibration(
        thresholds,
        inside,
        found.sketches,
        profile,
        _rates(thresholds, inside, found, evidence, config),
        sample,
        f1,
    )


def _at_rate(sketches: dict[str, Sketch], rate: float) -> Thresholds:
    return {name: sketch.threshold(rate) for name, sketch in sketches.items()}


def _chosen(found: Across, evidence: Evidence, config: CalibrateConfig) -> Thresholds:
    """For a false-link rate, or the rate whose profile of components comes nearest to the goal."""
    sketches = found.sketches
    if config.target == "false-links":
        return _at_rate(sketches, config.false_link_rate)
    key, goal = {
        "components": ("components_per_clip", config.components_per_clip),
        "one-component": ("one_component_share", config.one_component_fraction),
    }[config.target]

    def distance(thresholds: Thresholds) -> float:
        figures = Profile.of(label(evidence, thresholds, config)[0]).figures
        return abs(figures[key] - goal)

    best = min(_RATES, key=lambda rate: distance(_at_rate(sketches, rate)))
    step = _RATES[0] / _RATES[1]
    finer = np.geomspace(min(best * step, 1), best / step, 41)
    return _at_rate(sketches, min(finer, key=lambda rate: distance(_at_rate(sketches, rate))))


def _dense(shards: ShardSet, config: CalibrateConfig) -> NDArray[np.bool_]:
    """What is heard or seen in each snippet of the shard set's clips, `[N, T, C]`."""
    if not config.annotations:
        raise ConfigError("annotations must be given: target=labels needs dense labels")
    found = read_annotations(config.annotations, config.split, snippets=shards.snippets)
    assert found.events is not None
    rows = align(
        shards.ids,
        found.ids,
        place=f"split={config.split} of {config.annotations}",
        what=f"clips of {shards.name}",
        remedy="Calibrate on the shard set of that split",
    )
    return np.asarray(found.events[rows].any(2))


def _best_f1(
    found: Across,
    inside: dict[str, Sketch],
    evidence: Evidence,
    events: NDArray[np.bool_],
    config: CalibrateConfig,
) -> tuple[Thresholds, float]:
    """Thresholds whose components agree best with dense labels, and their F1 over pairs.

    Two snippets of a clip belong together when they share an event, heard or seen; a pair of which
    one has no event tells nothing. Each stream's threshold is improved in turn.
    """
    upper = np.triu(np.ones((events.shape[1],) * 2, bool), 1)
    busy = events.any(2) & (np.arange(events.shape[1]) < evidence.lengths[:, None])
    judged = upper & busy[:, :, None] & busy[:, None, :]
    counts = events.astype(np.float32)
    together = np.asarray((counts @ counts.transpose(0, 2, 1) > 0) & judged)

    def score(thresholds: Thresholds) -> float:
        ids = label(evidence, thresholds, config)[0]
        same = (ids[:, :, None] == ids[:, None, :]) & judged
        return float(2 * (same & together).sum() / max(same.sum() + together.sum(), 1))

    sketches = found.sketches
    best = max((_at_rate(sketches, rate) for rate in _RATES), key=score)
    for _ in range(3):
        before = dict(best)
        for name in config.streams:
            tries = {inside[name].quantile(q) for q in np.linspace(0, 1, 41)} | {1.0, best[name]}
            one = [{**best, name: limit} for limit in sorted(tries)]
            best = max(one, key=score)
        if best == before:
            break
    return best, score(best)


def _rates(
    thresholds: Thresholds,
    inside: dict[str, Sketch],
    found: Across,
    evidence: Evidence,
    config: CalibrateConfig,
) -> dict[str, dict[str, float]]:
    sketches = found.sketches
    rates = {
        name: {"within": inside[name].share(limit), "across": sketches[name].share(limit)}
        for name, limit in thresholds.items()
    }
    ids, counts = label(evidence, thresholds, config)
    pairs = max(Profile.of(ids).pairs, 1)
    rates[config.rule] = {
        "within": counts["joined"] / pairs,
        "across": found.joint(thresholds, config.rule),
    }
    return rates


def _check_informative(profile: Profile, config: CalibrateConfig) -> None:
    """Raise `ConfigError` for components that pretraining could learn nothing from."""
    clips = max(int(profile.per_clip.sum()), 1)
    if profile.sizes[0] >= _UNINFORMATIVE * profile.sizes.sum() and profile.pairs:
        raise ConfigError(
            f"{profile.sizes[0] / profile.sizes.sum():.1%} of components are one snippet: nothing "
            "would be positive",
            remedy="Raise false_link_rate, or use rule=or",
        )
    alone = profile.per_clip[0] / clips
    if alone >= _UNINFORMATIVE and not config.other_clips:
        raise ConfigError(
            f"{alone:.1%} of clips are one component and no negatives come from elsewhere: nothing "
            "would be negative",
            remedy="Lower false_link_rate, use rule=and or grouping=average-link, or take "
            "negatives from other clips (other_clips=true, objective.other_clips=1)",
        )
    if alone >= _UNINFORMATIVE:
        print(f"note: {alone:.1%} of clips are one component: only other clips are negative")


def _described(found: Calibration, shards: ShardSet, config: CalibrateConfig) -> dict[str, Any]:
    """What `thresholds.yaml` says."""
    pairs = {
        "within": {name: sketch.total for name, sketch in found.within.items()},
        "across": {name: sketch.total for name, sketch in found.across.items()},
    }
    sample = found.sample
    return {
        "thresholds": found.thresholds,
        "extractor": shards.extractor,
        "rates": found.rates,
        "components": found.profile.figures,
        **({} if found.f1 is None else {"pair_f1": found.f1}),
        "sample": {
            "clips": len(sample.clips),
            "drawn": sample.drawn,
            "unreadable": sample.unreadable,
            "near_duplicates": sample.near_duplicates,
            "pairs": pairs,
            "seed": config.seed,
        },
        "joining": {field.name: getattr(config, field.name) for field in fields(LinkConfig)},
        "manifest": shards.digest,
        "config": {k: v for k, v in asdict(config).items() if k != "tracking"},
    }


def _report(
    run: Run, out: Path, found: Calibration, shards: ShardSet, config: CalibrateConfig
) -> None:
    edges = np.append(EDGES[::100], 1.01)
    histograms = {
        name: (edges, _coarse(found.within[name]), _coarse(found.across[name]))
        for name in found.thresholds
    }
    title = f"{Path(shards.name).name}: {shards.extractor or 'unnamed extractor'}"
    figures = [
        similarity_figure(out.with_suffix(".png"), histograms, found.thresholds, title),
        component_figure(
            out.with_name(f"{out.stem}.components.png"),
            found.profile.sizes,
            found.profile.per_clip,
            f"{title}, {len(found.sample.clips)} sampled clips",
        ),
    ]
    for figure in figures:
        run.figure(figure)
    for name, rates in found.rates.items():
        run.log(0, **{f"{name}/{key}": rate for key, rate in rates.items()})
    run.log(0, **{f"{name}/threshold": limit for name, limit in found.thresholds.items()})
    run.log(0, **found.profile.figures, **({} if found.f1 is None else {"pair_f1": found.f1}))
    for line in _lines(found, config):
        print(line)
    print(*figures, sep="\n")


def _coarse(sketch: Sketch) -> NDArray[np.int64]:
    """Counts in bins of 0.01."""
    return np.add.reduceat(sketch.counts, np.arange(0, len(sketch.counts), 100))


def _lines(found: Calibration, config: CalibrateConfig) -> list[str]:
    """The outcome for a reader."""
    lines = []
    for name, rates in found.rates.items():
        limit = found.thresholds.get(name)
        what = f"{name}: threshold {limit:.4f}," if limit is not None else f"rule {name}:"
        lines.append(
            f"{what} reached by {rates['across']:.2%} of pairs across clips and "
            f"{rates['within']:.2%} within a clip"
        )
    figures = found.profile.figures
    lines.append(
        f"{figures['components_per_clip']:.2f} components a clip, "
        f"{figures['one_component_share']:.1%} of clips are one component, "
        f"{figures['positive_pair_share']:.1%} of pairs are positive"
    )
    if found.f1 is not None:
        lines.append(f"F1 of pairs against the dense labels: {found.f1:.3f}")
    for name in found.thresholds:
        if config.target == "false-links" and found.rates[name]["across"] > config.false_link_rate:
            lines.append(f"note: more than {config.false_link_rate:.2%} of {name} pairs are equal")
    return lines
