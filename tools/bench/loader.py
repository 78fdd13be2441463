"""Time the loader of clips on one core, beside plain reads and the loaders of other libraries.

python tools/bench/loader.py --clips 20000 --rounds 3 --cold

Every row takes the same clips once an epoch, in float16 batches, and looks at their shapes alone.
All but the cold rows read from the page cache. MB/s counts the bytes of a clip in the tars. A
library that is not installed is named as such: webdataset, mosaicml-streaming, megatron-energon.
Before the timing each loader has to give every clip once, with its numbers.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from tqdm import tqdm

from avvp_dist.commit import MANIFEST
from avvp_dist.config import LoaderConfig
from avvp_dist.entry import run
from avvp_dist.errors import DataError
from avvp_dist.loading.loader import Loader
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.stream import ClipStream
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

STREAMS = {"audio": 128, "motion": 512, "visual": 2048}
MEMBERS = tuple(f"{name}.npy" for name in STREAMS)
SNIPPETS, SHARD, SEED, SHUFFLE = 10, 2000, 1, 1000
NPY_HEADER = 64  # float16 numbers
BLOCKS = {
    name: np.random.default_rng(dim).standard_normal((8, SNIPPETS, dim)).astype(np.float16)
    for name, dim in STREAMS.items()
}
GLOBAL = LoaderConfig(order="global", prefetch=2, verify="sha256", last_batch="pad")
BLOCK = replace(GLOBAL, order="block", block_shards=2)
RATIOS = {
    "ours_over_webdataset": ("ours", ("webdataset", "webdataset_join", "webdataset_own_tar")),
    "ours_over_webdataset_unshuffled": ("ours", ("webdataset_ordered", "webdataset_own_ordered")),
    "ours_over_raw": ("ours", ("raw",)),
    "ours_over_raw_batch": ("ours", ("raw_batch",)),
    "ours_over_streaming": ("ours", ("streaming",)),
    "ours_over_energon": ("ours", ("energon",)),
    "cold_over_disk": ("cold", ("disk",)),
    "cold_size_over_disk": ("cold_size", ("disk",)),
}
"""A row, and the rows with whose fastest it is compared, by medians of clips per second."""

Batch = Mapping[str, NDArray[np.float16] | torch.Tensor]
Sample = dict[str, str | memoryview]
Batches = Callable[[], Iterator[Batch]]  # of one epoch


@dataclass
class Row:
    """A row of the table."""

    name: str
    label: str
    batches: Batches | None  # None: its library is not installed
    loads: bool = True  # False: it reads or opens, and makes no batches
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    place = Path.cwd().parent / "loader.tmp"
    help = "where the clips are made, or lie from an earlier run (default: %(default)s)"
    parser.add_argument("--clips", type=int, default=20_000, help="clips of an epoch")
    parser.add_argument("--folder", type=Path, default=place, help=help)
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each row, interleaved")
    parser.add_argument("--batch", type=int, default=256, help="clips of a batch")
    parser.add_argument("--cold", action="store_true", help="first read from the disk, all cores")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*(not writable|pin_memory)")
    clips, batch = arguments.clips, arguments.batch
    folder = arguments.folder.absolute() / f"clips-{clips}"
    tars = make_tars(folder / "tars", clips)
    cold = cold_rows(tars, batch) if arguments.cold else []
    for _ in range(arguments.rounds):
        for row in cold:
            drop(tars)
            row.seconds.append(epoch(row, clips))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    rows = [*our_rows(tars, batch), *webdataset_rows(tars, batch)]
    rows += [streaming_row(folder, clips, batch), energon_row(folder, tars, batch)]
    for row in tqdm(rows, desc="checking"):
        check(row, clips)
    for _ in tqdm(range(arguments.rounds), desc="timing", unit=" rounds"):
        for row in rows:
            if row.batches:
                row.seconds.append(epoch(row, clips))
    report(arguments, rows + cold, sum(tar.stat().st_size for tar in tars) / clips)


def made(n: int) -> dict[str, NDArray[np.floating]]:
    """Clip n of any run: a random block times a factor; n begins its audio."""
    factor = np.float16(0.5 + n % 997 / 997)
    arrays = {name: block[n % 8] * factor for name, block in BLOCKS.items()}
    arrays["audio"][0, :2] = divmod(n, 1000)
    return arrays


def make_tars(folder: Path, clips: int) -> list[Path]:
    """Tars of the clips' shard set, which is made unless an earlier run has made it."""
    if not (folder / MANIFEST).exists():
        numbers = tqdm(range(clips), desc="making clips", unit=" clips")
        source = (Clip(f"clip{n:07d}_0_10", made(n)) for n in numbers)
        write_shard_set(source, folder, clips_per_shard=SHARD)
    return sorted(folder.glob("*.tar"))


