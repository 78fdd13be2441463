"""AudioSet's official embeddings: TFRecord files of 8 bit VGGish, read without TensorFlow.

A record is a `tensorflow.SequenceExample` with the context `video_id`, `start_time_seconds`,
`end_time_seconds`, `labels`, and the feature list `audio_embedding`: one string of 128 bytes for
each second (research.google.com/audioset/download.html).
"""

from __future__ import annotations

import csv
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import DataError
from avvp_dist.packing.sources import Labels
from avvp_dist.shards.schema import AUDIO, AUDIOSET_EXTRACTOR, Clip

DIM = 128
CLASSES = "class_labels_indices.csv"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class AudioSetSource:
    """The clips of `FOLDER/SPLIT/*.tfrecord`, in the order of the file names.

    Labels are display names where `class_labels_indices.csv` is in `annotations` or the folder,
    else class indices as text.

    Raises:
        DataError: for no or damaged files.
    """

    extractor = AUDIOSET_EXTRACTOR
    snippets = 10

    def __init__(self, folder: Path, split: str, annotations: str) -> None:
        self.files = sorted((folder / split).glob("*.tfrecord"))
        if not self.files:
            raise DataError(f"{folder / split} holds no *.tfrecord")
        self.classes = _classes(Path(annotations) if annotations else folder)
        self._records: list[tuple[str, int]] = []
        self.ids: list[str] = []
        for file in self.files:
            for offset, record in read_records(file):
                self._records.append((str(file), offset))
                self.ids.append(_clip_id(_context(record, file)))

    def part(self, start: int, stop: int) -> AudioSetPart:
        return AudioSetPart(self._records[start:stop], self.classes)


@dataclass(frozen=True)
class AudioSetPart:
    """Records: file and byte at which each begins."""

    records: list[tuple[str, int]]
    classes: dict[int, str]

    def files(self) -> Sequence[Path]:
        return [Path(file) for file in sorted({file for file, _ in self.records})]

    def __iter__(self) -> Iterator[Clip | DataError]:
        for file, offset in self.records:
            try:
                _, record = next(read_records(Path(file), offset))
                yield parse_example(record, Path(file), self.classes)
            except DataError as error:
                yield error


def dequantise(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """8 bit codes as numbers in [-2, 2]: `q * 4/255 + 4/512 - 2`, YouTube-8M's rule.

    VGGish's postprocessor cuts off what is behind the point; the half step undoes that on average.
    """
    values: NDArray[np.float32] = codes.astype(np.float32) * (4 / 255) + (4 / 512 - 2)
    return values


def parse_example(record: bytes, file: Path, classes: dict[int, str]) -> Clip:
    """A `SequenceExample` as a clip of the stream `audio`, `[t, 128]`.

    Raises:
        DataError: naming file and clip, for a damaged record.
    """
    context = _context(record, file)
    clip = _clip_id(context)
    codes = context.get("labels", [])
    labels: Labels = tuple(classes.get(code, str(code)) for code in codes) or None
    rows = []
    try:
        for lists in _fields(record, 2):
            for entry in _fields(lists, 1):
                if _only(entry, 1) == b"audio_embedding":
                    rows = [_feature(feature)[0] for feature in _fields(_only(entry, 2), 1)]
    except (ValueError, IndexError, TypeError) as error:
        raise DataError(f"{file}: clip {clip} is damaged: {error}") from None
    if not rows or any(type(row) is not bytes or len(row) != DIM for row in rows):
        raise DataError(f"{file}: clip {clip} has no audio_embedding of {DIM} bytes a second")
    embedding = dequantise(np.frombuffer(b"".join(rows), np.uint8).reshape(-1, DIM))
    return Clip(clip, {AUDIO: embedding}, labels)


def read_records(file: Path, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Offset and content of each record of a TFRecord file, both of its checksums verified.

    Raises:
        DataError: naming file and byte, for a cut or changed record.
    """
    with file.open("rb") as stream:
        stream.seek(offset)
        while head := stream.read(12):
            if len(head) < 12 or _masked(head[:8]) != struct.unpack("<I", head[8:])[0]:
                raise DataError(f"{file} is damaged or cut off at byte {offset}")
            (length,) = struct.unpack("<Q", head[:8])
            body = stream.read(length + 4)
            if len(body) < length + 4 or _masked(body[:-4]) != struct.unpack("<I", body[-4:])[0]:
                raise DataError(f"{file}: the record at byte {offset} is damaged or cut off")
            yield offset, body[:-4]
            offset += 16 + length


def _masked(data: bytes) -> int:
    """TFRecord's checksum: a rotated CRC-32C plus a constant."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _classes(folder: Path) -> dict[int, str]:
    path = folder / CLASSES
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {int(row["index"]): row["display_name"] for row in csv.DictReader(file)}


def _clip_id(context: dict[str, Any]) -> str:
    """LLP's form, `VIDEO_START_END` in seconds."""
    video = context["video_id"][0].decode()
    start, end = (round(context[f"{name}_time_seconds"][0], 3) for name in ("start", "end"))
    return f"{video}_{_seconds(start)}_{_seconds(end)}"


def _seconds(time: float) -> str:
    return str(int(time)) if time == int(time) else str(time)


def _context(record: bytes, file: Path) -> dict[str, Any]:
    """The context features by name, each a list of bytes, floats or integers."""
    try:
        features: dict[str, Any] = {}
        for entry in _fields(_only(record, 1), 1):
            features[_only(entry, 1).decode()] = _feature(_only(entry, 2))
        _clip_id(features)
        return features
    except (ValueError, IndexError, KeyError, AttributeError, TypeError, OverflowError) as error:
        raise DataError(f"{file}: a record is no SequenceExample: {error!r}") from None


def _feature(message: bytes) -> list[Any]:
    """A `tensorflow.Feature`: its bytes, floats or integers."""
    for field, value in _message(message):
        if field == 1:
            return list(_fields(value, 1))
        if field == 2:
            packed = b"".join(v for n, v in _message(value) if n == 1)
            return list(np.frombuffer(packed, "<f4").tolist())
        if field == 3:
            return [number for n, v in _message(value) if n == 1 for number in _integers(v)]
    return []


def _integers(value: Any) -> list[int]:
    """Integers, packed into bytes or alone."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _fields(message: bytes, wanted: int) -> list[bytes]:
    """The values of a field of a protocol buffer message, in order."""
    return [value for field, value in _message(message) if field == wanted]


def _only(message: bytes, wanted: int) -> bytes:
    return _fields(message, wanted)[0]


def _message(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer message (protobuf.dev/encoding)."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield field, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind, -1)
        if size < 0 or at + size > len(message):
            raise ValueError("cut off or of an unknown wire type")
        yield field, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
