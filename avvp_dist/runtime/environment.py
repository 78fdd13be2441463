"""Which environment variables reach a job, and how.

DeepSpeed puts every variable that starts with MLFLOW on the command lines of other hosts and into
its log. So launchers get only what is listed here; what may be secret goes to the ranks alone, in a
file that nobody else can read. A name that is on no list, and not passed by name, goes nowhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from avvp_dist.runtime.membership import FOLDER, SUPERVISOR, VARIABLES

LAUNCHERS = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "HOSTNAME", "LANG", "LC_*", "TZ", "TERM"),
    *("TMPDIR", "XDG_*", "SSH_*", "PDSH_*", "VIRTUAL_ENV", "CONDA_*", "PYTHON*", "LD_*", "MPL*"),
    *("CUDA_*", "NVIDIA_*", "HIP_*", "ROCR_*", "HSA_*", "TORCH*", "PYTORCH_*", "TRITON_*"),
    *("PET_*", "DS_*", "DEEPSPEED_*", "NCCL_*", "RCCL_*", "GLOO_*", "UCX_*", "FI_*", "TP_*"),
    *("OMP_*", "MKL_*", "KMP_*", "GOMP_*", "OPENBLAS_*"),
    *("SLURM*", "SRUN_*", "PMI*", "OMPI_*", "I_MPI_*", "MV2_*", "KUBERNETES_*", "RAY_*"),
    *("JOB_COMPLETION_INDEX", "MASTER_*", "RANK", "WORLD_SIZE", "LOCAL_*", "GROUP_*", "NODE_RANK"),
    *("SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AVVP_*"),
)
"""Names, or beginnings of names, that launchers and ranks get."""
RANKS = (
    *("MLFLOW_*", "RAY_AUTH_*", "AWS_*", "S3_*", "GOOGLE_*", "GCS_*", "AZURE_*", "FSSPEC_*"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    *("NO_PROXY", "no_proxy"),
)
"""Those that ranks alone get, through a file: they hold secrets, or URLs that may."""
EXPORTED = (
    *("NCCL_*", "RCCL_*", "GLOO_*", "UCX_*", "FI_*", "TP_*", "OMP_*", "MKL_*", "KMP_*", "GOMP_*"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "DS_ACCELERATOR", "DEEPSPEED_*", "LD_LIBRARY_PATH"),
    *("RAY_ADDRESS", "LANG", "LC_*", FOLDER, SUPERVISOR, VARIABLES),
)
"""Those that DeepSpeed takes to other hosts, on command lines; they mean the same on each."""
_SECRET = ("*TOKEN*", "*PASSWORD*", "*SECRET*", "*CREDENTIAL*", "*_KEY", "*_JWT")


@dataclass(frozen=True)
class Variables:
    """An environment, sorted by who gets it."""

    launchers: dict[str, str]
    ranks: dict[str, str]


def sort(
    environment: Mapping[str, str],
    passed: Iterable[str] = (),
    deepspeed: Mapping[str, str] | None = None,
) -> Variables:
    """Sort an environment by the lists above.

    Args:
        passed: names that go to the ranks, whatever they are.
        deepspeed: what the user's `.deepspeed_env` adds; what is on no list goes to the ranks.
    """
    passed, added = set(passed), deepspeed or {}
    launchers, ranks = {}, {}
    for name, value in {**environment, **added}.items():
        shared = _listed(name, LAUNCHERS) and not _listed(name, _SECRET)
        if name in passed or _listed(name, RANKS):
            ranks[name] = value
        elif shared:
            launchers[name] = value
        elif name in added or _listed(name, LAUNCHERS):
            ranks[name] = value
    return Variables(launchers, ranks)


def deepspeed_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What the user's `.deepspeed_env` says: ours takes its place, so it has to be read here."""
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    found = {}
    for file in (Path.home() / name, Path(name)):
        for line in file.read_text().splitlines() if file.is_file() else ():
            key, equals, value = line.partition("=")
            if equals:
                found[key.strip()] = value.strip()
    return found


def lay_out(variables: Variables, folder: Path) -> dict[str, str]:
    """Write the files of a job into its private folder; the environment of its command.

    `ranks.json` has what ranks alone get; `exports` is what DeepSpeed reads for other hosts.
    """
    environment = {**variables.launchers, FOLDER: str(folder), SUPERVISOR: str(os.getpid())}
    environment.pop(VARIABLES, None)
    if variables.ranks:
        environment[VARIABLES] = str(folder / "ranks.json")
        _write_private(folder / "ranks.json", json.dumps(variables.ranks))
    lines = [
        f"{name}={value}\n"
        for name, value in environment.items()
        if _listed(name, EXPORTED) and "\n" not in value
    ]
    _write_private(folder / "exports", "".join(lines))
    environment["DS_ENV_FILE"] = str(folder / "exports")
    return environment


def _listed(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _write_private(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)
