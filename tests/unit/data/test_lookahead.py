"""Windows that are read together, and ranges that are read in parts, give the batches of those that are not."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.shards import write_set
from tests.streams import digest, global_batches, recipe
from vit_dist.core.errors import DataError
from vit_dist.data import segments, sets
from vit_dist.data.segments import Range, cuts
from vit_dist.data.sets import TrainingSet, open_training_set

SHAPES = {
    "lanes": ("data.lanes=4", "data.window=5"),
    "windows of one": ("data.lanes=2", "data.window=1"),
    "one lane": ("data.lanes=1", "data.window=7"),
    "a subset": ("data.lanes=4", "data.window=4", "data.subset=50"),
    "uneven lanes": ("data.lanes=8", "data.window=3"),
    "longer than a shard": ("data.lanes=2", "data.window=30"),
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_set(tmp_path_factory.mktemp("set"), num_samples=90, samples_per_shard=18, num_classes=4)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what is asked for from now on."""
    taken: list[int] = []
    read_into = segments.RangeReader.read_into

    def count(self: segments.RangeReader, url: str, start: int, into: memoryview) -> None:
        taken.append(len(into))
        read_into(self, url, start, into)

    monkeypatch.setattr(segments.RangeReader, "read_into", count)
    return taken


@pytest.mark.parametrize("at_once", [2, 3, 50])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_windows_read_together_give_the_same_batches(
    manifest: str, monkeypatch: pytest.MonkeyPatch, shape: tuple[str, ...], at_once: int
) -> None:
    config, taken = recipe(manifest, *shape), counted(monkeypatch)
    expected, apart = digest(global_batches(config, 1, 3, 8)), len(taken)
    taken.clear()
    monkeypatch.setattr(TrainingSet, "windows_at_once", lambda *_: at_once)
    assert digest(global_batches(config, 1, 3, 8)) == expected
    if "data.window=30" not in shape and "data.window=7" not in shape:
        assert len(taken) < apart
    assert digest(global_batches(config, 2, 3, 8)) == expected


@pytest.mark.parametrize("most", [100, 1000, 5000])
@pytest.mark.parametrize("shape", [(), SHAPES["lanes"]], ids=["whole shards", "lanes"])
def test_ranges_read_in_parts_give_the_same_batches(
    manifest: str, monkeypatch: pytest.MonkeyPatch, shape: tuple[str, ...], most: int
) -> None:
    config, taken = recipe(manifest, *shape), counted(monkeypatch)
    expected = digest(global_batches(config, 1, 0, 8))
    monkeypatch.setattr(segments, "MOST_RANGE_BYTES", most)
    taken.clear()
    assert digest(global_batches(config, 1, 0, 8)) == expected
    assert max(taken) <= most


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (5, 5), (0, 16 << 20), (7, (16 << 20) + 8), (3, 100 << 20)])
def test_parts_are_equal_and_neither_small_nor_large(begin: int, end: int) -> None:
    ends = cuts(begin, end)
    lengths = [b - a for a, b in zip([begin, *ends], ends, strict=False)]
    assert ends[-1] == end
    assert sum(lengths) == end - begin
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= 16 << 20
    assert len(ends) == 1 or min(lengths) >= 8 << 20


def test_bytes_wait_for_their_own_parts_alone() -> None:
    parts: list[Future[None]] = [Future() for _ in range(3)]
    found = Range(100, memoryview(bytes(range(30))), [110, 120, 130], parts)
    parts[1].set_result(None)
    assert found.bytes(110, 120) == bytes(range(10, 20))
    parts[2].set_exception(DataError("gone"))
    with pytest.raises(DataError, match="gone"):
        found.bytes(115, 121)
    threading.Timer(0.05, parts[0].set_result, [None]).start()
    assert found.bytes(105, 115) == bytes(range(5, 15))


def test_windows_are_read_together_as_far_as_the_limit_allows(manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_training_set(recipe(manifest, "data.lanes=2", "data.window=3"))
    held = data.read_ahead_bytes(1)
    assert data.windows_at_once(1, 1 << 40) == 1, "from a disk nothing is gained"
    monkeypatch.setattr(sets, "is_remote", lambda _: True)
    window = data.num_bytes * 3 // 90
    assert data.windows_at_once(1, 1 << 40) == -(-(8 << 20) // window)
    assert data.windows_at_once(1, 3 * held + 1) == 3
    assert data.windows_at_once(1, held - 1) == 1
    whole = open_training_set(recipe(manifest))
    assert whole.windows_at_once(1, 1 << 40) == 1


def test_a_broken_read_of_windows_together_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = write_set(tmp_path, num_samples=40, samples_per_shard=20, num_classes=4)
    for shard in tmp_path.glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:3000])
    monkeypatch.setattr(TrainingSet, "windows_at_once", lambda *_: 4)
    with pytest.raises(DataError, match="has 3,000 bytes, and its manifest says"):
        global_batches(recipe(local, "data.lanes=2", "data.window=4"), 1, 0, 6)
