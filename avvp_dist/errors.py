"""The errors a user can meet. Each has a remedy sentence and its own exit code.

| exit code | meaning |
|---|---|
| 2 | configuration: an unknown key, a wrong value, a missing file |
| 3 | data: a shard, a clip, an annotation file, the disk or the server they are on |
| 4 | checkpoint: missing, torn, or made for another model |
| 5 | cluster: a launcher, Ray or another rank |
| 6 | numerics: the training diverged: values that are not finite |
| 7 | preempted: a signal came, all is saved, the same command with `trainer.resume=auto` goes on |
| 8 | `tools/promote.py` kept the champion, which is no error |
| 130 | Ctrl-C |
"""

from __future__ import annotations


class AvvpError(Exception):
    """Base of all errors here; `str()` gives one line: what was wrong, then what to do.

    `shared` says that all ranks raise the same one together.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "", shared: bool = False) -> None:
        super().__init__(f"{message}. {remedy}" if remedy else message)
        self.shared = shared


class ConfigError(AvvpError):
    """A config key, its value, or a file it names."""

    exit_code = 2


class DataError(AvvpError):
    """A shard set, a shard, a clip, or an annotation file."""

    exit_code = 3


class StorageError(DataError):
    """A disk, a cache or a server: the data may be whole, but cannot be had from here."""


class CheckpointError(AvvpError):
    """A checkpoint or an exported model that is missing, torn or of another shape."""

    exit_code = 4


class ClusterError(AvvpError):
    """A launcher, a Ray cluster, or another rank."""

    exit_code = 5


class NumericsError(AvvpError):
    """A value that is not finite."""

    exit_code = 6


class Preempted(AvvpError):  # noqa: N818 - it is no fault
    """A signal asked the run to end, and it has saved everything."""

    exit_code = 7


def first_line(error: BaseException) -> str:
    """Of its text; its kind where it has none, as a bare `assert`."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
