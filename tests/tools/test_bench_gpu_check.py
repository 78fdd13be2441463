"""The check of a GPU: all its sections run on a CPU, and what is wrong is said in a line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from avvp_dist.errors import ConfigError
from tools.bench.gpu import corpus, throughput
from tools.bench.gpu.apart import run_apart
from tools.bench.gpu.profiling import summarised
from tools.bench.gpu.rows import Corpus, Note, Setting
from tools.bench.gpu_check import SECTIONS, _arguments, checked, main, setting_of


@pytest.mark.launch
def test_every_section_runs_on_a_cpu(fork_ranks: Any, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    keys = ("--device", "cpu", "--size", "tiny", "--out", str(out))
    job = fork_ranks("tests/tools/checking_gpu.py", *keys, ranks=1)
    said, err = job.communicate(timeout=300)
    found = json.loads(out.read_text())
    verdicts = {one["section"]: one["verdict"] for one in found["sections"]}
    assert verdicts == {**{section.name: "PASS" for section in SECTIONS}, "fabric": "skip"}, said
    assert job.returncode == 0, err
    assert {"clips", "precision", "zero_stage", "compiled"} <= found["throughput"][0].keys()
    assert all(row["clips_per_second"] > 0 for row in found["throughput"])
    assert found["profile"]["host_seconds_per_step"] > 0
    assert found["tests"]["passed"] > 0
    assert found["search"]["worst_cosine"] == 0
    for section in SECTIONS:
        assert f"\n{section.name} " in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    with pytest.raises(ConfigError, match=r"^no GPU: torch .*/dev/nvidia.* --device cpu"):
        main()


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--device", "cpu", "--size", "tiny"])
    return setting_of(_arguments(), tmp_path)


def test_sections_without_time_are_skipped_with_a_line(setting: Setting, tmp_path: Path) -> None:
    verdicts, figures = checked(setting, ["versions", "profile"], time.monotonic(), tmp_path)
    assert {one.section: (one.verdict, *one.notes) for one in verdicts} == {
        "versions": ("skip", "needs 30 s, 0 s are left"),
        "corpus": ("skip", "needs 40 s, 0 s are left"),
        "profile": ("skip", "there are no simulated clips"),
    }
    assert figures == {}


def test_a_batch_that_does_not_fit_is_named(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(corpus.run(setting, 0.0))
    monkeypatch.setattr(throughput, "_memory", lambda: 1 << 20)
    (note, *_) = throughput.run(replace(setting, clips=(4,)), time.monotonic() + 60)
    assert isinstance(note, Note) and not note.failed
    assert (
        note.text.startswith("fp32, ZeRO 0, 4 clips: ") and "are planned, the GPU has" in note.text
    )


def fails(setting: Setting, deadline: float) -> Iterator[Corpus | Note]:
    print("before the fault")
    yield Corpus(1, 2)
    raise ValueError("no such kernel\nand more")


def hangs(setting: Setting, deadline: float) -> Iterator[Corpus | Note]:
    yield Corpus(1, 2)
    time.sleep(60)


def ends(setting: Setting, deadline: float) -> Iterator[Corpus | Note]:
    yield Corpus(1, 2)
    sys.exit(7)


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        (fails, "ValueError: no such kernel"),
        (hangs, "did not end in its time, and was killed"),
        (ends, "its process ended with code 7"),
    ],
)
def test_a_section_fails_alone_and_keeps_what_it_found(
    section: Any, reason: str, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.bench.gpu.apart._SECONDS_TO_END", 0.1)
    log = tmp_path / "logs" / "section.log"
    outcome = run_apart(section, setting, time.monotonic() + 0.3, log)
    assert outcome.failed and outcome.notes == [reason]
    assert outcome.figures == [Corpus(1, 2)]
    if section is fails:
        assert "before the fault" in log.read_text() and "Traceback" in log.read_text()


def event(kind: str, name: str, begin: float, length: float = 1.0) -> dict[str, object]:
    return {"cat": kind, "name": name, "ts": begin, "dur": length}


def test_a_trace_tells_idle_time_waits_and_hidden_copies() -> None:
    found = summarised(
        [
            event("cuda_runtime", "cudaDeviceSynchronize", 0),  # the profiler's
            event("cuda_runtime", "cudaLaunchKernel", 1),
            event("cuda_runtime", "cudaStreamSynchronize", 5),
            event("cuda_runtime", "cudaStreamWaitEvent", 6),
            event("cuda_driver", "cuLaunchKernel", 7),
            event("cuda_runtime", "cudaLaunchKernelExC", 9),
            event("cuda_runtime", "cudaDeviceSynchronize", 10),
            event("kernel", "first mark", 100, 10),
            event("kernel", "gemm", 105, 25),
            event("kernel", "other stream", 120, 20),
            event("kernel", "last mark", 190, 10),
            event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 130, 20),
            event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 150, 5),
            {"ph": "M", "name": "process_name"},
        ]
    )
    assert (found.kernels, found.synchronisations, found.pageable_copies) == (2, 1, 1)
    assert found.idle == pytest.approx(0.5)
    assert found.copies_hidden == pytest.approx(0.5)
    nothing = summarised([])
    assert (nothing.kernels, nothing.idle, nothing.copies_hidden) == (0, None, None)
