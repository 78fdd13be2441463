"""Address of the MLflow server, as it is used and as it is printed, and a client of it."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient


def tracking_uri() -> str:
    """URI of the MLflow store: MLFLOW_TRACKING_URI, or an SQLite file in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def redacted(text: str) -> str:
    """Remove the user name and the password of each URL in a text that is to be printed."""
    return re.sub(r"(?<=://)[^/\s@]*@", "", text)


def connect() -> MlflowClient:
    """A client of the store, which asks the server nothing yet. Importing MLflow takes seconds.

    A dead server costs each call a minute at most, not the many of MLflow's own defaults.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri(), tracking_uri())
