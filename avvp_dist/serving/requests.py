"""Requests to served models: their records are features or media files, or refused in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.context import Context, get_prediction_context
from numpy.typing import NDArray

from avvp_dist.tracking.packaging import ID, media_columns

_LOGGER_OF_DROPPED, _DROPPED = "mlflow.models.utils", "Found extra inputs"


class RequestError(MlflowException):  # type: ignore[misc]  # MLflow has no types
    """A request that is refused: HTTP status 400 and one line, which repeats no data.

    MLflow's server puts a print of the whole request before the message of an exception. The
    message of this one cannot be set again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=BAD_REQUEST)

    @property
    def message(self) -> str:
        return self._first

    @message.setter
    def message(self, text: str) -> None:
        if not hasattr(self, "_first"):
            self._first = text


@dataclass(frozen=True)
class ClipRequest:
    """Features of one record of a request."""

    id: str | None
    streams: dict[str, NDArray[np.float32]]
    """Features `[N, D]` per stream."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Modalities that its media file lacks, and why."""

    @property
    def seconds(self) -> int:
        """N, the length of the clip."""
        return len(next(iter(self.streams.values())))


@dataclass(frozen=True)
class MediaRequest:
    """Media file of one record of a request, still to be decoded."""

    id: str | None
    place: str
    """Record and column, for errors."""
    column: str
    """One of `media_columns`."""
    text: str


@dataclass(frozen=True)
class RequestReader:
    """Reads the requests to one model."""

    dims: Mapping[str, int]
    """Feature size of each stream that a record with features has."""
    minimum: int
    """Minimum number of snippets in a clip."""
    maximum: int
    """Maximum number of snippets in a clip."""

    def read(self, frame: pd.DataFrame) -> list[ClipRequest | MediaRequest]:
        """Clips of a request, one per row.

        Raises:
            RequestError: naming the record, the column and what it should be.
        """
        known = [ID, *media_columns(self.dims), *self.dims]
        if dropped_columns.in_this_call() or set(frame.columns) - set(known):
            raise RequestError(f"a record has unknown columns; known are {', '.join(known)}")
        if not len(frame):
            raise RequestError("the request has no records")
        return [self._record(number, given) for number, given in enumerate(_given(frame))]

    def _record(self, number: int, given: Mapping[str, object]) -> ClipRequest | MediaRequest:
        place, name = f"record {number}", _text(f"record {number}: {ID}", given.get(ID))
        columns = media_columns(self.dims)
        media = [column for column in columns if column in given]
        streams = [stream for stream in self.dims if stream in given]
        if len(media) + bool(streams) != 1:
            raise RequestError(
                f"{place} has {', '.join(media + streams) or 'nothing'}: give "
                f"{', '.join(self.dims)}, or one of {', '.join(columns)}"
            )
        if not media:
            return self._clip(number, name, given)
        place = f"{place}: {media[0]}"
        return MediaRequest(name, place, media[0], _text(place, given[media[0]]) or "")

    def _clip(self, number: int, name: str | None, given: Mapping[str, object]) -> ClipRequest:
        missing = [stream for stream in self.dims if stream not in given]
        if missing:
            raise RequestError(f"record {number}: {missing[0]} is missing")
        streams = {stream: self._features(number, stream, given[stream]) for stream in self.dims}
        lengths = {stream: len(features) for stream, features in streams.items()}
        if len(set(lengths.values())) > 1:
            raise RequestError(f"record {number}: streams have different lengths: {lengths}")
        return ClipRequest(name, streams)

    def _features(self, number: int, stream: str, value: object) -> NDArray[np.float32]:
        place, dim = f"record {number}: {stream}", self.dims[stream]
        try:
            rows_given = cast("Iterable[object]", value)
            table = np.array(value if isinstance(value, np.ndarray) else list(rows_given))
        except (TypeError, ValueError):  # no list, or rows of different lengths
            table = np.empty(0, object)
        if table.dtype.kind not in "fiu" or table.ndim != 2:
            raise RequestError(f"{place} is no list of equally long lists of numbers")
        rows, columns = table.shape
        if not self.minimum <= rows <= self.maximum or columns != dim:
            span = f"{self.minimum} to " if self.minimum < self.maximum else ""
            raise RequestError(
                f"{place} is {rows} x {columns}, expected {span}{self.maximum} snippets x {dim}"
            )
        with np.errstate(over="ignore"):
            features = table.astype(np.float32)
        if not np.isfinite(features).all():
            row = int((~np.isfinite(features)).any(axis=1).argmax())
            raise RequestError(f"{place} is not finite in snippet {row}")
        return features


def _text(place: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{place} is no string")
    return value


def _given(frame: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Columns that each record has: pandas fills those that it lacks with None or NaN."""
    for row in frame.to_dict("records"):
        yield {
            str(name): value
            for name, value in row.items()
            if not (value is None or (np.isscalar(value) and pd.isna(value)))
        }


class DroppedColumns(logging.Filter):
    """Knowledge of columns that MLflow dropped.

    MLflow removes the columns that the signature lacks before a model sees the request, and only
    logs that it did. A misspelt optional column would be lost in silence.
    """

    def __init__(self) -> None:
        super().__init__()
        self._call: ContextVar[Context | None] = ContextVar("dropped_columns", default=None)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith(_DROPPED):
            self._call.set(get_prediction_context())
        return True

    def in_this_call(self) -> bool:
        """Whether the running `predict` of MLflow dropped columns of its request."""
        call = self._call.get()
        return call is not None and call is get_prediction_context()


dropped_columns = DroppedColumns()
logging.getLogger(_LOGGER_OF_DROPPED).addFilter(dropped_columns)
