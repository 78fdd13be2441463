"""The tar of a shard: other readers can read it, and nothing hostile or damaged is accepted."""

from __future__ import annotations

import gzip
import io
import json
import signal
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.errors import DataError
from avvp_dist.shards.schema import Clip, decode_key
from avvp_dist.shards.tars import Scan, scan_tar, write_tar

DIMS = {"audio": 4, "visual": 6}
Item = tuple["str | tarfile.TarInfo", bytes]


@pytest.fixture
def no_endless_loop() -> Iterator[None]:
    def stop(*_: object) -> None:
        pytest.fail("it did not end in 5 s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def array(seed: int, dim: int, snippets: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((snippets, dim)).astype(np.float16)


def clips() -> list[Clip]:
    """Padded clips as they are written, with and without labels."""
    return [
        Clip(
            f"-_clip{n}/{n}.5 ü",
            {name: array(n, dim) for name, dim in DIMS.items()},
            labels=None if n == 2 else ("Dog", "Frying_(food)")[:n],
            length=10 - n,
        )
        for n in range(3)
    ]


def npy(values: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, version=version)
    return buffer.getvalue()


def header(text: str) -> bytes:
    """An npy file with this header and 80 zeros."""
    data = text.encode().ljust(118)
    return b"\x93NUMPY\1\0" + len(data).to_bytes(2, "little") + data + bytes(80)


def sizes(shape: str, descr: str = "'<f2'") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}")


def good(changes: dict[str, bytes | None] | None = None) -> list[Item]:
    """The members of the clips `a` and `b`, of 1024 bytes each, some of them changed or gone."""
    members: dict[str, bytes | None] = {}
    for n, key in enumerate("ab"):
        members |= {f"{key}.{name}.npy": npy(array(n, dim)) for name, dim in DIMS.items()}
        members[f"{key}.json"] = json.dumps({"length": 10, "labels": ["Dog"]}).encode()
    return [(k, v) for k, v in (members | (changes or {})).items() if v is not None]


def both(audio: np.ndarray) -> list[Item]:
    """The members with this audio in both clips."""
    return good({f"{key}.audio.npy": npy(audio) for key in "ab"})


def tar(items: Iterable[Item]) -> bytes:
    """A tar of these members, even of those that `TarFile.addfile` refuses in Python 3.13."""
    out = bytearray()
    for name, data in items:
        info = tarfile.TarInfo(name) if isinstance(name, str) else name
        info.size = info.size or len(data)
        out += info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        out += data + bytes(-len(data) % tarfile.BLOCKSIZE)
    out += bytes(2 * tarfile.BLOCKSIZE)
    return bytes(out) + bytes(-len(out) % tarfile.RECORDSIZE)


def scan(path: Path, items: Iterable[Item]) -> Scan:
    path.write_bytes(tar(items))
    return scan_tar(path)


def arrays_at(path: Path, found: Scan, clip: int) -> dict[str, np.ndarray]:
    """Arrays at the places that a scan gives for a clip."""
    data = path.read_bytes()
    arrays = {}
    for (name, dim), start in zip(found.dims.items(), found.offsets[clip], strict=True):
        flat = np.frombuffer(data, "<f2", found.snippets * dim, start)
        arrays[name] = flat.reshape(found.snippets, dim)
    return arrays


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], strict=True)


def test_a_scan_finds_the_clips_that_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    written = write_tar(clips(), path)
    assert scan_tar(path) == written
    assert written.ids == [clip.id for clip in clips()]
    assert written.lengths == [10, 9, 8]
    assert written.labels == [[], ["Dog"], None]
    assert (written.snippets, written.dims, written.bytes) == (10, DIMS, path.stat().st_size)
    for n, clip in enumerate(clips()):
        assert_same(arrays_at(path, written, n), clip.streams)
    for name, (low, high) in written.ranges.items():
        values = np.stack([clip.streams[name] for clip in clips()])
        assert (low, high) == (values.min(), values.max())


def test_equal_clips_give_equal_bytes(tmp_path: Path) -> None:
    one, two = write_tar(clips(), tmp_path / "a.tar"), write_tar(clips(), tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert one.sha256 == two.sha256
    with tarfile.open(tmp_path / "a.tar") as file:
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in file} == {(0, 0, 0, "")}
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "b.tar"}


def test_records_are_of_equal_size(tmp_path: Path) -> None:
    offsets = np.array(write_tar(clips(), tmp_path / "a.tar").offsets)
    assert len(np.unique(np.diff(offsets, axis=0))) == 1


