"""The calibration stage: similarity thresholds chosen on the corpus itself.

The paper uses thresholds a_t and v_t without giving their values, and a value fits one feature
extractor. Here they are chosen for an effect: for a rate of false links across clips, for a profile
of components, or for agreement with dense labels.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.config import CalibrateConfig
from avvp_dist.grounding.calibration import Calibration, calibration, check_informative
from avvp_dist.grounding.histogram import EDGES, CosineHistogram
from avvp_dist.grounding.labels import link_config_of
from avvp_dist.grounding.thresholds import THRESHOLDS, write_thresholds
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.run import Run, stage_run

_BINS_PER_BAR = 100
"""Histogram bins in one bar of the figure, which is 0.01 wide."""


def calibrate(config: CalibrateConfig) -> Path:
    """Choose a threshold per stream; write `thresholds.yaml` and two figures.

    Returns:
        The thresholds file.

    Raises:
        ConfigError: for a stream that the shard set lacks, and for thresholds whose components
            pretraining could learn nothing from. Then the figures are written nevertheless.
        DataError: if fewer than two clips can be compared, or dense labels are missing.
    """
    shards = ShardSet(config.shards, config)
    out = Path(config.out or shards.folder / THRESHOLDS)
    records = out.with_name(f"{out.stem}.run")
    inputs = {shards.name: shards.digest}
    with stage_run("calibrate", records, config, {"manifest": shards.digest}, inputs) as run:
        outcome = calibration(shards, config)
        _report(run, out, outcome, shards, config)
        check_informative(outcome.profile, config)
        write_thresholds(out, _content(outcome, shards, config))
        run.artifact(out)
        print(out)
    return out


def _content(outcome: Calibration, shards: ShardSet, config: CalibrateConfig) -> dict[str, object]:
    """Content of `thresholds.yaml`: the thresholds, their effect, and what they were made from."""
    sample = outcome.sample
    return {
        "thresholds": outcome.thresholds,
        "extractor": shards.extractor,
        "rates": outcome.rates,
        "components": outcome.profile.figures,
        **({} if outcome.f1 is None else {"pair_f1": outcome.f1}),
        "sample": {
            "clips": len(sample.clips),
            "drawn": sample.sampled,
            "unreadable": sample.unreadable,
            "near_duplicates": sample.near_duplicates,
            "pairs": {
                "within": {name: histogram.total for name, histogram in outcome.within.items()},
                "across": {name: histogram.total for name, histogram in outcome.across.items()},
            },
            "seed": config.seed,
        },
        "joining": asdict(link_config_of(config)),
        "manifest": shards.digest,
        "config": {key: value for key, value in asdict(config).items() if key != "tracking"},
    }


def _report(
    run: Run, out: Path, outcome: Calibration, shards: ShardSet, config: CalibrateConfig
) -> None:
    """Log the outcome to `run` with its figures, and print it."""
    figures = _draw(out, outcome, shards) if run.draws_figures else []
    for figure in figures:
        run.figure(figure)
    for name, rates in outcome.rates.items():
        run.log(0, **{f"{name}/{key}": rate for key, rate in rates.items()})
    run.log(0, **{f"{name}/threshold": limit for name, limit in outcome.thresholds.items()})
    run.log(0, **outcome.profile.figures, **({} if outcome.f1 is None else {"pair_f1": outcome.f1}))
    print(*_lines(outcome, config), *figures, sep="\n")


def _draw(out: Path, outcome: Calibration, shards: ShardSet) -> list[Path]:
    """Draw the similarities with their thresholds, and the components."""
    # Matplotlib takes a second to import.
    from avvp_dist.evaluation.grounding_figures import component_figure, similarity_figure

    edges = np.append(EDGES[::_BINS_PER_BAR], 1.01)
    histograms = {
        name: (edges, _coarse(outcome.within[name]), _coarse(outcome.across[name]))
        for name in outcome.thresholds
    }
    title = f"{Path(shards.name).name}: {shards.extractor or 'unnamed extractor'}"
    return [
        similarity_figure(out.with_suffix(".png"), histograms, outcome.thresholds, title),
        component_figure(
            out.with_name(f"{out.stem}.components.png"),
            outcome.profile.sizes,
            outcome.profile.per_clip,
            f"{title}, {len(outcome.sample.clips)} sampled clips",
        ),
    ]


def _coarse(histogram: CosineHistogram) -> NDArray[np.int64]:
    """Counts in bins of 0.01."""
    starts = np.arange(0, len(histogram.counts), _BINS_PER_BAR)
    return np.add.reduceat(histogram.counts, starts)


def _lines(outcome: Calibration, config: CalibrateConfig) -> list[str]:
    """The outcome in words."""
    lines = []
    for name, rates in outcome.rates.items():
        limit = outcome.thresholds.get(name)
        what = f"{name}: threshold {limit:.4f}," if limit is not None else f"rule {name}:"
        lines.append(
            f"{what} reached by {rates['across']:.2%} of pairs across clips and "
            f"{rates['within']:.2%} within a clip"
        )
    lines.append(outcome.profile.described())
    if outcome.f1 is not None:
        lines.append(f"F1 of pairs against the dense labels: {outcome.f1:.3f}")
    for name in outcome.thresholds:
        rate = outcome.rates[name]["across"]
        if config.target == "false-links" and rate > config.false_link_rate:
            lines.append(f"note: more than {config.false_link_rate:.2%} of {name} pairs are equal")
    return lines
