"""Training batches from a real S3 server: those of the disk, and an object that is too short is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shards import write_set
from tests.streams import digest, global_batches, recipe
from vit_dist.core.errors import DataError
from vit_dist.core.files import read_bytes, write_bytes
from vit_dist.data.cache import counts
from vit_dist.data.ranges import RangeReader

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("shape", [(), ("data.lanes=8", "data.window=5")])
def test_batches_from_s3_are_those_of_the_disk(tmp_path: Path, s3: str, shape: tuple[str, ...]) -> None:
    local = write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4)
    for path in tmp_path.iterdir():
        write_bytes(f"{s3}/stream/{path.name}", path.read_bytes())
    expected = digest(global_batches(recipe(local, *shape), 1, 0, 6))
    assert digest(global_batches(recipe(f"{s3}/stream/manifest.json", *shape), 2, 0, 6)) == expected
    cache = tmp_path / "cache"
    cache.mkdir()
    config = recipe(f"{s3}/stream/manifest.json", *shape, f"data.cache.dir={cache}", "data.cache.size=64 MiB")
    before = counts()
    for _ in range(2):
        assert digest(global_batches(config, 2, 0, 6)) == expected
    (found,) = cache.iterdir()
    assert len(list(found.glob("?/*"))) == 3
    assert (counts() - before).miss_bytes < (counts() - before).hit_bytes


def test_ranges_of_an_object_and_beyond_it(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, content = f"{s3}/ranges/a.tar", bytes(range(256)) * 400
    write_bytes(url, content)
    monkeypatch.setattr("vit_dist.data.ranges._PART_BYTES", 10_000)
    reader = RangeReader(tries=2, first_wait_s=0.01)
    assert reader.read(url, 7, 99_999) == content[7:99_999]
    assert reader.read_all(url) == content == read_bytes(url)
    with pytest.raises(DataError, match=r"a\.tar: ends at byte 102400, but its index reaches byte 102500"):
        reader.read(url, 50_000, 102_500)
    with pytest.raises(DataError, match=r"a\.tar: ends at byte 200000, but its index reaches byte 200010"):
        reader.read(url, 200_000, 200_010)
    with pytest.raises(DataError, match=r"b\.tar: no such file"):
        reader.read(f"{s3}/ranges/b.tar", 0, 10)
    reader.close()
