"""Check the GPU of this machine: what works there, and how fast.

    make gpu-check                                            # within 8 minutes
    make gpu-check ARGS="--minutes 4 --only versions throughput"
    make gpu-check ARGS="--device cpu --size tiny"            # the script itself, in seconds

Each section runs in a process of its own, ends with PASS, FAIL or skip, and leaves what it printed
in a log beside the JSON. The exit code is 1 if one failed. Temporary files, up to 5 GB, lie in
TMPDIR.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from avvp_dist.commit import write_json
from avvp_dist.config import SIZES
from avvp_dist.entry import run
from avvp_dist.errors import ConfigError
from tools.bench.gpu import (
    corpus,
    han,
    loading,
    marked_tests,
    profiling,
    saving,
    search,
    throughput,
    versions,
)
from tools.bench.gpu.apart import Outcome, Run, run_apart
from tools.bench.gpu.rows import Figures, Mode, Setting
from tools.bench.gpu.table import printed


@dataclass(frozen=True)
class Section:
    """A part of the check."""

    name: str
    run: Run
    seconds: float
    """Seconds on a GPU, which are kept for it while those before it run. It gets what is spare."""
    needs_corpus: bool = True


SECTIONS = (
    Section("versions", versions.run, 30, False),
    Section("corpus", corpus.run, 40, False),
    Section("search", search.run, 20, False),
    Section("tests", marked_tests.run, 60, False),
    Section("throughput", throughput.run, 90),
    Section("profile", profiling.run, 30),
    Section("loader", loading.run, 20),
    Section("saving", saving.run, 50),
    Section("han", han.run, 40, False),
)
MODES = (
    Mode("fp32"),
    Mode("tf32"),
    Mode("bf16"),
    Mode("bf16", zero_stage=1),
    Mode("bf16", compiled=True),
)
"""Ways to train on a GPU. On many CPUs a product in bf16 takes seconds, and compiling a minute."""
ALONE = {
    **{"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},
}
"""Variables of a job with one rank, also inside a job of a scheduler."""
TABLES = ("throughput", "saving")
"""Sections with any number of rows."""
FABRIC = "one GPU alone was checked: no message to another GPU or node"


@dataclass(frozen=True)
class Verdict:
    """Result of a section: PASS, FAIL or skip, with the reasons."""

    section: str
    verdict: str
    seconds: float
    notes: list[str]

    def __str__(self) -> str:
        why = f": {'; '.join(self.notes)}" if self.notes else ""
        return f"{self.section:11} {self.verdict}, {self.seconds:.0f} s{why}"


def main() -> None:
    arguments = _arguments()
    if arguments.device == "gpu":
        _find_gpu()
    else:
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    os.environ.update(ALONE)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as temporary:
        setting = setting_of(arguments, Path(temporary))
        ends = time.monotonic() + 60 * arguments.minutes
        verdicts, figures = checked(setting, arguments.only, ends, arguments.out.with_suffix(""))
    verdicts.append(Verdict("fabric", "skip", 0.0, [FABRIC]))
    report: dict[str, object] = {
        "bench": "gpu_check",
        "device": arguments.device,
        "size": arguments.size,
        "sections": [asdict(verdict) for verdict in verdicts],
    }
    for name, rows in figures.items():
        found = [asdict(row) for row in rows]
        report[name] = found if name in TABLES else found[0]
    write_json(arguments.out, report)
    print(printed(figures))
    print("\n".join(map(str, verdicts)))
    print(arguments.out)
    if any(verdict.verdict == "FAIL" for verdict in verdicts):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make gpu-check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names = [section.name for section in SECTIONS]
    add("--device", default="gpu", choices=("gpu", "cpu"), help="cpu: try the script itself")
    add("--size", default="paper", choices=SIZES, help="encoder; tiny: everything is small")
    add("--clips", type=int, nargs="+", help="clips of a micro-batch, a row for each")
    add("--minutes", type=float, default=8.0, help="time for all; what does not fit is skipped")
    add("--only", nargs="+", default=names, choices=names, help="sections, all by default")
    add("--out", type=Path, default=Path("runs/gpu-check.json"), help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.clips and min(arguments.clips) < 1:
        parser.error("--clips takes numbers from 1 on")
    return arguments


def setting_of(arguments: argparse.Namespace, folder: Path) -> Setting:
    """Sizes for a GPU, or the smallest ones."""
    tiny, on_gpu = arguments.size == "tiny", arguments.device == "gpu"
    clips = sorted(arguments.clips or ((4, 8) if tiny else (8, 64, 256, 1024)))
    fitting = [n for n in clips if n <= 256] or clips[:1]
    return Setting(
        device=arguments.device,
        size=arguments.size,
        modes=MODES if on_gpu else MODES[:1],
        mode=MODES[2] if on_gpu else MODES[0],
        clips=tuple(clips),
        profiled=fitting[-1],
        corpus=max(64 if tiny else 2048, clips[-1]),
        dims=(16, 32) if tiny else (128, 2048),
        steps=2 if tiny else 20,
        seconds=0.2 if tiny else 3.0,
        warm_up=1 if tiny else 5,
        vectors=300 if tiny else 100_000,
        buffer=1 << (20 if tiny else 28),
        han_clips=16 if tiny else 2000,
        folder=folder,
    )


def _find_gpu() -> None:
    """Raise `ConfigError` if torch finds no GPU here."""
    import torch

    if torch.cuda.is_available():
        return
    built = f"torch {torch.__version__} is built for " + (
        f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
    )
    device_files = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    raise ConfigError(
        f"no GPU: {built}, torch.cuda.is_available() is False, there are {device_files} device "
        f"files /dev/nvidia*, CUDA_VISIBLE_DEVICES is {visible!r}",
        remedy="On a machine with an NVIDIA GPU and its driver: make clean, then make gpu-check; "
        "elsewhere --device cpu --size tiny tries the script",
    )


def checked(
    setting: Setting, only: Sequence[str], ends: float, logs: Path
) -> tuple[list[Verdict], dict[str, list[Figures]]]:
    """Run the sections; verdicts of all, and figures of those that have any.

    Args:
        only: names of the sections to run. The corpus comes along where one needs it.
        ends: time of the monotonic clock at which all must have ended.
        logs: folder for what the sections print.
    """
    chosen = [s for s in SECTIONS if s.name in only]
    if any(s.needs_corpus for s in chosen) and "corpus" not in only:
        chosen = [s for s in SECTIONS if s in chosen or s.name == "corpus"]
    verdicts: list[Verdict] = []
    figures: dict[str, list[Figures]] = {}
    for number, section in enumerate(chosen):
        begun = time.monotonic()
        left = max(0.0, ends - begun)
        spare = left - sum(later.seconds for later in chosen[number + 1 :])
        print(f"{section.name} ...", end=" ", file=sys.stderr, flush=True)
        if section.needs_corpus and "corpus" not in figures:
            outcome = Outcome(notes=["there are no simulated clips"])
        elif left < section.seconds:
            outcome = Outcome(notes=[f"needs {section.seconds:g} s, {left:.0f} s are left"])
        else:
            deadline = begun + max(section.seconds, spare)
            outcome = run_apart(section.run, setting, deadline, logs / f"{section.name}.log")
            if outcome.failed:
                outcome.notes.append(f"see {logs / section.name}.log")
        word = "FAIL" if outcome.failed else "PASS" if outcome.figures else "skip"
        verdicts.append(Verdict(section.name, word, time.monotonic() - begun, outcome.notes))
        print(f"{word}, {verdicts[-1].seconds:.0f} s", file=sys.stderr)
        if outcome.figures:
            figures[section.name] = outcome.figures
    return verdicts, figures


if __name__ == "__main__":
    run(main)
