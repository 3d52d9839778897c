"""The cache of a node changes no example: cold, warm, half gone, wrong, or used by two at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import vit_dist
from tests.shards import write_set
from tests.streams import digest, global_batches, recipe
from vit_dist.config.load import recipe_hash
from vit_dist.config.schema import dump
from vit_dist.core.errors import DataError
from vit_dist.core.node_cache import DIR_VARIABLE, SIZE_VARIABLE
from vit_dist.core.world import World
from vit_dist.data.cache import ShardCache, counts
from vit_dist.data.cache_files import CELL, CachedShard, folder_of
from vit_dist.data.manifest import Shard, ShardManifest, read_manifest
from vit_dist.data.ranges import RangeReader
from vit_dist.data.sets import Part, Parts
from vit_dist.data.stream import EvalBatches
from vit_dist.data.subset import select

SHAPES = {"whole shards": (), "ranges": ("data.lanes=8", "data.window=5")}
STEPS = 12


@pytest.fixture
def stored(small_set: str) -> Iterator[str]:
    """URL of the small set's manifest in a store."""
    store = fsspec.filesystem("memory")
    for path in Path(small_set).parent.iterdir():
        store.pipe_file(f"/bucket/small/{path.name}", path.read_bytes())
    yield "memory://bucket/small/manifest.json"
    store.rm("/bucket", recursive=True)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is asked of the store."""
    asked: list[tuple[str, int, int]] = []

    class Recorded(RangeReader):
        def read(self, url: str, start: int, end: int) -> bytes | memoryview:
            asked.append((url, start, end))
            return super().read(url, start, end)

    monkeypatch.setattr("vit_dist.data.segments.RangeReader", Recorded)
    return asked


def cached(manifest: str, place: Path, *more: str) -> Any:
    return recipe(manifest, f"data.cache.dir={place}", "data.cache.size=64 MiB", *more)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_stream_is_the_same_cold_warm_half_gone_and_damaged(
    small_set: str, stored: str, tmp_path: Path, wire: list[Any], shape: str
) -> None:
    expected = digest(global_batches(recipe(small_set, *SHAPES[shape]), 1, 0, STEPS))
    assert digest(global_batches(recipe(stored, *SHAPES[shape]), 1, 0, STEPS)) == expected
    assert not list(tmp_path.iterdir())
    wire.clear()
    config = cached(stored, tmp_path, *SHAPES[shape])
    assert digest(global_batches(config, 2, 0, STEPS)) == expected
    # Each byte once, though two ranks read.
    places = sorted((url, start) for url, start, _ in wire)
    assert len(set(places)) == len(places)
    cold = len(wire)
    before = counts()
    assert digest(global_batches(config, 2, 0, STEPS)) == expected
    assert (len(wire), (counts() - before).hits) == (cold, 1.0)
    chunks = sorted(folder_of(tmp_path).glob("?/*"))
    assert len(chunks) == 7
    for number, path in enumerate(chunks):
        path.unlink() if number % 2 else path.write_bytes(path.read_bytes()[:-9000] + bytes(9000))
    assert digest(global_batches(config, 3, 0, STEPS)) == expected
    assert len(wire) > cold


def test_two_ranks_at_the_same_time_cross_the_wire_once(
    small_set: str, stored: str, tmp_path: Path, wire: list[Any]
) -> None:
    config = cached(stored, tmp_path)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(digest(global_batches(config, 1, 0, STEPS)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [digest(global_batches(recipe(small_set), 1, 0, STEPS))] * 3
    places = [(url, start) for url, start, _ in wire]
    assert len(set(places)) == len(places)


def test_files_of_this_machine_are_never_copied(small_set: str, tmp_path: Path) -> None:
    config = cached(f"file://{small_set}", tmp_path)
    assert digest(global_batches(config, 1, 0, STEPS)) == digest(global_batches(recipe(small_set), 1, 0, STEPS))
    assert not list(tmp_path.iterdir())
    # Not even looked for.
    global_batches(cached(small_set, tmp_path / "nowhere"), 1, 0, 1)


def test_validation_and_open_stream_go_through_the_machines_cache(
    stored: str, tmp_path: Path, wire: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIR_VARIABLE, str(tmp_path))
    monkeypatch.setenv(SIZE_VARIABLE, "64 MiB")
    config = recipe(stored)
    with vit_dist.open_stream(stored, batch=50, rank=0, world_size=1, image_size=28, epochs=1) as stream:
        seen = [key for batch, _ in stream for key in batch.keys]
    assert len(set(seen)) == 200
    first = len(wire)
    assert first == 7
    batches = [b for b in EvalBatches(read_manifest(stored), config.data, World(), 50) if b is not None]
    assert sum(len(b.ordinals) for b in batches) == 200
    assert len(wire) == first


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shard_that_was_mended_is_not_held_to_what_it_was(
    small_set: str, stored: str, tmp_path: Path, shape: str
) -> None:
    config, store = cached(stored, tmp_path, *SHAPES[shape]), fsspec.filesystem("memory")
    right, other = (store.cat_file(f"/bucket/small/shard-00000{i}.tar") for i in (2, 3))
    store.pipe_file("/bucket/small/shard-000002.tar", (other * 2)[: len(right)])
    with pytest.raises(DataError, match=r"shard-000002\.tar: the index says sample"):
        global_batches(config, 1, 0, STEPS + 5)
    store.pipe_file("/bucket/small/shard-000002.tar", right)
    expected = digest(global_batches(recipe(small_set, *SHAPES[shape]), 1, 0, STEPS + 5))
    assert digest(global_batches(config, 1, 0, STEPS + 5)) == expected
    # And where all of it, with checksums that fit, is another shard's.
    manifest, cache = read_manifest(stored), ShardCache(tmp_path, 64 << 20, "test")
    for number in range(7):
        entry = manifest.shards[number]
        known = CachedShard.of(manifest.shard_url(number), entry.num_bytes, entry.checksum)
        cache.forget(known)
        wrong = (right * 2)[512 : 512 + entry.num_bytes]
        cache.read(known, 0, entry.num_bytes, lambda start, end, wrong=wrong: wrong[start:end])
    assert digest(global_batches(config, 1, 0, STEPS + 5)) == expected


def test_it_is_no_part_of_what_a_run_is(stored: str, tmp_path: Path) -> None:
    plain, with_cache = recipe(stored), cached(stored, tmp_path)
    assert recipe_hash(plain) == recipe_hash(with_cache)
    assert "cache" not in dump(plain)["data"]
    assert dump(with_cache)["data"]["cache"] == {"dir": str(tmp_path), "size": 64 << 20}


def test_a_cache_of_half_the_set_has_hits_for_half_of_it(tmp_path: Path) -> None:
    """Each shard is read once an epoch, in another order each time: what was there stays."""
    entries = [Shard(f"s3://b/{i}.tar", 1, 3 * CELL, f"{i:032x}", f"{i}.idx", "0" * 32) for i in range(40)]
    manifest = ShardManifest("s3://b", "set", tuple(entries), True, 4)
    # 40 shards of 3 cells, and room for about 20 of them.
    cache = ShardCache(tmp_path, 20 * (3 * CELL + 20_000) + (1 << 18), "test")
    cache.keep(Parts([Part(manifest, select(manifest, None))]))
    order = np.random.default_rng(0)
    # What another job has left goes first, even though it was used just now.
    other = CachedShard.of("s3://b/other.tar", 9 * CELL, "f" * 32)
    cache.read(other, 0, 9 * CELL, lambda start, end: bytes(end - start))
    shares = []
    for _ in range(4):
        before = cache.counts()
        for number in order.permutation(40):
            shard = CachedShard.of(entries[number].url, 3 * CELL, entries[number].checksum)
            cache.read(shard, 0, 3 * CELL, lambda start, end: bytes(end - start))
        shares.append((cache.counts() - before).hits)
    assert shares[0] == 0
    assert all(share is not None and 0.45 < share < 0.6 for share in shares[1:])
    assert cache.counts().evicted_bytes >= 9 * CELL
