"""The grounding job: one idempotent Ray task per shard.

A task writes `SHARD.npy` (uint8 `[clips, T]`) and then `SHARD.json` with its counts and the hash
of everything it was made from. A shard whose JSON carries the right hash is done, so a job that
was killed goes on with what is missing.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from avvp_dist import __version__
from avvp_dist.commit import digest, sha256, staged, write_json
from avvp_dist.config import GroundConfig, LinkConfig, ReadConfig
from avvp_dist.errors import AvvpError, ClusterError, ConfigError, DataError
from avvp_dist.evaluation.grounding_figures import component_figure
from avvp_dist.grounding.labels import Profile, label, measure, silent_reference
from avvp_dist.grounding.version import GROUNDINGS, SUMMARY
from avvp_dist.runtime.progress import Progress
from avvp_dist.runtime.ray_tasks import map_tasks
from avvp_dist.shards.schema import AUDIO, PADDING
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad, raise_on_bad
from avvp_dist.shards.worker import open_once, read_config_of
from avvp_dist.tracking.run import Run, stage_run

_CLIPS_AT_ONCE = 1024
_NAMED = 5

Plan = dict[str, Any]
"""Everything the labels depend on beside the shards, as plain data."""
Entry = dict[str, Any]
"""What a shard's JSON holds."""


def ground(config: GroundConfig) -> Path:
    """Label every clip of a shard set; returns the grounding's folder.

    Raises:
        ConfigError: for thresholds that are missing or do not fit the shard set.
        DataError: if more than `config.max_bad_fraction` of the clips are unreadable.
        ClusterError: if shards are missing after all retries.
    """
    shards = ShardSet(
        config.shards, config, ignore_bad if config.max_bad_fraction else raise_on_bad
    )
    plan = _plan(config, shards)
    folder = Path(config.out or shards.folder / GROUNDINGS) / plan["version"]
    tags = {"manifest": shards.digest, "grounding": plan["version"]}
    inputs = {shards.name: shards.digest}
    with stage_run("ground", folder, config, tags, inputs) as run:
        entries = {n: _entry(folder, shards, n, plan) for n in range(len(shards.shards))}
        # Where clips could not be read, they may be now.
        missing = [n for n, entry in entries.items() if entry is None or entry["unreadable"]]
        if missing:
            # Until all are done again, nothing may vouch for a mixture of old and new labels.
            (folder / SUMMARY).unlink(missing_ok=True)
            entries.update(_run_tasks(config, shards, folder, plan, missing))
        done = [entry for _, entry in sorted(entries.items()) if entry is not None]
        _check_readable(config, done, len(shards))
        _summarise(run, shards, folder, plan, done)
    return folder


def ground_shard(
    folder: str, shard_set: str, manifest: str, reading: ReadConfig, number: int, plan: Plan
) -> tuple[int, Entry]:
    """Label one shard and write its two files; returns its number and what its JSON holds.

    Clips that cannot be read are counted and have `PADDING` for all their ids. `manifest` is
    the shard set's digest.
    """
    shards = open_once(shard_set, manifest, reading)
    joining, reference = LinkConfig(**plan["joining"]), np.array(plan["silent"], np.float32)
    used = {*plan["thresholds"], *((AUDIO,) if plan["silent"] or joining.silent_energy else ())}
    faults: list[str] = []
    counts: Counter[str] = Counter()
    parts: list[NDArray[np.uint8]] = []
    clips = np.arange(*shards.starts[number : number + 2])
    for begin in range(0, len(clips), _CLIPS_AT_ONCE):
        some = clips[begin : begin + _CLIPS_AT_ONCE]
        streams, good = shards.read(some, lambda _, error: faults.append(str(error)))
        ids = np.full((len(some), shards.snippets), PADDING, np.uint8)
        if good.any():
            if not good.all():
                streams = {name: array[good] for name, array in streams.items()}
            evidence = measure(
                {name: streams[name] for name in sorted(used)},
                shards.lengths[some[good]],
                joining,
                reference if len(reference) else None,
            )
            ids[good], joined = label(evidence, plan["thresholds"], joining)
            counts.update(evidence.counts)
            counts.update(joined)
        counts["unreadable"] += int((~good).sum())
        parts.append(ids)
    shards.release([number])
    labels = np.concatenate(parts) if parts else np.zeros((0, shards.snippets), np.uint8)
    path = Path(folder) / f"{shards.shards[number].stem}.npy"
    with staged(path) as temporary, temporary.open("wb") as file:
        np.save(file, labels, allow_pickle=False)
    entry = {
        "made_from": _made_from(shards, number, plan),
        "sha256": sha256(path),
        **dict(sorted(counts.items())),
        "unreadable": counts["unreadable"],
        "faults": faults[:_NAMED],
        "profile": Profile.of(labels).plain(),
    }
    write_json(path.with_suffix(".json"), entry)
    return number, entry


