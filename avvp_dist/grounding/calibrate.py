"""Similarity thresholds from the corpus itself, by exact faiss search over a sample.

The paper names the thresholds a_t and v_t but not their values, and a value belongs to one
extractor. Here a threshold is the similarity that only a chosen share of snippet pairs from
different clips reaches: the rate of false links.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from tqdm import tqdm

from avvp_dist.commit import staged
from avvp_dist.config import CalibrateConfig
from avvp_dist.data.shards import ShardSet
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.evaluation.figures import similarity_figure
from avvp_dist.grounding.components import similarity
from avvp_dist.tracking.run import Run, stage_run

EDGES = np.linspace(-1, 1, 201)
"""Bin edges of the similarity histograms."""


@dataclass(frozen=True)
class Calibration:
    """One stream's threshold and what it was read from."""

    threshold: float
    within: NDArray[np.float32]
    """Similarities of two snippets of one clip."""
    across: NDArray[np.float32]
    """Similarities of two snippets of different clips."""

    @property
    def rates(self) -> dict[str, float]:
        """Share of pairs at or above the threshold, within a clip and across clips."""
        return {
            "within": float((self.within >= self.threshold).mean()),
            "across": float((self.across >= self.threshold).mean()),
        }


def calibrate(config: CalibrateConfig) -> Path:
    """Sample the shard set, choose a threshold per stream, write `thresholds.yaml` and a figure.

    Raises:
        ConfigError: for a stream the shard set lacks.
        DataError: for a shard set of fewer than two clips.
    """
    shards = ShardSet(config.shards, config)
    out = Path(config.out or shards.folder / "thresholds.yaml")
    inputs = {shards.name: shards.digest}
    with stage_run("calibrate", out.parent, config, {"manifest": shards.digest}, inputs) as run:
        found = calibrations(shards, config)
        chosen: dict[str, Any] = {
            "thresholds": {name: c.threshold for name, c in found.items()},
            "rates": {name: c.rates for name, c in found.items()},
            "extractor": shards.extractor,
            "manifest": shards.digest,
            "config": {k: v for k, v in asdict(config).items() if k != "tracking"},
        }
        with staged(out) as temporary:
            temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(chosen)))
        _report(run, out, found, shards)
    return out


def calibrations(shards: ShardSet, config: CalibrateConfig) -> dict[str, Calibration]:
    """Threshold and sampled similarities of each of `config.streams`."""
    for name in config.streams:
        if name not in shards.dims:
            raise ConfigError(
                f"streams: the shard set has no stream {name}, it has {sorted(shards.dims)}"
            )
    if len(shards) < 2:
        raise DataError(f"{shards.name} has {len(shards)} clip, calibration needs two")
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(shards))
    queries = np.sort(order[: config.queries])
    database = np.sort(order[-config.database :])
    asked_at, known_at = (
        (rng.random(len(part)) * shards.lengths[part]).astype(int) for part in (queries, database)
    )
    found = {}
    for name in tqdm(config.streams, desc="calibrating", unit=" streams"):
        asked, known = shards.gather(queries)[name], shards.gather(database)[name]
        across = _across(
            _snippets(asked, asked_at),
            _snippets(known, known_at),
            queries[:, None] == database,
        )
        within = _within(asked, shards.lengths[queries])
        limit = float(np.quantile(across, 1 - config.false_link_rate))
        # Rounding must not lift a threshold above 1: identical snippets have to reach it.
        found[name] = Calibration(min(round(limit, 4), 1.0), within, across)
    return found


def _snippets(features: NDArray[np.float16], rows: NDArray[np.integer]) -> NDArray[np.float32]:
    """One snippet of each clip, `[N, T, D]` to unit vectors `[N, D]`."""
    chosen = features[np.arange(len(rows)), rows].astype(np.float32)
    faiss.normalize_L2(chosen)
    return chosen


def _across(
    queries: NDArray[np.float32], database: NDArray[np.float32], same: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Cosine of every query with every database snippet of another clip, flat."""
    index: faiss.Index = faiss.IndexFlatIP(database.shape[1])
    if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(database)
    found, neighbours = index.search(queries, len(database))
    own = np.take_along_axis(same, neighbours, 1)
    return np.clip(found[~own], -1, 1)


def _within(features: NDArray[np.float16], lengths: NDArray[np.integer]) -> NDArray[np.float32]:
    """Cosine of every two snippets of one clip, flat."""
    first, second = np.triu_indices(features.shape[1], 1)
    cosine = similarity(features)[:, first, second]
    return cosine[second < lengths[:, None]]


def _report(run: Run, out: Path, found: dict[str, Calibration], shards: ShardSet) -> None:
    histograms = {
        name: (EDGES, np.histogram(c.within, EDGES)[0], np.histogram(c.across, EDGES)[0])
        for name, c in found.items()
    }
    limits = {name: c.threshold for name, c in found.items()}
    title = f"{Path(shards.name).name}: {shards.extractor or 'unnamed extractor'}"
    figure = similarity_figure(out.with_suffix(".png"), histograms, limits, title)
    run.figure(figure)
    run.artifact(out)
    for name, c in found.items():
        run.log(0, **{f"{name}/threshold": c.threshold})
        run.log(0, **{f"{name}/{key}": rate for key, rate in c.rates.items()})
        print(
            f"{name}: threshold {c.threshold:.4f}, reached by {c.rates['across']:.2%} of pairs "
            f"across clips and {c.rates['within']:.2%} within a clip"
        )
    print(f"{out}\n{figure}")
