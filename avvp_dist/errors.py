"""The errors a user can meet. Each has a remedy sentence and its own exit code.

| exit code | meaning |
|---|---|
| 2 | configuration: an unknown key, a wrong value, a missing file |
| 3 | data: a shard, a clip, an annotation file, the disk or the server they are on |
| 4 | checkpoint: missing, torn, or made for another model |
| 5 | cluster: a launcher, Ray or another rank |
| 6 | numerics: the training diverged: values that are not finite |
| 7 | preempted: a signal came, all is saved, `trainer.resume=auto` resumes from there |
| 8 | `avvp promote` kept the champion, which is no error |
| 130 | Ctrl-C |
"""

from __future__ import annotations

KEPT_CHAMPION = 8
"""Exit code of `avvp promote` if the champion stays: no error, but not what was asked for."""


class AvvpError(Exception):
    """Base of all errors; `str()` gives one line: what was wrong, then what to do.

    `shared` says that all ranks raise the same error together.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "", shared: bool = False) -> None:
        end = "" if message.endswith("?") else "."
        super().__init__(f"{message}{end} {remedy}" if remedy else message)
        self.shared = shared


class ConfigError(AvvpError):
    """A wrong config key or value, or a missing file that a key names."""

    exit_code = 2


class DataError(AvvpError):
    """A fault in a shard set, a shard, a clip, or an annotation file."""

    exit_code = 3


class StorageError(DataError):
    """A disk, a cache or a server that fails: the data may be whole, but cannot be read here."""


class CheckpointError(AvvpError):
    """A checkpoint or an exported model that is missing, torn or of another shape."""

    exit_code = 4


class ClusterError(AvvpError):
    """A failure of a launcher, a Ray cluster, or another rank."""

    exit_code = 5


class NumericsError(AvvpError):
    """A value that is not finite."""

    exit_code = 6


class Preempted(AvvpError):  # noqa: N818 - it is no error
    """A signal asked the run to end, and it has saved everything."""

    exit_code = 7


def first_line(error: BaseException) -> str:
    """First line of the message, or the exception's type name if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
