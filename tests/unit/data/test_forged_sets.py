"""Manifests and sample indexes that were damaged or forged: one line names file and field; nothing is unfolded."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_dist.core.errors import DataError
from vit_dist.core.files import read_bytes
from vit_dist.data.index import IndexedSample, build_index, decode_index, encode_index, select_samples
from vit_dist.data.manifest import Shard, ShardManifest, checksum, encode_manifest, read_manifest
from vit_dist.data.pack.plan import PackPlan
from vit_dist.data.pack.shards import DoneMarker
from vit_dist.data.tars import find_tars

ROWS = [
    IndexedSample("a/b", 0, 1536, 100, [3]),
    IndexedSample("ключ", 2048, 3584, 7, [1, 4], [0.25, 0.75]),
    IndexedSample("z", 4096, 5632, 0, []),
]
END = 6144
ARRAYS = vars(build_index(ROWS, END))
SHARD = Shard("x.tar", 3, END, "0" * 32, "x.idx.npz", "f" * 32)
WHOLE = ShardManifest("", "set", (SHARD,), False, 5, ("a", "b"), 2)


def saved(**changes: Any) -> bytes:
    """The bytes of an index whose arrays are changed; None leaves one out."""
    arrays = {"format": np.int64(1), **ARRAYS, **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    return buffer.getvalue()


def at(name: str, place: int, value: float) -> dict[str, Any]:
    """One array with another value at a place."""
    array = ARRAYS[name].copy()
    array[place] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (at("offsets", 0, -512), "offsets: -512 of sample 0 is no multiple"),
        (at("offsets", 1, 2047), "offsets: 2,047 of sample 1 is no multiple"),
        (at("offsets", 1, 4608), "offsets: 4,608 of sample 1 is not below the next"),
        (at("offsets", 3, 2**62), "offsets: .* of sample 2 leads beyond the tar, which has 6,144 bytes"),
        (at("offsets", 3, -1), "offsets: -1 of sample 2 leads beyond"),
        ({"offsets": ARRAYS["offsets"][:3]}, "offsets: 3 values, where the other arrays call for 4"),
        ({"offsets": ARRAYS["offsets"].astype(float)}, "offsets: float64 of 1 dimensions, where int64 of 1 is wanted"),
        ({"offsets": ARRAYS["offsets"].astype(">i8")}, "offsets: >i8 of 1"),
        ({"offsets": np.int64(3)}, "offsets: int64 of 0 dimensions"),
        (at("image_offsets", 1, 1536), "image_offsets: 1,536 of sample 1 does not lie in its sample"),
        (at("image_offsets", 2, 2**63 - 1), "image_offsets: .* of sample 2 does not lie"),
        (at("image_bytes", 0, 10**12), "image_bytes: 1,000,000,000,000 of sample 0 leads beyond its sample"),
        (at("image_bytes", 0, -1), "image_bytes: -1 of sample 0"),
        ({"image_bytes": np.zeros(2, np.int64)}, "image_bytes: 2 values"),
        ({"label_ends": np.array([2, 1, 3])}, "label_ends: 1 of sample 1 is below the one before it"),
        (at("label_ends", 1, 99), "label_ends: 99 of sample 1 is not within the 3 labels"),
        ({"label_ends": np.array([1, 2, 2])}, "label_ends: the last is 2, but there are 3 labels"),
        ({"labels": ARRAYS["labels"][:, None]}, "labels: int64 of 2 dimensions"),
        (at("labels", 2, -4), "labels: -4 of sample 1 is below 0"),
        (at("label_weights", 1, np.nan), "label_weights: nan of sample 1 is no number from 0 to 1"),
        (at("label_weights", 0, np.inf), "label_weights: inf of sample 0"),
        (at("label_weights", 0, -0.5), "label_weights: -0.5 of sample 0"),
        ({"label_weights": ARRAYS["label_weights"].astype(np.float64)}, "label_weights: float64"),
        ({"label_weights": ARRAYS["label_weights"][:1]}, "label_weights: 1 values"),
        ({"key_bytes": ARRAYS["key_bytes"] | 128}, "key_bytes: not UTF-8 at byte 0"),
        (at("key_ends", 0, 4), "key_ends: one lies in the middle of a letter"),
        (at("key_ends", 1, 2), "key_ends: 2 of sample 1 is below the one before it"),
        ({"key_bytes": np.array([None, "x"], object)}, "key_bytes: holds Python objects, which are never read"),
        ({"key_bytes": np.zeros(3, [("a", "u1")])}, "key_bytes: holds values of type"),
        ({"labels": None}, "labels: missing"),
        ({"format": np.int64(2)}, "format: 2; this version reads 1"),
    ],
)
def test_an_index_is_held_against_itself_and_its_tar(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^s3://b/x.idx.npz: damaged index: {message}") as caught:
        decode_index(saved(**changes), "s3://b/x.idx.npz", END)
    assert "\n" not in str(caught.value)
    assert "pickle" not in str(caught.value)


def archive(header: bytes, content: bytes, method: int = zipfile.ZIP_STORED, twice: bool = False) -> bytes:
    """An index whose array of labels is these bytes."""
    buffer = io.BytesIO(saved(labels=None))
    with zipfile.ZipFile(buffer, "a") as file:
        for _ in range(1 + twice):
            file.writestr("labels.npy", header + content, method)
    return buffer.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n"


TEN_GIGABYTES = "{'descr': '<i8', 'fortran_order': False, 'shape': (1250000000,), }"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(header(TEN_GIGABYTES), b""), "its shape .* takes 10,000,000,000 bytes, it has 0"),
        (archive(header(TEN_GIGABYTES.replace("1250000000", "-1")), b""), "has the shape"),
        (archive(header(TEN_GIGABYTES.replace("1250000000", "True")), b"12345678"), "has the shape"),
        (archive(header("(" * 2000), b""), "no array of numpy"),
        (archive(header("{'descr': __import__('os').getcwd(), }"), b""), "no array of numpy"),
        (archive(header(TEN_GIGABYTES.replace("1250000000", "4000000")), bytes(32_000_000), 8), "bytes in a file of"),
        (archive(b"\x93NUMPY\x09\x00", b""), "version"),
        (archive(b"", b"nothing"), "no array of numpy"),
    ],
    ids=range(8),
)
def test_no_array_is_unfolded_beyond_what_its_file_holds(content: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"damaged index: labels: .*{message}"):
            decode_index(content, "x")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_stands_twice_is_refused() -> None:
    with pytest.raises(DataError, match="damaged index: labels: stands twice"):
        decode_index(archive(header(TEN_GIGABYTES), b"", twice=True), "x")


def test_indexes_of_few_samples_and_of_none_are_whole() -> None:
    index = decode_index(saved(), "x", END)
    for kept in ([], [0], [2], [0, 2], [0, 1, 2]):
        some = select_samples(index, np.array(kept, np.int64))
        assert decode_index(encode_index(some), "x", END).keys() == [ROWS[i].key for i in kept]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 4}, "labels: sample 'ключ' of x.tar has label 4, but the set 'set' has 4 classes"),
        ({"num_classes": 0}, "labels: sample 'a/b' of x.tar has label 3, but the set 'set' has 0 classes"),
        ({"num_classes": 2, "numbers": (7, 8, 9, 6)}, "label 4, but the set 'set' has 4 classes"),
        ({"max_labels": 1}, "label_ends: sample 'ключ' of x.tar has 2 labels, the manifest says at most 1"),
    ],
)
def test_an_index_is_held_against_its_manifest(changes: dict[str, Any], message: str) -> None:
    content = saved()
    shard = Shard("x.tar", 3, END, "0" * 32, "x.idx.npz", checksum(content))
    manifest = replace(WHOLE, shards=(shard,), **changes)
    with pytest.raises(DataError, match=f"^x.idx.npz: damaged index: .*{message}"):
        manifest.read_index(0, lambda _: content)


def _shard(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda raw: raw["shardlist"][0].update(changes)


def _section(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda raw: raw["vit_dist"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_shard(nsamples=10**30), r"shardlist\[0\].nsamples: 1000"),
        (_shard(nsamples=-1), r"shardlist\[0\].nsamples: -1; expected a whole number"),
        (_shard(nsamples=True), r"shardlist\[0\].nsamples: true"),
        (_shard(nsamples=3.0), r"shardlist\[0\].nsamples: 3.0"),
        (_shard(nsamples=13), r"shardlist\[0\].nsamples: 13 samples, which no tar of 6,144 bytes holds"),
        (_shard(filesize="6144"), r"shardlist\[0\].filesize: \"6144\""),
        (_shard(url=None), r"shardlist\[0\].url: null"),
        (_shard(url=""), r"shardlist\[0\].url: \"\""),
        (_shard(url="a\0.tar"), r"shardlist\[0\].url"),
        (_shard(index=5), r"shardlist\[0\].index: 5"),
        (_shard(xxh128="0" * 31), r"shardlist\[0\].xxh128"),
        (_shard(index_xxh128=["0"] * 32), r"shardlist\[0\].index_xxh128"),
        (lambda raw: raw["shardlist"][0].pop("index"), r"shardlist\[0\].index: missing"),
        (lambda raw: raw.update(shardlist=[]), r"shardlist: \[\]; expected a list of at least one shard"),
        (lambda raw: raw.update(shardlist={"0": 1}), "shardlist: "),
        (lambda raw: raw.update(shardlist=["x.tar"]), r"shardlist\[0\].url: missing"),
        (
            lambda raw: raw["shardlist"].extend([dict(raw["shardlist"][0], filesize=2**53)] * 200),
            "filesize: the shards",
        ),
        (lambda raw: raw.update(name=["x"]), "name: "),
        (lambda raw: raw.update(name=float("nan")), "NaN is no number"),
        (_section(num_classes="2"), "num_classes: "),
        (_section(num_classes=10**30), "num_classes: "),
        (_section(num_classes=-1), "num_classes: -1"),
        (_section(max_labels="x"), "max_labels: "),
        (_section(max_labels=0), "max_labels: 0"),
        (_section(max_labels=6), "max_labels: 6; expected a whole number from 1 to 5"),
        (_section(excluded="z"), "excluded: "),
        (_section(shuffled=1), "shuffled: 1"),
        (_section(classes=["a"] * 6), "classes: .*at most 5 names"),
        (_section(classes=[["a"]]), "classes: "),
        (_section(fingerprint=7), "fingerprint: 7"),
        (_section(num_samples="3"), "num_samples: "),
    ],
)
def test_a_field_of_a_manifest_is_named(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    raw = json.loads(encode_manifest(WHOLE))
    change(raw)
    path = tmp_path / "m.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=f"^{path}: damaged manifest: {message}") as caught:
        read_manifest(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["[" * 100_000, '{"__kind__": ' * 30_000, "[]", "7", '"x"', "\xff", "{"])
def test_what_is_no_manifest_at_all_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"m\.json: (not a|damaged) manifest: ") as caught:
        read_manifest(str(tmp_path / "m.json"))
    assert "\n" not in str(caught.value)


def test_a_manifest_or_index_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.json")
    with pytest.raises(DataError, match=r"m\.json: cannot be read: not a regular file"):
        read_manifest(str(tmp_path / "m.json"))
    with pytest.raises(DataError, match="/dev/zero: cannot be read: not a regular file"):
        read_bytes("/dev/zero")


@pytest.mark.parametrize(
    "raw",
    [
        {"shardlist": 5},
        {"shardlist": [{"url": None}]},
        {"shardlist": ["a.tar"]},
        {"shardlist": [{"url": "a.tar", "nsamples": "1"}]},
        {"shardlist": [{"url": "a.tar", "filesize": -1}]},
        {"shardlist": [{"url": "a.tar"}], "base": 7},
        {"shardlist": [{"url": "a.tar", "nsamples": float("inf")}]},
        [],
    ],
)
def test_a_damaged_list_of_wids_is_named(raw: Any, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=r"list\.json: not a shard list of wids, or damaged: "):
        find_tars([str(tmp_path / "list.json")])


@pytest.mark.parametrize(
    "text", ['{"a.tar": 1e400}', '{"a.tar": -1}', '{"a.tar": true}', "[" * 100_000, "[1]", '{"a.tar": []}']
)
@pytest.mark.parametrize("name", ["sizes.json", "_info.json", "a_stats.json"])
def test_counts_that_are_none_are_some_other_files(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / name).write_text(text)
    assert [tar.num_samples for tar in find_tars([str(tmp_path)])] == [None]


PLAN = PackPlan("folder", "0" * 16, "n", 10, 2, 4, 0, {"resize_shorter": None, "upright": False}, 2, ("a", "b"))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_images": "10"},
        {"num_images": 2**53, "samples_per_shard": 1},
        {"num_val": 11},
        {"samples_per_shard": 0},
        {"images": [1]},
        {"images": {"quality": "x"}},
        {"classes": ["a", "b", "c"]},
        {"classes": "ab"},
        {"num_classes": 10**30},
        {"seed": 0.5},
        {"version": None},
    ],
)
def test_a_damaged_plan_of_a_packing_is_named(changes: dict[str, Any]) -> None:
    assert PackPlan.decode(PLAN.encode(), "pack.json") == PLAN
    raw = {**json.loads(PLAN.encode()), **changes}
    with pytest.raises(DataError, match=r"^pack\.json: damaged plan of a packing: "):
        PackPlan.decode(json.dumps(raw).encode(), "pack.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"bad": [["a"]]},
        {"bad": "ab"},
        {"bad": [["a", 5]]},
        {"max_labels": "1"},
        {"max_label": -2},
        {"shard": []},
        {"shard": {}},
        {"shard": {**vars(SHARD), "num_samples": 13}},
    ],
)
def test_a_damaged_done_marker_counts_for_nothing(changes: dict[str, Any]) -> None:
    marker = DoneMarker(SHARD, (("a", "b"),), 1, 3)
    assert DoneMarker.decode(marker.encode()) == marker
    with pytest.raises(ValueError, match=r"^(bad|max_labels|max_label|shard|num_samples|url): "):
        DoneMarker.decode(json.dumps({**json.loads(marker.encode()), **changes}).encode())