def check(row: Row, clips: int) -> None:
    """Warm up, and raise `DataError` unless each clip comes once and the first batch is as made."""
    seen: list[int] = []
    for batch in row.batches() if row.batches and row.loads else ():
        arrays = {name: np.asarray(batch[name]) for name in STREAMS}
        numbers = (arrays["audio"][:, 0, :2].astype(np.int64) @ np.array([1000, 1])).tolist()
        for name, array in arrays.items():
            right = array if seen else np.stack([made(n)[name] for n in numbers])
            if array.dtype != np.float16 or not np.array_equal(array, right):
                raise DataError(f"{row.label}: {name} is not as it was made")
        seen += numbers
    if row.batches and row.loads and sorted(seen) != list(range(clips)):
        raise DataError(f"{row.label}: not every clip came once")


def epoch(row: Row, clips: int) -> float:
    """Seconds of an epoch, which must have all `clips`."""
    assert row.batches
    count, started = 0, time.perf_counter()
    for batch in row.batches():
        count += min(batch[name].shape[0] for name in STREAMS) if row.loads else 0
    seconds = time.perf_counter() - started
    if row.loads and count != clips:
        raise DataError(f"{row.label}: an epoch gave {count} of {clips} clips")
    return seconds


def our_rows(tars: Sequence[Path], batch: int) -> list[Row]:
    """Plain reads, the loader with shards that are open, and opening them for the first time."""

    def opening() -> Iterator[Batch]:
        fresh = ShardSet(shards, LoaderConfig(verify="sha256"))
        yield fresh.gather(fresh.starts[:-1])  # one clip of each

    shards, size = tars[0].parent, batch * tars[0].stat().st_size // SHARD
    at_once = replace(GLOBAL, prefetch=0)
    return [
        Row("raw", "raw read, 1 MiB at once", lambda: blocks(tars, 1 << 20), False),
        Row("raw_batch", "raw read, a batch at once", lambda: blocks(tars, size), False),
        Row("ours", "ours: order=global, prefetch=2, verify=sha256", ours(shards, batch, GLOBAL)),
        Row("ours_prefetch_0", "ours: prefetch=0", ours(shards, batch, at_once)),
        Row("ours_size", "ours: verify=size", ours(shards, batch, replace(GLOBAL, verify="size"))),
        Row("ours_block", "ours: order=block, block_shards=2", ours(shards, batch, BLOCK)),
        Row("ours_opening", "ours: only opening the shards, verify=sha256", opening, False),
    ]


def ours(shards: Path, batch: int, config: LoaderConfig) -> Batches:
    """Batches of the project's loader, an epoch for each call."""
    data = Mixture([ShardSet(shards, config)])
    block = config.block_shards if config.order == "block" else 0
    stream = ClipStream(data.pools(), batch, seed=SEED, block=block, pad=True)
    loader = Loader(data, stream, config, torch.device("cpu"))
    epochs = itertools.count()

    def batches() -> Iterator[Batch]:
        first = next(epochs) * stream.steps_per_epoch
        for reads in loader.steps(first, first + stream.steps_per_epoch):
            for read in reads:
                yield read.streams

    return batches


def blocks(tars: Iterable[Path], size: int) -> Iterator[Batch]:
    """Read the files from their first byte to their last."""
    block = memoryview(bytearray(size))
    for tar in tars:
        with tar.open("rb", buffering=0) as file:
            while file.readinto(block):
                yield {}


# Other libraries


