"""AudioSet's official embeddings: TFRecord files of 8 bit VGGish, read without TensorFlow.

A record is a `tensorflow.SequenceExample`. Its context has `video_id`, `start_time_seconds`,
`end_time_seconds` and `labels`. Its feature list `audio_embedding` has one string of 128 bytes for
each second (research.google.com/audioset/download.html).
"""

from __future__ import annotations

import csv
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import ConfigError, DataError, first_line
from avvp_dist.packing.sources import Labels
from avvp_dist.shards.schema import AUDIO, AUDIOSET_EXTRACTOR, Clip

DIM = 128
"""Values of an embedding."""
CLASSES = "class_labels_indices.csv"
"""AudioSet's file of class indices and display names."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class AudioSetSource:
    """Clips of `FOLDER/SPLIT/*.tfrecord`, in the order of the file names.

    Labels are display names if `class_labels_indices.csv` is there, or else class indices as text.

    Args:
        annotations: folder of `class_labels_indices.csv`; empty: `folder`.
        rates: nothing, since they have one row a second.

    Raises:
        ConfigError: for any rate.
        DataError: if there are no files, or one is damaged.
    """

    extractor = AUDIOSET_EXTRACTOR
    snippets = 10
    dims: dict[str, int] | None = None

    @classmethod
    def files_of(cls, folder: Path, split: str, annotations: str) -> list[Path]:
        records = sorted((folder / split).glob("*.tfrecord"))
        return [*records, Path(annotations or folder) / CLASSES]

    def __init__(
        self, folder: Path, split: str, annotations: str, rates: Mapping[str, float]
    ) -> None:
        if rates:
            raise ConfigError("rates: AudioSet's embeddings have one row a second, leave it out")
        self.files = sorted((folder / split).glob("*.tfrecord"))
        if not self.files:
            raise DataError(f"{folder / split} holds no *.tfrecord")
        self.classes = _classes(Path(annotations) if annotations else folder)
        self._records: list[tuple[str, int]] = []
        self.ids: list[str] = []
        for file in self.files:
            for offset, record in read_records(file):
                self._records.append((str(file), offset))
                self.ids.append(_context(record, file).clip)

    def part(self, start: int, stop: int) -> AudioSetPart:
        return AudioSetPart(self._records[start:stop], self.classes)


@dataclass(frozen=True)
class AudioSetPart:
    """Some consecutive records of a source."""

    records: list[tuple[str, int]]
    """File of each record, and the byte at which it begins."""
    classes: dict[int, str]
    """Display names by class index."""

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
    """Values in [-2, 2] of 8 bit codes q: `q * 4/255 + 4/512 - 2`, the rule of YouTube-8M.

    VGGish's postprocessor rounds down; the half step makes up for that on average.
    """
    values: NDArray[np.float32] = codes.astype(np.float32) * (4 / 255) + (4 / 512 - 2)
    return values


def parse_example(record: bytes, file: Path, classes: dict[int, str]) -> Clip:
    """Clip of a `SequenceExample`, with the stream `audio` `[seconds, 128]`.

    Raises:
        DataError: naming file and clip, for a damaged record.
    """
    context = _context(record, file)
    labels: Labels = tuple(classes.get(code, str(code)) for code in context.labels) or None
    rows: list[bytes] = []
    try:
        for lists in _fields(record, 2):
            for entry in _fields(lists, 1):
                if _only(entry, 1) == b"audio_embedding":
                    rows = [_bytes_list(feature)[0] for feature in _fields(_only(entry, 2), 1)]
    except (ValueError, IndexError) as error:
        raise DataError(f"{file}: clip {context.clip} is damaged: {error}") from None
    if not rows or any(len(row) != DIM for row in rows):
        raise DataError(
            f"{file}: clip {context.clip} has no audio_embedding of {DIM} bytes a second"
        )
    embedding = dequantise(np.frombuffer(b"".join(rows), np.uint8).reshape(-1, DIM))
    return Clip(context.clip, {AUDIO: embedding}, labels)


def read_records(file: Path, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield offset and content of each record of a TFRecord file, both checksums verified.

    Args:
        offset: byte at which the first record begins.

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
    """Checksum of TFRecord: a rotated CRC-32C plus a constant."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _classes(folder: Path) -> dict[int, str]:
    path = folder / CLASSES
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {int(float(r["index"])): str(r["display_name"]) for r in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path} is no table of classes ({type(error).__name__}: {first_line(error)})",
            remedy="It is AudioSet's own file, in UTF-8, with the columns index and display_name",
        ) from None


@dataclass(frozen=True)
class _Context:
    """Context features of a record."""

    clip: str
    """Id in the form of LLP, `VIDEO_START_END` in seconds."""
    labels: list[int]
    """Class indices."""


def _context(record: bytes, file: Path) -> _Context:
    try:
        features: dict[str, bytes] = {}
        for entry in _fields(_only(record, 1), 1):
            features[_only(entry, 1).decode()] = _only(entry, 2)
        video = _bytes_list(features["video_id"])[0].decode()
        start, end = (_float_list(features[f"{name}_time_seconds"])[0] for name in ("start", "end"))
        clip = clip_name(video, start, end)
        return _Context(clip, _integer_list(features.get("labels", b"")))
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise DataError(f"{file}: a record is no SequenceExample: {error!r}") from None


def clip_name(video: str, start: float, end: float) -> str:
    """Id of a clip in the form of LLP, `VIDEO_START_END` in seconds."""
    return f"{video}_{_seconds(start)}_{_seconds(end)}"


def _seconds(time: float) -> str:
    time = round(time, 3)
    return str(int(time)) if time == int(time) else str(time)


# The three kinds of `tensorflow.Feature`.


def _bytes_list(feature: bytes) -> list[bytes]:
    return [value for values in _fields(feature, 1) for value in _fields(values, 1)]


def _float_list(feature: bytes) -> list[float]:
    packed = b"".join(value for values in _fields(feature, 2) for value in _fields(values, 1))
    return [float(value) for value in np.frombuffer(packed, "<f4")]


def _integer_list(feature: bytes) -> list[int]:
    numbers: list[int] = []
    for values in _fields(feature, 3):
        for field, value in _message(values):
            if field == 1:
                numbers += [value] if isinstance(value, int) else _unpacked(value)
    return numbers


def _unpacked(value: bytes) -> list[int]:
    """Integers of a packed field."""
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


# Protocol buffers (protobuf.dev/encoding).


def _fields(message: bytes, wanted: int) -> list[bytes]:
    """Values of a bytes field of a message, in order.

    Raises:
        ValueError: if the message is damaged or the field holds integers.
    """
    values = [value for field, value in _message(message) if field == wanted]
    chunks = [value for value in values if isinstance(value, bytes)]
    if len(chunks) < len(values):
        raise ValueError(f"field {wanted} has another wire type")
    return chunks


def _only(message: bytes, wanted: int) -> bytes:
    """First value of a bytes field."""
    return _fields(message, wanted)[0]


def _message(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            number, at = _varint(message, at)
            yield field, number
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
    """Integer of variable length at a byte of a message, and the byte after it."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