def _plan(config: GroundConfig, shards: ShardSet) -> Plan:
    path = Path(config.thresholds or shards.folder / "thresholds.yaml")
    if not path.is_file():
        raise ConfigError(
            f"thresholds: {path} does not exist", remedy="Make it with avvp calibrate"
        )
    chosen: Any = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(chosen, dict) or not {"extractor", "thresholds"} <= chosen.keys():
        raise ConfigError(f"thresholds: {path} is no file of avvp calibrate")
    limits = chosen["thresholds"]
    numbers = limits.values() if isinstance(limits, dict) else [None]
    if not limits or not all(type(limit) in (int, float) for limit in numbers):
        raise ConfigError(f"thresholds: {path} has not a number for each stream: {limits}")
    if chosen["extractor"] != shards.extractor:
        raise ConfigError(
            f"thresholds: {path} belongs to the extractor {chosen['extractor']!r}, the shard "
            f"set to {shards.extractor!r}",
            remedy="Calibrate on this shard set",
        )
    for name in limits:
        if name not in shards.dims:
            raise ConfigError(f"thresholds: {path}: the shard set has no stream {name}")
    joining = {field.name: getattr(config, field.name) for field in fields(LinkConfig)}
    for key, value in chosen.get("joining", {}).items():
        if joining.get(key, value) != value:
            print(f"note: {path} was calibrated for {key}={value}, this is {key}={joining[key]}")
    reference = silent_reference(config, shards.dims)
    plan: Plan = {
        "code": __version__,
        "thresholds": chosen["thresholds"],
        "joining": {**joining, "silent_audio": ""},
        "silent": [] if reference is None else reference.tolist(),
    }
    plan["version"] = config.version or _version(plan)
    return plan


def _version(plan: Plan) -> str:
    rule, grouping = plan["joining"]["rule"], plan["joining"]["grouping"]
    if grouping in ("clip", "snippet"):
        return f"{grouping}-{digest(plan)[:6]}"
    limits = "-".join(f"{name}{limit:.3f}" for name, limit in sorted(plan["thresholds"].items()))
    kind = rule if grouping == "components" else f"{rule}-{grouping}"
    return f"{kind}-{limits}-{digest(plan)[:6]}"


def _made_from(shards: ShardSet, number: int, plan: Plan) -> str:
    return digest([shards.shards[number].sha256, plan])


def _entry(folder: Path, shards: ShardSet, number: int, plan: Plan) -> Entry | None:
    """The JSON of a shard that is done."""
    path = folder / f"{shards.shards[number].stem}.json"
    try:
        entry: Entry = json.loads(path.read_text())
        size = path.with_suffix(".npy").stat().st_size
    except (OSError, ValueError):
        return None
    whole = size >= shards.shards[number].clips * shards.snippets
    return entry if whole and entry.get("made_from") == _made_from(shards, number, plan) else None


