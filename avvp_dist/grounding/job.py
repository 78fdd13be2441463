"""The grounding job: one idempotent Ray task per shard.

A task writes `SHARD.npy` (uint8 `[clips, T]`) and then its ledger record `SHARD.json`. A shard is
done if its record carries the digest of what its labels are made from, so a job that was killed
goes on with the shards that are missing.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import sha256, staged, write_json
from avvp_dist.config import GroundConfig, ReadConfig
from avvp_dist.errors import AvvpError, ClusterError, DataError
from avvp_dist.grounding.labels import label, measure
from avvp_dist.grounding.plan import Plan
from avvp_dist.grounding.profile import ComponentProfile
from avvp_dist.grounding.summary import GROUNDINGS, SUMMARY, GroundingSummary, ShardRecord
from avvp_dist.ledger import Ledger
from avvp_dist.runtime.cluster.tasks import map_tasks
from avvp_dist.runtime.progress import Progress
from avvp_dist.shards.schema import AUDIO, PADDING
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad, raise_on_bad
from avvp_dist.shards.worker import open_once, read_config_of
from avvp_dist.tracking.run import Run, stage_run

_CLIPS_PER_READ = 1024
_SHOWN = 5
"""Number of faults or shards that a message names."""


def ground(config: GroundConfig) -> Path:
    """Label every clip of a shard set.

    Returns:
        The folder of the grounding.

    Raises:
        ConfigError: for thresholds that are missing or do not fit the shard set.
        DataError: if more than `config.max_bad_fraction` of the clips are unreadable.
        ClusterError: if shards are missing after all retries.
    """
    shards = ShardSet(
        config.shards, config, ignore_bad if config.max_bad_fraction else raise_on_bad
    )
    plan = Plan.of(config, shards)
    folder = Path(config.out or shards.folder / GROUNDINGS) / plan.version
    tags = {"manifest": shards.digest, "grounding": plan.version}
    inputs = {shards.name: shards.digest}
    with stage_run("ground", folder, config, tags, inputs) as run:
        done = _finished(folder, shards, plan)
        # Clips that could not be read before are tried again.
        missing = [n for n, record in done.items() if record is None or record.unreadable]
        if missing:
            # Until all shards are done again, no summary may vouch for old labels among new ones.
            (folder / SUMMARY).unlink(missing_ok=True)
            done.update(_run_tasks(config, shards, folder, plan, missing))
        records = [record for _, record in sorted(done.items()) if record is not None]
        _check_readable(config, records, len(shards))
        _report(run, shards, folder, GroundingSummary.of(plan, shards, records))
    return folder


def ground_shard(
    folder: str, shard_set: str, manifest: str, config: ReadConfig, number: int, plan: Plan
) -> tuple[int, ShardRecord]:
    """Label one shard, write its labels and its ledger record; a task of its own process.

    Clips that cannot be read are counted and have `PADDING` for all their ids.

    Args:
        shard_set: folder or URL of the shard set.
        manifest: digest that its manifest must have.
        number: which of its shards.

    Returns:
        The number and the record.

    Raises:
        DataError: if the shard set has another digest.
    """
    shards = open_once(shard_set, manifest, config)
    labels, counts, faults = _labels(shards, number, plan)
    shards.release([number])
    shard = shards.shards[number]
    path = Path(folder) / f"{shard.stem}.npy"
    with staged(path) as temporary, temporary.open("wb") as file:
        np.save(file, labels, allow_pickle=False)
    record = ShardRecord(sha256(path), counts, faults[:_SHOWN], ComponentProfile.of(labels))
    Ledger(path.parent).finish(shard.stem, plan.made_from(shard.sha256), **record.plain())
    return number, record


def _labels(
    shards: ShardSet, number: int, plan: Plan
) -> tuple[NDArray[np.uint8], dict[str, int], list[str]]:
    """Component ids of a shard `[clips, T]`, counts, and the errors of unreadable clips."""
    link, reference = plan.link, np.array(plan.silent, np.float32)
    used = {*plan.thresholds, *((AUDIO,) if plan.silent or link.silent_energy else ())}
    faults: list[str] = []
    counts = Counter(unreadable=0)
    parts = [np.zeros((0, shards.snippets), np.uint8)]
    clips = np.array(shards.clips_of(number))
    for start in range(0, len(clips), _CLIPS_PER_READ):
        block = clips[start : start + _CLIPS_PER_READ]
        streams, good = shards.read(block, lambda _, error: faults.append(str(error)))
        ids = np.full((len(block), shards.snippets), PADDING, np.uint8)
        if good.any():
            if not good.all():
                streams = {name: array[good] for name, array in streams.items()}
            similarities = measure(
                {name: streams[name] for name in sorted(used)},
                shards.lengths[block[good]],
                link,
                reference if len(reference) else None,
            )
            ids[good], joined = label(similarities, plan.thresholds, link)
            counts.update(similarities.counts)
            counts.update(joined)
        counts["unreadable"] += int((~good).sum())
        parts.append(ids)
    return np.concatenate(parts), dict(counts), faults


def _finished(folder: Path, shards: ShardSet, plan: Plan) -> dict[int, ShardRecord | None]:
    """Record of each shard by its number; None for a shard that has to be labelled."""
    ledger = Ledger(folder)
    records: dict[int, ShardRecord | None] = {}
    for number, shard in enumerate(shards.shards):
        plain = ledger.finished(shard.stem, plan.made_from(shard.sha256))
        records[number] = None if plain is None else ShardRecord.parse(plain)
        try:
            size = (folder / f"{shard.stem}.npy").stat().st_size
        except OSError:
            size = 0
        if size < shard.clips * shards.snippets:  # the labels were lost
            records[number] = None
    return records


def _run_tasks(
    config: GroundConfig, shards: ShardSet, folder: Path, plan: Plan, missing: list[int]
) -> dict[int, ShardRecord]:
    """Label the shards whose numbers are `missing`.

    Raises:
        AvvpError: after all others are done, if shards failed; the kind of their errors if they
            are all of one kind.
    """
    place = (str(folder.absolute()), shards.name, shards.digest, read_config_of(config))
    calls = [(*place, number, plan) for number in missing]
    clips = sum(shards.shards[number].clips for number in missing)
    done: dict[int, ShardRecord] = {}
    failed: list[AvvpError] = []
    with Progress("grounding", len(missing), clips) as progress:
        tasks = map_tasks(ground_shard, calls, config.workers, "a grounding task", keep_going=True)
        for outcome in tasks:
            if isinstance(outcome, AvvpError):
                failed.append(outcome)
                progress.update(0, errors=1)
            else:
                number, record = outcome
                done[number] = record
                progress.update(shards.shards[number].clips, errors=record.unreadable)
    if failed:
        kind = type(failed[0]) if len({type(error) for error in failed}) == 1 else ClusterError
        names = [shards.shards[number].name for number in missing if number not in done]
        named = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        raise kind(
            f"{len(failed)} of {len(missing)} shards are not grounded ({named}): {failed[0]}",
            remedy="The same command goes on with these; what is done is kept",
        )
    return done


def _check_readable(config: GroundConfig, records: list[ShardRecord], clips: int) -> None:
    unreadable = sum(record.unreadable for record in records)
    if unreadable > config.max_bad_fraction * clips + 1e-6:
        faults = [fault for record in records for fault in record.faults]
        raise DataError(
            f"{unreadable} of {clips} clips cannot be read: {'; '.join(faults[:_SHOWN])}",
            remedy="Mend the shards, or raise max_bad_fraction to leave these clips unlabelled; "
            "the same command goes on with them",
        )


def _report(run: Run, shards: ShardSet, folder: Path, summary: GroundingSummary) -> None:
    """Write the summary, log it to `run` with its figure, and print it."""
    write_json(folder / SUMMARY, summary.plain())
    figures = [_draw(shards, folder, summary)] if run.draws_figures else []
    for figure in figures:
        run.figure(figure)
    run.artifact(folder / SUMMARY)
    run.log(0, **summary.figures, **summary.counts)
    print(summary.described(), folder / SUMMARY, *figures, sep="\n")


def _draw(shards: ShardSet, folder: Path, summary: GroundingSummary) -> Path:
    """Draw the components."""
    # Matplotlib takes a second to import, and every worker imports this file.
    from avvp_dist.evaluation.grounding_figures import component_figure

    assert summary.profile is not None
    return component_figure(
        folder / "components.png",
        summary.profile.sizes,
        summary.profile.per_clip,
        f"{Path(shards.name).name}, grounding {summary.version}",
        summary.fractions(),
    )
