"""Address of the MLflow server, as it is used and as it is printed, and a client of it."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from avvp_dist.errors import AvvpError, StorageError, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SECONDS_TO_OPEN = 15.0
_SECONDS_OF_SILENCE = 5.0


def tracking_uri() -> str:
    """URI of the MLflow store: MLFLOW_TRACKING_URI, or an SQLite file in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _sqlite(Path("mlflow.db"))


def _sqlite(path: Path) -> str:
    """URI of a file; relative if its folder has a character that MLflow takes for one of a URI."""
    whole = str(path.absolute())
    return f"sqlite:///{path if set('?#%') & set(whole) else whole}"


def database(uri: str) -> Path | None:
    """File of a store; None if it is a server or no SQLite."""
    if not uri.startswith("sqlite:///"):
        return None
    from sqlalchemy import make_url

    return Path(make_url(uri).database or "").absolute()


def fault(error: Exception) -> str:
    """One line that says what is wrong with the store, from what it raised."""
    if isinstance(error, AvvpError):
        return str(error)
    reason = first_line(error)
    if cause := re.search(r"Caused by (.*?)\)*$", reason):  # what urllib3 puts last
        reason = cause[1]
    if isinstance(error, ImportError):
        what = "needs a driver that is not installed"
    elif isinstance(error, OSError) or unanswered(error):
        what = "does not answer"
    else:
        what = "cannot be used"
    return redacted(f"{tracking_uri()} {what} ({type(error).__name__}: {reason[:160]})")


def unanswered(error: Exception) -> bool:
    """Whether MLflow raised the error because its server did not answer a request."""
    return "failed with exception" in first_line(error)


def _check(uri: str) -> None:
    """Raise `StorageError` for a URI that is no store; MLflow itself would retry for minutes."""
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        raise StorageError(
            f"MLFLOW_TRACKING_URI={uri} has no protocol", remedy=f"Set it to http://{uri}"
        )
    if re.match(r"https?://[^#]*#", uri):
        raise StorageError(
            f"MLFLOW_TRACKING_URI={redacted(uri)} is the address of a page in a browser",
            remedy=f"Set it to {redacted(uri.partition('#')[0].rstrip('/'))}",
        )
    file = database(uri)
    if file is not None and not file.parent.is_dir():
        raise StorageError(
            f"MLFLOW_TRACKING_URI={uri}: there is no folder {file.parent}", remedy="Make it"
        )
    if re.fullmatch(r"sqlite:(//)?/?(:memory:)?", uri):
        raise StorageError(
            f"MLFLOW_TRACKING_URI={uri} is a database in memory, gone when the command ends",
            remedy="Name a file: sqlite:////FOLDER/mlflow.db",
        )
    if re.match(r"(sqlite|postgresql|mysql|mssql)\b", uri):
        _check_database(uri)


def _check_database(uri: str) -> None:
    """Raise `StorageError` for a database that cannot be opened and read in some seconds.

    MLflow would try ten times, and a driver may wait for ever.
    """
    failed: list[Exception] = []

    def look() -> None:
        try:
            from sqlalchemy import create_engine, inspect
            from sqlalchemy.pool import NullPool

            with create_engine(uri, poolclass=NullPool).connect() as connection:
                inspect(connection).get_table_names()
        except Exception as error:  # of SQLAlchemy, of a driver, or a missing driver
            failed.append(error)

    thread = threading.Thread(target=look, name="database", daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_OPEN)
    if thread.is_alive():
        raise StorageError(f"{redacted(uri)} does not answer within {_SECONDS_TO_OPEN:g} s")
    if failed:
        raise StorageError(fault(failed[0]), remedy="Check MLFLOW_TRACKING_URI")


@contextmanager
def waiting() -> Iterator[None]:
    """Say what is waited for if the block takes more than some seconds."""
    line = f"waiting for {redacted(tracking_uri())}"
    timer = threading.Timer(_SECONDS_OF_SILENCE, print, [line], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def redacted(text: str) -> str:
    """Remove the user name and the password of each URL in a text that is to be printed."""
    return re.sub(r"(?<=://)[^/\s@]*@", "", text)


def connect() -> MlflowClient:
    """A client of the store, which asks the server nothing yet. Importing MLflow takes seconds.

    A dead server costs each call a minute at most, not the many of MLflow's own defaults.

    Raises:
        StorageError: if MLFLOW_TRACKING_URI names no store, or a database that cannot be opened.
    """
    _check(tracking_uri())
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return MlflowClient(tracking_uri(), tracking_uri())
    except Exception as error:  # MLflow raises many types
        raise StorageError(fault(error), remedy="Check MLFLOW_TRACKING_URI") from None
