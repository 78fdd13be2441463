"""AudioSet's embeddings: records made by protobuf itself, in TFRecord framing."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from avvp_dist.config import PackConfig, TrackingConfig
from avvp_dist.errors import DataError
from avvp_dist.packing.audioset import AudioSetSource, dequantise, read_records
from avvp_dist.packing.job import pack
from avvp_dist.shards.shard_set import ShardSet

FIELD = descriptor_pb2.FieldDescriptorProto


def _messages() -> dict[str, Any]:
    """`tensorflow.SequenceExample` as its .proto files define it, made by protobuf itself."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def add(name: str, *fields: tuple[str, int, int, bool, str]) -> Any:
        message = file.message_type.add(name=name)
        for field, number, kind, many, of in fields:
            label = FIELD.LABEL_REPEATED if many else FIELD.LABEL_OPTIONAL
            message.field.add(
                name=field, number=number, type=kind, label=label, type_name=of or None
            )
        return message

    def add_map(owner: Any, field: str, of: str) -> None:
        entry = owner.nested_type.add(name="Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=FIELD.TYPE_STRING, label=FIELD.LABEL_OPTIONAL)
        value = entry.field.add(name="value", number=2, type_name=of)
        value.type, value.label = FIELD.TYPE_MESSAGE, FIELD.LABEL_OPTIONAL
        owner.field.add(
            name=field,
            number=1,
            type=FIELD.TYPE_MESSAGE,
            label=FIELD.LABEL_REPEATED,
            type_name=f".t.{owner.name}.Entry",
        )

    add("BytesList", ("value", 1, FIELD.TYPE_BYTES, True, ""))
    add("FloatList", ("value", 1, FIELD.TYPE_FLOAT, True, ""))
    add("Int64List", ("value", 1, FIELD.TYPE_INT64, True, ""))
    add(
        "Feature",
        ("bytes_list", 1, FIELD.TYPE_MESSAGE, False, ".t.BytesList"),
        ("float_list", 2, FIELD.TYPE_MESSAGE, False, ".t.FloatList"),
        ("int64_list", 3, FIELD.TYPE_MESSAGE, False, ".t.Int64List"),
    )
    add("FeatureList", ("feature", 1, FIELD.TYPE_MESSAGE, True, ".t.Feature"))
    add_map(add("Features"), "feature", ".t.Feature")
    add_map(add("FeatureLists"), "feature_list", ".t.FeatureList")
    add(
        "SequenceExample",
        ("context", 1, FIELD.TYPE_MESSAGE, False, ".t.Features"),
        ("feature_lists", 2, FIELD.TYPE_MESSAGE, False, ".t.FeatureLists"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("t.SequenceExample")
    return {"SequenceExample": message_factory.GetMessageClass(found)}


SequenceExample = _messages()["SequenceExample"]


def example(video: str, start: float, codes: np.ndarray, labels: list[int]) -> bytes:
    made = SequenceExample()
    context = made.context.feature
    context["video_id"].bytes_list.value.append(video.encode())
    context["start_time_seconds"].float_list.value.append(start)
    context["end_time_seconds"].float_list.value.append(start + 10)
    context["labels"].int64_list.value.extend(labels)
    rows = made.feature_lists.feature_list["audio_embedding"].feature
    for row in codes:
        rows.add().bytes_list.value.append(row.tobytes())
    return bytes(made.SerializeToString())


def framed(record: bytes) -> bytes:
    def masked(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(record))
    return length + masked(length) + record + masked(record)


CODES = np.random.default_rng(0).integers(0, 256, (3, 10, 128), dtype=np.uint8)
IDS = ["-0abcdefghi_30_40", "-0z.bcdefghi_0.5_10.5", "_1bcdefghij_20000.25_20010.25"]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Two files of three clips, the last one of 7 seconds."""
    folder = tmp_path / "release" / "bal_train"
    folder.mkdir(parents=True)
    records = [
        example("-0abcdefghi", 30, CODES[0], [0, 137]),
        example("-0z.bcdefghi", 0.5, CODES[1], [300]),
        example("_1bcdefghij", 20000.25, CODES[2][:7], [5]),
    ]
    (folder / "-0.tfrecord").write_bytes(framed(records[0]) + framed(records[1]))
    (folder / "_1.tfrecord").write_bytes(framed(records[2]))
    return tmp_path / "release"


def run(release: Path, **keys: Any) -> ShardSet:
    out = str(release.parent / "out")
    given = {"format": "audioset", "split": "bal_train", "workers": 1, **keys}
    return pack(
        PackConfig(source=str(release), out=out, tracking=TrackingConfig(enabled=False), **given)
    )


def test_the_clips_come_back_dequantised(release: Path) -> None:
    shards = run(release, clips_per_shard=2)
    assert shards.ids == IDS
    assert shards.lengths.tolist() == [10, 10, 7]
    assert shards.labels == [("0", "137"), ("300",), ("5",)]
    assert (shards.dims, shards.extractor) == (
        {"audio": 128},
        "VGGish, PCA whitened, 8 bit (AudioSet)",
    )
    audio = shards.gather(np.arange(3))["audio"]
    expected = CODES.astype(np.float64) * 4 / 255 + 4 / 512 - 2
    np.testing.assert_allclose(audio[:2], expected[:2], atol=1e-3)
    np.testing.assert_allclose(audio[2, :7], expected[2, :7], atol=1e-3)
    assert not audio[2, 7:].any()
    stream = shards.manifest.streams["audio"]
    assert -2 <= (stream.min or 0) < -1.9 and 1.9 < (stream.max or 0) < 2.01


def test_the_half_step_undoes_the_truncation() -> None:
    """Codes of VGGish's postprocessor, dequantised: the mean error is zero."""
    values = np.random.default_rng(0).uniform(-2, 2, 100_000)
    codes = ((values + 2) * (255 / 4)).astype(np.uint8)
    error = dequantise(codes) - values
    assert abs(error.mean()) < 1e-3 < 4 / 510 < np.abs(error).max() + 1e-3


@pytest.mark.shared
def test_labels_have_names_if_the_class_list_is_there(release: Path, shared: Path) -> None:
    shards = run(release, annotations=str(shared / "audioset"))
    assert shards.labels[0] == ("Speech", "Music")


TABLE = "index,mid,display_name\n0,/m/09x0r,Sp\u00e9ech\n137,/m/04rlf,Music\n300,x,a\n5,y,b\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (TABLE, "utf-8"),
        (TABLE, "utf-8-sig"),
        (TABLE.replace("\n", "\r\n"), "utf-8"),
        (TABLE.replace("137,", "137.0,"), "utf-8"),
    ],
)
def test_classes_are_named(release: Path, text: str, encoding: str) -> None:
    (release / "class_labels_indices.csv").write_text(text, encoding)
    assert run(release).labels[0] == ("Sp\u00e9ech", "Music")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (TABLE, "utf-16"),
        (TABLE, "latin-1"),
        (TABLE.replace(",", "\t"), "utf-8"),
        (TABLE.replace("index", "number"), "utf-8"),
        (TABLE.replace("display_name", "name"), "utf-8"),
        (TABLE.replace("137,", "x,"), "utf-8"),
        (TABLE.replace("137,", ","), "utf-8"),
        (TABLE.partition("\n")[2], "utf-8"),
        ("\0" + TABLE, "utf-8"),
    ],
)
def test_a_table_of_classes_that_is_none_is_named(release: Path, text: str, encoding: str) -> None:
    (release / "class_labels_indices.csv").write_text(text, encoding)
    with pytest.raises(DataError, match=r"class_labels_indices\.csv is no table of classes \("):
        run(release)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda data: data[:-3], r"-0\.tfrecord: the record at byte \d+ is damaged or cut off"),
        (lambda data: data[:100] + b"\x00" + data[101:], "the record at byte 0 is damaged"),
        (lambda data: b"\x01" + data[1:], r"-0\.tfrecord is damaged or cut off at byte 0"),
        (lambda data: data + b"123", r"-0\.tfrecord is damaged or cut off at byte \d+"),
        (lambda data: framed(b"\xff" * 40), r"-0\.tfrecord: a record is no SequenceExample"),
        (lambda data: framed(b""), r"-0\.tfrecord: a record is no SequenceExample"),
    ],
)
def test_a_damaged_file_is_named(release: Path, damage: Any, named: str) -> None:
    file = release / "bal_train" / "-0.tfrecord"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=named):
        run(release)


def test_a_clip_without_an_embedding_is_named_and_can_be_left_out(release: Path) -> None:
    file = release / "bal_train" / "_1.tfrecord"
    file.write_bytes(framed(example("_1bcdefghij", 0, np.zeros((3, 64), np.uint8), [])))
    with pytest.raises(DataError, match="clip _1bcdefghij_0_10 has no audio_embedding of 128"):
        run(release)
    assert run(release, max_bad_fraction=0.4).ids == IDS[:2]


def test_a_folder_without_records_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \*\.tfrecord"):
        AudioSetSource(tmp_path, "eval", "", {})


def test_records_can_be_read_from_the_middle(release: Path) -> None:
    file = release / "bal_train" / "-0.tfrecord"
    (first, _), (second, record) = read_records(file)
    assert (first, next(read_records(file, second))) == (0, (second, record))
