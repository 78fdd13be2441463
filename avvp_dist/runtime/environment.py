"""Environment variables of a job: which of them the launcher gets, and which the ranks alone.

DeepSpeed puts every variable that starts with MLFLOW on the command lines of other hosts and into
its log. So launchers get only the names listed here. Variables that may hold a secret go to the
ranks alone, in a file that only their user can read. A name that is on no list and is not passed
by `--pass` is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
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
"""Patterns of names that launchers and ranks get."""
RANKS = (
    *("MLFLOW_*", "RAY_AUTH_*", "AWS_*", "S3_*", "GOOGLE_*", "GCS_*", "AZURE_*", "FSSPEC_*"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    *("NO_PROXY", "no_proxy"),
)
"""Patterns of names that ranks alone get, through a file: secrets, and URLs that may hold one."""
EXPORTED = (
    *("NCCL_*", "RCCL_*", "GLOO_*", "UCX_*", "FI_*", "TP_*", "OMP_*", "MKL_*", "KMP_*", "GOMP_*"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "DS_ACCELERATOR", "DEEPSPEED_*", "LD_LIBRARY_PATH"),
    *("RAY_ADDRESS", "LANG", "LC_*", FOLDER, SUPERVISOR, VARIABLES),
)
"""Patterns of names that DeepSpeed takes to other hosts on command lines."""
_SECRET = ("*TOKEN*", "*PASSWORD*", "*SECRET*", "*CREDENTIAL*", "*_KEY", "*_JWT")


@dataclass(frozen=True)
class Variables:
    """Variables by their recipient."""

    launchers: dict[str, str]
    ranks: dict[str, str]


def sort(
    environment: Mapping[str, str],
    passed: Iterable[str] = (),
    deepspeed: Mapping[str, str] | None = None,
) -> Variables:
    """Sort an environment by the lists above.

    Args:
        passed: names that go to the ranks even if they are on no list.
        deepspeed: variables of the user's `.deepspeed_env`; those on no list go to the ranks.
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


def home() -> Path | None:
    """The home folder; None if there is none, as in a container whose user has no name."""
    with suppress(RuntimeError):
        if (own := Path.home()).is_dir():
            return own
    return None


def deepspeed_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of the user's `.deepspeed_env`. DeepSpeed reads `exports` instead of it."""
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    variables = {}
    for folder in filter(None, (home(), Path.cwd())):
        file = folder / name
        for line in file.read_text().splitlines() if file.is_file() else ():
            key, equals, value = line.partition("=")
            if equals:
                variables[key.strip()] = value.strip()
    return variables


def write_variables(variables: Variables, folder: Path) -> dict[str, str]:
    """Write the files of a job into its private folder and return the environment of its command.

    `ranks.json` holds the variables of the ranks alone. DeepSpeed reads `exports` for other hosts.
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
