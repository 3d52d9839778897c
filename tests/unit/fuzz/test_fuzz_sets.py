"""Manifests, sample indexes and tars with anything changed: a set within bounds, or one DataError."""

# Tables of odd pieces are easier to look over in long lines.

from __future__ import annotations

import io
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shards import write_set
from tests.tars import END, GNU, USTAR, V7, header
from tests.unit.fuzz.budget import fuzz
from tests.unit.fuzz.damage import bounded, damaged, damaged_json
from vit_dist.core.errors import DataError
from vit_dist.data.index import ShardIndex, decode_index
from vit_dist.data.manifest import ShardManifest, checksum, read_manifest
from vit_dist.data.members import split_name
from vit_dist.data.tarheader import BLOCK
from vit_dist.data.tarindex import TarScanner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_set(folder, num_samples=9, samples_per_shard=4, num_classes=3, classes=("hat", "tie", "bag"))
    return folder


def use_manifest(manifest: ShardManifest) -> None:
    assert manifest.num_samples == int(manifest.counts.sum()) >= 0
    assert len(manifest.first_ordinals) == len(manifest.shards) > 0
    for shard in range(len(manifest.shards)):
        manifest.shard_url(shard)


def use_index(index: ShardIndex) -> None:
    """What the reader takes for granted: every sample's labels, key and bytes are there."""
    keys = index.keys()
    for sample in range(index.num_samples):
        labels, weights = index.sample_labels(sample)
        assert len(labels) == len(weights)
        assert index.key(sample) == keys[sample]
        assert 0 <= index.offsets[sample] <= index.image_offsets[sample]
        assert index.image_offsets[sample] + index.image_bytes[sample] <= index.offsets[sample + 1]


def mended(raw: Any, problem: str) -> Any:
    """The manifest with the fingerprint that its content has, as a forger would set it."""
    told = re.search(r"fingerprint (\w{16}) and (\d+) samples", problem)
    if told is not None:
        raw["vit_dist"] |= {"fingerprint": told[1], "num_samples": int(told[2])}
    return raw


@fuzz
@given(st.data())
def test_any_manifest_is_a_set_or_one_error(folder: Path, data: st.DataObject) -> None:
    real = (folder / "manifest.json").read_bytes()
    path = folder / "fuzzed.json"
    forged = data.draw(damaged_json([json.loads(real)], ["shard-000000.tar", "0" * 32, "0" * 16]) | damaged([real]))
    path.write_bytes(forged if isinstance(forged, bytes) else json.dumps(forged).encode())
    with bounded():
        try:
            use_manifest(read_manifest(str(path)))
        except DataError as error:
            if isinstance(forged, bytes):
                return
            path.write_text(json.dumps(mended(forged, str(error))))
            try:
                use_manifest(read_manifest(str(path)))
            except DataError:
                return


