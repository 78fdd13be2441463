"""The grounding job: one idempotent Ray task per shard.

A task writes `SHARD.npy` (uint8 `[clips, T]`) and then `SHARD.json` with its counts and the hash
of everything it was made from. A shard whose JSON carries the right hash is done, so a job that
was killed goes on with what is missing.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from tqdm import tqdm

from avvp_dist import __version__
from avvp_dist.cluster import map_tasks
from avvp_dist.commit import digest, sha256, staged, write_json
from avvp_dist.config import GroundConfig, Reading
from avvp_dist.data.schema import AUDIO, PADDING
from avvp_dist.data.shards import ShardSet
from avvp_dist.errors import ClusterError, ConfigError
from avvp_dist.evaluation.figures import component_figure
from avvp_dist.grounding.components import components, link, silent_snippets
from avvp_dist.grounding.version import GROUNDINGS, SUMMARY
from avvp_dist.tracking.run import Run, stage_run

_CLIPS_AT_ONCE = 1024


def ground(config: GroundConfig) -> Path:
    """Label every clip of a shard set; returns the grounding's folder.

    Raises:
        ConfigError: for thresholds that are missing or do not fit the shard set.
        DataError: for a damaged shard.
        ClusterError: if shards are missing after all retries.
    """
    shards = ShardSet(config.shards, config)
    plan = _plan(config, shards)
    folder = Path(config.out or shards.folder / GROUNDINGS) / plan["version"]
    tags = {"manifest": shards.digest, "grounding": plan["version"]}
    inputs = {shards.name: shards.digest}
    with stage_run("ground", folder, config, tags, inputs) as run:
        missing = [n for n in range(len(shards.shards)) if not _done(folder, shards, n, plan)]
        if missing:
            # Until all are done again, nothing may vouch for a mixture of old and new labels.
            (folder / SUMMARY).unlink(missing_ok=True)
            _run_tasks(config, shards, folder, plan, missing)
        left = [n for n in range(len(shards.shards)) if not _done(folder, shards, n, plan)]
        if left:
            raise ClusterError(
                f"{len(left)} of {len(shards.shards)} shards are not grounded, first "
                f"{shards.name}/{shards.shards[left[0]].name}",
                remedy="Run the same command again: it goes on with these",
            )
        _summarise(run, shards, folder, plan)
    return folder


def ground_shard(
    folder: str, shard_set: str, reading: Reading, number: int, plan: dict[str, Any]
) -> int:
    """Label one shard and write its two files; returns its number of clips."""
    shards = ShardSet(shard_set, reading)
    shard, start = shards.shards[number], shards.starts[number]
    reference = np.array(plan["silent_audio"], np.float32)
    ids, counts = [], {"links": 0.0, "silent": 0}
    for begin in range(0, shard.clips, _CLIPS_AT_ONCE):
        clips = start + np.arange(begin, min(begin + _CLIPS_AT_ONCE, shard.clips))
        streams = shards.gather(clips)
        silent = None
        if reference.size:
            silent = silent_snippets(streams[AUDIO], reference, plan["silent_similarity"])
            counts["silent"] += int(silent.sum())
        edges = link(streams, plan["thresholds"], plan["rule"], silent)
        counts["links"] += float(edges.mean((1, 2)).sum())
        ids.append(components(edges, shards.lengths[clips]))
    path = Path(folder) / f"{shard.stem}.npy"
    with staged(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(ids), allow_pickle=False)
    write_json(
        path.with_suffix(".json"),
        {"made_from": _made_from(shards, number, plan), "sha256": sha256(path), **counts},
    )
    return shard.clips


def _plan(config: GroundConfig, shards: ShardSet) -> dict[str, Any]:
    """Everything the labels depend on, as plain data."""
    path = Path(config.thresholds or shards.folder / "thresholds.yaml")
    if not path.is_file():
        raise ConfigError(
            f"thresholds: {path} does not exist", remedy="Make it with tools/calibrate.py"
        )
    chosen: Any = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(chosen, dict) or not {"extractor", "thresholds"} <= chosen.keys():
        raise ConfigError(f"thresholds: {path} is no file of tools/calibrate.py")
    if chosen["extractor"] != shards.extractor:
        raise ConfigError(
            f"thresholds: {path} belongs to the extractor {chosen['extractor']!r}, the shard "
            f"set to {shards.extractor!r}",
            remedy="Calibrate on this shard set",
        )
    for name in chosen["thresholds"]:
        if name not in shards.dims:
            raise ConfigError(f"thresholds: {path}: the shard set has no stream {name}")
    silent = _silent(config.silent_audio)
    plan = {
        "code": __version__,
        "rule": config.rule,
        "thresholds": chosen["thresholds"],
        "silent_audio": silent,
        "silent_similarity": config.silent_similarity,
    }
    if silent and len(silent) != shards.dims[AUDIO]:
        raise ConfigError(
            f"silent_audio: {config.silent_audio} has {len(silent)} values, "
            f"stream {AUDIO} has {shards.dims[AUDIO]}"
        )
    limits = "-".join(f"{name}{limit:.3f}" for name, limit in sorted(plan["thresholds"].items()))
    plan["version"] = config.version or f"{config.rule}-{limits}-{digest(plan)[:6]}"
    return plan


def _silent(path: str) -> list[float]:
    """The silent audio vector, the first row of a matrix; empty without a path."""
    if not path:
        return []
    try:
        first: list[float] = np.atleast_2d(np.load(path, allow_pickle=False))[0].tolist()
    except (OSError, ValueError) as error:
        raise ConfigError(f"silent_audio: {path} cannot be read: {error}") from None
    return first


def _made_from(shards: ShardSet, number: int, plan: dict[str, Any]) -> str:
    return digest([shards.shards[number].sha256, plan])


def _done(folder: Path, shards: ShardSet, number: int, plan: dict[str, Any]) -> bool:
    path = folder / f"{shards.shards[number].stem}.json"
    if not path.is_file() or not path.with_suffix(".npy").is_file():
        return False
    return bool(json.loads(path.read_text())["made_from"] == _made_from(shards, number, plan))


def _run_tasks(
    config: GroundConfig, shards: ShardSet, folder: Path, plan: dict[str, Any], missing: list[int]
) -> None:
    reading = Reading(**{field.name: getattr(config, field.name) for field in fields(Reading)})
    calls = [(str(folder.absolute()), shards.name, reading, number, plan) for number in missing]
    clips = sum(shards.shards[number].clips for number in missing)
    with tqdm(total=clips, desc=f"grounding {len(missing)} shards", unit=" clips") as bar:
        for count in map_tasks(ground_shard, calls, config.workers, "a grounding task"):
            bar.update(count)


def _summarise(run: Run, shards: ShardSet, folder: Path, plan: dict[str, Any]) -> None:
    ids = np.concatenate([np.load(folder / f"{s.stem}.npy") for s in shards.shards])
    counts = [json.loads((folder / f"{s.stem}.json").read_text()) for s in shards.shards]
    sizes, per_clip = np.zeros((2, shards.snippets), np.int64)
    same = pairs = components = 0
    for start in range(0, len(ids), _CLIPS_AT_ONCE):  # [N, T, T] of all would not fit
        some = ids[start : start + _CLIPS_AT_ONCE]
        members = (some[:, None, :] == np.arange(shards.snippets)[None, :, None]).sum(2)
        counted = (members > 0).sum(1)
        sizes += np.bincount(members[members > 0], minlength=shards.snippets + 1)[1:]
        per_clip += np.bincount(counted, minlength=shards.snippets + 1)[1:]
        same += int((members**2).sum())
        pairs += int(((some != PADDING).sum(1) ** 2).sum())
        components += int(counted.sum())
    figures = {
        "clips": len(ids),
        "components_per_clip": components / len(ids),
        "one_component_share": float(per_clip[0] / len(ids)),
        "positive_pair_share": same / pairs,
        "link_share": sum(c["links"] for c in counts) / len(ids),
        "silent_snippets": sum(c["silent"] for c in counts),
    }
    summary = {"version": plan["version"], "manifest": shards.digest, "plan": plan, **figures}
    write_json(folder / SUMMARY, summary)
    title = f"{Path(shards.name).name}, grounding {plan['version']}"
    figure = component_figure(folder / "components.png", sizes, per_clip, title)
    run.figure(figure)
    run.artifact(folder / SUMMARY)
    run.log(0, **figures)
    print(
        f"{figures['components_per_clip']:.2f} components a clip, "
        f"{figures['one_component_share']:.1%} of clips are one component, "
        f"{figures['positive_pair_share']:.1%} of pairs are positive\n{folder / SUMMARY}\n{figure}"
    )
