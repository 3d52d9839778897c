"""Tars beyond 4 and 8 GiB: offsets of 64 bits from the header to the bytes, and what is too large to be a sample."""

from __future__ import annotations

import json
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.large_tars import Server, scanned, with_hole
from tests.shards import image_bytes, write_set, write_tar
from tests.streams import digest, global_batches, recipe
from vit_dist.core import s3_reads, stores
from vit_dist.core.errors import DataError
from vit_dist.data.index import MOST_SAMPLE_BYTES, IndexedSample, build_index, decode_index, encode_index
from vit_dist.data.manifest import Shard, checksum, read_manifest, write_manifest
from vit_dist.data.ranges import RangeReader
from vit_dist.data.tarheader import walk
from vit_dist.data.tarindex import TarScanner

GIB = 1 << 30


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of one shard."""
    return Path(write_set(tmp_path_factory.mktemp("small"), num_samples=40, samples_per_shard=40, num_classes=4))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        pytest.param(tarfile.USTAR_FORMAT, 8 * GIB - 1, id="octal digits"),
        pytest.param(tarfile.GNU_FORMAT, 9 * GIB + 1, id="GNU's base 256"),
        pytest.param(tarfile.PAX_FORMAT, 9 * GIB + 1, id="pax"),
    ],
)
def test_members_behind_a_large_one_are_where_tarfile_finds_them(
    tmp_path: Path, small: Path, kind: int, size: int
) -> None:
    shard = small.parent / "shard-000000.tar"
    tar = with_hole(tmp_path / "a.tar", "d/.hidden", size, shard, kind)
    with tarfile.open(tar) as reference:
        expected = [(member.name, member.offset_data, member.size) for member in reference]
    reader = RangeReader()
    end = tar.stat().st_size
    found = walk(lambda a, b: bytes(reader.read(str(tar), a, min(b, end))), 0, end)
    assert [(member.name, member.content, member.size) for member in found] == expected
    assert expected[-1][1] > 2**33 - 2**20
    reader.close()
    # Cut off within the large member: told where its header is, whatever the size is written in.
    scanner = TarScanner("a.tar", size=size)
    with tar.open("rb") as file:
        head = memoryview(file.read(1 << 13))
    with pytest.raises(DataError, match=rf"a member of {size} bytes that would end after the end of the file"):
        scanner.feed(head)


@pytest.fixture(scope="module")
def large(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of the same samples behind 5 GiB that are nobody's."""
    folder, shard = tmp_path_factory.mktemp("large"), small.parent / "shard-000000.tar"
    tar = with_hole(folder / "shard-000000.tar", "padding", 5 * GIB + 7, shard)
    scan = scanned(tar, shard, TarScanner(tar.name, size=tar.stat().st_size))
    content, manifest = encode_index(scan.index), read_manifest(str(small))
    (folder / "shard-000000.idx.npz").write_bytes(content)
    one = Shard(tar.name, 40, scan.num_bytes, scan.checksum, "shard-000000.idx.npz", checksum(content))
    write_manifest(replace(manifest, base=str(folder), shards=(one,)), str(folder / "manifest.json"))
    before = manifest.read_index(0)
    assert scan.ignored == 1
    assert np.array_equal(scan.index.image_offsets - before.image_offsets, np.full(40, 5 * GIB + 1024))
    return folder / "manifest.json"


@pytest.fixture
def served(large: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with Server(large.parent) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "any")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        yield server.url
        server.shutdown()
        thread.join()
    monkeypatch.undo()
    stores._store.cache_clear()
    s3_reads._client.cache_clear()


