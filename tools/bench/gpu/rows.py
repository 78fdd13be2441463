"""Settings of a GPU check, and the figures that its sections find."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mode:
    """How an encoder is trained."""

    precision: str
    zero_stage: int = 0
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.precision}, ZeRO {self.zero_stage}{', compiled' * self.compiled}"


@dataclass(frozen=True)
class Setting:
    """Sizes of a check."""

    device: str
    """`gpu` or `cpu`."""
    size: str
    """Size of the encoder."""
    modes: tuple[Mode, ...]
    """Ways to train whose throughput is measured."""
    mode: Mode
    """The one that is profiled."""
    clips: tuple[int, ...]
    """Clips of a micro-batch, smallest first: one row of the throughput for each."""
    profiled: int
    """Clips of the step that is profiled, saved and read."""
    corpus: int
    """Simulated clips."""
    dims: tuple[int, int]
    """Numbers of a snippet's audio and visual features."""
    steps: int
    """Maximum number of steps that are timed, after those that warm up."""
    seconds: float
    """Seconds after which no further step is timed."""
    warm_up: int
    """Steps that are not timed: they allocate and compile."""
    vectors: int
    """Vectors that faiss searches."""
    buffer: int
    """Bytes of a copy between memories."""
    han_clips: int
    """Clips of an epoch of HAN."""
    folder: Path
    """Temporary folder of the check."""

    @property
    def shards(self) -> Path:
        """The simulated shard set, grounded."""
        return self.folder / "shards"


@dataclass(frozen=True)
class Note:
    """A line about what was left out, or about a part of a section that failed."""

    text: str
    failed: bool = False


@dataclass(frozen=True)
class Versions:
    """Libraries, driver and GPU; empty or 0 where there is none."""

    python: str
    torch: str
    torch_cuda: str
    nccl: str
    deepspeed: str
    faiss: str
    faiss_gpus: int
    """GPUs that faiss sees; 0 for its CPU build."""
    cuda_libraries: list[str]
    """CUDA runtimes in one process after torch and faiss have been imported."""
    nvcc: str
    """Place of CUDA's compiler, which nothing here needs."""
    driver: str
    gpu: str
    gpus: int
    """GPUs that torch sees. The check uses the first."""
    memory_bytes: int


@dataclass(frozen=True)
class Corpus:
    """The simulated shard set."""

    clips: int
    bytes: int


@dataclass(frozen=True)
class Search:
    """Comparison of faiss on the device with faiss on the CPU."""

    vectors: int
    neighbours: int
    worst_cosine: float
    """Largest difference of a cosine."""
    other_rows: float
    """Fraction of neighbours that are other rows, which ties may be."""
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Tests:
    """Outcome of the tests marked `gpu`."""

    passed: int
    failed: int
    skipped: int


@dataclass(frozen=True)
class Throughput:
    """Speed and memory of one micro-batch and one way to train."""

    clips: int
    precision: str
    zero_stage: int
    compiled: bool
    clips_per_second: float
    mfu: float
    """Fraction of the FLOP/s that matrix products of this precision reach here."""
    tflops: float
    peak_bytes: int | None
    """Maximum of the bytes that torch had allocated; None on a CPU."""
    planned_bytes: int
    """Memory on the rank by `--dry-run`."""


@dataclass(frozen=True)
class Profile:
    """Work of the GPU and of the host in a step; None where the device has none of it."""

    clips: int
    precision: str
    zero_stage: int
    kernels: float
    """Kernels a step."""
    synchronisations: float
    """Calls a step in which the host waits for the GPU."""
    pageable_copies: float
    """Copies a step from or to memory that is not pinned."""
    idle: float | None
    """Fraction of the time in which no kernel runs."""
    copies_hidden: float | None
    """Fraction of the time of copies to the GPU in which a kernel runs too."""
    attention: list[str]
    """Implementations of attention that ran."""
    host_seconds_per_step: float
    """Seconds of a step of the smallest micro-batch, in which the GPU waits for the host."""


@dataclass(frozen=True)
class Loading:
    """Rates of the loader and of the bus to the device."""

    clips: int
    """Clips of a batch."""
    clips_per_second: float
    read_gb_per_second: float
    pinned: bool
    """Whether the loader reads into pinned memory."""
    pinned_gb_per_second: float | None
    """Copies to the device from pinned memory; None on a CPU."""
    pageable_gb_per_second: float


@dataclass(frozen=True)
class Saving:
    """Seconds of what the loop does beside its steps."""

    precision: str
    zero_stage: int
    checkpoint_seconds: float
    """Seconds for which training waits while its state is copied to host memory."""
    checkpoint_write_seconds: float
    """Seconds until the checkpoint is whole on the disk, an export before it included."""
    checkpoint_bytes: int
    export_seconds: float
    """Seconds for which training waits while the weights are gathered and copied."""
    validation_seconds: float
    heldout: int
    """Clips of the validation."""


@dataclass(frozen=True)
class Han:
    """Seconds of an epoch of HAN; the official algorithm reads a file for each stream of a clip."""

    clips: int
    official_seconds: float
    fp32_seconds: float
    bf16_seconds: float | None
    """None on a CPU."""
    fp32_over_official: float
    """Speed of this project over that of the official algorithm."""
    bf16_over_official: float | None


Figures = Versions | Corpus | Search | Tests | Throughput | Profile | Loading | Saving | Han
