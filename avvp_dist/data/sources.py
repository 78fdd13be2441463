"""Features as others leave them on disk, read as clips: array files and HAN's feature folders."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from avvp_dist.commit import MANIFEST
from avvp_dist.config import PackConfig
from avvp_dist.data.llp import Annotations, read_annotations
from avvp_dist.data.schema import HAN_EXTRACTOR, Clip
from avvp_dist.data.shards import ShardSet, write_shard_set
from avvp_dist.errors import DataError
from avvp_dist.tracking.run import stage_run

log = logging.getLogger(__name__)

BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile)
"""What `np.load` raises for a file that is missing, cut off or something else."""

HAN_STREAMS = {"audio": "vggish", "visual": "res152", "motion": "r2plus1d_18"}
"""Stream name and feature folder of HAN's release (Tian et al., ECCV 2020)."""


def pack(config: PackConfig) -> ShardSet:
    """Turn one split of a feature folder into a shard set; a finished one is left as it is.

    Raises:
        DataError: for missing or broken features, or an `out` that holds other clips.
    """
    source = {"folder": config.source, "format": config.format, "split": config.split}
    if config.annotations:
        source["annotations"] = config.annotations
    out = Path(config.out)
    if (out / MANIFEST).exists():
        ready = ShardSet(out)
        if ready.manifest["source"] != source:
            raise DataError(
                f"{out} already holds clips of {ready.manifest['source']}",
                remedy="Choose another out= or remove it",
            )
        print(f"{out}: already packed, {len(ready)} clips")
        return ready
    folder = Path(config.annotations or config.source)
    annotations = read_annotations(folder, config.split) if any(folder.glob("AVVP_*.csv")) else None
    read = {"arrays": read_arrays, "han": read_han}[config.format]
    clips = read(Path(config.source), config.split, annotations)
    extractor = config.extractor or (HAN_EXTRACTOR if config.format == "han" else "")
    with stage_run("pack", out, config, {"extractor": extractor}) as run:
        packed = write_shard_set(
            tqdm(clips, desc=f"packing {config.split}", unit=" clips"),
            out,
            clips_per_shard=config.clips_per_shard,
            extractor=extractor,
            source=source,
        )
        run.log(0, clips=len(packed), shards=len(packed.shards))
        run.artifact(out / MANIFEST)
    dims = ", ".join(f"{name} {dim}" for name, dim in packed.dims.items())
    print(f"{out}: {len(packed)} clips of {packed.snippets} snippets, {dims}")
    return packed


def read_arrays(folder: Path, split: str, annotations: Annotations | None) -> Iterator[Clip]:
    """Clips of `features_SPLIT.npz`: `filenames [N]` and one `[N, T, D]` array per stream."""
    path = folder / f"features_{split}.npz"
    if not path.is_file():
        raise DataError(f"{path} is missing")
    labels = _labels(annotations)
    try:
        with np.load(path, allow_pickle=False) as file:
            streams = {name: file[name] for name in file.files}
    except BROKEN as error:
        raise DataError(f"{path} is no whole npz file: {error}") from None
    if "filenames" not in streams:
        raise DataError(f"{path} has no array `filenames`")
    ids = [str(name) for name in streams.pop("filenames")]
    if annotations is not None and not set(ids) & labels.keys():
        raise DataError(
            f"{path}: none of its {len(ids)} clips, first {ids[0]}, is in the {split} split of the "
            "annotations",
            remedy="Set annotations= to the folder of their AVVP_*.csv",
        )
    for name, array in streams.items():
        if array.ndim != 3 or len(array) != len(ids):
            raise DataError(f"{path}: {name} is {list(array.shape)}, expected [{len(ids)}, T, D]")
    for row, clip_id in enumerate(ids):
        features = {name: array[row] for name, array in streams.items()}
        yield Clip(clip_id, features, labels.get(clip_id))


def read_han(folder: Path, split: str, annotations: Annotations | None) -> Iterator[Clip]:
    """Clips of HAN's release, in csv order; 80 frames are mean-pooled to 10 snippets.

    Files are named by the first 11 characters of the clip id. As in the paper's code a clip
    with 72 to 79 frames is filled up with its last one, and one with fewer frames, other than
    10 audio rows, or a missing file is left out; those are counted and named.
    """
    if annotations is None:
        raise DataError(
            f"HAN's features are packed in the order of AVVP_*.csv, none is in {folder}",
            remedy="Set annotations= to their folder",
        )
    labels = _labels(annotations)
    left_out: dict[str, str] = {}
    for clip_id in annotations.ids:
        try:
            streams = {
                name: np.load(folder / "feats" / sub / f"{clip_id[:11]}.npy", allow_pickle=False)
                for name, sub in HAN_STREAMS.items()
            }
            streams["visual"] = _pool_frames(streams["visual"])
            if len(streams["audio"]) != 10 or len(streams["motion"]) != 10:
                raise ValueError("fewer than 10 snippets")
        except BROKEN as error:
            left_out[clip_id] = str(error)
            continue
        yield Clip(clip_id, streams, labels.get(clip_id))
    if left_out:
        named = "; ".join(f"{clip}: {why}" for clip, why in list(left_out.items())[:5])
        log.warning("%d of %d clips left out: %s", len(left_out), len(annotations.ids), named)


def _pool_frames(frames: NDArray[np.floating]) -> NDArray[np.floating]:
    if not 72 <= len(frames) <= 80:
        raise ValueError(f"{len(frames)} of 80 frames")
    filled = np.concatenate([frames, np.repeat(frames[-1:], 80 - len(frames), 0)])
    pooled: NDArray[np.floating] = filled.reshape(10, 8, -1).mean(1, dtype=np.float32)
    return pooled


def _labels(annotations: Annotations | None) -> dict[str, tuple[str, ...]]:
    if annotations is None:
        return {}
    return {
        clip: tuple(annotations.classes[c] for c in np.flatnonzero(row))
        for clip, row in zip(annotations.ids, annotations.weak, strict=True)
    }