def library(name: str) -> Any:
    """A module, or None where it is not installed, or is but cannot be imported."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the modules that it needs may raise
        print(f"{name} is left out: {type(error).__name__}: {error}")
        return None


def join(samples: Sequence[Mapping[str, bytes | memoryview]], suffix: str = ".npy") -> Batch:
    """Samples of bytes as a batch, by one copy a stream; npy headers are skipped by strides."""
    batch = {}
    for name, dim in STREAMS.items():
        whole = np.frombuffer(b"".join([sample[name + suffix] for sample in samples]), np.float16)
        rows = whole.reshape(len(samples), -1)[:, NPY_HEADER if suffix else 0 :]
        batch[name] = rows.reshape(-1, SNIPPETS, dim)
    return batch


def webdataset_rows(tars: Sequence[Path], batch: int) -> list[Row]:
    """WebDataset by its manual, as fast as it gets, and with its tar reader replaced."""
    wds, urls = library("webdataset"), [str(tar) for tar in tars]

    def default() -> Iterator[Batch]:
        dataset = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(SHUFFLE)
        dataset = dataset.decode().to_tuple(*MEMBERS).batched(batch)
        for arrays in DataLoader(dataset, None, num_workers=0):
            yield dict(zip(STREAMS, arrays, strict=True))

    def fast(own: bool, shuffled: bool) -> Batches:
        def batches() -> Iterator[Batch]:
            theirs = wds.tarfile_to_samples(select_files=lambda member: member.endswith(".npy"))
            stages = [parse if own else theirs]
            if shuffled:
                stages = [wds.shuffle(len(urls)), *stages, wds.shuffle(SHUFFLE)]
            stages = [wds.SimpleShardList(urls), *stages, wds.batched(batch, collation_fn=join)]
            pipeline = wds.DataPipeline(*stages)
            yield from DataLoader(pipeline, None, num_workers=0, collate_fn=lambda batch: batch)

        return batches

    best = "no json, bytes joined and viewed"
    rows = [
        ("webdataset", "decode(), shuffle(1000), default collation", default),
        ("webdataset_join", f"{best}, shuffle(1000)", fast(False, True)),
        ("webdataset_ordered", f"{best}, tar order", fast(False, False)),
        ("webdataset_own_tar", f"{best}, own tar reader, shuffle(1000)", fast(True, True)),
        ("webdataset_own_ordered", f"{best}, own tar reader, tar order", fast(True, False)),
    ]
    return [Row(name, f"webdataset: {label}", rest if wds else None) for name, label, rest in rows]


def parse(sources: Iterable[Mapping[str, str]]) -> Iterator[Sample]:
    """Replacement of WebDataset's tar reader: views of whole tars, by names and sizes alone."""
    for source in sources:
        data = Path(source["url"]).read_bytes()
        view, at, sample = memoryview(data), 0, Sample()
        while data[at]:
            size = int(data[at + 124 : at + 135], 8)
            key, _, suffix = data[at : data.index(0, at)].decode().partition(".")
            if sample and key != sample["__key__"]:
                yield sample
                sample = {}
            sample["__key__"] = key
            sample[suffix] = view[at + 512 : at + 512 + size]
            at += 512 + -(-size // 512) * 512
        yield sample


def streaming_row(folder: Path, clips: int, batch: int) -> Row:
    """MosaicML Streaming; it reads bytes faster than its own arrays."""
    folder /= "mds"
    row = Row("streaming", "mosaicml-streaming: MDS of bytes, joined, shuffle=True", None)
    if (streaming := library("streaming")) is None:
        return row
    if not (folder / "index.json").exists():  # written last
        shutil.rmtree(folder, ignore_errors=True)
        columns = dict.fromkeys(STREAMS, "bytes")
        with streaming.MDSWriter(columns=columns, out=str(folder), size_limit=112 << 20) as writer:
            for n in tqdm(range(clips), desc="writing MDS", unit=" clips"):
                writer.write({name: array.tobytes() for name, array in made(n).items()})
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=batch)
    loader: Iterable[Batch] = DataLoader(dataset, batch, collate_fn=lambda clips: join(clips, ""))
    row.batches = lambda: iter(loader)
    return row