def forged_index(real: bytes) -> st.SearchStrategy[bytes]:
    """An archive as numpy writes it, with one array or more that say something else."""
    with np.load(io.BytesIO(real)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    odd = st.sampled_from([0, 1, -1, 2, 511, 512, 1024, 2**31, 2**62, 2**63 - 1, -(2**63)])

    @st.composite
    def forge(draw: st.DrawFn) -> bytes:
        changed = {name: value.copy() for name, value in arrays.items()}
        for _ in range(draw(st.integers(1, 3))):
            name = draw(st.sampled_from(sorted(changed)))
            value = changed[name]
            match draw(st.sampled_from(("one", "longer", "shorter", "type", "shape", "lose", "swap", "order"))):
                case "one" if value.size and value.ndim:
                    with np.errstate(all="ignore"):
                        value.flat[draw(st.integers(0, value.size - 1))] = np.array(draw(odd)).astype(value.dtype)
                case "longer" if value.ndim:
                    changed[name] = np.concatenate([value, value[:1]])
                case "shorter" if value.ndim:
                    changed[name] = value[: draw(st.integers(0, value.size))]
                case "type":
                    kind = draw(st.sampled_from(["i4", "u8", "f8", "S3", "U2", "c16", "?", ">i8"]))
                    # One that was made complex before loses a part.
                    with warnings.catch_warnings(action="ignore"):
                        changed[name] = value.astype(kind)
                case "shape":
                    changed[name] = value.reshape((1, -1)) if value.ndim else value.reshape(1)
                case "lose" if len(changed) > 1:
                    del changed[name]
                case "swap":
                    changed[name] = changed[draw(st.sampled_from(sorted(changed)))]
                case "order" if value.ndim:
                    changed[name] = value[::-1]
        buffer = io.BytesIO()
        draw(st.sampled_from((np.savez, np.savez_compressed)))(buffer, **changed)
        return buffer.getvalue()

    return forge()


@fuzz
@given(st.data())
def test_any_sample_index_is_an_index_or_one_error(folder: Path, data: st.DataObject) -> None:
    real = (folder / "shard-000000.idx.npz").read_bytes()
    manifest = read_manifest(str(folder))
    content = data.draw(forged_index(real) | damaged([real], [b"PK\x01\x02", b"PK\x05\x06", b"\x93NUMPY"]))
    shards = (replace(manifest.shards[0], index_checksum=checksum(content)), *manifest.shards[1:])
    with bounded():
        for num_bytes in (None, manifest.shards[0].num_bytes):
            try:
                use_index(decode_index(content, "x", num_bytes))
            except DataError:
                continue
        try:
            use_index(replace(manifest, shards=shards).read_index(0, lambda _: content))
        except DataError:
            return


def scan(content: bytes) -> None:
    scanner = TarScanner("x.tar", size=len(content))
    piece = 7 * BLOCK
    for at in range(0, len(content), piece):
        scanner.feed(memoryview(content)[at : at + piece])
    found = scanner.finish()
    assert found.num_bytes == len(content)
    use_index(found.index)


@fuzz
@given(st.data())
def test_any_tar_is_an_index_or_one_error(folder: Path, data: st.DataObject) -> None:
    real = (folder / "shard-000000.tar").read_bytes()
    content = data.draw(damaged([real], [header(b"a.jpg", 3), END, bytes(512)]))
    with bounded():
        try:
            scan(content)
        except DataError:
            return


NAMES = [
    b"a.jpg",
    b"a.cls",
    b"b.png",
    b"d/a.jpg",
    b"../a.jpg",
    b"/a.jpg",
    b".jpg",
    b"a",
    b"__x__/a.jpg",
    b"\xff.jpg",
    b"a\nb.jpg",
    b"a.jpg\n",
    b"._a.jpg",
    b"a" * 100,
    b"a/" * 50,
    b"a." * 49,
    b"",
    b"a.b.c.jpg",
    b"\xc3\xa9.jpg",
    b"a//b.jpg",
]
PAX = [
    b"path=c.jpg",
    b"size=3",
    b"size=99999999999999999999",
    b"size=-1",
    b"path=",
    b"GNU.sparse.major=1",
    b"mtime=1",
    b"path=" + b"a/" * 400_000,
    b"path=" + b"a/" * 2000 + b"x.jpg",
    b"path=" + b"." * 900_000,
    b"x",
]


@st.composite
def made_tar(draw: st.DrawFn) -> bytes:
    """Headers whose checksums hold, with odd names, kinds, sizes and notes of pax in any order."""
    content = b""
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(
            st.sampled_from(
                [b"0", b"0", b"0", b"\0", b"1", b"2", b"5", b"7", b"x", b"g", b"L", b"K", b"S", b"V", b"\xff"]
            )
        )
        body = draw(st.sampled_from([b"", b"0", b"1", b"x" * 600, b"-1", b'{"a": 1}', b"7" * 30]))
        if kind in (b"x", b"g"):
            records = draw(st.lists(st.sampled_from(PAX), max_size=3))
            body = b"".join(b"%d %s\n" % (len(r) + 2 + len(str(len(r) + 9)), r) for r in records)
        elif kind in (b"L", b"K"):
            body = draw(st.sampled_from(NAMES)) * draw(st.sampled_from((1, 1, 3000)))
        size = draw(st.sampled_from([None] * 6 + [0, 2**33, 1]))
        field = draw(st.sampled_from([None] * 8 + [b"\x80" + b"\xff" * 11, b"-0000000001\0", b"            "]))
        content += header(
            draw(st.sampled_from(NAMES)),
            len(body) if size is None else size,
            kind,
            draw(st.sampled_from([USTAR, GNU, V7])),
            size_field=field,
            prefix=draw(st.sampled_from([b"", b"", b"p", b"p" * 155])),
        )
        content += body + bytes(-len(body) % 512)
    return content + draw(st.sampled_from([END, END, b"", bytes(512)]))


@fuzz
@given(made_tar())
def test_any_headers_are_an_index_or_one_error(content: bytes) -> None:
    with bounded():
        try:
            scan(content)
        except DataError:
            return


PARTS = st.tuples(
    st.sampled_from(["a", "/", ".", "\n", "__", "jpg", "a/", "a.", "/."]), st.sampled_from([1, 1, 1, 2, 300_000])
)


@fuzz
@given(st.lists(PARTS, max_size=8))
def test_any_name_is_split_as_its_first_dot_says(parts: list[tuple[str, int]]) -> None:
    name = "".join(part * times for part, times in parts)
    with bounded():
        found = split_name(name)
    if found is not None:
        key, extension = found
        assert name[: len(key) + 1] == f"{key}."
        assert name[len(key) + 1 :].lower() == extension
        assert "/" not in extension