def _run_tasks(
    config: GroundConfig, shards: ShardSet, folder: Path, plan: Plan, missing: list[int]
) -> dict[int, Entry]:
    place = (str(folder.absolute()), shards.name, shards.digest, read_config_of(config))
    calls = [(*place, number, plan) for number in missing]
    clips = sum(shards.shards[number].clips for number in missing)
    done: dict[int, Entry] = {}
    failed: list[AvvpError] = []
    with Progress("grounding", len(missing), clips) as progress:
        tasks = map_tasks(ground_shard, calls, config.workers, "a grounding task", keep_going=True)
        for outcome in tasks:
            if isinstance(outcome, AvvpError):
                failed.append(outcome)
                progress.update(0, errors=1)
            else:
                number, entry = outcome
                done[number] = entry
                progress.update(shards.shards[number].clips, errors=entry["unreadable"])
    if failed:
        kind = type(failed[0]) if len({type(error) for error in failed}) == 1 else ClusterError
        names = [shards.shards[number].name for number in missing if number not in done]
        named = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        raise kind(
            f"{len(failed)} of {len(missing)} shards are not grounded ({named}): {failed[0]}",
            remedy="The same command goes on with these; what is done is kept",
        )
    return done


def _check_readable(config: GroundConfig, entries: list[Entry], clips: int) -> None:
    unreadable = sum(entry["unreadable"] for entry in entries)
    if unreadable > config.max_bad_fraction * clips + 1e-6:
        faults = [fault for entry in entries for fault in entry["faults"]]
        raise DataError(
            f"{unreadable} of {clips} clips cannot be read: {'; '.join(faults[:_NAMED])}",
            remedy="Mend the shards, or raise max_bad_fraction to leave these clips unlabelled; "
            "the same command goes on with them",
        )


def _summarise(run: Run, shards: ShardSet, folder: Path, plan: Plan, entries: list[Entry]) -> None:
    profile = sum(
        (Profile.parse(entry["profile"]) for entry in entries[1:]),
        Profile.parse(entries[0]["profile"]),
    )
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update({key: value for key, value in entry.items() if isinstance(value, int)})
    figures = {
        **profile.figures,
        **{f"{key}_pair_share": counts[key] / max(profile.pairs, 1) for key in _joined(counts)},
    }
    files = [
        {"name": f"{shard.stem}.npy", "clips": shard.clips, "sha256": entry["sha256"]}
        for shard, entry in zip(shards.shards, entries, strict=True)
    ]
    summary = {
        "version": plan["version"],
        "manifest": shards.content,
        "plan": plan,
        **figures,
        "counts": dict(sorted(counts.items())),
        "profile": profile.plain(),
        "shards": files,
    }
    write_json(folder / SUMMARY, summary)
    title = f"{Path(shards.name).name}, grounding {plan['version']}"
    figure = component_figure(
        folder / "components.png", profile.sizes, profile.per_clip, title, _shares(figures, counts)
    )
    run.figure(figure)
    run.artifact(folder / SUMMARY)
    run.log(0, **figures, **counts)
    links = ", ".join(f"{key} {figures[f'{key}_pair_share']:.1%}" for key in _joined(counts))
    odd = ", ".join(f"{n:,} {key}" for key, n in counts.items() if n and key in _odd(counts))
    print(
        f"{figures['components_per_clip']:.2f} components a clip, "
        f"{figures['one_component_share']:.1%} of clips are one component, "
        f"{figures['positive_pair_share']:.1%} of pairs are positive ({links})"
        + (f"\n{odd}" if odd else "")
        + f"\n{folder / SUMMARY}\n{figure}"
    )


def _joined(counts: Counter[str]) -> list[str]:
    return sorted(key for key in counts if key.startswith("joined"))


def _odd(counts: Counter[str]) -> list[str]:
    """What is counted because it is not as it should be."""
    return [
        key for key in counts if key not in ("clips", "snippets") and key not in _joined(counts)
    ]


def _shares(figures: dict[str, float], counts: Counter[str]) -> dict[str, float]:
    """What the summary's figure shows beside the components."""
    shares = {"positive pairs": figures["positive_pair_share"]}
    for key in _joined(counts):
        _, _, stream = key.partition("/")
        shares[f"pairs joined by {stream or 'the rule'}"] = figures[f"{key}_pair_share"]
    clips, snippets = max(counts["clips"], 1), max(counts["snippets"], 1)
    for key in _odd(counts):
        per_clip = key in ("short", "unreadable")
        total = clips + counts["unreadable"] if per_clip else snippets
        shares[f"{key.replace('/', ' ')} {'clips' if per_clip else 'snippets'}"] = (
            counts[key] / total
        )
    return shares
