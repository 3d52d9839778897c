"""Indexing tars that others wrote: webdataset is the reference for samples; damage is refused with its place."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shards import write_set, write_tar
from vit_dist.core.errors import DataError
from vit_dist.data.index import ShardIndex, build_index, decode_index, encode_index, select_samples
from vit_dist.data.indexing import index_tars
from vit_dist.data.labels import LabelRule
from vit_dist.data.manifest import read_manifest
from vit_dist.data.names import braces
from vit_dist.data.scan import scan_tar
from vit_dist.data.tarindex import TarScanner
from vit_dist.data.tars import find_tars

Member = tuple[str, bytes]


def simple(count: int, start: int = 0) -> list[Member]:
    members: list[Member] = []
    for i in range(start, start + count):
        members += [(f"k{i:03d}.cls", b"%d" % (i % 3)), (f"k{i:03d}.jpg", bytes([i % 256]) * (700 + i))]
    return members


def by_webdataset(path: Path) -> list[dict[str, bytes]]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with path.open("rb") as stream:
        return list(group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])))


def images_by_index(path: Path, index: ShardIndex) -> list[tuple[str, bytes]]:
    tar = path.read_bytes()
    begins, sizes = index.image_offsets.tolist(), index.image_bytes.tolist()
    return [(k, tar[b : b + n]) for k, b, n in zip(index.keys(), begins, sizes, strict=True)]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_samples_are_those_that_webdataset_reads(tmp_path: Path, kind: int) -> None:
    members = [
        ("__meta__", b"x"),
        ("dir/", b""),
        ("README", b"no dot"),
        *simple(3),
        ("d.1/a.JPG", b"j"),
        ("d.1/a.cls", b"1"),
    ]
    if kind != tarfile.USTAR_FORMAT:
        members += [
            (f"{'deep/' * 60}name.jpg", b"long"),
            (f"{'deep/' * 60}name.cls", b"2"),
            ("ü.jpg", b"u"),
            ("ü.cls", b"0"),
        ]
    else:
        members += [(f"{'d' * 90}/{'e' * 60}.jpg", b"long"), (f"{'d' * 90}/{'e' * 60}.cls", b"2")]
    path = write_tar(tmp_path / "a.tar", members, kind)
    scan = scan_tar(str(path))
    expected = by_webdataset(path)
    assert images_by_index(path, scan.index) == [(s["__key__"], s["jpg"]) for s in expected]
    assert [scan.index.sample_labels(i)[0].tolist() for i in range(len(expected))] == [
        [int(s["cls"])] for s in expected
    ]
    assert scan.ignored == 2
    assert scan.num_bytes == path.stat().st_size


@settings(max_examples=30)
@given(st.data())
def test_any_cut_into_chunks_gives_the_same_index(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in [
            *simple(4),
            ("x" * 200 + ".jpg", b"j" * 1500),
            ("x" * 200 + ".json", b'{"label": [1, 2]}'),
        ]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    content = buffer.getvalue()
    whole = TarScanner("t")
    whole.feed(memoryview(content))
    expected = whole.finish()
    pieces, at = TarScanner("t", size=len(content)), 0
    while at < len(content):
        step = 512 * data.draw(st.integers(1, 12))
        pieces.feed(memoryview(content)[at : at + step])
        at += step
    found = pieces.finish()
    assert encode_index(found.index) == encode_index(expected.index)
    assert found.checksum == expected.checksum


def refused(path: Path, message: str, **kwargs: object) -> None:
    with pytest.raises(DataError, match=message) as caught:
        scan_tar(str(path), **kwargs)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)


def test_a_truncated_tar_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "a.tar", simple(3)).read_bytes()
    last = max(i for i in range(0, len(content), 512) if content[i : i + 512].strip(b"\0")) + 512
    for end in [*range(1, last, 97), *range(512, last + 1, 512)]:
        (tmp_path / "cut.tar").write_bytes(content[:end])
        refused(tmp_path / "cut.tar", "truncated|does not begin with a tar header")


def test_a_flipped_bit_in_a_header_is_refused_with_its_place(tmp_path: Path) -> None:
    content = bytearray(write_tar(tmp_path / "a.tar", simple(3)).read_bytes())
    draws = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        at = draws.choice([0, 1024, 512 * 5]) + draws.choice([*range(154), *range(156, 345)])
        damaged[at] ^= 1 << draws.randrange(8)
        (tmp_path / "bad.tar").write_bytes(damaged)
        with pytest.raises(DataError, match="at byte"):
            scan_tar(str(tmp_path / "bad.tar"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tar: b"", "the file is empty"),
        (lambda tar: gzip.compress(tar), "at byte 0: the tar is compressed with gzip.*decompress it"),
        (lambda tar: b"<html>" * 300, "at byte 0: the tar does not begin with a tar header"),
        (lambda tar: tar.rstrip(b"\0").ljust(8192, b"\0") + tar, "has data after its end marker"),
        (lambda tar: tar[:1024] + b"\xee" * 512 + tar[1536:], "at byte 1024: the tar has no valid header here"),
    ],
)
def test_what_is_no_plain_tar_is_refused(tmp_path: Path, make: Callable[[bytes], bytes], message: str) -> None:
    tar = write_tar(tmp_path / "a.tar", simple(2)).read_bytes()
    (tmp_path / "bad.tar").write_bytes(make(tar))
    refused(tmp_path / "bad.tar", message)


def raw_header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    header = bytearray(512)
    header[: len(name)] = name
    header[124:136] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (raw_header(b"a.jpg", 1 << 40), "member of 1099511627776 bytes that would end after the end of the file"),
        (raw_header(b"pax", 1 << 30, b"x"), "extended header of 1073741824 bytes"),
        (raw_header(b"/etc/a.jpg", 3), "the name '/etc/a.jpg'; absolute names"),
        (raw_header(b"a/../../b.jpg", 3), "absolute names and '..' are refused"),
        (raw_header(b"\xff\xfe.jpg", 3), "name is not UTF-8"),
        (raw_header(b"a.jpg", 3, b"S"), "sparse file"),
    ],
)
def test_dangerous_headers_are_refused(tmp_path: Path, header: bytes, message: str) -> None:
    (tmp_path / "bad.tar").write_bytes(header + bytes(512 * 8))
    refused(tmp_path / "bad.tar", message)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.cls", b"1")], "sample 'a' has no image: its members are cls"),
        ([("a.jpg", b"x")], r"sample 'a' has no label: no \.cls or \.json member"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], "label 'cat', which is no class; give the names"),
        ([("a.jpg", b"x"), ("a.json", b'{"lable": 3}')], "no field 'labels'.*did you mean 'lable'"),
        ([("a.jpg", b"x"), ("a.json", b"{")], r"sample 'a' has a \.json that is not JSON: Expecting"),
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"1")], "has several images; name one with --image"),
        ([("a.jpg", b"x"), ("a.cls", b"-4")], "the label '-4', which is no class number"),
        ([("a.jpg", b"x"), ("b.jpg", b"x"), ("a.cls", b"1")], "sample 'a' has no label"),
    ],
)
def test_samples_that_cannot_be_used_are_named_or_left_out(tmp_path: Path, members: list[Member], message: str) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    refused(path, message)
    if "apart" not in message and members[1:2] != [("b.jpg", b"x")]:
        write_tar(tmp_path / "b.tar", [*simple(2), *members, *simple(2, 2)])
        scan = scan_tar(str(tmp_path / "b.tar"), leave_out=True)
        assert scan.index.keys() == ["k000", "k001", "k002", "k003"]
        assert [key for key, _, _ in scan.left_out] == ["a"]
        assert images_by_index(tmp_path / "b.tar", scan.index)[2] == ("k002", simple(1, 2)[1][1])


def test_a_key_that_comes_back_in_one_tar_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [*simple(2), *simple(1)])
    refused(path, "the key 'k000' twice, apart from each other")


@pytest.mark.parametrize(
    ("rule", "member", "content", "expected"),
    [
        (LabelRule("json", "meta.class"), "json", {"meta": {"class": 4}}, ([4], [1.0])),
        (LabelRule("json", "a.b"), "json", {"a.b": [1, 2]}, ([1, 2], [1.0, 1.0])),
        (LabelRule(), "json", {"labels": [5, 1], "weights": [0.5, 0.25]}, ([5, 1], [0.5, 0.25])),
        (LabelRule("json", "p"), "json", {"p": {"3": 0.5, "1": 0.5}}, ([3, 1], [0.5, 0.5])),
        (LabelRule("txt", classes=("a cat", "dog")), "txt", "a cat", ([0], [1.0])),
        (LabelRule("json", classes=("cat", "dog")), "json", {"label": ["dog", "cat"]}, ([1, 0], [1.0, 1.0])),
        (LabelRule("cls"), "cls", "3, 5", ([3, 5], [1.0, 1.0])),
        (LabelRule("none"), "txt", "a caption", ([], [])),
    ],
)
def test_labels_are_found_where_the_rule_says(
    tmp_path: Path, rule: LabelRule, member: str, content: object, expected: tuple[list[int], list[float]]
) -> None:
    raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    index = scan_tar(str(write_tar(tmp_path / "a.tar", [("a.jpg", b"x"), (f"a.{member}", raw)])), rule).index
    labels, weights = index.sample_labels(0)
    assert (labels.tolist(), weights.tolist()) == expected


def test_keys_may_repeat_from_tar_to_tar_and_nothing_is_copied(tmp_path: Path) -> None:
    for t in range(3):
        write_tar(tmp_path / f"{t:05d}.tar", simple(4))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    result = index_tars([f"{tmp_path}/{{00000..00002}}.tar"], str(tmp_path / "m" / "set.json"), quiet=True)
    manifest = read_manifest(str(tmp_path / "m" / "set.json"))
    assert manifest == result.manifest
    assert manifest.num_samples == 12
    assert not manifest.shuffled
    assert manifest.num_classes == 3
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["set.index", "set.json"]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for shard in range(3):
        path = Path(manifest.shard_url(shard))
        expected = [(s["__key__"], s["jpg"]) for s in by_webdataset(path)]
        assert images_by_index(path, manifest.read_index(shard)) == expected


def test_a_second_run_reads_only_what_is_new_or_changed(tmp_path: Path) -> None:
    for t in range(3):
        write_tar(tmp_path / f"{t}.tar", simple(4))
    out = str(tmp_path / "m.json")
    assert index_tars([str(tmp_path)], out, quiet=True).num_read == 3
    first = (tmp_path / "m.json").read_bytes()
    assert index_tars([str(tmp_path)], out, quiet=True).num_read == 0
    assert (tmp_path / "m.json").read_bytes() == first
    write_tar(tmp_path / "1.tar", simple(5))
    write_tar(tmp_path / "3.tar", simple(2))
    result = index_tars([str(tmp_path)], out, quiet=True)
    assert result.num_read == 2
    assert result.manifest.counts.tolist() == [4, 5, 4, 2]
    assert index_tars([str(tmp_path)], out, quiet=True, rule=LabelRule("cls")).num_read == 4


def test_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for t in range(3):
        write_tar(tmp_path / f"{t}.tar", simple(4))
    one = index_tars([str(tmp_path)], str(tmp_path / "one.json"), quiet=True, name="x").manifest
    monkeypatch.setattr("vit_dist.data.workers.IN_PROCESS_BYTES", 0)
    two = index_tars([str(tmp_path)], str(tmp_path / "two.json"), quiet=True, name="x", num_workers=2).manifest
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sizes.json", '{"0.tar": 4, "1.tar": 9}'),
        ("_info.json", '{"splits": {"train": {"filenames": ["0.tar", "1.tar"], "shard_lengths": [4, 9]}}}'),
        ("1_stats.json", '{"count": 10, "successes": 9}'),
        ("1.idx", "v1.2 9\njpg 512 100 k000.jpg\n"),
        (
            "wids.json",
            '{"wids_version": 1, "shardlist": [{"url": "0.tar", "nsamples": 4}, {"url": "1.tar", "nsamples": 9}]}',
        ),
    ],
)
def test_counts_that_others_tell_must_agree_with_the_tars(tmp_path: Path, name: str, content: str) -> None:
    for t in range(2):
        write_tar(tmp_path / f"{t}.tar", simple(4))
    given = str(tmp_path / "wids.json") if name == "wids.json" else str(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"1\.tar: holds 4 samples, .*{name}.* says 9"):
        index_tars([given], str(tmp_path / "m.json"), quiet=True)
    assert not (tmp_path / "m.json").exists()
    (tmp_path / name).write_text(content.replace("9", "4"))
    assert index_tars([given], str(tmp_path / "m.json"), quiet=True).manifest.num_samples == 8


def test_tars_that_are_not_there_or_named_twice_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", simple(1))
    with pytest.raises(DataError, match=r"1\.tar: no such file"):
        index_tars([f"{tmp_path}/{{0..1}}.tar"], str(tmp_path / "m.json"), quiet=True)
    with pytest.raises(DataError, match="named twice"):
        find_tars([f"{tmp_path}/0.tar", str(tmp_path)])
    with pytest.raises(DataError, match="no file fits this pattern"):
        find_tars([f"{tmp_path}/x*.tar"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.tar files"):
        find_tars([str(tmp_path / "empty")])
    with pytest.raises(DataError, match="write ranges as"):
        braces("{00..01.tar")


def test_a_label_outside_the_classes_names_the_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", simple(4))
    with pytest.raises(DataError, match=r"0\.tar: sample 'k002' has label 2, but there are 2 classes"):
        index_tars([str(tmp_path)], str(tmp_path / "m.json"), quiet=True, num_classes=2)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_an_index_of_some_samples_is_that_of_the_whole_without_the_others(
    counts: list[int], data: st.DataObject
) -> None:
    from vit_dist.data.index import IndexedSample

    rows = [
        IndexedSample(f"k{i}" * (i % 3 + 1), 1024 * i, 1024 * i + 512, 10 + i, list(range(n)), [0.5] * n)
        for i, n in enumerate(counts)
    ]
    index = build_index(rows, 1024 * len(rows))
    kept = np.array(sorted(data.draw(st.sets(st.integers(0, len(rows) - 1)))), np.int64)
    some = decode_index(encode_index(select_samples(index, kept)), "x")
    assert some.num_samples == len(kept)
    for place, i in enumerate(kept.tolist()):
        assert some.key(place) == index.key(i)
        assert some.sample_labels(place)[0].tolist() == index.sample_labels(i)[0].tolist()
        assert some.image_offsets[place] == index.image_offsets[i]
        assert some.offsets[place] == index.offsets[i]
        assert some.offsets[place + 1] >= index.offsets[i + 1]


def test_a_manifest_that_is_replaced_keeps_its_indexes_until_the_new_one_is_there(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    write_tar(tmp_path / "a.tar", simple(3))
    index_tars([str(tmp_path / "a.tar")], str(out), quiet=True)
    old = out.read_bytes()
    write_tar(tmp_path / "a.tar", simple(5))
    new = index_tars([str(tmp_path / "a.tar")], str(out), quiet=True).manifest
    assert read_manifest(str(out)).read_index(0).num_samples == new.num_samples == 5
    again = index_tars([str(tmp_path / "a.tar")], str(out), quiet=True)
    assert (again.num_read, again.manifest.fingerprint) == (0, new.fingerprint)
    out.write_bytes(old)
    assert read_manifest(str(out)).read_index(0).num_samples == 3


def test_of_a_set_some_tars_may_lack_the_last_classes(tmp_path: Path) -> None:
    write_set(tmp_path, num_samples=6, samples_per_shard=1, num_classes=3, classes=("ant", "bee", "cat"))
    tars = sorted(map(str, tmp_path.glob("*.tar")))
    found = index_tars(tars[:1], str(tmp_path / "some.json"), quiet=True).manifest
    assert found.classes == ("ant", "bee", "cat")
    assert read_manifest(str(tmp_path / "some.json")).num_classes == 3