def energon_row(folder: Path, tars: Sequence[Path], batch: int) -> Row:
    """Megatron-Energon with crude samples that stay bytes until they are batched."""
    folder /= "energon"
    row = Row("energon", "megatron-energon: crude, no json, bytes joined, shuffle 1000", None)
    if (energon := library("megatron.energon")) is None:
        return row
    config = folder / ".nv-meta" / "dataset.yaml"
    if not config.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for tar in tars:
            (folder / tar.name).hardlink_to(tar)
        prepare = library("megatron.energon.flavors.webdataset.prepare").WebdatasetPreparator
        names = [tar.name for tar in tars]
        prepare.prepare_dataset(folder, names, split_parts_ratio=[("train", 1.0)], workers=1)
        kind = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
        config.write_text(json.dumps({**kind, "part_filter": MEMBERS}))
    methods = {
        "decoder": None,
        "cookers": [energon.Cooker(energon.stateless(lambda sample: sample))],
        "encode_sample": energon.TaskEncoder.encode_sample,  # the one that is left out
        "batch": energon.stateless(lambda self, samples: join(samples)),
    }
    encoder = type("Encoder", (energon.DefaultTaskEncoder,), methods)()
    workers = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    keys = {"batch_size": batch, "shuffle_buffer_size": SHUFFLE, "max_samples_per_sequence": 100}
    keys |= {"worker_config": workers, "task_encoder": encoder, "repeat": False}
    loader = energon.get_loader(energon.get_train_dataset(folder, **keys))
    row.batches = lambda: iter(loader)
    return row


def cold_rows(tars: Sequence[Path], batch: int) -> list[Row]:
    """The disk's own rate, and whole first epochs in block order."""
    folder, by_size = tars[0].parent, replace(BLOCK, verify="size")
    label = "ours, cold, all cores: order=block, block_shards=2, verify="
    return [
        Row("disk", "raw read, cold, 8 MiB at once", lambda: blocks(tars, 8 << 20), False),
        Row("cold", f"{label}sha256", lambda: ours(folder, batch, BLOCK)()),
        Row("cold_size", f"{label}size", lambda: ours(folder, batch, by_size)()),
    ]


def drop(paths: Sequence[Path]) -> None:
    """Take files out of the page cache, and make sure that they left it."""
    os.sync()
    for path in paths:
        ends = time.monotonic() + 10
        with path.open("rb") as file, suppress(BlockingIOError):  # that is, the page is not there
            while time.monotonic() < ends:
                gc.collect()  # what is still mapped stays
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                os.preadv(file.fileno(), [bytearray(1)], 1 << 20, os.RWF_NOWAIT)
            raise DataError(f"{path} stays in the page cache", remedy="Leave out --cold")


def report(arguments: argparse.Namespace, rows: list[Row], clip_bytes: float) -> None:
    """Print the table, then the line of JSON."""
    info = Path("/proc/cpuinfo").read_text()
    cpu = info.partition("model name\t: ")[2].partition("\n")[0] or platform.processor()
    machine = {"cpu": cpu, "cores": os.cpu_count(), "cores_used": 1}
    machine |= {"torch": torch.__version__, "numpy": np.__version__}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{arguments.clips} clips of {clip_bytes:.0f} bytes, {arguments.batch} in a batch\n")
    print("| loader | s, min | median | clips/s, min | median | MB/s | of raw |")
    print("|---" * 7 + "|")
    speed: dict[str, float] = {}
    figures: dict[str, object] = {"clip_bytes": clip_bytes}
    for row in rows:
        if not row.seconds:
            print(f"| {row.label} | not installed |" + " |" * 5)
            continue
        low, middle = min(row.seconds), median(row.seconds)
        slow, speed[row.name] = arguments.clips / max(row.seconds), arguments.clips / middle
        cells = [row.label, f"{low:.3f}", f"{middle:.3f}", f"{slow:.0f}", f"{speed[row.name]:.0f}"]
        cells += [f"{speed[row.name] * clip_bytes / 1e6:.0f}"]
        print("|", " | ".join([*cells, f"{speed[row.name] / speed['raw']:.1%}"]), "|")
        figures[f"{row.name}_s"] = {"min": low, "median": middle}
        figures[f"{row.name}_clips_per_s"] = {"min": slow, "median": speed[row.name]}
    ratios = {
        name: speed[row] / max(speed[other] for other in others if other in speed)
        for name, (row, others) in RATIOS.items()
        if row in speed and speed.keys() & set(others)
    }
    print("\n" + ", ".join(f"{name.replace('_', ' ')}: {x:.2f}" for name, x in ratios.items()))
    line = {"bench": "loader", "machine": machine, "figures": figures, "ratios": ratios}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    run(main)
