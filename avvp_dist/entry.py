"""Run an entry point: its errors become one line on stderr and a documented exit code."""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from avvp_dist.errors import AvvpError, ClusterError, ConfigError, Preempted, first_line
from avvp_dist.runtime import membership
from avvp_dist.runtime.environment import home
from avvp_dist.runtime.launched import launched_rank

_SECONDS_FOR_RANK_0 = 5.0
_NO_READER = 141
"""Exit code that a shell gives to a process whose output nobody reads: 128 + SIGPIPE."""


def run(main: Callable[[], None]) -> None:
    """Call `main`; an `AvvpError` ends the process with one line on stderr and its exit code.

    A file that cannot be opened or written ends it with the exit code of a config error, Ctrl-C
    with 130.

    Errors that all ranks raise are printed by rank 0 alone: config errors, errors before the ranks
    are connected, and errors marked as shared. The other ranks wait for it, because a launcher ends
    all ranks when the first one exits. Any other error may belong to one rank, which prints its
    number.

    A supervisor gives the process its variables, and learns how it ends (`runtime/membership.py`).
    """
    code = 1  # an error of another kind, which Python prints
    _prepare_libraries()
    try:
        membership.join()
        main()
        code = 0
        _has_reader()
    except SystemExit as ending:
        _has_reader()
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        raise
    except KeyboardInterrupt:
        print("interrupted: run the command again to do what is missing", file=sys.stderr)
        membership.leave(130)
        os._exit(130)
    except (AvvpError, OSError, RuntimeError, UnicodeEncodeError) as caught:
        if isinstance(caught, BrokenPipeError) and not (_ranks_connected() or _has_reader()):
            membership.leave(_NO_READER)
            os._exit(_NO_READER)
        error = _ours(caught)
        membership.leave(error.exit_code)
        rank = launched_rank()
        with suppress(BrokenPipeError):
            if rank == 0:
                kind = "preempted" if isinstance(error, Preempted) else "error"
                print(f"{kind}: {error}", file=sys.stderr, flush=True)
            elif _ranks_connected() and not (error.shared or isinstance(error, ConfigError)):
                print(f"error on rank {rank}: {error}", file=sys.stderr, flush=True)
            else:
                time.sleep(_SECONDS_FOR_RANK_0)
            sys.stdout.flush()
        # A rank that ends alone must not wait for its peers in an exit hook of the interpreter.
        os._exit(error.exit_code)
    finally:
        membership.leave(code)


def _has_reader() -> bool:
    """Write out what was printed; False if nobody reads it any more, as behind `| head`."""
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file but an object in this process
        return True
    pipe = select.poll()
    pipe.register(number, 0)
    if not any(event & select.POLLERR for _, event in pipe.poll(0)):
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # Python flushes once more
    return False


def _prepare_libraries() -> None:
    """Set what libraries read when they are imported."""
    os.environ["MPLBACKEND"] = "agg"  # that of a notebook is of no use to a batch job
    if home() is None:  # MLflow fails where no home is named, but not where nothing can be written
        os.environ["HOME"] = os.devnull
    # Matplotlib warns of a home that it cannot write to, and uses a temporary folder.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal's encoding lacks
        with suppress(OSError):  # of a descriptor that was replaced since Python's start
            sys.stdout.reconfigure(errors="backslashreplace")


def _ours(error: AvvpError | OSError | RuntimeError | UnicodeEncodeError) -> AvvpError:
    if isinstance(error, AvvpError):
        return error
    if isinstance(error, UnicodeEncodeError):
        return ConfigError(
            f"{error.object!a} is no text in {error.encoding}, the encoding of this locale",
            remedy="Set PYTHONUTF8=1",
        )
    if isinstance(error, RuntimeError):
        if not lost_a_peer(error):
            raise error
        return ClusterError(
            f"another rank is gone or cannot be reached: {first_line(error)}",
            remedy="What that rank printed says why",
        )
    if isinstance(error, BrokenPipeError) and _ranks_connected():
        return ClusterError("the launcher of this rank is gone: its output has no reader")
    if not error.filename:  # no file, but a socket or a bug
        raise error
    return ConfigError(f"{error.filename}: {error.strerror}")


def lost_a_peer(error: Exception) -> bool:
    """Whether the error is a failed collective: how a peer on another host ended is not visible."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return False
    gloo = isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    return gloo or isinstance(error, torch.distributed.DistError)


def _ranks_connected() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()