def test_gnu_tar_lists_and_extracts_it(tmp_path: Path) -> None:
    write_tar(clips(), tmp_path / "a.tar")
    done = subprocess.run(
        ["tar", "xvf", "a.tar"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    names = done.stdout.splitlines()
    assert len(names) == 9
    assert names[0] == "-_clip0=2F0=2E5=20=C3=BC.audio.npy"
    assert_same({"audio": np.load(tmp_path / names[0])}, {"audio": clips()[0].streams["audio"]})


def test_webdataset_reads_the_same(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write_tar(clips(), tmp_path / "a.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode())
    for sample, clip in zip(samples, clips(), strict=True):
        assert decode_key(sample["__key__"]) == clip.id
        labels = None if clip.labels is None else list(clip.labels)
        assert sample["json"] == {"id": clip.id, "length": clip.length, "labels": labels}
        assert_same({name: sample[f"{name}.npy"] for name in DIMS}, clip.streams)


def test_an_id_too_long_for_a_tar_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"clip ü{20}: its id is too long"):
        write_tar([Clip("ü" * 20, clips()[0].streams, length=10)], tmp_path / "a.tar")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("meta", [None, {}, {"length": 7, "labels": ["Dog"], "url": "x"}])
def test_tars_of_webdataset_are_read(tmp_path: Path, meta: dict[str, object] | None) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "a.tar"
    keys = ["train/x", "train/y", "x", "AP=2E8"]
    with webdataset.TarWriter(str(path)) as writer:
        for n, key in enumerate(keys):
            sample = {f"{name}.npy": array(n, dim) for name, dim in DIMS.items()}
            sample |= {} if meta is None else {"json": meta}
            writer.write({"__key__": key, "txt": "a dog barks", "frame.jpg": b"jpg", **sample})
    found = scan_tar(path)
    assert found.ids == ["train/x", "train/y", "x", "AP.8"]
    assert found.lengths == [7 if meta else 10] * 4
    assert found.labels == [["Dog"] if meta else None] * 4
    assert (found.snippets, found.dims) == (10, DIMS)
    for n in range(4):
        assert_same(arrays_at(path, found, n), {name: array(n, dim) for name, dim in DIMS.items()})


def test_a_key_begins_behind_the_last_folder_as_in_webdataset(tmp_path: Path) -> None:
    items = [(f"v1.2/{name}", data) for name, data in good()]
    assert scan(tmp_path / "a.tar", items).ids == ["v1.2/a", "v1.2/b"]


def by_stream(item: Item) -> tuple[bool, str]:
    return "visual" in str(item[0]), str(item[0])


def test_members_may_lie_in_any_order(tmp_path: Path) -> None:
    ordered, mixed = tmp_path / "a.tar", tmp_path / "b.tar"
    first, second = scan(ordered, good()), scan(mixed, sorted(good(), key=by_stream))
    assert first.ids == second.ids == ["a", "b"]
    assert first.offsets != second.offsets
    for n in range(2):
        assert_same(arrays_at(ordered, first, n), arrays_at(mixed, second, n))


def test_newer_npy_headers_and_names_with_a_dot_slash_are_read(tmp_path: Path) -> None:
    newer = {f"a.{name}.npy": npy(array(0, dim), (2, 0)) for name, dim in DIMS.items()}
    path = tmp_path / "a.tar"
    found = scan(path, [(f"./{name}", data) for name, data in good(newer)])
    assert found.ids == ["a", "b"]
    assert_same(arrays_at(path, found, 0), {name: array(0, dim) for name, dim in DIMS.items()})


def test_members_of_no_clip_are_ignored(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("more")
    folder.type = tarfile.DIRTYPE
    more: list[Item] = [("c.txt", b"x"), ("README", b"x"), ("a.frame.jpg", b"x"), (folder, b"")]
    # macOS writes these.
    more += [("._a.audio.npy", b"x"), ("._b.json", b"x"), ("./._b.visual.npy", b"x")]
    more += [("__MACOSX/._a.audio.npy", b"x"), ("__MACOSX/a.audio.npy", b"x"), (".DS_Store", b"x")]
    assert scan(tmp_path / "a.tar", more + good()).ids == ["a", "b"]
    assert scan(tmp_path / "b.tar", good() + more).ids == ["a", "b"]


@pytest.mark.parametrize("bits", [0x7E00, 0xFE00, 0x7C00, 0xFC00, 0xFFFF])
@pytest.mark.parametrize("stream", DIMS)
def test_a_clip_that_is_not_finite_has_length_0(tmp_path: Path, stream: str, bits: int) -> None:
    values = array(1, DIMS[stream])
    values.view(np.uint16)[9, 3] = bits
    found = scan(tmp_path / "a.tar", good({f"b.{stream}.npy": npy(values)}))
    assert found.lengths == [10, 0]
    first = {name: array(0, dim) for name, dim in DIMS.items()}
    assert found.ranges == {name: [float(v.min()), float(v.max())] for name, v in first.items()}


def special(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> Item:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info, b""


def pax_sparse() -> bytes:
    info = tarfile.TarInfo("b.more.npy")
    info.pax_headers = {"GNU.sparse.size": "99", "GNU.sparse.map": "0,9", "GNU.sparse.major": "0"}
    return info.tobuf(tarfile.PAX_FORMAT)


def long_names(count: int) -> bytes:
    """Headers that each give the name of the next one, which tarfile reads by recursion."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    return (info.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * count


def flipped(at: int) -> bytes:
    raw = bytearray(tar(good()))
    raw[at] ^= 1
    return bytes(raw)


RAW = tar(good())
AUDIO, VISUAL, META = "b.audio.npy", "b.visual.npy", "b.json"

DAMAGED_BYTES = {
    "cut in a member": (RAW[: 4 * 1024 + 600], VISUAL),
    "cut behind the numbers": (RAW[: 4 * 1024 + 800], ""),
    "cut in a header": (RAW[: 4 * 1024 + 100], "cut off"),
    "cut on a member's edge": (RAW[: 5 * 1024], "cut off"),
    "cut on a clip's edge": (RAW[: 3 * 1024], "cut off"),
    "half an end": (RAW[: 6 * 1024 + 512], "cut off"),
    "flipped byte in a name": (flipped(3 * 1024 + 3), "no header at byte 3072"),
    "flipped byte in a size": (flipped(3 * 1024 + 130), "no header at byte 3072"),
    "flipped byte in a checksum": (flipped(3 * 1024 + 150), "no header at byte 3072"),
    "flipped byte in the first header": (flipped(3), ""),
    "zeroed header": (RAW[:3072] + bytes(512) + RAW[3584:], "damaged"),
    "zeroed clip": (RAW[:3072] + bytes(2048) + RAW[5120:], "damaged"),
    "empty": (b"", ""),
    "garbage": (bytes(range(256)) * 40, ""),
    "gzip": (gzip.compress(RAW), ""),
    "garbage behind the end": (RAW + b"x", "damaged"),
    "a second tar behind the end": (RAW + RAW, "damaged"),
    "nothing in it": (tar([]), "no clips"),
    "no clips in it": (tar([("a.txt", b"x"), ("b.jpg", b"x")]), "no clips"),
    "sparse in pax headers": (pax_sparse() + RAW, "b.more.npy"),
    "endless names": (long_names(900) + RAW, ""),
}

DAMAGED_MEMBERS: dict[str, tuple[list[Item], str]] = {
    "absolute path": ([*good(), ("/b.more.npy", b"x")], "/b.more.npy"),
    "upward path": ([*good(), ("x/../../b.more.npy", b"x")], r"x/../../b.more.npy"),
    "symlink": ([*good(), special(AUDIO, tarfile.SYMTYPE, link="/etc/passwd")], AUDIO),
    "hard link": ([*good(), special("c.audio.npy", tarfile.LNKTYPE, link=AUDIO)], "c.audio.npy"),
    "fifo": ([*good(), special("c.audio.npy", tarfile.FIFOTYPE)], "c.audio.npy"),
    "device": ([*good(), special("c.audio.npy", tarfile.CHRTYPE)], "c.audio.npy"),
    "sparse": ([*good(), special("c.audio.npy", tarfile.GNUTYPE_SPARSE)], "c.audio.npy"),
    "unknown kind": ([*good(), special("c.audio.npy", b"Z")], "c.audio.npy"),
    "absurd size": ([*good(), special("c.audio.npy", size=2**40)], "c.audio.npy"),
    "absurd size of an ignored member": ([*good(), special("c.txt", size=2**40)], "c.txt"),
    "negative size": ([*good(), special("c.txt", size=-512)], "c.txt"),
    "member twice": ([*good(), good()[0]], "clip a .*a.audio.npy"),
    "JSON twice": ([*good(), good()[2]], "clip a "),
    "clip twice": (good() + good()[3:], "clip b "),
    "the same under another name": ([*good(), (f"./{AUDIO}", good()[3][1])], "clip b .*b.audio"),
    "missing stream": (good({VISUAL: None}), r"clip b has no visual, as 1 of 2 clips"),
    "missing stream of the first": (good({"a.visual.npy": None}), r"clip b .*visual.*first"),
    "streams of different lengths": (both(array(0, 4, 9)), "differ in length or type"),
    "streams of two types": (both(array(0, 4).astype(np.float32)), "differ in length or type"),
    "JSON without arrays": ([*good(), ("c.json", b"{}")], "clip c "),
    "one stream more": ([*good(), ("b.more.npy", npy(array(0, 3)))], "clip b .*more"),
    "name that is no UTF-8": ([(f"\udcff{str(n)[1:]}", data) for n, data in good()[:2]], ""),
    **{
        f"pickle .{kind}": ([*good(), (f"b.more.{kind}", b"x")], f"b.more.{kind} .*pickle")
        for kind in ("pyd", "pkl", "pickle", "pth")
    },
    "pickle without a stream": ([*good(), ("b.pkl", b"x")], "b.pkl .*pickle"),
}

DAMAGED_ARRAYS = {
    "pickled objects": (npy(np.array([[{}] * 4] * 10, object)), "object"),
    "another type than the first": (npy(array(0, 4).astype(np.float32)), "float32.*first.*float16"),
    "float64": (npy(array(0, 4).astype(np.float64)), "float64.*float16 or float32"),
    "whole numbers": (npy(array(0, 4).astype(np.int16)), "int16.*float16 or float32"),
    "big-endian": (npy(array(0, 4).astype(">f2")), ">f2"),
    "other dims": (npy(array(0, 5)), r"\[10, 5\]"),
    "other snippets": (npy(array(0, 4, 9)), r"\[9, 4\]"),
    "Fortran order": (npy(np.asfortranarray(array(0, 4))), "C-ordered"),
    "1-D": (npy(array(0, 4).ravel()), r"\[40\]"),
    "3-D": (npy(array(0, 4)[None]), r"\[1, 10, 4\]"),
    "cut": (npy(array(0, 4))[:-2], "size"),
    "cut in the header": (npy(array(0, 4))[:60], "no whole npy"),
    "longer than told": (npy(array(0, 4)) + bytes(2), "size"),
    "says more than there is": (npy(array(0, 4, 20))[:208], "size"),
    "says absurdly more": (sizes(f"({2**62}, 4)"), "size"),
    "negative": (sizes("(-10, -4)"), ""),
    "empty": (b"", "no whole npy"),
    "other magic": (b"PK\3\4" + bytes(204), "no whole npy"),
    "unknown version": (npy(array(0, 4)).replace(b"\1\0", b"\7\0", 1), "no whole npy"),
    "header is garbage": (header("garbage"), "no whole npy"),
    "header is not closed": (header("{'descr': ("), "no whole npy"),
    "header of wrong indents": (header("  x\n y\n"), "no whole npy"),
    "header of deep nesting": (header("-" * 9000 + "1"), "no whole npy"),
    "header of strange keys": (header("{[]: 1}"), "no whole npy"),
    "dtype of nothing": (sizes("(10, 4)", "()"), "no whole npy"),
}

DAMAGED_JSON = {
    "no JSON": (b"{", ""),
    "nothing": (b"", ""),
    "no UTF-8": (b'{"id": "\xff"}', ""),
    "a list": (b"[]", ""),
    "labels are text": (b'{"labels": "Dog"}', "labels"),
    "labels are a mapping": (b'{"labels": {"Dog": 1}}', "labels"),
    "labels are numbers": (b'{"labels": [1]}', "labels"),
    "labels are a number": (b'{"labels": 1}', ""),
    "length is text": (b'{"length": "10"}', "length"),
    "length is true": (b'{"length": true}', "length"),
    "length is half": (b'{"length": 9.5}', "length"),
    "length 0": (b'{"length": 0}', "length 0"),
    "length -1": (b'{"length": -1}', "length -1"),
    "length over T": (b'{"length": 11}', "length 11"),
    "id is a number": (b'{"id": 5}', "id"),
    "id is a list": (b'{"id": ["b"]}', "id"),
    "id is half a character": (b'{"id": "\\ud800"}', ""),
    "2 MiB": (b'{"id": "b"}'.ljust(2 << 20), "2097152 bytes"),
    "deep": (b"[" * 100_000, ""),
}

CASES = [
    *(pytest.param(raw, match, id=name) for name, (raw, match) in DAMAGED_BYTES.items()),
    *(pytest.param(tar(items), m, id=name) for name, (items, m) in DAMAGED_MEMBERS.items()),
    *(
        pytest.param(tar(good({AUDIO: data})), f"b(.audio.npy)? .*{m}", id=f"array: {name}")
        for name, (data, m) in DAMAGED_ARRAYS.items()
    ),
    *(
        pytest.param(tar(good({META: data})), f"(clip b|b.json).*{m}", id=f"JSON: {name}")
        for name, (data, m) in DAMAGED_JSON.items()
    ),
    pytest.param(tar(both(array(0, 0))), "audio", id="no numbers"),
]


@pytest.mark.usefixtures("no_endless_loop")
@pytest.mark.parametrize(("raw", "match"), CASES)
def test_a_damaged_or_hostile_tar_is_named(tmp_path: Path, raw: bytes, match: str) -> None:
    path = tmp_path / "some.tar"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"some.tar.*{match}") as caught:
        scan_tar(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
