"""The MLflow server: where it is, how it is named in what people read, and a client of it."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or an SQLite file in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def shown(text: str) -> str:
    """`text` without the user and password of any URL in it."""
    return re.sub(r"(?<=://)[^/\s@]*@", "", text)


def connect() -> MlflowClient:
    """A client of the server, which is not asked for anything yet; importing MLflow takes seconds.

    A dead server costs a minute at most, not the many of MLflow's own defaults.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri(), tracking_uri())
