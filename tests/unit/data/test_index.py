"""Sample indexes: what is written is read back, in any number of threads, and damage is named."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from vit_dist.core.errors import DataError
from vit_dist.data.index import IndexedSample, build_index, decode_index, encode_index

SAMPLES = [
    IndexedSample("a/b", 0, 1536, 100, [3]),
    IndexedSample("ключ", 2048, 3584, 7, [1, 4], [0.25, 0.75]),
    IndexedSample("z", 4096, 5632, 0, []),
]


def test_an_index_reads_back_as_itself() -> None:
    index = decode_index(encode_index(build_index(SAMPLES, 6144)), "x")
    assert index.keys() == [s.key for s in SAMPLES] == [index.key(i) for i in range(3)]
    assert index.offsets.tolist() == [0, 2048, 4096, 6144]
    labels, weights = index.sample_labels(1)
    assert (labels.tolist(), weights.tolist()) == ([1, 4], [0.25, 0.75])
    assert index.sample_labels(2)[0].tolist() == []
    assert encode_index(index) == encode_index(build_index(SAMPLES, 6144))


def test_many_threads_may_read_indexes_at_once() -> None:
    content = encode_index(build_index(SAMPLES, 6144))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places as often as they can
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: decode_index(content, "x").num_samples, range(1000)))
    finally:
        sys.setswitchinterval(interval)
    assert found == [3] * 1000


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", None])
def test_damage_is_named(damage: bytes | None) -> None:
    whole = encode_index(build_index(SAMPLES, 6144))
    with pytest.raises(DataError, match=r"s3://b/x\.idx\.npz: not a sample index, or damaged"):
        decode_index(whole[: len(whole) // 2] if damage is None else damage, "s3://b/x.idx.npz")
