"""Profile of a step: what the GPU runs, when it is idle, and where the host waits for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from tools.bench.gpu.loop import Enough, config_of, seconds_per_step, trainer_of, wait_for_gpu
from tools.bench.gpu.rows import Note, Profile, Setting

STEPS = 5
ATTENTION = "aten::_scaled_dot_product_"
"""Beginning of the names of torch's implementations of attention."""

Spans = list[tuple[float, float]]
"""Begin and end of each event, in microseconds."""


@dataclass(frozen=True)
class Trace:
    """Figures of the steps that a trace holds."""

    kernels: int
    synchronisations: int
    pageable_copies: int
    idle: float | None
    copies_hidden: float | None


def run(setting: Setting, deadline: float) -> Iterator[Profile | Note]:
    """Profile steps of the train loop after they have warmed up."""
    watch = _Profiled(setting)
    config = config_of(setting, setting.profiled, setting.mode)
    with trainer_of(config, watch) as trainer, suppress(Enough):
        trainer.train()
    found = summarised(watch.events)
    yield Profile(
        clips=setting.profiled,
        precision=setting.mode.precision,
        zero_stage=setting.mode.zero_stage,
        kernels=found.kernels / STEPS,
        synchronisations=found.synchronisations / STEPS,
        pageable_copies=found.pageable_copies / STEPS,
        idle=found.idle,
        copies_hidden=found.copies_hidden,
        attention=watch.attention,
        host_seconds_per_step=seconds_per_step(setting, setting.clips[0], setting.mode),
    )
    if setting.device == "gpu" and not found.kernels:
        yield Note("torch's profiler sees no kernel: CUPTI does not work here", failed=True)


class _Profiled:
    """Beat of a trainer: profiles the GPU in some steps, then torch's operations in one."""

    def __init__(self, setting: Setting) -> None:
        self.first, self.trace = setting.warm_up, setting.folder / "trace.json"
        on_gpu = setting.device == "gpu"
        # Without torch's operations the host keeps its pace.
        self._gpu = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
        self._host = profile(activities=[ProfilerActivity.CPU])
        self.events: Sequence[Mapping[str, object]] = ()
        self.attention: list[str] = []

    def __call__(self, step: int, doing: str) -> None:
        if doing != "reading":
            return
        if step == self.first:
            wait_for_gpu()
            self._gpu.start()
            _mark()
        elif step == self.first + STEPS:
            _mark()
            wait_for_gpu()
            self._gpu.stop()
            self.events = _exported(self._gpu, self.trace)
            self._host.start()
        elif step == self.first + STEPS + 1:
            self._host.stop()
            names = {event.key for event in self._host.key_averages()}
            self.attention = sorted(
                name.removeprefix(ATTENTION)
                for name in names
                if name.startswith(ATTENTION) and not name.endswith("_backward")
            )
            raise Enough


def _mark() -> None:
    """Launch a kernel that bounds the steps in the trace."""
    if torch.cuda.is_available():
        torch.ones(1, device="cuda")


def _exported(profiler: profile, file: Path) -> Sequence[Mapping[str, object]]:
    profiler.export_chrome_trace(str(file))
    events: list[dict[str, object]] = json.loads(file.read_text())["traceEvents"]
    file.unlink()
    return events


def summarised(events: Iterable[Mapping[str, object]]) -> Trace:
    """Figures of a trace in Chrome's format, as torch's profiler writes it.

    The first and the last kernel bound the steps and are not theirs. What the host waits for
    before and after belongs to the profiler.
    """
    kernels: Spans = []
    copies: Spans = []
    launched: list[float] = []
    waited: list[float] = []
    pageable = 0
    for event in events:
        kind, name = event.get("cat"), str(event.get("name"))
        begin, length = float(str(event.get("ts", 0))), float(str(event.get("dur", 0)))
        if kind == "kernel":
            kernels.append((begin, begin + length))
        elif kind == "gpu_memcpy":
            pageable += "Pageable" in name
            if "HtoD" in name:
                copies.append((begin, begin + length))
        elif kind in ("cuda_runtime", "cuda_driver"):
            if "LaunchKernel" in name:
                launched.append(begin)
            elif name.endswith("Synchronize") or name == "cudaMemcpy":
                waited.append(begin)
    busy = _joined(kernels)
    window = busy[-1][1] - busy[0][0] if busy else 0.0
    copied = sum(end - begin for begin, end in copies)
    return Trace(
        kernels=max(0, len(kernels) - 2),
        synchronisations=sum(min(launched) < time < max(launched) for time in waited),
        pageable_copies=pageable,
        idle=1 - sum(end - begin for begin, end in busy) / window if window else None,
        copies_hidden=_overlap(copies, busy) / copied if copied else None,
    )


def _joined(spans: Spans) -> Spans:
    """Spans in order, those that touch as one."""
    joined: Spans = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _overlap(spans: Spans, joined: Spans) -> float:
    """Length of `spans` that lies in `joined`."""
    return sum(
        max(0.0, min(end, other_end) - max(begin, other_begin))
        for begin, end in spans
        for other_begin, other_end in joined
    )