@pytest.mark.parametrize("way", ["disk", "web", "s3", "fsspec", "cache"])
def test_what_lies_beyond_four_gigabytes_is_streamed_bit_for_bit(
    small: Path, large: Path, served: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = {"disk": str(large), "web": f"{served}/manifest.json"}.get(way, "s3://any/manifest.json")
    if way == "fsspec":
        monkeypatch.setenv("VIT_DIST_S3_CLIENT", "fsspec")
    # The largest range that is read in parts.
    monkeypatch.setattr("vit_dist.data.segments.MOST_RANGE_BYTES", 4000)
    shape = ["data.lanes=1", "data.window=5", "data.image_size=28"]
    cache = (f"data.cache.dir={tmp_path}", "data.cache.size=64 MiB") if way == "cache" else ()
    expected = digest(global_batches(recipe(str(small), *shape), 1, 0, 4))
    for _ in range(1 + bool(cache)):
        assert digest(global_batches(recipe(url, *shape, *cache), 1, 0, 4)) == expected


def test_the_last_bytes_and_what_is_beyond_them(large: Path, served: str) -> None:
    tar, reader = large.parent / "shard-000000.tar", RangeReader(tries=1)
    end = tar.stat().st_size
    with tar.open("rb") as file:
        file.seek(end - 20_000)
        tail = file.read()
    for url in (str(tar), f"{served}/{tar.name}", f"s3://any/{tar.name}"):
        assert reader.read(url, end - 20_000, end) == tail
        with pytest.raises(DataError, match=rf"ends at byte {end}, but its index reaches byte {end + 10}"):
            reader.read(url, end - 10, end + 10)
    reader.close()


def _two(tmp_path: Path, first: str, size: int) -> tuple[Path, Path]:
    """A tar with two samples, the first of them with a large member, and what stands in it behind that."""
    names = ["a.cls", "b.png", "b.cls"] if first.endswith(".png") else ["a.png", "a.cls", "b.png", "b.cls"]
    rest = write_tar(tmp_path / "rest.tar", [(n, b"1" if n[1:] == ".cls" else image_bytes(1, 1)) for n in names])
    return with_hole(tmp_path / "a.tar", first, size, rest), rest


@pytest.mark.parametrize(
    ("first", "size", "why"),
    [
        ("a.png", 4 * GIB + 9, r"has an image of 4,294,967,305 bytes, in 'png'; 2,147,483,648 are the most"),
        ("a.mp4", 3 * GIB, r"has its image, 'png', 3,221,226,\d{3} bytes behind its begin.*put the image before"),
    ],
)
def test_a_sample_that_is_too_large_is_refused_or_left_out(tmp_path: Path, first: str, size: int, why: str) -> None:
    tar, rest = _two(tmp_path, first, size)
    with pytest.raises(DataError, match=rf"at byte 0: sample 'a' {why}.*--skip-bad"):
        scanned(tar, rest, TarScanner("a.tar"))
    scan = scanned(tar, rest, TarScanner("a.tar", leave_out=True))
    assert scan.index.keys() == ["b"]
    assert [key for key, *_ in scan.left_out] == ["a"]
    assert scan.index.offsets[0] > size


def test_an_index_that_asks_for_so_much_is_damaged() -> None:
    index = build_index([IndexedSample("a", 0, 512, MOST_SAMPLE_BYTES + 1, [0])], 4 * GIB)
    with pytest.raises(
        DataError, match="image_bytes: 2,147,483,649 of sample 0 ends more than 2,147,483,648 bytes behind"
    ):
        decode_index(encode_index(index), "a.idx.npz", 4 * GIB)


@pytest.mark.drill
@pytest.mark.timeout(1200)
def test_the_commands_index_and_verify_six_gigabytes(
    tmp_path: Path, small: Path, vit_dist: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    shard = small.parent / "shard-000000.tar"
    (tmp_path / "set").mkdir()
    tar = with_hole(tmp_path / "set" / "0.tar", "padding", 6 * GIB, shard)
    expected = scanned(tar, shard, TarScanner("0.tar"))
    with Server(tar.parent) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        s3 = {"AWS_ENDPOINT_URL_S3": server.url, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
        for name, url in {"disk": str(tar), "web": f"{server.url}/0.tar", "s3": "s3://any/0.tar"}.items():
            out = str(tmp_path / f"{name}.json")
            done = vit_dist("data", "index", url, "--out", out, timeout=600, **s3)
            assert done.returncode == 0, done.stderr
            (found,) = json.loads(Path(out).read_text())["shardlist"]
            assert (found["xxh128"], found["filesize"]) == (expected.checksum, expected.num_bytes)
            done = vit_dist("data", "verify", out, timeout=600, **s3)
            assert done.returncode == 0, done.stdout + done.stderr
        server.shutdown()
        thread.join()
