"""Address of the MLflow server, as it is used and as it is printed, and a client of it."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from avvp_dist.errors import AvvpError, StorageError, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
    dead = isinstance(error, OSError) or "failed with exception" in reason
    what = "does not answer" if dead else "does not take the records"
    return redacted(f"{tracking_uri()} {what} ({type(error).__name__}: {reason[:160]})")


def _check(uri: str) -> None:
    """Raise `StorageError` for a URI that is no store; MLflow itself would retry for minutes."""
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


def redacted(text: str) -> str:
    """Remove the user name and the password of each URL in a text that is to be printed."""
    return re.sub(r"(?<=://)[^/\s@]*@", "", text)


def connect() -> MlflowClient:
    """A client of the store, which asks the server nothing yet. Importing MLflow takes seconds.

    A dead server costs each call a minute at most, not the many of MLflow's own defaults.

    Raises:
        StorageError: if MLFLOW_TRACKING_URI names no store.
    """
    _check(tracking_uri())
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri(), tracking_uri())
